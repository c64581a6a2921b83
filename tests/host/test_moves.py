"""A request that names another address, pool or network: the new address works before the old one is given back."""

from typing import Any

import pytest

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.exchange import ServiceKey
from cloudprovider.core.lbstate import state_of
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import IPPOOLS, LOADBALANCERS
from tests.host.views import condition, given, seen, vm
from tests.host.world import World, eventually, pool, subnet

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
