"""Nodes that say themselves that they take no traffic, or fall silent, through the whole agent."""

from collections.abc import Iterator
from ipaddress import ip_address
from unittest.mock import patch

import pytest

from cloudprovider.core.api.guestcluster import NodeHealth
from cloudprovider.core.health import Check, Outcome
from cloudprovider.kube.resources import GUESTCLUSTERS
from cloudprovider.probe.nodes import healthz
from tests.agent.world import World, running, until
from tests.core.test_forwarding import cluster

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


async def told(world: World) -> list[NodeHealth]:
    return (await world.client.get(GUESTCLUSTERS, "t", "c")).status.node_health


async def test_a_nodes_health_is_told_once_on_its_cluster_and_written_only_when_it_changes() -> None:
    world = World()
    world.probed.answers = {healthz(N1): Outcome.GOOD, healthz(N2): Outcome.GOOD}
    for n in range(20):
        world.seed(f"lb-{n}", f"10.0.0.{100 + n}")
    with patch("cloudprovider.agent.nodereports.GATHER_SECONDS", 0.02):
        async with running(world.agent()):
            await until(lambda: world.holds("lb-19"))
            await until(lambda: len(world.probed.asked) > 4)
            assert await told(world) == []
            world.probed.answers[healthz(N1)] = Outcome.DRAINING
            await until(lambda: told(world))
            (node,) = await told(world)
            assert (node.name, node.health.healthy) == ("n1", False)
            assert node.health.message == (
                "kube-proxy answers 503 (port 10256): it is being deleted, or its rules lag behind"
            )
            written = (await world.client.get(GUESTCLUSTERS, "t", "c")).metadata.resource_version
            asked = len(world.probed.asked)
            await until(lambda: len(world.probed.asked) > asked + 20)
            assert (await world.client.get(GUESTCLUSTERS, "t", "c")).metadata.resource_version == written
            world.probed.answers[healthz(N1)] = Outcome.GOOD
            await until(lambda: is_up(world))
            (node,) = await told(world)
            assert [change.healthy for change in node.health.history] == [False, True]


async def is_up(world: World) -> bool:
    return all(node.health.healthy for node in await told(world))


async def test_nothing_is_said_of_clusters_without_a_load_balancer_here() -> None:
    world = World()
    world.cluster.seed(GUESTCLUSTERS, cluster("n1", name="other"))
    world.probed.answers = {healthz(N1): Outcome.GOOD, healthz(N2): Outcome.GOOD}
    world.seed()
    with patch("cloudprovider.agent.nodereports.GATHER_SECONDS", 0.02):
        async with running(world.agent()):
            await until(world.holds)
            await until(lambda: len(world.probed.asked) > 4)
            world.probed.answers[healthz(N1)] = Outcome.DRAINING
            await until(lambda: told(world))
            assert (await world.client.get(GUESTCLUSTERS, "t", "other")).status.node_health == []
