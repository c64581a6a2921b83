"""The API server is away for a whole minute: what is asked is refused in words, nothing spins, no address moves."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from ipaddress import ip_address

import grpc
import pytest

from cloudprovider.bridge.api import Hello
from cloudprovider.bridge.failures import to_status
from cloudprovider.core.errors import KubeError, Unavailable
from cloudprovider.core.exchange import Inventory, InventoryItem, Listener, LoadBalancerRequest, ReportedNode, Tenant
from cloudprovider.core.lbobject import object_key
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS
from tests.host.views import given, has_address, vm
from tests.host.world import World, eventually, guest_cluster, pool, services, subnet, virtually

TENANT = Tenant("team-a", "blue")
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))
HOST = "host"
MINUTE = 60.0
DEADLINE = 10.0
"""Seconds that a request waits for an answer that never comes."""

PAUSE = 15.0
"""The longest pause between two tries, in seconds."""

WAYS = pytest.mark.parametrize("silent", [False, True], ids=["refused", "silent"])


class Outage(World):
    """A host whose API server can be switched off. ``requests`` are those made while it is away, with their time."""

    def __init__(self) -> None:
        self.cluster = FakeCluster(utc_now)
        self.requests: list[tuple[float, Call]] = []
        super().__init__(
            client=FakeKubeClient(self.cluster), connect=lambda: FakeKubeClient(self.cluster, program=HOST)
        )

    @asynccontextmanager
    async def away(self, *, silent: bool) -> AsyncIterator[None]:
        """Take the API server away from the host; it comes back a minute later."""
        loop = asyncio.get_running_loop()
        back = loop.time() + MINUTE

        async def refuse(call: Call) -> None:
            if call.program == HOST:
                self.requests.append((loop.time(), call))
                if silent:
                    await asyncio.sleep(DEADLINE)
                raise Unavailable("connection refused: 10.0.0.1:6443")

        self.cluster.before = refuse
        self.cluster.cut_watches(Unavailable("connection reset"))
        yield
        await asyncio.sleep(back - loop.time())
        self.cluster.before = None


async def prepared() -> Outage:
    world = Outage()
    await world.client.create(IPPOOLS, pool("p", subnet("10.0.0.0/24")))
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
    return world


scenario = virtually(prepared)


async def serve(host: Host, count: int) -> dict[str, str]:
    """Let the tenant have load balancers; return the addresses that are shown, by object."""
    await host.backend.connect(TENANT, Hello(cluster_uid="kube-system-1", guest_version="1"))
    for service in services(count):
        await host.backend.ensure(TENANT, service, REQUEST, ())
        await given(host, host.caches.load_balancers.objects[object_key(TENANT, service)])
    return shown(host)


def shown(host: Host) -> dict[str, str]:
    found = host.caches.load_balancers.objects.values()
    return {lb.metadata.name: lb.status.address for lb in found if lb.status.address}


def healing(*, silent: bool) -> float:
    """Return within how many seconds all must have healed: a pause, and before it a last request without an answer."""
    return PAUSE + 5 + (DEADLINE if silent else 0)


async def unavailable(call: Awaitable[object]) -> None:
    """Check that a call is answered UNAVAILABLE, in words that tell a guest what is up and nothing of the host."""
    with pytest.raises(KubeError) as refused:
        await call
    code, status = to_status(refused.value)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "the host's API server" in status.message
    assert "try again" in status.message
    assert "10.0.0.1" not in status.message


@WAYS
@scenario
async def test_calls_are_answered_unavailable_and_succeed_afterwards(world: Outage, silent: bool) -> None:
    new = services(1, prefix="new")[0]
    nodes = [ReportedNode("n", (ip_address("10.0.2.1"),))]
    async with world.host() as host, world.agent(host):
        before = await serve(host, 3)
        first, *rest = services(3)
        backend = host.backend
        async with world.away(silent=silent):
            await unavailable(backend.ensure(TENANT, new, REQUEST, ()))
            await unavailable(backend.delete(TENANT, first))
            await unavailable(backend.report_nodes(TENANT, nodes))
            items = tuple(InventoryItem(s) for s in rest)
            inventory = Inventory(items, "7", complete=True, fencing_token=1)
            await unavailable(backend.report_inventory(TENANT, inventory))
            state = await backend.ensure(TENANT, first, REQUEST, ())
            assert [str(a.ip) for a in state.addresses] == [before[object_key(TENANT, first)[1]]], "nothing to be asked"
        await backend.ensure(TENANT, new, REQUEST, ())
        await given(host, host.caches.load_balancers.objects[object_key(TENANT, new)])
        await backend.report_nodes(TENANT, nodes)
        await backend.delete(TENANT, first)
        await eventually(
            lambda: len(host.caches.load_balancers.objects) == 3, "the first is gone", healing(silent=silent)
        )
        after = shown(host)
    kept = {object_key(TENANT, service)[1] for service in rest}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert await world.allocations() == {address: f"team-a/{name}" for name, address in after.items()}


@WAYS
@pytest.mark.parametrize("done", [False, True], ids=["not written", "written"])
@scenario
async def test_what_was_under_way_goes_on_and_nothing_spins(world: Outage, silent: bool, done: bool) -> None:
    """The API server goes as a block is written: it has been, or not, but no answer comes."""
    waiting = [f"vm{i}" for i in range(5)]
    async with world.host() as host:
        before = await serve(host, 3)
        gone = asyncio.Event()

        async def lose(call: Call) -> None:
            if call.program == HOST and call.resource == "ipblocks" and not gone.is_set():
                gone.set()
                raise Unavailable("no answer")

        if done:
            world.cluster.after = lose
        else:
            world.cluster.before = lose
        for name in waiting:
            await world.client.create(LOADBALANCERS, vm(name))
        await gone.wait()
        async with world.away(silent=silent):
            pass
        assert {name: address for name, address in shown(host).items() if name in before} == before

        counts = Counter((call.verb, call.resource, call.name) for _, call in world.requests)
        assert counts, "it does try"
        assert max(counts.values()) <= 20, f"of one kind about one object in a minute: {counts.most_common(3)}"
        end = max(time for time, _ in world.requests)
        late = Counter((call.verb, call.resource, call.name) for time, call in world.requests if time > end - 15)
        assert max(late.values()) <= 3, f"the pauses grow: {late.most_common(3)}"

        await eventually(
            lambda: all(has_address(host, vm(name)) for name in waiting), "all are served", healing(silent=silent)
        )
        after = shown(host)
    assert {name: after[name] for name in before} == before
    assert len(after) == 8
    assert await world.allocations() == {address: f"team-a/{name}" for name, address in after.items()}
