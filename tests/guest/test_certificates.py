"""A guest whose certificate the host does not (or no longer) take, on a real connection: what its Services show and
say, that nothing is asked over and over, and that it heals without a restart."""

from datetime import datetime, timedelta
from typing import Literal

import pytest
from cryptography import x509

from cloudprovider.bridge.api import Reason
from cloudprovider.core.api.guestcluster import REBIND_ANNOTATION
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.times import rfc3339
from cloudprovider.guest.leading import Leadership
from tests.bridge.tls import now
from tests.guest.chain import OTHER, OTHER_HELLO, CountingBridge, Wire
from tests.guest.world import HELLO, TENANT, World
from tests.host.world import eventually

PORT_81 = {"ports": [{"name": "http", "port": 81, "nodePort": 30080}]}


def not_after(pem: bytes) -> datetime:
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


async def cut_off(leadership: Leadership, reason: Reason) -> str:
    """Wait until the stream is ended for ``reason``; return what is said of it."""
    await eventually(lambda: leadership.host.error is not None and leadership.host.error.reason == reason, reason)
    return str(leadership.host.error)


async def keeps_and_says(wire: Wire, bridge: CountingBridge, reason: str, *words: str) -> None:
    """Change the Service "web" and create "second": both say why nothing comes of it, and "web" keeps its address."""
    guest, had = wire.guest, await wire.guest.ips()
    assert had
    touched = await wire.chain.versions()
    await guest.create("second")
    await guest.change(spec=PORT_81)
    for name in ("web", "second"):
        condition = await guest.until_reason(reason, name)
        assert condition.status == "False"
        for word in words:
            assert word in condition.message
    await guest.until_true(lambda: guest.guest.requests.total(resource="events") == 3)
    warnings = [(e.reason, e.involved_object.name) for e in await guest.events("Warning")]
    assert sorted(warnings) == [(reason, "second"), (reason, "web")]
    await wire.quiet(bridge)
    assert await guest.ips() == had
    assert await wire.chain.versions() == touched


async def heals(wire: Wire, had: list[str]) -> None:
    """Both Services come to what they ask for; the address is the same."""
    assert await wire.guest.until_ready("second")
    assert await wire.guest.until_ready("web") == had
    await eventually(lambda: 81 in wire.chain.ports(), "the changed port on the host")


@pytest.mark.parametrize("connection", ["standing", "new"])
async def test_one_that_expires_and_is_renewed(wire: Wire, connection: Literal["standing", "new"]) -> None:
    pair = wire.authority.client(validity=timedelta(seconds=2))
    bridge = wire.client(wire.authority.write("client", pair))
    ends = f"{not_after(pair.certificate):%Y-%m-%dT%H:%M:%SZ}"
    async with wire.guest.leading(bridge) as leadership:
        await wire.guest.create()
        had = await wire.guest.until_ready()
        assert ends in await cut_off(leadership, Reason.CERTIFICATE_EXPIRED)
        if connection == "new":  # the handshake fails, and gRPC does not say why
            await wire.stop()
            await wire.start()
        await keeps_and_says(wire, bridge, "CertificateExpired", ends, "renew it")
        assert ends in str(leadership.not_ready)
        wire.authority.write("client", wire.authority.client())
        await heals(wire, had)
        assert not leadership.not_ready


@pytest.mark.parametrize("how", ["fingerprint", "date"])
@pytest.mark.parametrize("healed_by", ["operator", "new certificate"])
async def test_one_that_is_revoked(
    wire: Wire, how: Literal["fingerprint", "date"], healed_by: Literal["operator", "new certificate"]
) -> None:
    """From the operator's edit of the GuestCluster to the Service's condition, and back."""
    pair = wire.authority.client(made=now() - timedelta(hours=1))
    bridge = wire.client(wire.authority.write("client", pair))
    async with wire.guest.leading(bridge) as leadership:
        service = await wire.guest.create()
        had = await wire.guest.until_ready()
        await wire.settle()
        since = rfc3339(now() - timedelta(minutes=30))
        by_fingerprint = how == "fingerprint"
        await wire.chain.edit(
            spec={"revokedFingerprints": [pair.fingerprint]} if by_fingerprint else {"revokedBefore": since}
        )
        assert bridge.calls["connect"] == 1  # the stream that ends is the first one
        await cut_off(leadership, Reason.CERTIFICATE_REVOKED)
        with pytest.raises(BridgeError) as refused:
            await bridge.delete(wire.guest.key(service))
        assert (refused.value.reason, refused.value.retryable) == (Reason.CERTIFICATE_REVOKED, False)
        assert pair.fingerprint in str(refused.value)
        await keeps_and_says(
            wire,
            bridge,
            "CertificateRevoked",
            *(() if by_fingerprint else (since,)),
            pair.fingerprint,
            "ask for a new certificate",
        )
        if healed_by == "operator":
            await wire.chain.edit(spec={"revokedFingerprints": [], "revokedBefore": ""})
        else:
            wire.authority.write("client", wire.authority.client())
        await heals(wire, had)


async def test_a_guest_that_is_there_before_its_host(wire: Wire) -> None:
    """It goes on asking, ever more slowly, and its Services say what is missing until it is there."""
    await wire.stop()
    bridge = wire.client(wire.authority.write("client", wire.authority.client()))
    async with wire.guest.leading(bridge) as leadership:
        await wire.guest.create()
        condition = await wire.guest.until_reason("Unavailable")
        assert f"nothing listens on 127.0.0.1:{wire.port}" in condition.message
        assert "does the host's program run" in condition.message
        assert any("nothing listens" in reason for reason in leadership.not_ready)
        await wire.quiet(bridge)
        await wire.start()
        assert await wire.guest.until_ready()
        assert not leadership.not_ready


async def test_one_of_another_tenant(wire: Wire) -> None:
    """By mistake a cluster is given the certificate of a tenant that is bound to another cluster."""
    theirs, ours = (wire.authority.write(n, wire.authority.client(t)) for n, t in (("b", OTHER), ("a", TENANT)))
    other = World()
    async with other.leading(wire.client(theirs, OTHER_HELLO)):
        await other.create("theirs")
        await other.until_ready("theirs")
    async with wire.guest.leading(wire.client(ours)):
        await wire.guest.create()
        had = await wire.guest.until_ready()
    touched = await wire.chain.versions(OTHER)
    bridge = wire.client(wire.authority.write("a", wire.authority.client(OTHER)))
    async with wire.guest.leading(bridge) as leadership:
        await cut_off(leadership, Reason.CLUSTER_MISMATCH)
        await keeps_and_says(wire, bridge, "ClusterMismatch", OTHER.path, HELLO.cluster_uid, "a certificate of its own")
        assert await wire.chain.versions(OTHER) == touched
        assert (await wire.chain.cluster(OTHER)).status.cluster_uid == OTHER_HELLO.cluster_uid
        wire.authority.write("a", wire.authority.client(TENANT))
        await heals(wire, had)
    assert await wire.chain.versions(OTHER) == touched


async def test_one_of_a_tenant_that_nobody_uses_yet(wire: Wire) -> None:
    """Such a tenant takes the cluster in, as it can't know better: what the cluster has as its own tenant stays
    untouched, no address is given twice, and with the right certificate all is as it was."""
    ours = wire.authority.write("a", wire.authority.client(TENANT))
    async with wire.guest.leading(wire.client(ours)):
        await wire.guest.create()
        had = await wire.guest.until_ready()
    touched = await wire.chain.versions()
    async with wire.guest.leading(wire.client(wire.authority.write("b", wire.authority.client(OTHER)))):

        async def shows(before: bool) -> bool:
            return (await wire.guest.ips() == had) is before

        await wire.guest.until(lambda: shows(before=False))
        assert await wire.chain.versions() == touched
        assert len(await wire.chain.world.allocations()) == 2
        wire.authority.write("b", wire.authority.client(TENANT))
        await wire.guest.until(lambda: shows(before=True))
        assert await wire.chain.versions() == touched


async def test_a_rebinding_ends_the_former_clusters_stream(wire: Wire) -> None:
    """Of two clusters with one certificate the operator lets the other one in."""
    paths = wire.authority.write("client", wire.authority.client())
    bridge = wire.client(paths)
    async with wire.guest.leading(bridge) as leadership:
        await wire.guest.create()
        await wire.guest.until_ready()
        await wire.settle()
        rebuilt = wire.client(paths, OTHER_HELLO)
        with pytest.raises(BridgeError, match="rebind") as refused:
            await rebuilt.connect()
        assert refused.value.reason == Reason.CLUSTER_MISMATCH
        assert bridge.calls["connect"] == 1
        await wire.chain.edit(metadata={"annotations": {REBIND_ANNOTATION: OTHER_HELLO.cluster_uid}})
        await eventually(lambda: REBIND_ANNOTATION in wire.chain.annotations(), "the annotation in the host's cache")
        await rebuilt.connect()
        assert OTHER_HELLO.cluster_uid in await cut_off(leadership, Reason.CLUSTER_MISMATCH)
        await keeps_and_says(wire, bridge, "ClusterMismatch", OTHER_HELLO.cluster_uid, HELLO.cluster_uid)
