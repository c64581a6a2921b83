"""For each thing that can be wrong: the Service keeps what it has, an event and a condition say what is wrong and
what to do, nothing spins, and it heals by itself once the cause is gone."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from cloudprovider.bridge.api import Reason
from cloudprovider.bridge.fake import MemoryTenant
from cloudprovider.core.annotations import HEALTH_CHECKS, IP_POOL, IPAM, MODE, PRIMARY_SERVICE
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import BridgeError, Unavailable
from cloudprovider.core.exchange import LoadBalancerState, StateCondition
from cloudprovider.core.translate import SCTP_ERROR
from cloudprovider.guest.servicestatus import PORTS_ERROR
from tests.guest.world import TENANT, World, in_virtual_time, pass_time

SCTP = {"name": "s", "port": 9, "protocol": "SCTP", "nodePort": 30009}
TCP = {"name": "http", "port": 80, "nodePort": 30080}


@dataclass(frozen=True)
class Wrong:
    """A change that can't be served, the one that takes it back, and what the user is told."""

    bad: dict[str, Any]
    good: dict[str, Any]
    reason: str
    says: str


def annotation(name: str, bad: str, reason: str, says: str, good: str | None = None) -> Wrong:
    return Wrong({"metadata": {"annotations": {name: bad}}}, {"metadata": {"annotations": {name: good}}}, reason, says)


def spec(bad: dict[str, Any], reason: str, says: str, good: dict[str, Any] | None = None) -> Wrong:
    return Wrong({"spec": bad}, {"spec": good or dict.fromkeys(bad)}, reason, says)


WRONG = {
    "ipam": annotation(IPAM, "x", "UnsupportedValue", 'not one of "pool", "dhcp"'),
    "unknown": annotation(IP_POOL + "s", "x", "UnknownAnnotation", f"did you mean {IP_POOL}?"),
    "mode": annotation(MODE, "fast", "UnsupportedValue", '"dsr"', "auto"),
    "shared": annotation(PRIMARY_SERVICE, "a/b/c", "MalformedValue", "namespace/name"),
    "health": annotation(HEALTH_CHECKS[0], "70000", "OutOfRange", "not a number from 1 to 65535"),
    "port": spec({"ports": [{"name": "http", "port": 70000}]}, "OutOfRange", "1 to 65535", {"ports": [TCP]}),
    "sctp": spec({"ports": [SCTP]}, "UnsupportedProtocol", "use TCP or UDP", {"ports": [TCP]}),
    "address": spec({"loadBalancerIP": "nowhere"}, "MalformedValue", '"nowhere" is not an IP address'),
    "sources": spec({"loadBalancerSourceRanges": ["x"]}, "MalformedValue", "write it as 10.0.0.0/24"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("before", [True, False])
def test_a_request_that_cant_be_served(wrong: Wrong, before: bool) -> None:
    @in_virtual_time
    async def scenario() -> None:
        world = World()
        if not before:
            await world.create()
            await world.change(**wrong.bad)
        async with world.leading():
            if before:
                await world.create()
                await world.until_ready()
                await world.change(**wrong.bad)
            condition = await world.until_reason(wrong.reason)
            assert condition.status == "False"
            assert wrong.says in condition.message
            await world.until_true(lambda: world.guest.requests.total(resource="events") == 1 + before)
            (event,) = await world.events("Warning")
            assert (event.reason, event.message) == (wrong.reason, condition.message)
            assert await world.ips() == (["192.0.2.1"] if before else [])
            writes, calls = world.writes(), world.asked()
            await pass_time(250)
            assert (world.writes(), world.asked()) == (writes, calls)
            await world.change(**wrong.good)
            assert await world.until_ready() == ["192.0.2.1"]

    scenario()


@in_virtual_time
async def test_sctp_beside_tcp() -> None:
    world = World()
    async with world.leading():
        await world.create(ports=[TCP, SCTP])
        await world.until_ready()
        service = await world.service()
        assert service is not None
        (ingress,) = service.status.load_balancer.ingress
        assert [(p.port, p.protocol, p.error) for p in ingress.ports] == [
            (80, "TCP", None),
            (9, "SCTP", SCTP_ERROR),
        ]
        condition = find(service.status.conditions, PORTS_ERROR)
        assert condition is not None
        assert condition.status == "True"
        assert "spec.ports[1].protocol: SCTP is not offered" in condition.message
        await pass_time(100)
        assert world.writes() == 4
        assert [e.message for e in await world.events("Warning")] == [condition.message]
        await world.change(spec={"ports": [TCP]})

        async def healed() -> bool:
            after = await world.service()
            assert after is not None
            return (
                find(after.status.conditions, PORTS_ERROR) is None and not after.status.load_balancer.ingress[0].ports
            )

        await world.until(healed)


@in_virtual_time
async def test_a_pool_that_is_not_open_to_the_cluster() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
        await world.change(metadata={"annotations": {IP_POOL: "public"}})
        condition = await world.until_reason("PoolNotPermitted")
        assert "'public' is not open to this cluster" in condition.message
        assert await world.ips() == ["192.0.2.1"]
        calls = world.calls("ensure")
        await pass_time(250)
        assert world.calls("ensure") == calls
        world.backend.set_tenant(
            TENANT, MemoryTenant(policy=world.backend.tenants[TENANT].policy, pools=("default", "public"))
        )

        async def healed() -> bool:
            return await world.reason() == "AddressAssigned"

        await world.until(healed, 200)


@in_virtual_time
async def test_more_ports_than_the_tenant_may_have() -> None:
    world = World()
    world.backend.set_tenant(TENANT, MemoryTenant(ports=2))
    async with world.leading():
        await world.create(ports=[{"name": f"p{i}", "port": i + 1, "nodePort": 30000 + i} for i in range(3)])
        condition = await world.until_reason("TooMany")
        assert "spec.ports" in condition.message
        await world.change(spec={"ports": [TCP]})
        await world.until_ready()


@in_virtual_time
async def test_more_load_balancers_than_the_tenant_may_have() -> None:
    world = World()
    world.backend.set_tenant(TENANT, MemoryTenant(load_balancers=1))
    async with world.leading():
        await world.create("first")
        await world.until_ready("first")
        await world.create("second")
        condition = await world.until_reason("QuotaExceeded", "second")
        assert "its limit" in condition.message
        calls = world.calls("ensure")
        await pass_time(120)
        assert world.calls("ensure") - calls <= 5
        began = asyncio.get_running_loop().time()
        await world.delete("first")
        assert await world.until_ready("second") == ["192.0.2.1"]
        assert asyncio.get_running_loop().time() - began < 5  # it need not wait for its next try


@in_virtual_time
async def test_a_pool_with_nothing_left() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.create()
        await world.until_true(lambda: len(world.backend.load_balancers) == 1)
        world.backend.fail(TENANT, world.key(service), "PoolExhausted", "pool default has no address left; add a range")
        condition = await world.until_reason("PoolExhausted")
        assert condition.message == "pool default has no address left; add a range"
        assert [e.reason for e in await world.events("Warning")] == ["PoolExhausted"]
        calls, writes = world.asked(), world.writes()
        await pass_time(250)
        assert (world.asked(), world.writes()) == (calls, writes)
        world.backend.program(TENANT, world.key(service))
        assert await world.until_ready() == ["192.0.2.1"]


@in_virtual_time
async def test_trouble_on_the_host_leaves_the_address() -> None:
    world = World()
    async with world.leading():
        service = await world.create()
        await world.until_ready()
        world.backend.fail(TENANT, world.key(service), "PoolNotFound", "pool default is gone")
        await world.until_reason("PoolNotFound")
        assert await world.ips() == ["192.0.2.1"]
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()


@in_virtual_time
async def test_an_address_whose_lease_has_ended_is_not_shown_any_more() -> None:
    """A DHCP server may give it to somebody else."""
    world = World()
    async with world.leading():
        service = await world.create()
        await world.until_ready()
        message = "the lease of 192.0.2.1 has ended"
        over = tuple(StateCondition(kind, "False", "DHCPLeaseExpired", message) for kind in ("Allocated", "Leased"))
        world.backend.states(TENANT).publish(LoadBalancerState(service=world.key(service), conditions=over))
        assert (await world.until_reason("DHCPLeaseExpired")).message == message
        assert await world.ips() == []
        assert [e.reason for e in await world.events("Warning")] == ["DHCPLeaseExpired"]
        world.backend.program(TENANT, world.key(service))
        assert await world.until_ready() == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("reason", "word", "retryable"),
    [
        (Reason.CERTIFICATE_EXPIRED, "CertificateExpired", False),
        (Reason.CERTIFICATE_REVOKED, "CertificateRevoked", False),
        (Reason.CERTIFICATE_INVALID, "CertificateInvalid", False),
        (Reason.CLUSTER_MISMATCH, "ClusterMismatch", False),
        (Reason.UNSUPPORTED_VERSION, "UnsupportedVersion", False),
        (Reason.TENANT_TERMINATING, "TenantTerminating", True),
    ],
)
def test_a_connection_that_only_an_operator_can_heal(reason: Reason, word: str, retryable: bool) -> None:
    @in_virtual_time
    async def scenario() -> None:
        world = World()
        async with world.leading() as leadership:
            await world.create()
            await world.until_ready()
            writes = world.writes()
            with world.bridge.cut(BridgeError("ask the operator", reason=reason, retryable=retryable)):
                await world.create("second")
                await world.change(spec={"ports": [{"name": "http", "port": 81, "nodePort": 30080}]})
                condition = await world.until_reason(word, "second")
                assert condition.message == "ask the operator"
                await world.until_reason(word)
                assert await world.ips() == ["192.0.2.1"]
                assert any("ask the operator" in why for why in leadership.not_ready)
                await pass_time(300)
                assert world.writes() == writes + 5  # one finalizer, two conditions, two events
            assert await world.until_ready("second")
            await world.until_ready()
            assert not leadership.not_ready

    scenario()


@in_virtual_time
async def test_a_call_that_only_an_operator_can_heal() -> None:
    world = World()
    world.backend.taken.add((TENANT, "shop", "web"))
    async with world.leading():
        await world.create()
        condition = await world.until_reason("IdentityMismatch")
        assert "belongs to something else" in condition.message
        calls = world.calls("ensure")
        await pass_time(200)
        assert world.calls("ensure") - calls <= 4
        world.backend.taken.clear()
        await world.until_true(lambda: len(world.backend.load_balancers) == 1, 100)
        await world.until_ready()


@in_virtual_time
async def test_a_clone_of_the_cluster() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
    policy = MemoryTenant().policy
    world.backend.set_tenant(TENANT, MemoryTenant(policy=type(policy)(cluster_uid="the-original")))
    async with world.leading():
        await world.create("second")
        condition = await world.until_reason("ClusterMismatch", "second")
        assert "belongs to another cluster" in condition.message
        assert await world.ips() == ["192.0.2.1"]


@in_virtual_time
async def test_a_host_api_server_that_is_away_for_a_minute() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
        calls = len(world.backend.calls)
        world.backend.failure = Unavailable("connection refused")
        await world.create("second")
        condition = await world.until_reason("Unavailable", "second")
        assert condition.message == "the host's API server does not answer"
        await pass_time(60)
        assert len(world.backend.calls) - calls < 40
        assert await world.ips() == ["192.0.2.1"]
        world.backend.failure = None

        async def healed() -> bool:
            return bool(await world.ips("second"))

        await world.until(healed, 65)


@in_virtual_time
async def test_a_blink_of_the_host_is_not_told() -> None:
    world = World()
    async with world.leading():
        world.backend.failure = Unavailable("connection refused")
        await world.create()
        await pass_time(2)
        world.backend.failure = None
        await world.until_ready()
        assert await world.events("Warning") == []
        assert world.writes() == 3


@in_virtual_time
async def test_a_bridge_cut_while_services_come_and_go() -> None:
    world = World()
    async with world.leading():
        for name in ("kept", "deleted", "changed"):
            await world.create(name)
            await world.until_ready(name)
        with world.bridge.cut():
            await world.create("new")
            await world.delete("deleted")
            await world.change("changed", spec={"type": "ClusterIP"})
            await pass_time(30)
            assert await world.held("deleted")
            assert await world.held("changed")
            assert (await world.until_reason("Unavailable", "new")).message == "the line is cut"
            assert await world.reason("kept") == "AddressAssigned"
        await world.until_ready("new")

        async def settled() -> bool:
            return await world.service("deleted") is None and not await world.held("changed")

        await world.until(settled)
        assert sorted(key.name for key in world.balancers()) == ["kept", "new"]


@in_virtual_time
async def test_a_host_restored_without_its_load_balancers_gives_the_same_addresses() -> None:
    world = World()
    async with world.leading():
        for name in ("a", "b", "c"):
            await world.create(name)
            await world.until_ready(name)
    shown = {name: await world.ips(name) for name in ("a", "b", "c")}
    restored = World()
    restored.cluster, restored.user, restored.guest = world.cluster, world.user, world.guest
    async with restored.leading():
        await restored.until_true(lambda: len(restored.backend.load_balancers) == 3)
        await pass_time(30)
        assert {name: await restored.ips(name) for name in shown} == shown
        given = {key.name: [str(lb.address)] for (_, key), lb in restored.backend.load_balancers.items()}
        assert given == shown
