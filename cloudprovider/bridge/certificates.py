"""Certificates for the bridge: the tenants' CA, the server's certificate, and one certificate a tenant.

ECDSA P-256 for what is made here: gRPC's BoringSSL does not offer Ed25519 by default. A CA by somebody else
(cert-manager) may as well be RSA. Whoever issues: the tenant's URI SAN has to be the one of :func:`tenant_uri`.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloudprovider.bridge.identity import tenant_uri
from cloudprovider.core.errors import ConfigurationError, InvalidRequest, Violation
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
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(hosts[0]), key.public_key(), now=now, validity=validity)
    return _pair(_signed(ca, builder, names, ExtendedKeyUsageOID.SERVER_AUTH, ends=now + validity), key)


def issue_tenant(
    ca: KeyPair,
    tenant: Tenant,
    trust_domain: str,
    *,
    now: datetime,
    validity: timedelta,
    not_before: datetime | None = None,
) -> KeyPair:
    """Return a client certificate whose one URI SAN names ``tenant``.

    ``not_before``: it does not begin earlier, as the tenant's certificates from before then are revoked.
    Raises ConfigurationError if a name is not allowed there, or the CA can't be read or does not live long enough.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _tenants(
        ca, tenant, trust_domain, key.public_key(), now=now, validity=validity, not_before=not_before
    )
    return _pair(certificate, key)


def make_request() -> KeyPair:
    """Return a new key, and in the certificate's place a request for one (PKCS #10, PEM), which names nobody."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return KeyPair(
        request.public_bytes(serialization.Encoding.PEM),
        _private(key),
    )


def sign_request(
    ca: KeyPair,
    request: bytes,
    tenant: Tenant,
    trust_domain: str,
    *,
    now: datetime,
    validity: timedelta,
    not_before: datetime | None = None,
) -> bytes:
    """Return the certificate (PEM) of ``tenant`` for the key of ``request`` (PKCS #10, PEM): whom it names, and what
    else it asks for, counts for nothing. It ends with the CA at the latest.

    Raises InvalidRequest for what is no request, or was not signed by its own key; else as :func:`issue_tenant`.
    """
    try:
        asked = x509.load_pem_x509_csr(request)
        key = asked.public_key()
        fine = asked.is_signature_valid and isinstance(key, ec.EllipticCurvePublicKey)
    except (ValueError, UnsupportedAlgorithm, InvalidSignature):
        fine = False
    if not fine or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidRequest(
            Violation(
                field="csr",
                reason="Malformed",
                message="it is no certificate request (PKCS #10, PEM) of an ECDSA P-256 key, signed by that key",
            )
        )
    left = x509.load_pem_x509_certificate(ca.certificate).not_valid_after_utc - now
    certificate = _tenants(ca, tenant, trust_domain, key, now=now, validity=min(validity, left), not_before=not_before)
    return certificate.public_bytes(serialization.Encoding.PEM)


def _tenants(
    ca: KeyPair,
    tenant: Tenant,
    trust_domain: str,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    validity: timedelta,
    not_before: datetime | None,
) -> x509.Certificate:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(tenant_uri(trust_domain, tenant))])
    builder = _builder(_name(tenant.cluster), key, now=now, validity=validity, not_before=not_before)
    return _signed(ca, builder, names, ExtendedKeyUsageOID.CLIENT_AUTH, ends=now + validity)


def _signed(
    ca: KeyPair,
    builder: x509.CertificateBuilder,
    names: x509.SubjectAlternativeName,
    usage: x509.ObjectIdentifier,
    *,
    ends: datetime,
) -> x509.Certificate:
    try:
        issuer = x509.load_pem_x509_certificate(ca.certificate)
        issuer_key = serialization.load_pem_private_key(ca.key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise ConfigurationError(f"the CA's certificate or key can't be read (PEM, unencrypted key): {e}") from e
    if (
        not isinstance(issuer_key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey)
        or issuer_key.public_key() != issuer.public_key()
    ):
        raise ConfigurationError("the CA's key is not an ECDSA or RSA key that belongs to the CA's certificate")
    if ends > issuer.not_valid_after_utc:
        raise ConfigurationError(
            f"the CA ends at {issuer.not_valid_after_utc:%Y-%m-%d %H:%M}Z, before the certificate to be issued would:"
            " ask for a shorter validity, or renew the CA"
        )
    builder = (
        builder.issuer_name(issuer.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(_authority_key(issuer), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        # Its own word for its key: not everybody makes it of the same digest.
        known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier(
            key_identifier=None, authority_cert_issuer=None, authority_cert_serial_number=None
        )
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known)


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    validity: timedelta,
    not_before: datetime | None = None,
) -> x509.CertificateBuilder:
    begins = now - CLOCK_SKEW
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(begins, _whole(not_before)) if not_before else begins)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _whole(moment: datetime) -> datetime:
    """The whole second at or after ``moment``: certificates know no fractions, and are not to begin before it."""
    return moment.replace(microsecond=0) + timedelta(seconds=1 if moment.microsecond else 0)


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
    return KeyPair(certificate.public_bytes(serialization.Encoding.PEM), _private(key))


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
