"""What a certificate says, as far as somebody here has to know: whose it is, when it ends, who has signed it."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization

from cloudprovider.bridge.certificates import KeyPair


def certificates(pem: bytes) -> Sequence[x509.Certificate]:
    """Return all certificates of a PEM text, at least one. Raises ValueError."""
    return x509.load_pem_x509_certificates(pem)


def pem_of(bundle: Sequence[x509.Certificate]) -> bytes:
    """Return ``bundle`` as one PEM text."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in bundle)


def end_of(pair: KeyPair) -> datetime:
    """When it ends."""
    return x509.load_pem_x509_certificate(pair.certificate).not_valid_after_utc


def is_due(pair: KeyPair, life: timedelta, now: datetime) -> bool:
    """Whether two thirds of its life are over."""
    return now >= end_of(pair) - life / 3


def names_of(pair: KeyPair) -> frozenset[str]:
    """Return the DNS names and addresses that it is for."""
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return frozenset((*names.get_values_for_type(x509.DNSName), *addresses))


def uris_of(pair: KeyPair) -> frozenset[str]:
    """Return its URI names: a tenant's identity."""
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(names.get_values_for_type(x509.UniformResourceIdentifier))


def is_signed_by(pair: KeyPair, authorities: Sequence[x509.Certificate]) -> bool:
    """Whether one of ``authorities`` has signed it."""
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    for authority in authorities:
        try:
            certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return True
    return False


def keys_of(bundle: Iterable[x509.Certificate]) -> frozenset[tuple[bytes, bytes]]:
    """Return names and keys of CAs: what makes two certificates the same CA, which may have been renewed."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return frozenset(
        (c.subject.public_bytes(), c.public_key().public_bytes(serialization.Encoding.DER, form)) for c in bundle
    )


def belongs(pair: KeyPair) -> bool:
    """Whether key and certificate belong together. Raises ValueError, TypeError, UnsupportedAlgorithm."""
    key = serialization.load_pem_private_key(pair.key, password=None)
    return key.public_key() == x509.load_pem_x509_certificate(pair.certificate).public_key()
