"""A request that names another address, pool or network: the new address works before the old one is given back."""

from typing import Any

import msgspec
import pytest

from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey, Tenant
from cloudprovider.core.lbobject import wanted_object
from cloudprovider.core.lbstate import state_of
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS
from tests.host.views import condition, given, seen, vm
from tests.host.world import World, eventually, guest_cluster, pool, subnet

SERVICE = ServiceKey("default", "web", "uid")


async def two_pools(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(IPPOOLS, pool("q", subnet("198.51.100.0/24")))
    await world.client.create(IPPOOLS, pool("other", subnet("203.0.113.0/24"), network="default/vlan2"))


def shown(host: Host) -> list[str]:
    return [a.ip for a in seen(host, vm()).status.addresses]


def coming(host: Host) -> list[str]:
    return [a.ip for a in seen(host, vm()).status.next_addresses]


MOVES: dict[str, tuple[dict[str, Any], str]] = {
    "another pool": ({"spec": {"ipPool": "q"}}, "198.51.100.2"),
    "another address": ({"spec": {"ipPool": "p", "addresses": ["192.0.2.77"]}}, "192.0.2.77"),
    "another network": (
        {"spec": {"ipPool": ""}, "metadata": {"annotations": {NETWORK_ANNOTATION: "default/vlan2"}}},
        "203.0.113.2",
    ),
}


@pytest.mark.parametrize("kind", MOVES)
async def test_the_old_one_stays_until_the_new_one_is_up(world: World, kind: str) -> None:
    patch, target = MOVES[kind]
    await two_pools(world)
    await world.client.create(LOADBALANCERS, vm(ip_pool="p"))
    async with world.host() as host:
        async with world.agent(host):
            assert await given(host, vm()) == "192.0.2.2"
            await eventually(lambda: seen(host, vm()).status.holder is not None)
        # No agent follows now: the new address does not come up.
        await world.client.merge_patch(LOADBALANCERS, *vm().key, patch)
        await eventually(lambda: coming(host) == [target], "the next address")
        assert shown(host) == ["192.0.2.2"]
        assert set(await world.allocations()) == {"192.0.2.2", target}
        found = condition(host, vm())
        assert found is not None
        assert (found.status, found.reason) == ("True", "Moving")
        assert target in found.message
        async with world.agent(host):
            await eventually(lambda: shown(host) == [target], "the move")
            await eventually(lambda: set(seen(host, vm()).status.holder.addresses) == {target})  # type: ignore[union-attr]
            await until_allocated(world, host, {target})
        assert coming(host) == []


async def test_without_the_annotation_network_a_guests_service_moves_to_the_management_network(world: World) -> None:
    """That is what it asks for then. Who names a pool is on that pool's network, and a machine's stays."""
    await two_pools(world)
    tenant = Tenant("team-a", "blue")
    await world.client.create(GUESTCLUSTERS, guest_cluster(tenant))

    def service(name: str, network: str = "", **request: Any) -> LoadBalancer:
        asked = LoadBalancerRequest(listeners=(Listener("", "TCP", 80, 30080),), network=network, **request)
        limits = GuestClusterSpec()
        return wanted_object(tenant, ServiceKey("default", name, "uid"), asked, cluster_uid="c", limits=limits)

    machine = vm()
    annotations = {NETWORK_ANNOTATION: "default/vlan2"}
    machine = msgspec.structs.replace(
        machine, metadata=msgspec.structs.replace(machine.metadata, annotations=annotations)
    )
    there = [service("web", "default/vlan2"), service("named", "default/vlan2", ip_pool="other"), machine]
    async with world.host() as host, world.agent(host):
        for lb in there:
            await world.client.create(LOADBALANCERS, lb)
            assert (await given(host, lb)).startswith("203.0.113.")
            await eventually(lambda lb=lb: seen(host, lb).status.holder is not None)  # type: ignore[misc]
        for lb in reversed(there):
            patch = {"metadata": {"annotations": {NETWORK_ANNOTATION: None}}}
            await world.client.merge_patch(LOADBALANCERS, *lb.key, patch)
        await eventually(lambda: seen(host, there[0]).status.address == "192.0.2.2", "the move")
        await until_allocated(world, host, {"192.0.2.2", "203.0.113.3", "203.0.113.4"})
        assert [seen(host, lb).status.address for lb in there[1:]] == ["203.0.113.3", "203.0.113.4"]


async def test_a_guest_is_told_once(world: World) -> None:
    await two_pools(world)
    await world.client.create(LOADBALANCERS, vm(ip_pool="p"))
    async with world.host() as host, world.agent(host):
        await given(host, vm())
        await eventually(lambda: seen(host, vm()).status.holder is not None)
        told: list[tuple[str, ...]] = []

        def tell(old: LoadBalancer | None, new: LoadBalancer | None) -> None:
            if new is not None:
                addresses = tuple(str(a.ip) for a in state_of(new, SERVICE).addresses)
                if told[-1:] != [addresses]:
                    told.append(addresses)

        host.caches.load_balancers.on_change(tell)
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "q"}})
        await until_allocated(world, host, {"198.51.100.2"})
        assert told == [("192.0.2.2",), ("198.51.100.2",)]


async def test_taken_back_in_the_middle(world: World) -> None:
    await two_pools(world)
    await world.client.create(LOADBALANCERS, vm(ip_pool="p"))
    async with world.host() as host:
        async with world.agent(host):
            await given(host, vm())
            await eventually(lambda: seen(host, vm()).status.holder is not None)
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "q"}})
        await eventually(lambda: coming(host) == ["198.51.100.2"])
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "p"}})
        await eventually(lambda: not coming(host))
        await until_allocated(world, host, {"192.0.2.2"})
        assert shown(host) == ["192.0.2.2"]


async def test_a_restart_in_the_middle_goes_on(world: World) -> None:
    await two_pools(world)
    await world.client.create(LOADBALANCERS, vm(ip_pool="p"))
    async with world.host() as host:
        async with world.agent(host):
            await given(host, vm())
            await eventually(lambda: seen(host, vm()).status.holder is not None)
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "q"}})
        await eventually(lambda: coming(host) == ["198.51.100.2"])
    async with world.host() as host, world.agent(host):
        await until_allocated(world, host, {"198.51.100.2"})
        assert shown(host) == ["198.51.100.2"]


async def test_a_second_family_that_is_no_longer_wanted_goes(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), subnet("2001:db8::/112")))
    await world.client.create(LOADBALANCERS, vm(ip_families=["IPv4"], ip_family_policy="RequireDualStack"))
    async with world.host() as host, world.agent(host):
        await given(host, vm())
        await eventually(lambda: len(shown(host)) == 2)
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipFamilyPolicy": "SingleStack"}})
        await until_allocated(world, host, {"192.0.2.2"})
        assert shown(host) == ["192.0.2.2"]


async def until_allocated(world: World, host: Host, wanted: set[str]) -> None:
    """Wait until just these stand in the blocks that the host knows, and see that they do on the API server."""

    def holds() -> bool:
        blocks = host.caches.blocks.objects.values()
        return {a for block in blocks for a in block.spec.allocations} == wanted

    await eventually(holds, f"{wanted} in the blocks")
    assert set(await world.allocations()) == wanted
