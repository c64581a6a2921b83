"""What a pool's status and events say: its summary, and what is wrong with it."""

import asyncio
from collections.abc import Mapping

from cloudprovider.core.api.kubernetes import Event
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import find
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import EVENTS, IPPOOLS, LOADBALANCERS
from tests.host.views import given, refused, seen, vm
from tests.host.world import LIMIT, World, eventually, pool, subnet, virtually

RIGHT = {"subnet": "192.0.2.0/24"}
WRONG = {"subnet": "192.0.2.0/24", "rangeStart": "198.51.100.20"}


async def made() -> World:
    cluster = FakeCluster(utc_now)
    return World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster))


scenario = virtually(made)


def pool_condition(host: Host, name: str, kind: str) -> Condition | None:
    return find(host.caches.pools.objects["", name].status.conditions, kind)


async def set_range(world: World, name: str, one: Mapping[str, str]) -> None:
    await world.client.merge_patch(IPPOOLS, "", name, {"spec": {"ranges": [one]}})


async def events(world: World, name: str) -> list[Event]:
    found = (await world.client.list(EVENTS, "default")).items
    return [e for e in found if e.involved_object.kind == "IPPool" and e.involved_object.name == name]


async def reasons(world: World, name: str) -> list[tuple[str, str]]:
    return [
        (e.type, e.reason) for e in sorted(await events(world, name), key=lambda e: int(e.metadata.resource_version))
    ]


class TestStatus:
    @scenario
    async def test_the_status_sums_up_and_the_younger_of_two_that_overlap_says_so(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("a", subnet("192.0.2.0/24")))
        await world.client.create(IPPOOLS, pool("b", subnet("192.0.2.0/24", "192.0.2.200", "192.0.2.210")))
        await world.client.create(LOADBALANCERS, vm(ip_pool="a"))
        async with world.host() as host:
            address = await given(host, vm())
            status = host.caches.pools.objects["", "a"].status

            def counted() -> bool:
                nonlocal status
                status = host.caches.pools.objects["", "a"].status
                return status.allocated == {address: "team-a/vm"}

            await eventually(counted)
            assert (status.total, status.available, status.last_allocated) == (253, 252, address)
            await eventually(lambda: pool_condition(host, "b", "Overlap") is not None)
            overlap = pool_condition(host, "b", "Overlap")
            assert overlap is not None
            assert '"a"' in overlap.message
            assert find(status.conditions, "Overlap") is None

    @scenario
    async def test_wrong_ranges_say_so(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("a", subnet("192.0.2.0/24", "198.51.100.1")))
        async with world.host() as host:

            def told() -> bool:
                found = find(host.caches.pools.objects["", "a"].status.conditions, "Ready")
                return found is not None and found.reason == "InvalidRanges"

            await eventually(told)


class TestWrongRanges:
    @scenario
    async def test_they_are_told_once_and_heal_while_all_keep_their_addresses(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm("first"))
        await world.client.create(LOADBALANCERS, vm("second"))
        async with world.host() as host:
            address = await given(host, vm("first"))
            await given(host, vm("second"))
            before = seen(host, vm("first")).status.addresses
            await eventually(lambda: pool_condition(host, "p", "Ready") is not None)
            assert await reasons(world, "p") == [], "a pool that is right is no news"

            await set_range(world, "p", WRONG)
            await eventually(lambda: is_wrong(host, "p"))
            await world.client.create(LOADBALANCERS, vm("new"))
            assert "198.51.100.20" in await refused(host, vm("new"), "NoPoolMatches")
            # The status is written anew, the reason stays.
            await world.client.delete(LOADBALANCERS, *vm("second").key)
            await eventually(lambda: len(host.caches.pools.objects["", "p"].status.allocated) == 1)
            await set_range(world, "p", {**WRONG, "rangeStart": "198.51.100.30"})
            await eventually(lambda: "198.51.100.30" in message_of(host, "p"))
            assert await reasons(world, "p") == [("Warning", "InvalidRanges")]
            (event,) = await events(world, "p")
            assert "198.51.100.20" in event.message
            assert "correct the ranges" in event.message
            assert event.involved_object.uid == host.caches.pools.objects["", "p"].metadata.uid
            assert seen(host, vm("first")).status.addresses == before

        async with world.host() as host:  # another program takes over: it has nothing new to say
            await eventually(lambda: is_wrong(host, "p"))
            assert seen(host, vm("first")).status.addresses == before
            await set_range(world, "p", RIGHT)
            await given(host, vm("new"))
            await eventually(lambda: not is_wrong(host, "p"))
            assert seen(host, vm("first")).status.address == address
            await told(world, "p", [("Warning", "InvalidRanges"), ("Normal", "Ready")])

    @scenario
    async def test_a_pool_made_wrong_says_so_at_once(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("no network")))
        async with world.host() as host:
            await told(world, "p", [("Warning", "InvalidRanges")])
            assert "no network" in message_of(host, "p")


class TestOverlap:
    @scenario
    async def test_it_is_told_once_and_heals(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("a", subnet("192.0.2.0/25")))
        await world.client.create(IPPOOLS, pool("b", subnet("198.51.100.0/29")))
        async with world.host() as host:
            await set_range(world, "a", {"subnet": "198.51.100.0/24"})
            await told(world, "b", [("Warning", "OverlapsOlderPool")])
            await world.client.create(LOADBALANCERS, vm(ip_pool="b"))
            assert "older pools" in await refused(host, vm(), "PoolExhausted")

            await set_range(world, "a", {"subnet": "198.51.100.0/24", "rangeEnd": "198.51.100.3"})
            assert await given(host, vm()) == "198.51.100.4"
            await eventually(lambda: "198.51.100.2-198.51.100.3" in message_of(host, "b", "Overlap"))
            assert await reasons(world, "b") == [("Warning", "OverlapsOlderPool")]
            assert await reasons(world, "a") == [], "the older pool goes on as before"

            await set_range(world, "a", {"subnet": "192.0.2.0/25"})
            await eventually(lambda: pool_condition(host, "b", "Overlap") is None)
            await told(world, "b", [("Warning", "OverlapsOlderPool"), ("Normal", "NoOverlap")])
            assert seen(host, vm()).status.address == "198.51.100.4"

    @scenario
    async def test_who_has_an_address_of_both_keeps_it(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("a", subnet("192.0.2.0/25")))
        await world.client.create(IPPOOLS, pool("b", subnet("198.51.100.0/24")))
        await world.client.create(LOADBALANCERS, vm(ip_pool="b"))
        async with world.host() as host:
            address = await given(host, vm())
            await set_range(world, "a", {"subnet": "198.51.100.0/24"})
            await told(world, "b", [("Warning", "OverlapsOlderPool")])
            assert seen(host, vm()).status.address == address
            await world.client.create(LOADBALANCERS, vm("other", ip_pool="a"))
            assert await given(host, vm("other")) != address


def message_of(host: Host, name: str, kind: str = "Ready") -> str:
    found = pool_condition(host, name, kind)
    return "" if found is None else found.message


def is_wrong(host: Host, name: str) -> bool:
    found = pool_condition(host, name, "Ready")
    return found is not None and (found.status, found.reason) == ("False", "InvalidRanges")


async def told(world: World, name: str, expected: list[tuple[str, str]]) -> None:
    """Wait until the events of a pool are just these."""
    found: list[tuple[str, str]] = []
    try:
        async with asyncio.timeout(LIMIT):
            while (found := await reasons(world, name)) != expected:  # noqa: ASYNC110 - an object, not a signal
                await asyncio.sleep(0.1)
    except TimeoutError:
        assert found == expected
