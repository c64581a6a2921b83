"""What every watch does, the fake as well as bfdd's."""

import contextlib
import time
from collections.abc import AsyncIterator

from cloudprovider.liveness.api import Liveness, PeerState
from tests.liveness.world import Host, Hosts, Running

UP, DOWN, UNKNOWN = Liveness.UP, Liveness.DOWN, Liveness.UNKNOWN


@contextlib.asynccontextmanager
async def pair(one: Host, two: Host) -> AsyncIterator[tuple[Running, Running]]:
    """Two hosts that are up for each other."""
    async with Running(one.watch) as first, Running(two.watch) as second:
        one.watch.follow({"two": two.address})
        two.watch.follow({"one": one.address})
        await first.until("two", UP)
        await second.until("one", UP)
        yield first, second


async def test_hosts_that_follow_each_other_are_up(hosts: Hosts) -> None:
    begin = time.monotonic()
    async with pair(hosts.host("10.99.0.11"), hosts.host("10.99.0.12")) as (first, second):
        assert first.changes == [("two", UP)]
        assert second.changes == [("one", UP)]
        assert begin <= first.watch.state("two").since <= time.monotonic()
        assert first.watch.state("stranger") == PeerState()


async def test_by_ipv6(hosts: Hosts) -> None:
    async with pair(hosts.host("fd99::11"), hosts.host("fd99::12")) as (first, _):
        assert first.watch.state("two").liveness is UP


async def test_a_host_that_is_cut_off_is_down_and_comes_back(hosts: Hosts) -> None:
    one, two = hosts.host("10.99.0.11"), hosts.host("10.99.0.12")
    async with pair(one, two) as (first, second):
        begin = time.monotonic()
        two.cut()
        await first.until("two", DOWN, limit=1.0)
        assert begin <= first.watch.state("two").since <= time.monotonic()
        await second.until("one", DOWN, limit=1.0)  # it is for those it can't hear as they are for it
        two.mend()
        await first.until("two", UP)
        assert first.changes == [("two", UP), ("two", DOWN), ("two", UP)]


async def test_of_three_only_the_dead_one_is_down(hosts: Hosts) -> None:
    one, two, three = hosts.host("10.99.0.11"), hosts.host("10.99.0.12"), hosts.host("10.99.0.13")
    async with pair(one, two) as (first, second), Running(three.watch) as third:
        one.watch.follow({"two": two.address, "three": three.address})
        two.watch.follow({"one": one.address, "three": three.address})
        three.watch.follow({"one": one.address, "two": two.address})
        for watch, name in ((first, "three"), (second, "three"), (third, "one"), (third, "two")):
            await watch.until(name, UP)
        three.cut()
        await first.until("three", DOWN, limit=1.0)
        await second.until("three", DOWN, limit=1.0)
        assert first.changes == [("two", UP), ("three", UP), ("three", DOWN)]
        assert first.watch.state("two").liveness is UP


async def test_a_host_that_stops_in_order_is_not_down(hosts: Hosts) -> None:
    one, two = hosts.host("10.99.0.11"), hosts.host("10.99.0.12")
    async with pair(one, two) as (first, second):
        await second.stop()
        await first.until("two", UNKNOWN)
        assert first.changes == [("two", UP), ("two", UNKNOWN)]
        assert second.changes == [("one", UP), ("one", UNKNOWN)]
        async with Running(two.watch):
            await first.until("two", UP)
        await first.until("two", UNKNOWN)
        assert first.changes == [("two", UP), ("two", UNKNOWN)] * 2


async def test_a_host_that_follows_us_no_more_is_not_down(hosts: Hosts) -> None:
    one, two = hosts.host("10.99.0.11"), hosts.host("10.99.0.12")
    async with pair(one, two) as (first, second):
        two.watch.follow({})
        assert two.watch.state("one") == PeerState()
        await first.until("two", UNKNOWN)
        two.watch.follow({"one": one.address})
        await first.until("two", UP)
        assert first.changes == [("two", UP), ("two", UNKNOWN), ("two", UP)]
        assert second.changes == [("one", UP), ("one", UP)]


async def test_an_address_that_goes_to_another_name_begins_anew(hosts: Hosts) -> None:
    one, two = hosts.host("10.99.0.11"), hosts.host("10.99.0.12")
    async with pair(one, two) as (first, _):
        one.watch.follow({"heir": two.address})
        assert one.watch.state("two") == one.watch.state("heir") == PeerState()
        await first.until("heir", UP)
        assert first.changes == [("two", UP), ("heir", UP)]


async def test_who_can_not_be_watched_is_unknown_and_the_others_are_watched(hosts: Hosts) -> None:
    one, two, three = hosts.host("10.99.0.11"), hosts.host("10.99.0.12"), hosts.host("fd99::13")
    twin = hosts.host("10.99.0.14")
    async with pair(one, two) as (first, _), Running(three.watch), Running(twin.watch):
        three.watch.follow({"one": one.address})
        twin.watch.follow({"one": one.address})
        others = {"family": three.address, "ours": one.address, "a": twin.address, "b": twin.address}
        one.watch.follow({"two": two.address, **others})
        two.cut()
        await first.until("two", DOWN, limit=1.0)
        assert {one.watch.state(name) for name in others} == {PeerState()}
        one.watch.follow({"two": two.address, "a": twin.address})
        await first.until("a", UP)


async def test_without_an_address_nobody_is_watched(hosts: Hosts) -> None:
    one, two = hosts.host("10.99.0.11"), hosts.host("10.99.0.12")
    none = hosts.host()
    async with pair(one, two), Running(none.watch) as blind:
        none.watch.follow({"one": one.address})
        one.watch.follow({"two": two.address, "none": none.address})
        assert none.watch.state("one") == one.watch.state("none") == PeerState()
        assert blind.changes == []


async def test_an_engine_that_dies_makes_all_unknown_and_is_started_again(hosts: Hosts) -> None:
    one, two = hosts.host("10.99.0.11"), hosts.host("10.99.0.12")
    async with pair(one, two) as (first, second):
        one.fail()
        await second.until("one", DOWN)
        await first.until("two", UP)
        assert first.changes == [("two", UP), ("two", UNKNOWN), ("two", UP)]
        await second.until("one", UP)


async def test_the_callback_may_follow_others(hosts: Hosts) -> None:
    one, two = hosts.host("10.99.0.11"), hosts.host("10.99.0.12")
    async with pair(one, two) as (first, _):

        def forget(name: str) -> None:
            first.changes.append((name, one.watch.state(name).liveness))
            one.watch.follow({})

        one.watch.on_change(forget)
        two.cut()
        await first.until("two", UNKNOWN, limit=1.0)
        assert first.changes == [("two", UP), ("two", DOWN)]
