"""The webhook's own CA and certificate: made and renewed by the program, kept in a Secret that all its copies share.

Nothing here reads a clock or an API server: what the Secret holds, the names that the API server calls, and the time
go in, and what it is to hold comes out.

A CA that is renewed stays in the bundle until it ends, as certificates that it has signed are still shown; the next
certificate is signed by the new one. So nothing that is trusted changes at the moment when something else is shown.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from cloudprovider.bridge.certificates import KeyPair, issue_server, make_ca
from cloudprovider.bridge.inspection import belongs, certificates, end_of, is_due, is_signed_by, names_of, pem_of

CA_NAME: Final = "cloudprovider webhook CA"
_CA: Final = "ca.crt"
_CA_KEY: Final = "ca.key"
_CERTIFICATE: Final = "tls.crt"
_KEY: Final = "tls.key"


@dataclass(frozen=True, kw_only=True)
class Lives:
    """How long certificates live. Each is renewed when two thirds of its life are over."""

    ca: timedelta = timedelta(days=3650)
    serving: timedelta = timedelta(days=90)


@dataclass(frozen=True, slots=True)
class Material:
    """``ca`` signs; ``retired`` (PEM) are CAs before it; ``serving`` is what the webhook shows."""

    ca: KeyPair
    retired: bytes
    serving: KeyPair

    @property
    def bundle(self) -> bytes:
        """What the API server is to trust, PEM: the newest CA first."""
        return self.ca.certificate + self.retired


def read(data: Mapping[str, str]) -> Material | None:
    """Return what a Secret holds; None if that is nothing, or can't be used: it is then made anew."""
    try:
        pem = {name: base64.b64decode(data[name], validate=True) for name in (_CA, _CA_KEY, _CERTIFICATE, _KEY)}
        newest, *retired = x509.load_pem_x509_certificates(pem[_CA])
        ca = KeyPair(pem_of([newest]), pem[_CA_KEY])
        serving = KeyPair(pem[_CERTIFICATE], pem[_KEY])
        if not (belongs(ca) and belongs(serving)):
            return None
    except (KeyError, ValueError, TypeError, binascii.Error, UnsupportedAlgorithm):
        return None
    return Material(ca, pem_of(retired), serving)


def data_of(material: Material) -> dict[str, str]:
    """Return what the Secret is to hold."""
    parts = {
        _CA: material.bundle,
        _CA_KEY: material.ca.key,
        _CERTIFICATE: material.serving.certificate,
        _KEY: material.serving.key,
    }
    return {name: base64.b64encode(value).decode() for name, value in parts.items()}


def renewed(material: Material | None, hosts: Sequence[str], *, now: datetime, lives: Lives) -> Material:
    """Return what is to be used from now on: the same object while nothing is due.

    ``hosts``: the DNS names and IP addresses that the API server calls, at least one.
    """
    if material is None:
        ca = make_ca(CA_NAME, now=now, validity=lives.ca)
        return Material(ca, b"", issue_server(ca, hosts, now=now, validity=lives.serving))
    ca, retired = material.ca, material.retired
    if is_due(ca, lives.ca, now) or now + lives.serving > end_of(ca):
        retired = pem_of([c for c in certificates(material.bundle) if c.not_valid_after_utc > now])
        ca = make_ca(CA_NAME, now=now, validity=lives.ca)
    serving = material.serving
    if (
        is_due(serving, lives.serving, now)
        or not set(hosts) <= names_of(serving)
        or not is_signed_by(serving, certificates(ca.certificate + retired))
    ):
        serving = issue_server(ca, hosts, now=now, validity=lives.serving)
    if ca is material.ca and serving is material.serving:
        return material
    return Material(ca, retired, serving)
