"""How long it takes until the kernel has what checks have found, when many load balancers are concerned at once: the
time from a verdict to the kernel, of the first and of the last of them. A part of ``make bench-health``.

A whole agent with a real kernel; the backends answer in memory, so that they all fail in the same moment.
"""

import asyncio
import random
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final
from unittest.mock import patch

import msgspec

from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.program import Agent
from cloudprovider.core.api.guestcluster import GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import Backend, HealthCheck, Listener, LoadBalancer
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.health import Outcome
from cloudprovider.core.plan import Changes, ListenerKey
from cloudprovider.core.questions import TcpConnect
from cloudprovider.core.wanted import LoadBalancerKey
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from cloudprovider.probe.api import Target
from cloudprovider.probe.fake import FakeProber
from tests.agent.world import World, running, until, unwatched
from tests.bench.report import Report
from tests.core.test_forwarding import lb, vm
from tests.dataplane.lan import CONFIG

MACHINES: Final = [IPv4Address("10.99.0.11") + n for n in range(10)]
PER_ADDRESS: Final = 10
FIRST_VIP: Final = IPv4Address("10.99.0.100")
LIMIT: Final = 300.0
QUICK: Final = HealthCheck(port=8080, failure_threshold=1, period_seconds=1, timeout_seconds=1)


@dataclass
class Watch:
    """When the table was told of a load balancer's backends, and when the kernel had that."""

    told: dict[LoadBalancerKey, float] = field(default_factory=dict)
    kernel: dict[LoadBalancerKey, float] = field(default_factory=dict)
    longest: float = 0.0
    """Seconds that one transaction has held up the loop."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the table and the engine."""
        real_told, real_apply, watch = ForwardingTable.set_healthy, NftablesEngine.apply, self

        def set_healthy(table: ForwardingTable, key: LoadBalancerKey, nodes: frozenset[str]) -> bool:
            changed = real_told(table, key, nodes)
            if changed:
                watch.told.setdefault(key, time.monotonic())
            return changed

        async def apply(engine: NftablesEngine, changes: Changes) -> None:
            began = time.monotonic()
            await real_apply(engine, changes)
            watch.longest = max(watch.longest, time.monotonic() - began)
            for key in list(watch.told.keys() - watch.kernel.keys()):
                listener = _key(int(key[1].removeprefix("lb-")))
                forward = engine._ledger.forwards.get(listener)
                if listener in changes.forwards or (forward is not None and forward.group in changes.groups):
                    watch.kernel[key] = time.monotonic()

        with ExitStack() as stack:
            stack.enter_context(patch.object(ForwardingTable, "set_healthy", set_healthy))
            stack.enter_context(patch.object(NftablesEngine, "apply", apply))
            yield

    def restart(self) -> None:
        """Forget what was."""
        self.told.clear()
        self.kernel.clear()
        self.longest = 0.0

    def delays(self) -> list[float]:
        """Seconds from verdict to kernel, in the order of the kernel's changes."""
        return [moment - self.told[key] for key, moment in sorted(self.kernel.items(), key=lambda item: item[1])]


def _key(number: int) -> ListenerKey:
    return ListenerKey(FIRST_VIP + number // PER_ADDRESS, "TCP", 8000 + number % PER_ADDRESS)


def _listener(number: int) -> tuple[str, Listener]:
    key = _key(number)
    return str(key.vip), Listener(port=key.port, backend_port=8080)


def _for_machines(count: int) -> Iterable[LoadBalancer]:
    """All check the same machines alike."""
    machines = [
        Backend(name=f"m{n}", addresses=[str(address)], mac_address=f"02:00:00:00:01:{n:02x}")
        for n, address in enumerate(MACHINES)
    ]
    for number in range(count):
        vip, listener = _listener(number)
        yield vm(f"lb-{number}", vip, listener, backends=machines, health_check=QUICK)


def _different(count: int) -> Iterable[LoadBalancer]:
    """Each has a check of its own, which other nodes of the cluster pass."""
    for number in range(count):
        vip, listener = _listener(number)
        check = msgspec.structs.replace(QUICK, port=9000 + number)
        yield lb(f"lb-{number}", vip, listener, health_check=check)


def _passes(number: int, node: int) -> bool:
    """The last node passes all checks, the others those whose number has their bit."""
    return node == len(MACHINES) - 1 or bool((number + 1) >> node & 1)


async def _measure(world: World, made: Iterable[LoadBalancer], dying: Iterable[Target]) -> Iterable[tuple[str, Watch]]:
    dataplane, targets = HostDataPlane("bench"), list(dying)
    keys = [world.cluster.seed(LOADBALANCERS, each).key for each in made]
    agent = Agent(
        AgentConfig(node_name="h1", instance="bench", networks=(CONFIG,)),
        FakeKubeClient(world.cluster, program="h1"),
        dataplane,
        random.Random(1),
        connect=world.connect,
        make_prober=lambda _segment, _network: FakeProber(world.probed),
        make_watch=unwatched,
    )
    try:
        watch = Watch()
        with watch.watching():
            async with running(agent):
                await until(lambda: len(watch.kernel) == len(keys), LIMIT)
                await until(lambda: _all_held(world), LIMIT)
                results: list[tuple[str, Watch]] = []
                for what, outcome in (("dies", Outcome.BAD), ("comes back", Outcome.GOOD)):
                    await asyncio.sleep(2 * QUICK.period_seconds)
                    watch.restart()
                    world.probed.answers.update(dict.fromkeys(targets, outcome))
                    await until(lambda: bool(watch.told), LIMIT)
                    await asyncio.sleep(2 * QUICK.period_seconds)
                    await until(lambda: len(watch.kernel) == len(watch.told), LIMIT)
                    results.append((what, Watch(dict(watch.told), dict(watch.kernel), watch.longest)))
        return results
    finally:
        for network in await dataplane.networks():
            await dataplane.remove(network)


async def _all_held(world: World) -> bool:
    listed = (await world.client.list(LOADBALANCERS)).items
    return all(each.status.holder is not None for each in listed)


def _target(address: IPv4Address, port: int) -> Target:
    return Target(address, port, TcpConnect())


async def same_machines(report: Report, count: int) -> None:
    """One of ten machines dies and comes back, which all load balancers check by the same port."""
    world = World()
    world.probed.answers = {_target(address, 8080): Outcome.GOOD for address in MACHINES}
    _tell(report, "machine", count, await _measure(world, _for_machines(count), [_target(MACHINES[0], 8080)]))


async def different_sets(report: Report, count: int) -> None:
    """A node dies and comes back in a cluster each of whose load balancers goes to another set of nodes."""
    world = World()
    nodes = [GuestNode(name=f"m{n}", addresses=[str(address)]) for n, address in enumerate(MACHINES)]
    patched = {"status": msgspec.to_builtins(GuestClusterStatus(nodes=nodes))}
    await world.client.merge_patch(GUESTCLUSTERS, "t", "c", patched, subresource="status")
    world.probed.answers = {
        _target(address, 9000 + number): Outcome.GOOD if _passes(number, node) else Outcome.BAD
        for number in range(count)
        for node, address in enumerate(MACHINES)
    }
    dying = [_target(MACHINES[-1], 9000 + number) for number in range(count)]
    _tell(report, "node, each with its own check and nodes,", count, await _measure(world, _different(count), dying))


def _tell(report: Report, of: str, count: int, found: Iterable[tuple[str, Watch]]) -> None:
    for what, watch in found:
        delays = watch.delays()
        title = f"{count} load balancers, a {of} {what}"
        report.add(f"{title}: verdict to kernel, first", 1000 * delays[0], "ms")
        report.add(f"{title}: verdict to kernel, slowest", 1000 * max(delays), "ms")
        whole = max(watch.kernel.values()) - min(watch.told.values())
        report.add(f"{title}: first verdict to last kernel", 1000 * whole, "ms")
        report.add(f"{title}: longest transaction", 1000 * watch.longest, "ms")
