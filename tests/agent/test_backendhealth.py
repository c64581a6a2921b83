"""Checks of a load balancer's own, through the whole agent, over the shipped fakes."""

from ipaddress import ip_address

import msgspec

from cloudprovider.core.api.guestcluster import GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import Backend, HealthCheck, LoadBalancer
from cloudprovider.core.health import Outcome
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.questions import HttpGet, TcpConnect
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from cloudprovider.probe.api import Target
from tests.agent.world import World, running, until
from tests.core.test_forwarding import HTTP, lb

N1, N2, N3 = (ip_address(f"10.0.0.1{n}") for n in (1, 2, 3))
CHECK = HealthCheck(port=30080, period_seconds=1, timeout_seconds=1)
NEVER = HealthCheck(port=30080, period_seconds=3600)


def target(node: IPAddress, port: int = 30080) -> Target:
    return Target(node, port, TcpConnect())


def members(world: World) -> list[frozenset[object]]:
    return [frozenset(group.members) for group in world.network.ledger.plan().groups.values()]


def refuses(world: World) -> bool:
    forwards = world.network.ledger.plan().forwards.values()
    return bool(forwards) and all(forward.group == 0 for forward in forwards)


def seed(world: World, check: HealthCheck | None = CHECK, name: str = "a", vip: str = "10.0.0.100") -> LoadBalancer:
    return world.cluster.seed(LOADBALANCERS, lb(name, vip, HTTP, health_check=check))


async def has_nodes(world: World, *names: str) -> None:
    nodes = [GuestNode(name=name, addresses=[f"10.0.0.1{name[1]}"]) for name in names]
    patch = {"status": msgspec.to_builtins(GuestClusterStatus(nodes=nodes))}
    await world.client.merge_patch(GUESTCLUSTERS, "t", "c", patch, subresource="status")


async def shown(world: World, name: str = "a") -> dict[str, tuple[bool, str]]:
    """Health and message of each backend in the status."""
    backends = (await world.lb(name)).status.backends
    return {b.name: (b.health.healthy, b.health.message) for b in backends if b.health is not None}


async def healthy(world: World, *names: str, load_balancer: str = "a") -> bool:
    return {name for name, (up, _) in (await shown(world, load_balancer)).items() if up} == set(names)


def checks(world: World) -> int:
    return sum(asked.port == 30080 for asked in world.probed.asked)


async def test_backends_start_down_come_up_as_they_pass_and_go_as_they_fail() -> None:
    world = World()
    world.probed.answers = {target(N1): Outcome.BAD, target(N2): Outcome.BAD}
    seed(world)
    async with running(world.agent()):
        await until(lambda: world.says("Ready", "NoHealthyBackends"))
        assert refuses(world)
        await until(lambda: checks(world) >= 2)
        await until(lambda: world.says_in("Ready", "n1: The fake says bad. n2: The fake says bad."))
        world.probed.answers[target(N1)] = Outcome.GOOD
        await until(lambda: members(world) == [{N1}])
        await until(lambda: healthy(world, "n1"))
        await until(lambda: world.says("Ready", "Ready"))
        world.probed.answers[target(N2)] = Outcome.GOOD
        await until(lambda: members(world) == [{N1, N2}])
        world.probed.answers[target(N1)] = Outcome.BAD
        await until(lambda: members(world) == [{N2}], 10)
        await until(lambda: healthy(world, "n2"))
        status = (await world.lb()).status
        (first, _) = sorted(status.backends, key=lambda b: b.name)
        assert first.health is not None
        assert [change.healthy for change in first.health.history] == [True, False]


async def test_a_node_that_comes_new_waits_for_its_first_success_and_one_that_goes_is_forgotten() -> None:
    world = World()
    world.probed.answers = dict.fromkeys((target(N1), target(N2)), Outcome.GOOD)
    seed(world)
    async with running(world.agent()):
        await until(lambda: healthy(world, "n1", "n2"))
        await has_nodes(world, "n2", "n3")
        await until(lambda: target(N3) in world.probed.asked)
        assert members(world) == [{N2}]
        world.probed.answers[target(N3)] = Outcome.GOOD
        await until(lambda: members(world) == [{N2, N3}])
        await until(lambda: healthy(world, "n2", "n3"))
        assert set(await shown(world)) == {"n2", "n3"}


async def test_a_restart_takes_nobody_out_and_forgets_no_history() -> None:
    world = World()
    world.probed.answers = {target(N1): Outcome.GOOD}
    seed(world)
    async with running(world.agent()):
        await until(lambda: healthy(world, "n1"))
        await until(lambda: checks(world) >= 4)
    before = (await world.lb()).status.backends
    world.probed.answers.clear()
    async with running(world.agent()):
        await until(lambda: world.says("Ready", "Ready"))
        assert members(world) == [{N1}]
        await world.client.merge_patch(LOADBALANCERS, "t", "a", {"metadata": {"labels": {"x": "y"}}})
        await until(lambda: members(world) == [{N1}])
        assert (await world.lb()).status.backends == before
        await until(lambda: refuses(world), 10)
        await until(lambda: healthy(world), 10)
    (first, _) = sorted((await world.lb()).status.backends, key=lambda b: b.name)
    assert first.health is not None
    assert [change.healthy for change in first.health.history] == [True, False]


async def test_an_address_is_asked_once_for_all_that_check_it_alike() -> None:
    world = World()
    world.probed.answers = dict.fromkeys((target(N1), target(N2)), Outcome.GOOD)
    for n in range(5):
        seed(world, name=f"lb{n}", vip=f"10.0.0.10{n}")
    other = HealthCheck(port=30080, period_seconds=1, timeout_seconds=1, protocol="HTTP")
    seed(world, other, name="other", vip="10.0.0.110")
    by_http = Target(N1, 30080, HttpGet())
    world.probed.answers[by_http] = Outcome.BAD
    async with running(world.agent()):
        await until(lambda: healthy(world, "n1", "n2", load_balancer="lb0"))
        await until(lambda: healthy(world, "n1", "n2", load_balancer="lb4"))
        asked = world.probed.asked.count(target(N1))
        await until(lambda: world.probed.asked.count(target(N1)) >= asked + 2)
        assert abs(world.probed.asked.count(by_http) - world.probed.asked.count(target(N1))) <= 1
        assert await healthy(world, load_balancer="other")


async def test_a_check_that_is_added_or_changed_takes_nobody_out_before_it_has_failed() -> None:
    world = World()
    seed(world, None)
    async with running(world.agent()):
        await until(lambda: world.says("Ready", "Ready"))
        for port in (30080, 30081):
            patch = {"spec": {"healthCheck": {"port": port, "periodSeconds": 1, "timeoutSeconds": 1}}}
            await world.client.merge_patch(LOADBALANCERS, "t", "a", patch)
            await until(lambda: target(N1, port) in world.probed.asked)  # noqa: B023 - awaited in the loop
            assert members(world) == [{N1, N2}]
        await until(lambda: refuses(world), 10)
        await world.client.merge_patch(LOADBALANCERS, "t", "a", {"spec": {"healthCheck": None}})
        await until(lambda: members(world) == [{N1, N2}])
        await until(lambda: _no_backends(world))


async def _no_backends(world: World) -> bool:
    return (await world.lb()).status.backends == []


async def test_the_status_is_written_when_something_has_changed_and_only_then() -> None:
    world = World()
    world.probed.answers = dict.fromkeys((target(N1), target(N2)), Outcome.GOOD)
    seed(world)
    async with running(world.agent()):
        await until(lambda: healthy(world, "n1", "n2"))
        await until(lambda: world.says("Ready", "Ready"))
        asked = checks(world)
        await until(lambda: checks(world) >= asked + 2)
        version = (await world.lb()).metadata.resource_version
        asked = checks(world)
        await until(lambda: checks(world) >= asked + 4)
        assert (await world.lb()).metadata.resource_version == version


async def test_the_controllers_part_of_a_backend_stays() -> None:
    """Both write one list, each its own fields of an entry."""
    world = World()
    world.probed.answers = dict.fromkeys((target(N1), target(N2)), Outcome.GOOD)
    seed(world)
    async with running(world.agent()):
        await until(lambda: healthy(world, "n1", "n2"))
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "status": {
                "addresses": msgspec.to_builtins((await world.lb()).status.addresses),
                "backends": [msgspec.to_builtins(Backend(name="n1", addresses=["10.0.0.11"]))],
            },
        }
        await world.client.apply(
            LOADBALANCERS, "t", "a", patch, field_manager="cloudprovider-controller", subresource="status"
        )
        world.probed.answers[target(N1)] = Outcome.BAD
        await until(lambda: healthy(world, "n2"), 10)
        (first, _) = sorted((await world.lb()).status.backends, key=lambda b: b.name)
        assert first.addresses == ["10.0.0.11"]


async def test_where_nothing_is_asked_a_load_balancer_is_as_it_was() -> None:
    """Of a check that is not yet due nothing is known: it refuses, and says so."""
    world = World()
    seed(world, NEVER)
    async with running(world.agent()):
        await until(lambda: world.says("Ready", "NoHealthyBackends"))
        assert await shown(world) == {"n1": (False, "Not checked yet"), "n2": (False, "Not checked yet")}
