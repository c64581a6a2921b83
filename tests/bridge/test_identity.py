"""Who is calling, piece by piece; and that an old TLS version gets nowhere, over a real connection."""

import asyncio
import ssl
import struct
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from cloudprovider.bridge.api import PeerCertificate, Reason, TenantPolicy
from cloudprovider.bridge.certificates import CLOCK_SKEW, KeyPair, issue_server, issue_tenant, make_ca
from cloudprovider.bridge.identity import Authenticator, check, parse_tenant_uris, tenant_uri
from cloudprovider.bridge.server import SERVICE_NAME
from cloudprovider.core.errors import BridgeError, ConfigurationError
from cloudprovider.core.exchange import Tenant
from tests.bridge.conftest import Bridge
from tests.bridge.tls import DAY, DOMAIN, TENANT

NOW = datetime(2026, 1, 10, tzinfo=UTC)
CERTIFICATE = PeerCertificate(TENANT, "ab" * 32, NOW - DAY, NOW + DAY, DOMAIN)
URI = "spiffe://harvester.local/ns/tenants/cluster/blue"


def test_uri_and_back() -> None:
    assert tenant_uri(DOMAIN, TENANT) == URI
    assert parse_tenant_uris([URI], DOMAIN) == TENANT
    assert parse_tenant_uris([tenant_uri(DOMAIN, Tenant("n", "c.1-x"))], DOMAIN) == Tenant("n", "c.1-x")


@pytest.mark.parametrize(
    "uris",
    [
        [],
        [URI, URI],
        [URI, "https://example.org"],
        ["spiffe://elsewhere/ns/tenants/cluster/blue"],
        ["spiffe://harvester.local/ns/tenants/cluster/"],
        ["spiffe://harvester.local/ns/tenants/cluster/blue/more"],
        ["spiffe://harvester.local/ns/ten ants/cluster/blue"],
        ["spiffe://harvester.local/ns/Tenants/cluster/blue"],
        ["spiffe://harvester.local/ns/tenants/cluster/" + "b" * 64],
        ["spiffe://harvester.local/ns/../cluster/blue"],
        ["spiffe://harvester.local/ns/tenants/cluster/blue\n"],
        ["SPIFFE://harvester.local/ns/tenants/cluster/blue"],
        ["spiffe://harvester.local/ns/tenants/cluster/blue?x"],
    ],
)
def test_uris_that_name_nobody(uris: list[str]) -> None:
    with pytest.raises(BridgeError) as e:
        parse_tenant_uris(uris, DOMAIN)
    assert e.value.reason == Reason.CERTIFICATE_INVALID
    assert not e.value.retryable


@pytest.mark.parametrize("tenant", [Tenant("", "c"), Tenant("n", "c/x"), Tenant("n", "C"), Tenant("n.m", "c")])
def test_no_certificate_for_impossible_names(tenant: Tenant) -> None:
    with pytest.raises(ConfigurationError):
        tenant_uri(DOMAIN, tenant)


def test_dates_are_half_open() -> None:
    policy = TenantPolicy()
    assert check(CERTIFICATE, policy, CERTIFICATE.not_before) is policy
    for moment in (CERTIFICATE.not_before - timedelta(seconds=1), CERTIFICATE.not_after):
        with pytest.raises(BridgeError) as e:
            check(CERTIFICATE, policy, moment)
        assert e.value.reason == Reason.CERTIFICATE_EXPIRED


def test_revocation() -> None:
    check(CERTIFICATE, TenantPolicy(revoked_before=CERTIFICATE.not_before), NOW)
    check(CERTIFICATE, TenantPolicy(revoked_fingerprints=frozenset({"cd" * 32})), NOW)
    for policy in (
        TenantPolicy(revoked_before=CERTIFICATE.not_before + timedelta(seconds=1)),
        TenantPolicy(revoked_fingerprints=frozenset({CERTIFICATE.fingerprint})),
    ):
        with pytest.raises(BridgeError) as e:
            check(CERTIFICATE, policy, NOW)
        assert e.value.reason == Reason.CERTIFICATE_REVOKED
    with pytest.raises(BridgeError) as e:
        check(CERTIFICATE, None, NOW)
    assert e.value.reason == Reason.UNKNOWN_TENANT


@pytest.fixture(scope="module")
def ca() -> KeyPair:
    return make_ca("ca", now=NOW, validity=30 * DAY)


def context(pair: KeyPair, version: bytes = b"TLSv1.3") -> dict[str, list[bytes]]:
    return {"ssl_tls_version": [version], "x509_pem_cert": [pair.certificate]}


def test_certificate_is_read_whole(ca: KeyPair) -> None:
    pair = issue_tenant(ca, TENANT, DOMAIN, now=NOW, validity=DAY)
    certificate = Authenticator(DOMAIN).certificate(context(pair))
    assert certificate == PeerCertificate(TENANT, pair.fingerprint, NOW - CLOCK_SKEW, NOW + DAY, DOMAIN)


@pytest.mark.parametrize("version", [b"TLSv1.2", b"TLSv1.1", b""])
def test_old_tls(ca: KeyPair, version: bytes) -> None:
    pair = issue_tenant(ca, TENANT, DOMAIN, now=NOW, validity=DAY)
    with pytest.raises(BridgeError) as e:
        Authenticator(DOMAIN).certificate(context(pair, version))
    assert e.value.reason == Reason.TLS_VERSION


def test_no_certificate_garbage_and_one_without_names(ca: KeyPair) -> None:
    authenticator = Authenticator(DOMAIN, remember=1)
    for broken in (
        {"ssl_tls_version": [b"TLSv1.3"]},
        context(KeyPair(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"")),
        context(ca),
        context(issue_server(ca, ["bridge"], now=NOW, validity=DAY)),
        {},
    ):
        with pytest.raises(BridgeError):
            authenticator.certificate(broken)


def test_memory_of_certificates_is_bounded(ca: KeyPair) -> None:
    authenticator = Authenticator(DOMAIN, remember=2)
    for _ in range(2):
        for name in ("a", "b", "c"):
            pair = issue_tenant(ca, Tenant("n", name), DOMAIN, now=NOW, validity=DAY)
            assert authenticator.certificate(context(pair)).tenant.cluster == name
    assert len(authenticator._parsed) == 2


def test_issuing_refuses_what_would_not_work(ca: KeyPair) -> None:
    with pytest.raises(ConfigurationError, match="before the certificate"):
        issue_tenant(ca, TENANT, DOMAIN, now=NOW, validity=31 * DAY)
    with pytest.raises(ConfigurationError, match="key"):
        issue_tenant(replace(ca, key=make_ca("x", now=NOW, validity=DAY).key), TENANT, DOMAIN, now=NOW, validity=DAY)
    with pytest.raises(ConfigurationError, match="can't be read"):
        issue_tenant(replace(ca, certificate=b"nothing"), TENANT, DOMAIN, now=NOW, validity=DAY)
    with pytest.raises(ConfigurationError, match="at least one"):
        issue_server(ca, [], now=NOW, validity=DAY)


def test_server_names(ca: KeyPair) -> None:
    pair = issue_server(ca, ["bridge.example", "192.0.2.1", "2001:db8::1"], now=NOW, validity=DAY)
    names = x509.load_pem_x509_certificate(pair.certificate).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["bridge.example"]
    assert [str(a) for a in names.value.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "2001:db8::1"]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _header(name: str, value: str) -> bytes:
    """A literal header field without indexing (RFC 7541, section 6.2.2), names and values below 127 bytes."""
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


async def _delete_over(bridge: Bridge, version: ssl.TLSVersion) -> bytes:
    """Call the bridge over one TLS version, with HTTP/2 written by hand; return what it says until it is done."""
    paths = bridge.authority.write("raw", bridge.authority.client())
    tls = ssl.create_default_context(cafile=str(paths.ca))
    tls.minimum_version = tls.maximum_version = version
    tls.load_cert_chain(paths.certificate, paths.key)
    tls.set_alpn_protocols(["h2"])
    reader, writer = await asyncio.open_connection("127.0.0.1", bridge.port, ssl=tls)
    headers = (
        (":method", "POST"),
        (":scheme", "https"),
        (":path", f"/{SERVICE_NAME}/DeleteLoadBalancer"),
        (":authority", "127.0.0.1"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    writer.write(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(4, 0, 0, b"")
        + _frame(1, 4, 1, b"".join(_header(*h) for h in headers))
        + _frame(0, 1, 1, b"\x00\x00\x00\x00\x00")
    )
    try:
        async with asyncio.timeout(10):
            while True:
                length, kind, flags, _ = struct.unpack(">3sBBI", await reader.readexactly(9))
                payload = await reader.readexactly(int.from_bytes(length, "big"))
                if kind == 1 and flags & 1:
                    return payload
    finally:
        writer.transport.abort()


@pytest.mark.parametrize(
    ("version", "reason"),
    [(ssl.TLSVersion.TLSv1_2, b"wants TLSv1.3"), (ssl.TLSVersion.TLSv1_3, b"has not introduced itself")],
)
async def test_tls_1_2_is_refused(bridge: Bridge, version: ssl.TLSVersion, reason: bytes) -> None:
    assert reason in await _delete_over(bridge, version)
    assert not bridge.backend.calls
