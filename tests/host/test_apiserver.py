"""The host over a real API server, under the rights and policies that it is installed with."""

import asyncio
import itertools
import random
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from cloudprovider.bridge.api import Hello
from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.kubernetes import Event
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import Range
from cloudprovider.core.conditions import MAX_MESSAGE, find
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, LoadBalancerState, ServiceKey, Tenant
from cloudprovider.core.lbobject import object_key
from cloudprovider.host.assembly import Host
from cloudprovider.kube import credentials
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.resources import (
    EVENTS,
    GUESTCLUSTERS,
    IPBLOCKS,
    IPPOOLS,
    LOADBALANCERS,
    VIRTUAL_MACHINE_INSTANCES,
)
from tests.conftest import DEFINITIONS, KUBEVIRT, LOGS
from tests.core.instances import VLAN, instance
from tests.host.leases import keep
from tests.host.views import condition, given, seen, vm
from tests.host.world import LIMIT, World, eventually, guest_cluster, pool, services, subnet
from tests.lab import programs
from tests.lab.controlplane import ControlPlane, Settings

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120)]

TENANT = Tenant("team-a", "blue")
SHOP, VLAN_POOL = "shop", "vlan"
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane of its own: the host follows every pool and load balancer that there is."""
    with tempfile.TemporaryDirectory(prefix="host-plane-") as folder:
        plane = ControlPlane(Path(folder), LOGS / "tests", Settings(name="host"))
        with plane:
            plane.apply_definitions(DEFINITIONS)
            programs.install(plane, "host")
            programs.wait_permitted(plane, ("host",))
            plane.kubectl("create", "namespace", TENANT.namespace)
            yield plane


@pytest.fixture
def counted() -> RequestCounter:
    """The requests of the hosts started in a test."""
    return RequestCounter()


@pytest.fixture
async def world(plane: ControlPlane, counted: RequestCounter) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        admin = await stack.enter_async_context(
            HttpKubeClient(
                credentials.from_kubeconfig(str(plane.kubeconfig)), program="test", version="0", rng=random.Random(1)
            )
        )
        account = credentials.from_kubeconfig(str(programs.account(plane, "host")))
        made: list[HttpKubeClient] = []

        def connect() -> HttpKubeClient:
            client = HttpKubeClient(account, program="host", version="0", rng=random.Random(2), requests=counted)
            made.append(client)
            return client

        world = World(client=admin, connect=connect)
        await admin.create(GUESTCLUSTERS, guest_cluster(TENANT, GuestClusterSpec(node_cidrs=["10.0.0.0/8"])))
        await admin.create(IPPOOLS, pool("p", subnet("10.1.0.0/22")))
        alive = asyncio.create_task(keep(admin, "host-1"))
        try:
            yield world
        finally:
            alive.cancel()
            await asyncio.wait([alive])
            await _clean(world)
            for client in made:
                await client.close()


async def _clean(world: World) -> None:
    client = world.client
    for lb in await world.load_balancers():
        if lb.metadata.finalizers:
            await client.merge_patch(LOADBALANCERS, *lb.key, {"metadata": {"finalizers": None}})
        if not lb.metadata.deletion_timestamp:
            await client.delete(LOADBALANCERS, *lb.key)
    for block in await world.blocks():
        await client.delete(IPBLOCKS, "", block.metadata.name)
    await client.delete(IPPOOLS, "", "p")
    await client.delete(GUESTCLUSTERS, TENANT.namespace, TENANT.cluster)


async def burst(host: Host, keys: list[ServiceKey], per_second: int) -> None:
    """Ask for load balancers at a rate, as a guest in a burst does."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for i, key in enumerate(keys):
            await asyncio.sleep(max(0.0, begin + i / per_second - loop.time()))
            tasks.create_task(host.backend.ensure(TENANT, key, REQUEST, ()))


async def test_a_burst_costs_what_the_budget_allows(world: World, counted: RequestCounter) -> None:
    count = 300
    keys = services(count)
    async with world.host() as host, world.agent(host) as agent:
        await host.backend.connect(TENANT, _hello())
        states = host.backend.states(TENANT).states
        start = sum(counted.snapshot().values())
        await burst(host, keys, 100)
        await eventually(lambda: all(states[k].addresses for k in keys), "every address is up")
        total = sum(counted.snapshot().values()) - start + agent.requests
        blocks = counted.total(resource="ipblocks", verb="create") + counted.total(resource="ipblocks", verb="update")
        assert counted.total(code=409) == 0
        assert total / count <= 3.2, counted.snapshot()
        assert blocks <= count / 20 + 2, "one for each 20, and one more for each of the two blocks begun"
        assert len(set(await world.allocations())) == count

        for key in keys:
            await host.backend.delete(TENANT, key)
        await eventually(lambda: not states, "all are gone")
        assert counted.total(code=409) == 0
        await eventually(lambda: host.caches.pools.objects["", "p"].status.allocated == {})
    assert await world.allocations() == {}


async def test_killed_in_a_burst_no_address_moves_doubles_or_leaks(world: World) -> None:
    keys = services(120)
    before: dict[ServiceKey, str] = {}
    asked = 0
    for part in (40, 80, 120):
        async with world.host() as host, world.agent(host):
            await host.backend.connect(TENANT, _hello())
            states = host.backend.states(TENANT).states
            for key in keys[asked:part]:
                await host.backend.ensure(TENANT, key, REQUEST, ())
            asked = part
            await eventually(partial(_has_up, states, part - 30))
            now = {key: str(state.addresses[0].ip) for key, state in states.items() if state.addresses}
            assert {key: now[key] for key in before} == before
            before = now
    async with world.host() as host, world.agent(host):
        states = host.backend.states(TENANT).states
        await eventually(lambda: all(states[k].addresses for k in keys))
        after = {key: str(state.addresses[0].ip) for key, state in states.items()}
        host.controller.audit()
        await host.controller.load_balancers.queue.idle()
    assert {key: after[key] for key in before} == before
    assert await world.allocations() == {address: "/".join(object_key(TENANT, key)) for key, address in after.items()}


async def test_two_hosts_at_once_give_no_address_twice(world: World) -> None:
    """By mistake: each decides about all, and only one write of a block wins."""
    keys = services(60)
    async with world.host() as one, world.host() as other, world.agent(one):
        await one.backend.connect(TENANT, _hello())
        both = itertools.cycle((one, other))
        await asyncio.gather(*(next(both).backend.ensure(TENANT, key, REQUEST, ()) for key in keys))
        states = one.backend.states(TENANT).states
        await eventually(lambda: len(states) == 60 and all(s.addresses for s in states.values()), "every address is up")
        for host in (one, other):
            await host.controller.load_balancers.queue.idle()
        shown = {str(state.addresses[0].ip) for state in states.values()}
        assert len(shown) == 60

        def is_agreed() -> bool:
            blocks = one.caches.blocks.objects.values()
            return {a for block in blocks for a in block.spec.allocations} == shown

        await eventually(is_agreed, "what one gave beside the other is given back")
    assert set(await world.allocations()) == shown


async def test_a_pools_trouble_is_told_as_an_event(world: World) -> None:
    name = ("", "younger")
    await world.client.create(IPPOOLS, pool("younger", subnet("10.1.0.0/24")))
    try:
        async with world.host() as host:
            await eventually(lambda: find(host.caches.pools.objects[name].status.conditions, "Overlap") is not None)
            uid = host.caches.pools.objects[name].metadata.uid
            async with asyncio.timeout(LIMIT):
                while not (found := await _events_of(world, uid)):  # noqa: ASYNC110 - an object, not a signal
                    await asyncio.sleep(0.05)
        (event,) = found
        assert (event.type, event.reason, event.involved_object.name) == ("Warning", "OverlapsOlderPool", "younger")
    finally:
        await world.client.delete(IPPOOLS, *name)


async def test_a_pool_with_more_wrong_than_a_condition_holds_says_so_all_the_same(world: World) -> None:
    """The API server refuses a status whose message is too long, whole."""
    name = ("", "wrong")
    ranges = [Range(subnet=f"10.{i}.0.0/24", exclude=["no address"] * 64) for i in range(10)]
    await world.client.create(IPPOOLS, pool("wrong", *ranges))
    try:
        async with world.host() as host:
            await eventually(lambda: find(host.caches.pools.objects[name].status.conditions, "Ready") is not None)
            found = find(host.caches.pools.objects[name].status.conditions, "Ready")
            assert found is not None
            assert (found.status, found.reason, len(found.message)) == ("False", "InvalidRanges", MAX_MESSAGE)
            assert found.message.startswith('spec.ranges[0].exclude[0]: "no address" is no address')
    finally:
        await world.client.delete(IPPOOLS, *name)


async def test_machines_are_followed_on_a_real_api_server(
    world: World, plane: ControlPlane, counted: RequestCounter
) -> None:
    """KubeVirt's kind comes while the host runs; who is what, and who is well, are two managers' words."""
    client = world.client
    lb = vm("lb", SHOP, ip_pool=VLAN_POOL, backend_server_selector={"app": ["web"]})
    plane.kubectl("create", "namespace", SHOP)
    await client.create(IPPOOLS, pool(VLAN_POOL, subnet("10.9.0.0/24"), network=VLAN))
    await client.create(LOADBALANCERS, lb)
    async with world.host() as host, world.agent(host):
        await given(host, lb)
        await eventually(lambda: _found(host, lb) == "KubeVirtNotInstalled")
        plane.apply_definitions(KUBEVIRT)
        await client.create(VIRTUAL_MACHINE_INSTANCES, instance("a", "10.9.0.5"))
        await eventually(lambda: _sent_to(host, lb) == {"a": ["10.9.0.5"]}, "KubeVirt's kind is noticed")
        await client.create(VIRTUAL_MACHINE_INSTANCES, instance("b", "10.9.0.6"))
        await eventually(lambda: set(_sent_to(host, lb)) == {"a", "b"}, limit=1.0)

        up = {"name": "b", "health": {"healthy": True, "since": "2026-01-01T00:00:00Z"}}
        patch = {"apiVersion": LOADBALANCERS.api_version, "kind": LOADBALANCERS.kind, "status": {"backends": [up]}}
        await client.apply(LOADBALANCERS, *lb.key, patch, field_manager="cloudprovider-health", subresource="status")
        await client.merge_patch(VIRTUAL_MACHINE_INSTANCES, SHOP, "a", {"status": {"phase": "Succeeded"}})
        await eventually(lambda: _sent_to(host, lb) == {"b": ["10.9.0.6"]}, limit=1.0)
        (b,) = seen(host, lb).status.backends
        assert b.health is not None
        assert seen(host, lb).status.backend_servers == ["10.9.0.6"]

        await host.controller.load_balancers.queue.idle()
        before = counted.total(verb="apply")
        await client.merge_patch(VIRTUAL_MACHINE_INSTANCES, SHOP, "b", {"status": {"nodeName": "host-2"}})
        await client.create(VIRTUAL_MACHINE_INSTANCES, instance("c", "10.9.0.7", labels={"app": "db"}))
        await asyncio.sleep(0.5)
        assert counted.total(verb="apply") == before
        assert counted.total(code=403) == 0
    for name in ("a", "b", "c"):
        await client.delete(VIRTUAL_MACHINE_INSTANCES, SHOP, name)
    await client.delete(IPPOOLS, "", VLAN_POOL)


async def _events_of(world: World, uid: str) -> list[Event]:
    return [e for e in (await world.client.list(EVENTS, "default")).items if e.involved_object.uid == uid]


def _has_up(states: Mapping[ServiceKey, LoadBalancerState], count: int) -> bool:
    return sum(1 for state in states.values() if state.addresses) >= count


def _hello() -> Hello:
    return Hello(cluster_uid="kube-system-1", guest_version="1")


def _sent_to(host: Host, lb: LoadBalancer) -> dict[str, list[str]]:
    return {b.name: b.addresses for b in seen(host, lb).status.backends if b.addresses}


def _found(host: Host, lb: LoadBalancer) -> str:
    said = condition(host, lb, "BackendsFound")
    return "" if said is None else said.reason
