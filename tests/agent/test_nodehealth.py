"""Nodes that say themselves that they take no traffic, or fall silent, through the whole agent."""

from collections.abc import Iterator
from ipaddress import ip_address
from unittest.mock import patch

import pytest

from cloudprovider.core.health import Check, Outcome
from cloudprovider.probe.nodes import healthz
from tests.agent.world import World, running, until

N1, N2 = ip_address("10.0.0.11"), ip_address("10.0.0.12")


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    with patch("cloudprovider.probe.nodes.Check", lambda: Check(period=0.02, timeout=0.02)):
        yield


def members(world: World) -> list[frozenset[object]]:
    return [frozenset(group.members) for group in world.network.ledger.plan().groups.values()]


async def test_a_node_that_drains_gets_nothing_new_and_comes_back() -> None:
    world = World()
    world.probed.answers = {healthz(N1): Outcome.GOOD, healthz(N2): Outcome.GOOD}
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await until(lambda: len(world.probed.asked) > 4)
        assert members(world) == [{N1, N2}]
        world.probed.answers[healthz(N1)] = Outcome.DRAINING
        await until(lambda: members(world) == [{N2}])
        world.probed.answers[healthz(N1)] = Outcome.GOOD
        await until(lambda: members(world) == [{N1, N2}])


async def test_nodes_that_have_never_answered_are_no_worse_for_it() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await until(lambda: len(world.probed.asked) > 20)
        assert members(world) == [{N1, N2}]


async def test_where_all_nodes_fail_all_are_kept() -> None:
    world = World()
    world.probed.answers = {healthz(N1): Outcome.GOOD, healthz(N2): Outcome.GOOD}
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await until(lambda: len(world.probed.asked) > 4)
        world.probed.answers = {healthz(N1): Outcome.BAD, healthz(N2): Outcome.GOOD}
        await until(lambda: members(world) == [{N2}])
        world.probed.answers[healthz(N2)] = Outcome.DRAINING
        await until(lambda: members(world) == [{N1, N2}])


async def test_only_nodes_with_load_balancers_here_are_probed() -> None:
    world = World()
    async with running(world.agent()):
        await until(lambda: bool(world.dataplane.segments))
        assert world.probed.asked == []
        world.seed()
        await until(lambda: {t.address for t in world.probed.asked} == {N1, N2})
