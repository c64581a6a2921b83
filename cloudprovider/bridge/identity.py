"""Who is calling: the tenant in a client certificate, and whether it may still be trusted.

The identity is a SPIFFE ID (https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md) of the form
``spiffe://TRUST-DOMAIN/ns/NAMESPACE/cluster/NAME``, the certificate's only URI SAN. The TLS handshake has already
checked the chain up to the tenants' CA; what is left is what gRPC does not offer: revocation (its Python API has no
CRL), a lowest TLS version, and the dates at every call instead of only at the handshake.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cloudprovider.bridge.api import PeerCertificate, Reason, TenantPolicy
from cloudprovider.core.errors import BridgeError, ConfigurationError
from cloudprovider.core.exchange import Tenant

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CLUSTER = re.compile(r"[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?")
_DATE = "%Y-%m-%dT%H:%M:%SZ"
_TENANT_URI = re.compile(r"spiffe://([^/]+)/ns/([^/]+)/cluster/([^/]+)")


def tenant_uri(trust_domain: str, tenant: Tenant) -> str:
    """Return the URI SAN that makes a certificate ``tenant``'s.

    Raises ConfigurationError if a name has characters, or a length, that it can't have.
    """
    for what, value, pattern in (
        ("trust domain", trust_domain, _TRUST_DOMAIN),
        ("namespace", tenant.namespace, _NAMESPACE),
        ("cluster", tenant.cluster, _CLUSTER),
    ):
        if not pattern.fullmatch(value):
            raise ConfigurationError(f"{what} {value!r} is not allowed in a tenant's identity: use {pattern.pattern}")
    return f"spiffe://{trust_domain}/ns/{tenant.namespace}/cluster/{tenant.cluster}"


def parse_tenant_uris(uris: Iterable[str], trust_domain: str) -> Tenant:
    """Return the tenant that a certificate's URI SANs name.

    Raises BridgeError CERTIFICATE_INVALID unless there is exactly one, of ``trust_domain`` and well formed.
    """
    found = list(uris)
    if len(found) != 1:
        raise _invalid(f"it has {len(found)} URI names, not exactly one")
    match = _TENANT_URI.fullmatch(found[0])
    if not match:
        raise _invalid(f"its URI name is not of the form spiffe://{trust_domain}/ns/NAMESPACE/cluster/NAME")
    domain, namespace, cluster = match.groups()
    if domain != trust_domain:
        raise _invalid(f"its trust domain is {domain!r}, this host's is {trust_domain!r}")
    if not _NAMESPACE.fullmatch(namespace) or not _CLUSTER.fullmatch(cluster):
        raise _invalid("namespace or cluster name in it is not a Kubernetes name of at most 63 characters")
    return Tenant(namespace, cluster)


def check(certificate: PeerCertificate, policy: TenantPolicy | None, now: datetime) -> TenantPolicy:
    """Return the policy of a tenant whose certificate may be used now.

    Raises BridgeError UNKNOWN_TENANT, CERTIFICATE_EXPIRED or CERTIFICATE_REVOKED.
    """
    if not certificate.not_before <= now < certificate.not_after:
        raise BridgeError(
            f"the client certificate is valid from {certificate.not_before:{_DATE}}"
            f" to {certificate.not_after:{_DATE}}, and it is {now:{_DATE}} by the host's clock: "
            + ("renew it" if now >= certificate.not_after else "set the clocks right"),
            reason=Reason.CERTIFICATE_EXPIRED,
            retryable=False,
        )
    if policy is None:
        raise BridgeError(
            f"there is no GuestCluster {certificate.tenant.path} on the host: its operator has to create it first",
            reason=Reason.UNKNOWN_TENANT,
            retryable=False,
        )
    if certificate.fingerprint in policy.revoked_fingerprints:
        raise _revoked(f"the host's operator has revoked the client certificate {certificate.fingerprint}")
    if policy.revoked_before is not None and certificate.not_before < policy.revoked_before:
        raise _revoked(
            f"the host's operator has revoked all client certificates that begin before {policy.revoked_before:{_DATE}}"
            f" (GuestCluster spec.revokedBefore); {certificate.fingerprint} begins at {certificate.not_before:{_DATE}}"
        )
    return policy


class Authenticator:
    """Turns gRPC's auth context into a certificate; remembers the last certificates it has parsed."""

    def __init__(self, trust_domain: str, *, remember: int = 1024) -> None:
        self._trust_domain = trust_domain
        self._remember = remember
        self._parsed: OrderedDict[bytes, PeerCertificate] = OrderedDict()

    def certificate(self, auth_context: Mapping[str, Iterable[bytes]]) -> PeerCertificate:
        """Return the caller's certificate.

        Raises BridgeError TLS_VERSION for a connection below TLS 1.3, CERTIFICATE_INVALID.
        """
        versions = [version.decode("ascii", "replace") for version in auth_context.get("ssl_tls_version", ())]
        if versions != ["TLSv1.3"]:
            raise BridgeError(
                f"the connection speaks {', '.join(versions) or 'no TLS'}, the bridge wants TLSv1.3:"
                " enable it in the client",
                reason=Reason.TLS_VERSION,
                retryable=False,
            )
        pems = list(auth_context.get("x509_pem_cert", ()))
        if len(pems) != 1:
            raise _invalid("there is none")
        known = self._parsed.get(pems[0])
        if known is None:
            known = self._parse(pems[0])
            self._parsed[pems[0]] = known
            if len(self._parsed) > self._remember:
                self._parsed.popitem(last=False)
        return known

    def _parse(self, pem: bytes) -> PeerCertificate:
        try:
            certificate = x509.load_pem_x509_certificate(pem)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        except x509.ExtensionNotFound:
            uris = []
        except ValueError as e:
            raise _invalid("it can't be parsed") from e
        return PeerCertificate(
            tenant=parse_tenant_uris(uris, self._trust_domain),
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            trust_domain=self._trust_domain,
        )


def _invalid(why: str) -> BridgeError:
    return BridgeError(
        f"the client certificate names no tenant: {why}. Issue one with `cloudprovider tenant`",
        reason=Reason.CERTIFICATE_INVALID,
        retryable=False,
    )


def _revoked(what: str) -> BridgeError:
    return BridgeError(f"{what}: ask for a new certificate", reason=Reason.CERTIFICATE_REVOKED, retryable=False)
