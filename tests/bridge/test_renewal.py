"""RenewCertificate over the wire: who may ask, what comes of it, and that it works for the next connection."""

from dataclasses import replace
from datetime import timedelta

import pytest

from cloudprovider.bridge import authority
from cloudprovider.bridge.api import Reason
from cloudprovider.bridge.certificates import KeyPair, make_request
from cloudprovider.bridge.codec import MAX_CSR_BYTES
from cloudprovider.bridge.fake import MemoryTenant
from cloudprovider.bridge.inspection import certificates
from cloudprovider.core.errors import BridgeError, InvalidRequest
from tests.bridge.backend_contract import REQUEST, WEB
from tests.bridge.conftest import Bridge
from tests.bridge.tls import DAY, OTHER, TENANT, now


def revoke_before_now(bridge: Bridge) -> None:
    tenant = bridge.backend.tenants[TENANT]
    bridge.backend.set_tenant(TENANT, replace(tenant, policy=replace(tenant.policy, revoked_before=now())))


async def test_a_renewed_certificate_connects_as_the_same_tenant(bridge: Bridge) -> None:
    bridge.backend.authority = authority.of(bridge.authority.ca)
    request = make_request()
    issued = await bridge.client().renew_certificate(request.certificate)
    paths = bridge.authority.write("renewed", KeyPair(issued.certificate, request.key))
    client = bridge.client(paths)
    assert (await client.connect()).tenant == TENANT
    await client.ensure(WEB, REQUEST)
    shown = bridge.backend.shown[TENANT]
    assert shown.fingerprint == KeyPair(issued.certificate, b"").fingerprint
    assert shown.not_after - shown.not_before == DAY + 2 * timedelta(minutes=5), "as long as before, and its slack"


async def test_nothing_asked_for_but_the_authorities(bridge: Bridge) -> None:
    bridge.backend.authority = authority.of(bridge.authority.ca)
    issued = await bridge.client().renew_certificate(b"")
    assert issued.certificate == b""
    assert certificates(issued.authorities) == certificates(bridge.authority.ca.certificate)


async def test_a_host_without_the_key_and_garbage(bridge: Bridge) -> None:
    client = bridge.client()
    with pytest.raises(BridgeError) as e:
        await client.renew_certificate(make_request().certificate)
    assert (e.value.reason, e.value.retryable) == (Reason.RENEWAL_NOT_OFFERED, False)
    bridge.backend.authority = authority.of(bridge.authority.ca)
    for garbage in (b"nothing", b"x" * (MAX_CSR_BYTES + 1)):
        with pytest.raises(InvalidRequest) as refused:
            await client.renew_certificate(garbage)
        assert [v.field for v in refused.value.violations] == ["csr"]


async def test_nobody_who_is_revoked_gets_another(bridge: Bridge) -> None:
    bridge.backend.authority = authority.of(bridge.authority.ca)
    client = bridge.client()
    await client.connect()
    revoke_before_now(bridge)
    with pytest.raises(BridgeError) as e:
        await client.renew_certificate(make_request().certificate)
    assert e.value.reason == Reason.CERTIFICATE_REVOKED
    assert "renew_certificate" not in bridge.backend.calls


async def test_another_clusters_clone_gets_none(bridge: Bridge) -> None:
    bridge.backend.authority = authority.of(bridge.authority.ca)
    tenant = MemoryTenant()
    bridge.backend.set_tenant(OTHER, replace(tenant, policy=replace(tenant.policy, cluster_uid="the first one")))
    client = bridge.client(bridge.authority.write("clone", bridge.authority.client(OTHER)))
    with pytest.raises(BridgeError) as e:
        await client.renew_certificate(make_request().certificate)
    assert e.value.reason == Reason.CLUSTER_MISMATCH


async def test_what_is_renewed_soon_after_a_revocation_is_not_revoked_by_it(bridge: Bridge) -> None:
    bridge.backend.authority = authority.of(bridge.authority.ca)
    since = now() - timedelta(minutes=2)
    tenant = bridge.backend.tenants[TENANT]
    bridge.backend.set_tenant(TENANT, replace(tenant, policy=replace(tenant.policy, revoked_before=since)))
    fresh = bridge.authority.client(made=now() + timedelta(minutes=4))
    request = make_request()
    client = bridge.client(bridge.authority.write("fresh", fresh))
    issued = await client.renew_certificate(request.certificate)
    renewed = bridge.client(bridge.authority.write("renewed", KeyPair(issued.certificate, request.key)))
    assert (await renewed.connect()).tenant == TENANT
