"""An API server that refuses, or whose answers are lost; a program killed at any of its requests."""

import asyncio
import random

import msgspec
import pytest

from cloudprovider.core.api.pool import Allocation
from cloudprovider.core.errors import Conflict, Unavailable
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.views import given, has_address, seen, vm
from tests.host.world import World, eventually, pool, subnet

WRITES = frozenset({"create", "update", "patch", "apply", "delete"})
HOST = "host"


@pytest.fixture
def world(cluster: FakeCluster) -> World:
    return World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster, program=HOST))


@pytest.mark.parametrize("seed", range(4))
async def test_refused_and_unanswered_writes_double_and_leak_nothing(
    world: World, cluster: FakeCluster, seed: int
) -> None:
    rng = random.Random(seed)

    async def refuse(call: Call) -> None:
        if call.program == HOST and call.verb in WRITES and rng.random() < 0.15:
            raise rng.choice([Unavailable("busy", status=503), Conflict("lost", status=409)])

    async def lose(call: Call) -> None:
        if call.program == HOST and call.verb in WRITES and rng.random() < 0.15:
            raise Unavailable("no answer")

    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/25"), subnet("198.51.100.0/25")))
    async with world.host() as host:
        cluster.before, cluster.after = refuse, lose
        for i in range(40):
            await world.client.create(LOADBALANCERS, vm(f"vm{i}"))
        for i in range(0, 40, 2):
            await given(host, vm(f"vm{i}"))
            await world.client.delete(LOADBALANCERS, "team-a", f"vm{i}")
        for i in range(1, 40, 2):
            await given(host, vm(f"vm{i}"))
        await eventually(lambda: len(host.caches.load_balancers.objects) == 20, "the deleted are gone")
        await eventually(lambda: len(host.controller.book.ledger.owners()) == 20, "their addresses are given back")
        cluster.before = cluster.after = None
        shown = {lb.status.address: f"team-a/{name}" for (_, name), lb in host.caches.load_balancers.objects.items()}
    assert await world.allocations() == shown


@pytest.mark.parametrize("answered", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("write", [1, 10, 11, 12, 22, 24])
async def test_killed_at_any_write_nothing_moves_doubles_or_leaks(
    world: World, cluster: FakeCluster, write: int, answered: bool
) -> None:
    """The n-th write of a burst of ten creations and five deletions is the program's last."""
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    died = asyncio.Event()
    count = 0

    async def die(call: Call) -> None:
        nonlocal count
        if call.program == HOST and call.verb in WRITES:
            count += 1
            if count >= write:
                died.set()
                await asyncio.Event().wait()  # no request gets any further

    if answered:
        cluster.after = die
    else:
        cluster.before = die
    shown: dict[str, str] = {}
    async with world.host() as host:
        for i in range(10):
            await world.client.create(LOADBALANCERS, vm(f"vm{i}"))
        for i in range(5):
            one = vm(f"vm{i}")
            await eventually(lambda one=one: died.is_set() or has_address(host, one))  # type: ignore[misc]
            await world.client.delete(LOADBALANCERS, "team-a", f"vm{i}")
        await eventually(lambda: died.is_set() or len(host.caches.load_balancers.objects) == 5)
        shown = {lb.metadata.name: lb.status.address for lb in await world.load_balancers() if lb.status.address}
    assert died.is_set()
    cluster.before = cluster.after = None
    async with world.host() as host:
        for i in range(5, 10):
            await given(host, vm(f"vm{i}"))
        await eventually(lambda: len(host.caches.load_balancers.objects) == 5, "the deleted are gone")
        await eventually(lambda: len(host.controller.book.ledger.owners()) == 5, "their addresses are given back")
        now = {lb.metadata.name: lb.status.address for lb in host.caches.load_balancers.objects.values()}
    assert {name: now[name] for name in shown if name in now} == {n: a for n, a in shown.items() if n in now}
    assert await world.allocations() == {address: f"team-a/{name}" for name, address in now.items()}


async def test_a_write_of_somebody_else_is_not_lost(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(LOADBALANCERS, vm("first"))
    async with world.host() as host:
        await given(host, vm("first"))
        (block,) = await world.blocks()
        taken = {**block.spec.allocations, "192.0.2.3": Allocation(owner="agent/h")}
        spec = msgspec.structs.replace(block.spec, allocations=taken)
        await world.client.replace(IPBLOCKS, msgspec.structs.replace(block, spec=spec))
        await world.client.create(LOADBALANCERS, vm("second"))
        assert await given(host, vm("second")) == "192.0.2.4"
    assert (await world.allocations())["192.0.2.3"] == "agent/h"


@pytest.mark.parametrize("stop_after", [1, 3, 7, 12, 20])
async def test_killed_at_any_moment_nothing_moves_doubles_or_leaks(world: World, stop_after: int) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    names = [f"vm{i}" for i in range(25)]
    before: dict[str, str] = {}
    async with world.host() as host:
        for name in names:
            await world.client.create(LOADBALANCERS, vm(name))
        count = host.caches.load_balancers.objects

        def some_given() -> bool:
            return sum(1 for lb in count.values() if lb.status.address) >= stop_after

        await eventually(some_given)
        before = {lb.metadata.name: lb.status.address for lb in count.values() if lb.status.address}
    async with world.host() as host:
        for name in names:
            await given(host, vm(name))
        after = {name: seen(host, vm(name)).status.address for name in names}
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == len(names)
    assert set(await world.allocations()) == set(after.values())
