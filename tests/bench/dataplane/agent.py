"""The whole agent over a real kernel and an API server in memory: from an object's change to the kernel, and memory.

``python -m tests.bench.dataplane.agent COUNT`` prints what it found with COUNT Services as one line of JSON. The API
server is in the same process, so that a change costs no more than the agent's own work. ``... COUNT PORT`` has it in
another (:mod:`tests.bench.dataplane.apiserver`): memory is then one agent's, as a pod has it.
"""

import asyncio
import gc
import random
import resource
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Final

import msgspec
from typing_extensions import override

from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.program import Agent, connect
from cloudprovider.core.api.loadbalancer import Listener
from cloudprovider.core.plan import Changes
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import Credentials
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.resources import LOADBALANCERS
from cloudprovider.probe.fake import FakeProber, FakeTargets
from tests.agent.world import unwatched
from tests.bench.dataplane.objects import load_balancer, seed
from tests.bench.dataplane.rules import COUNTS, NODES, resident_bytes
from tests.bench.report import Report
from tests.dataplane.lan import CONFIG, bridge

_CHANGES: Final = 50
_SCRAPES: Final = 7
_LIMIT: Final = 300.0
_LOOK_EVERY: Final = 0.05


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one process saw. Times in seconds, memory in bytes: before the agent started, when it has all in line, and
    the most at any time."""

    in_line: float
    served: float
    before: int
    after: int
    most: int
    change: float = 0.0
    """Milliseconds; 0: not measured."""
    scrape: float = 0.0
    """Milliseconds until the metrics are read and written."""
    scraped: int = 0
    """Bytes of them."""
    held: float = 0.0
    """Milliseconds of CPU that the event loop was held for without a pause meanwhile, at the most."""


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


async def _served(requests: RequestCounter, count: int) -> None:
    """Wait until each load balancer's status has been written."""
    async with asyncio.timeout(_LIMIT):
        while requests.total(resource="loadbalancers/status") < count:  # noqa: ASYNC110 - it counts, and tells nobody
            await asyncio.sleep(_LOOK_EVERY)


async def _find(count: int, client: KubeClient, requests: RequestCounter, cluster: FakeCluster | None) -> Found:
    gc.collect()
    before = resident_bytes()
    rng = random.Random(1)
    dataplane = _WatchedDataPlane("benagent")
    config = AgentConfig(node_name="h1", instance="benagent", networks=(CONFIG,))
    agent = Agent(
        config,
        client,
        dataplane,
        rng,
        connect=lambda segment, network, probe: connect(segment, network, probe, rng=rng),
        make_prober=lambda _segment, _network: FakeProber(FakeTargets()),
        make_watch=unwatched,
    )
    start = time.perf_counter()
    running = asyncio.create_task(agent.run())
    try:
        await _served(requests, count)
        scrape, scraped, held = await _scrape(agent)
        found = Found(
            in_line=dataplane.watched.applied - start,
            served=time.perf_counter() - start,
            before=before,
            after=resident_bytes(),
            most=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            scrape=scrape,
            scraped=scraped,
            held=held,
        )
        if cluster is None:
            return found
        return msgspec.structs.replace(found, change=await _change(cluster, dataplane.watched))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await dataplane.remove("")


async def _scrape(agent: Agent) -> tuple[float, int, float]:
    """How long a scrape takes, how much it brings, and for how long it holds the loop at once (medians)."""
    held = 0.0

    async def beat() -> None:
        nonlocal held
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            held, before = max(held, time.thread_time() - before), time.thread_time()

    taken, pauses, size = [], [], 0
    for _ in range(_SCRAPES):
        held = 0.0
        beside = asyncio.create_task(beat())
        await asyncio.sleep(0)
        start = time.perf_counter()
        size = len(await agent.registry.text())
        taken.append(1000 * (time.perf_counter() - start))
        pauses.append(1000 * held)
        beside.cancel()
    return statistics.median(taken), size, statistics.median(pauses)


async def _change(cluster: FakeCluster, watched: _WatchedEngine) -> float:
    """Milliseconds from a changed object in the API server to the kernel, the median."""
    client = FakeKubeClient(cluster, program="bench")
    first = load_balancer(0).key
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


async def find_change(count: int) -> Found:
    """Run an agent with ``count`` Services on the bridge, the API server in this process, and change one of them."""
    cluster = FakeCluster(lambda: datetime.now(UTC))
    seed(cluster, count)

    async def after(_: Call) -> None:
        cluster.compact()

    cluster.after = after
    client = FakeKubeClient(cluster, program="agent")
    return await _find(count, client, client.requests, cluster)


async def find_alone(count: int, port: int) -> Found:
    """Run an agent whose API server is another process."""
    credentials = Credentials(server=f"http://127.0.0.1:{port}", ssl=None, authorization=lambda: "")
    async with HttpKubeClient(credentials, program="agent", version="0", rng=random.Random(1)) as client:
        return await _find(count, client, client.requests, None)


def _in_a_process(*arguments: int) -> Found:
    command = [sys.executable, "-m", "tests.bench.dataplane.agent", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * _LIMIT, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return msgspec.json.decode(done.stdout, type=Found)


def _beside_an_api_server(count: int) -> Found:
    command = [sys.executable, "-m", "tests.bench.dataplane.apiserver", str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            return _in_a_process(count, int(server.stdout.readline()))
        finally:
            assert server.stdin is not None
            server.stdin.close()


def add_rows(report: Report) -> None:
    for count in COUNTS:
        what = f"whole agent: one Service changed, {count:,} present, median"
        report.add(what, _in_a_process(count).change, "ms", ("<", 5))
    most = COUNTS[-1]
    seen = _beside_an_api_server(most)
    what = f"whole agent, {most:,} Services of {NODES} backends, the API server another process"
    report.add(f"{what}: start to rules in the kernel", seen.in_line, "s")
    report.add(f"{what}: start to all announced and reported", seen.served, "s")
    report.add(f"{what}: memory", seen.after / 1e6, "MB", ("<", 200))
    report.add(f"{what}: memory at the most", seen.most / 1e6, "MB")
    report.add(f"{what}: memory before it started", seen.before / 1e6, "MB")
    report.add(f"{what}: one scrape of its metrics", seen.scrape, "ms")
    report.add(f"{what}: of that at once, without a pause", seen.held, "ms")
    report.add(f"{what}: size of a scrape", seen.scraped / 1e3, "kB")


def main() -> None:
    count, *port = map(int, sys.argv[1:])
    with bridge():
        found = asyncio.run(find_alone(count, *port) if port else find_change(count))
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")


if __name__ == "__main__":
    main()
