"""The whole agent over a real kernel and an API server in memory: from an object's change to the kernel, and memory.

``python -m tests.bench.dataplane.agent COUNT`` prints what it found with COUNT Services as one line of JSON;
:func:`add_rows` runs it as a process of its own for each count, so that memory is that of one agent.
"""

import asyncio
import gc
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Final

import msgspec
from typing_extensions import override

from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.program import Agent, connect
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_LABEL,
    Address,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
    ServiceReference,
)
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.plan import Changes
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from cloudprovider.probe.fake import FakeProber, FakeTargets
from tests.bench.dataplane.rules import COUNTS, NODES, TENANTS, resident_bytes
from tests.bench.report import Report
from tests.dataplane.lan import CONFIG, bridge

_CHANGES: Final = 50
_LIMIT: Final = 300.0
_FIRST: Final = IPv4Address("10.97.0.1")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one process saw. Times in seconds (a change in milliseconds), memory in bytes."""

    change: float
    in_line: float
    served: float
    before: int
    after: int


class _WatchedEngine:
    """Tells when the kernel has a change, and is the engine in all else."""

    def __init__(self, engine: NftablesEngine) -> None:
        self._apply = engine.apply
        self.applied = 0.0
        self.changed = asyncio.Event()

    async def apply(self, changes: Changes) -> None:
        await self._apply(changes)
        self.applied = time.perf_counter()
        self.changed.set()


class _WatchedDataPlane(HostDataPlane):
    watched: _WatchedEngine

    @override
    async def open(self, config: NetworkConfig) -> KernelSegment:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        segment = await super().open(config)
        self.watched = _WatchedEngine(segment.engine)
        segment.engine.apply = self.watched.apply  # type: ignore[method-assign]
        return segment


def _cluster(tenant: int) -> GuestCluster:
    addresses = [str(IPv4Address("10.99.0.11") + 32 * tenant + i) for i in range(NODES)]
    nodes = [GuestNode(name=f"n{i}", addresses=[address]) for i, address in enumerate(addresses)]
    return GuestCluster(metadata=ObjectMeta(namespace=f"t{tenant}", name="c"), status=GuestClusterStatus(nodes=nodes))


def _load_balancer(number: int) -> LoadBalancer:
    tenant, name = number % TENANTS, f"s{number}"
    return LoadBalancer(
        metadata=ObjectMeta(namespace=f"t{tenant}", name=name, labels={CLUSTER_LABEL: "c"}, generation=1),
        spec=LoadBalancerSpec(
            workload_type="cluster",
            listeners=[Listener(port=80, backend_port=30000)],
            service=ServiceReference(namespace="d", name=name, uid="u"),
        ),
        status=LoadBalancerStatus(addresses=[Address(ip=str(_FIRST + number), ip_pool="p", prefix_length=24)]),
    )


async def find(count: int) -> Found:
    """Run an agent with ``count`` Services of ten tenants on the bridge, and change one of them."""
    cluster = FakeCluster(lambda: datetime.now(UTC))
    for tenant in range(TENANTS):
        cluster.seed(GUESTCLUSTERS, _cluster(tenant))
    for number in range(count):
        cluster.seed(LOADBALANCERS, _load_balancer(number))
    served = asyncio.Event()
    held = set[str]()

    async def after(call: Call) -> None:
        cluster.compact()  # an API server's memory is not the agent's
        if call.resource == "loadbalancers/status":
            status = cluster.find(LOADBALANCERS, call.namespace, call.name).body["status"]
            if status.get("holder", {}).get("addresses"):
                held.add(call.name)
                if len(held) == count:
                    served.set()

    cluster.after = after
    gc.collect()
    before = resident_bytes()
    rng = random.Random(1)

    dataplane = _WatchedDataPlane("benagent")
    config = AgentConfig(node_name="h1", instance="benagent", networks=(CONFIG,))
    agent = Agent(
        config,
        FakeKubeClient(cluster, program="agent"),
        dataplane,
        rng,
        connect=lambda segment, network, probe: connect(segment, network, probe, rng=rng),
        make_prober=lambda _segment, _network: FakeProber(FakeTargets()),
    )
    start = time.perf_counter()
    running = asyncio.create_task(agent.run())
    try:
        async with asyncio.timeout(_LIMIT):
            await served.wait()
        all_served = time.perf_counter() - start
        in_line = dataplane.watched.applied - start
        memory = resident_bytes()
        change = await _change(cluster, dataplane.watched)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await dataplane.remove("")
    return Found(change=change, in_line=in_line, served=all_served, before=before, after=memory)


async def _change(cluster: FakeCluster, watched: _WatchedEngine) -> float:
    """Milliseconds from a changed object in the API server to the kernel, the median."""
    client = FakeKubeClient(cluster, program="bench")
    first = _load_balancer(0).key
    spent = []
    for turn in range(_CHANGES):
        await asyncio.sleep(0.05)  # what the change before led to (a status) is over: they come one by one
        lb = await client.get(LOADBALANCERS, *first)
        spec = msgspec.structs.replace(lb.spec, listeners=[Listener(port=80, backend_port=30001 + turn % 2)])
        watched.changed.clear()
        start = time.perf_counter()
        await client.replace(LOADBALANCERS, msgspec.structs.replace(lb, spec=spec))
        async with asyncio.timeout(_LIMIT):
            await watched.changed.wait()
        spent.append(1000 * (watched.applied - start))
    return statistics.median(spent)


def _in_a_process(count: int) -> Found:
    command = [sys.executable, "-m", "tests.bench.dataplane.agent", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * _LIMIT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return msgspec.json.decode(done.stdout, type=Found)


def add_rows(report: Report) -> None:
    found: Mapping[int, Found] = {count: _in_a_process(count) for count in COUNTS}
    for count, seen in found.items():
        what = f"whole agent: one Service changed, {count:,} present, median"
        report.add(what, seen.change, "ms", ("<", 5))
    most, seen = list(found.items())[-1]
    what = f"whole agent, {most:,} Services of {NODES} backends"
    report.add(f"{what}: start to rules in the kernel", seen.in_line, "s")
    report.add(f"{what}: start to all announced and reported", seen.served, "s")
    report.add(f"{what}: memory, the API server's objects included", seen.after / 1e6, "MB", ("<", 200))
    report.add(f"{what}: of that before it started (API server in memory)", seen.before / 1e6, "MB")


if __name__ == "__main__":
    with bridge():
        sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(find(int(sys.argv[1])))) + b"\n")
