"""Certificates for the bridge: the tenants' CA, the server's certificate, and one certificate a tenant.

ECDSA P-256 throughout: gRPC's BoringSSL does not offer Ed25519 by default. Where cert-manager issues certificates
instead, nothing here is needed; only the tenant's URI SAN has to be the one of :func:`tenant_uri`.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloudprovider.bridge.identity import tenant_uri
from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.exchange import Tenant

CLOCK_SKEW = timedelta(minutes=5)
"""How far before its making a certificate begins to be valid: the other side's clock may be late."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its key, both PEM. The key is not encrypted: keep it as a Secret or with mode 0600."""

    certificate: bytes
    key: bytes

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, as GuestCluster.spec.revokedFingerprints wants it."""
        return x509.load_pem_x509_certificate(self.certificate).fingerprint(hashes.SHA256()).hex()


def make_ca(common_name: str, *, now: datetime, validity: timedelta) -> KeyPair:
    """Return a new self-signed CA that may sign end certificates only."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(common_name)
    builder = (
        _builder(name, key.public_key(), now=now, validity=validity)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def issue_server(ca: KeyPair, hosts: Sequence[str], *, now: datetime, validity: timedelta) -> KeyPair:
    """Return a server certificate for ``hosts``: DNS names or IP addresses that guests reach the bridge by.

    Raises ConfigurationError if there is no host, or the CA can't be read or does not live long enough.
    """
    if not hosts:
        raise ConfigurationError("a server certificate needs at least one DNS name or IP address of the bridge")
    names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
    return _issue(ca, hosts[0], names, ExtendedKeyUsageOID.SERVER_AUTH, now=now, validity=validity)


def issue_tenant(ca: KeyPair, tenant: Tenant, trust_domain: str, *, now: datetime, validity: timedelta) -> KeyPair:
    """Return a client certificate whose one URI SAN names ``tenant``.

    Raises ConfigurationError if a name is not allowed there, or the CA can't be read or does not live long enough.
    """
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(tenant_uri(trust_domain, tenant))])
    return _issue(ca, tenant.cluster, names, ExtendedKeyUsageOID.CLIENT_AUTH, now=now, validity=validity)


def _issue(
    ca: KeyPair,
    common_name: str,
    names: x509.SubjectAlternativeName,
    usage: x509.ObjectIdentifier,
    *,
    now: datetime,
    validity: timedelta,
) -> KeyPair:
    try:
        issuer = x509.load_pem_x509_certificate(ca.certificate)
        issuer_key = serialization.load_pem_private_key(ca.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ConfigurationError(f"the CA's certificate or key can't be read (PEM, unencrypted key): {e}") from e
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey) or issuer_key.public_key() != issuer.public_key():
        raise ConfigurationError("the CA's key is not an ECDSA key that belongs to the CA's certificate")
    if now + validity > issuer.not_valid_after_utc:
        raise ConfigurationError(
            f"the CA ends at {issuer.not_valid_after_utc:%Y-%m-%d %H:%M}Z, before the certificate to be issued would:"
            " ask for a shorter validity, or renew the CA"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(common_name), key.public_key(), now=now, validity=validity)
        .issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    return _pair(builder.sign(issuer_key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, *, now: datetime, validity: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])  # RFC 5280: at most 64


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> KeyPair:
    return KeyPair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
