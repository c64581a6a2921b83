"""Certificate, key and CA in files that somebody renews: read whole, checked, and read again when they change."""

import logging
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from cloudprovider.core.errors import ConfigurationError

log = logging.getLogger(__name__)

_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """Where the PEM files are. ``ca`` signs the other side's certificates."""

    certificate: Path
    key: Path
    ca: Path


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files hold, PEM, and the own certificate's dates."""

    certificate: bytes
    key: bytes
    ca: bytes
    not_before: datetime
    not_after: datetime


class TlsFiles:
    """The files, and what they held when last found good. Safe to use from several threads."""

    def __init__(self, paths: TlsPaths) -> None:
        self.paths = paths
        self._lock = threading.Lock()
        self._good: _Signature | None = None
        self._bad: _Signature | None = None

    def load(self) -> TlsMaterial:
        """Return what the files hold now.

        Raises ConfigurationError if one is missing, can't be parsed, or key and certificate do not belong together.
        """
        with self._lock:
            return self._read(self._signature())

    def changed(self) -> TlsMaterial | None:
        """Return what the files hold if they have changed since they were last good, and are good again.

        Files half written, or missing for a moment, are a warning, and are looked at again the next time.
        """
        with self._lock:
            signature: _Signature = ()
            try:
                signature = self._signature()
                return None if signature == self._good else self._read(signature)
            except ConfigurationError as e:
                if signature != self._bad:
                    self._bad = signature
                    log.warning("Changed certificate files can't be used", extra={"error": str(e)})
                return None

    def _signature(self) -> _Signature:
        try:
            stats = [p.stat() for p in (self.paths.certificate, self.paths.key, self.paths.ca)]
        except OSError as e:
            raise ConfigurationError(f"{e.filename}: {e.strerror}") from e
        return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)

    def _read(self, signature: _Signature) -> TlsMaterial:
        paths = self.paths
        try:
            certificate, key, ca = (p.read_bytes() for p in (paths.certificate, paths.key, paths.ca))
        except OSError as e:
            raise ConfigurationError(f"{e.filename}: {e.strerror}") from e
        own = _parse(paths.certificate, certificate)
        _parse(paths.ca, ca)
        try:
            private = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise ConfigurationError(f"{paths.key}: no unencrypted PEM key: {e}") from e
        if private.public_key() != own.public_key():
            raise ConfigurationError(f"{paths.key}: the key does not belong to the certificate {paths.certificate}")
        self._good = signature
        return TlsMaterial(certificate, key, ca, own.not_valid_before_utc, own.not_valid_after_utc)


def _parse(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError as e:
        raise ConfigurationError(f"{path}: no PEM certificate: {e}") from e
