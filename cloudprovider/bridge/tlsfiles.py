"""Certificate, key and CA in files that somebody renews: read whole, checked, and read again when they change."""

import logging
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from cloudprovider.core.errors import ConfigurationError

log = logging.getLogger(__name__)

_Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class TlsPaths:
    """Where the PEM files are. ``ca`` signs the other side's certificates. ``renewed``: where those are that have
    been issued since, if any: of both, the certificate that begins later is used, with its key and CA."""

    certificate: Path
    key: Path
    ca: Path
    renewed: "TlsPaths | None" = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """What the files at ``paths`` hold, PEM, and the own certificate's dates."""

    paths: TlsPaths
    certificate: bytes
    key: bytes
    ca: bytes
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Side:
    """Which side of a connection shows the certificate. ``instead``: the likely mistake, and what mends it."""

    usage: x509.ObjectIdentifier
    instead: str


CLIENT: Final = Side(
    ExtendedKeyUsageOID.CLIENT_AUTH,
    "it is not made for clients (extended key usage): is it the bridge's own? Put the guest's there, which"
    " `cloudprovider tenant create` issues",
)
SERVER: Final = Side(
    ExtendedKeyUsageOID.SERVER_AUTH,
    "it is not made for servers (extended key usage): is it a guest's? Put the bridge's there, which"
    " `cloudprovider tenant server-certificate` issues",
)


class TlsFiles:
    """The files, and what they held when last found good. Safe to use from several threads."""

    def __init__(self, paths: TlsPaths, side: Side) -> None:
        self.paths = paths
        self._side = side
        self._lock = threading.Lock()
        self._good: _Signature | None = None
        self._bad: _Signature | None = None
        self._told: _Signature | None = None

    def load(self) -> TlsMaterial:
        """Return what the files hold now.

        Raises ConfigurationError if one is missing, can't be parsed, key and certificate do not belong together, or
        the certificate is for the other side.
        """
        with self._lock:
            return self._newest(self._signature())

    def ends(self) -> datetime | None:
        """When the certificate ends that the files hold; None while they can't be read."""
        try:
            return self.load().not_after
        except ConfigurationError:
            return None

    def changed(self) -> TlsMaterial | None:
        """Return what the files hold if they have changed since they were last good, and are good again.

        Files half written, or missing for a moment, are a warning, and are looked at again the next time.
        """
        with self._lock:
            signature: _Signature = ()
            try:
                signature = self._signature()
                return None if signature == self._good else self._newest(signature)
            except ConfigurationError as e:
                if signature != self._bad:
                    self._bad = signature
                    log.warning("Changed certificate files can't be used", extra={"error": str(e)})
                return None

    def _signature(self) -> _Signature:
        signature = _signature(self.paths)
        if self.paths.renewed is not None:
            with suppress(ConfigurationError):
                signature += _signature(self.paths.renewed)
        return signature

    def _newest(self, signature: _Signature) -> TlsMaterial:
        material = self._read(self.paths)
        if self.paths.renewed is not None:
            try:
                renewed = self._read(self.paths.renewed)
                material = renewed if renewed.not_before >= material.not_before else material
            except ConfigurationError as e:
                if self.paths.renewed.certificate.exists() and signature != self._told:
                    self._told = signature
                    log.warning("The renewed certificate can't be used.", extra={"error": str(e)})
        self._good = signature
        return material

    def _read(self, paths: TlsPaths) -> TlsMaterial:
        try:
            certificate, key, ca = (p.read_bytes() for p in (paths.certificate, paths.key, paths.ca))
        except OSError as e:
            raise _missing(e) from e
        own = _parse(paths.certificate, certificate)
        _parse(paths.ca, ca)
        try:
            private = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as e:
            raise ConfigurationError(
                f"{paths.key}: no unencrypted PEM key is in it: put the one there that was issued"
            ) from e
        if private.public_key() != own.public_key():
            raise ConfigurationError(
                f"{paths.key}: the key does not belong to the certificate {paths.certificate}: take both from the same"
                " issue of it, or have it issued anew"
            )
        if not _is_for(own, self._side.usage):
            raise ConfigurationError(f"{paths.certificate}: {self._side.instead}")
        return TlsMaterial(paths, certificate, key, ca, own.not_valid_before_utc, own.not_valid_after_utc)


def _signature(paths: TlsPaths) -> _Signature:
    try:
        stats = [p.stat() for p in (paths.certificate, paths.key, paths.ca)]
    except OSError as e:
        raise _missing(e) from e
    return tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats)


def _is_for(certificate: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True  # for whatever its key may do (RFC 5280, section 4.2.1.12)
    return usage in usages or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usages


def _missing(error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{error.filename}: {error.strerror}: certificate, key and CA have to be there (of a Secret: tls.crt, tls.key"
        " and ca.crt)"
    )


def _parse(path: Path, pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError as e:
        raise ConfigurationError(f"{path}: no PEM certificate is in it: put the one there that was issued") from e
