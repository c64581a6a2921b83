"""What health checks cost, whether a busy machine makes them lie, and how long a server that has died is sent to:
``make bench-health``, inside the lab's sandbox.

Backends by the thousand are addresses of one namespace with a server behind them; what is measured is the agent's part
without the kernel's rules and without an API server: the probes, the verdicts, the table. Death is measured on a whole
agent with a real kernel.
"""

import argparse
import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final
from unittest.mock import patch

import msgspec

from cloudprovider.agent.backendhealth import BackendChecks
from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.program import Agent
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import CLUSTER_LABEL, HealthCheck, LoadBalancer
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.plan import Changes
from cloudprovider.core.wanted import LoadBalancerKey
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from cloudprovider.probe.api import Prober, Target
from cloudprovider.probe.nodes import HEALTHZ_PORT
from cloudprovider.probe.prober import SocketProber
from tests.agent.world import World, running, until, unwatched
from tests.bench import burst
from tests.bench.report import Report
from tests.core.test_forwarding import HTTP, lb
from tests.dataplane.lan import CONFIG, Station, bridge, station
from tests.probe.measure import FIRST, nodes, spent

AIMS: Final = {1000: 6.0, 5000: 15.0}
"""Per cent of one core, every 5 s by TCP."""
PER_CLUSTER: Final = 100
VIP: Final = IPv4Address("10.99.0.101")
LIMIT: Final = 60.0
CHECK: Final = HealthCheck(port=HEALTHZ_PORT)
"""As it is by default: every 5 s, 3 s, 3 failures."""
BURST: Final = 500
"""Load balancers that are concerned at once."""
PERIODS: Final = CHECK.failure_threshold * CHECK.period_seconds


class Watched:
    """Passes probes on, and counts how they end."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self.outcomes: Counter[Outcome] = Counter()

    async def begin(self, target: Target, timeout: float, done: Callable[[Answer], None]) -> None:
        def ended(answer: Answer) -> None:
            self.outcomes[answer.outcome] += 1
            done(answer)

        await self._prober.begin(target, timeout, ended)

    def close(self) -> None:
        self._prober.close()


class Checks:
    """So many backends, in load balancers of a hundred each, all checked by the same agent's part."""

    def __init__(self, count: int, check: HealthCheck) -> None:
        self.table = ForwardingTable([""], time.monotonic)
        self.watched: list[Watched] = []
        self.changes = 0
        self.checks = BackendChecks(
            self.table,
            lambda segment, _network: self._watch(SocketProber(segment.packets)),
            ours=lambda _: True,
            healthy=self._changed,
            changed=lambda _: None,
            now=lambda: datetime.now(UTC),
        )
        self.checks.begin(())
        self._keys: list[LoadBalancerKey] = []
        for number in range(0, count, PER_CLUSTER):
            cluster = f"c{number}"
            of = [GuestNode(name=f"n{n}", addresses=[str(FIRST + number + n)]) for n in range(PER_CLUSTER)]
            meta = ObjectMeta(namespace="t", name=cluster)
            self.table.set_cluster(GuestCluster(metadata=meta, status=GuestClusterStatus(nodes=of)))
            made = lb(cluster, str(VIP + number // PER_CLUSTER), HTTP, health_check=check)
            labelled = msgspec.structs.replace(made.metadata, labels={CLUSTER_LABEL: cluster})
            self._take(msgspec.structs.replace(made, metadata=labelled))

    def _take(self, made: LoadBalancer) -> None:
        self.checks.take_over(made)
        self.table.set_load_balancer(made)
        self.checks.follow(made.key)
        self._keys.append(made.key)

    def _watch(self, prober: Prober) -> Watched:
        self.watched.append(Watched(prober))
        return self.watched[-1]

    def _changed(self, _: object) -> None:
        self.changes += 1

    def down(self) -> int:
        return sum(not b.health.healthy for key in self._keys for b in self.checks.backends(key) if b.health)

    @property
    def failures(self) -> int:
        return sum(n for outcome, n in self.watched[0].outcomes.items() if outcome is not Outcome.GOOD)

    @contextlib.asynccontextmanager
    async def running(self, dataplane: HostDataPlane) -> AsyncIterator[None]:
        """Until all have been checked and are up, then for as long as the block lasts."""
        # All behind one neighbour: the kernel's table of neighbours holds 1,024 unless told otherwise.
        segment = await dataplane.open(replace(CONFIG, gateway=IPv4Address("10.99.0.11")))
        task = asyncio.create_task(self.checks.run("", segment))
        try:
            async with asyncio.timeout(LIMIT):
                while self.down():  # noqa: ASYNC110 - a look a second is what it is to cost
                    await asyncio.sleep(1)
            self.watched[0].outcomes.clear()
            self.changes = 0
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await segment.close()
            await dataplane.remove("")


async def cost(report: Report, count: int, seconds: float, check: HealthCheck = CHECK) -> None:
    made = Checks(count, check)
    async with made.running(HostDataPlane("bench")):
        before = spent()
        await asyncio.sleep(seconds)
        share = 100 * (spent() - before) / seconds
    kind = check.protocol
    aim = AIMS.get(count) if kind == "TCP" else None
    report.add(f"checks by {kind}: {count:,} backends every 5 s", share, "% of one core", ("<=", aim) if aim else None)
    report.add(f"checks by {kind}: {count:,} backends, false failures in {seconds:g} s", made.failures, "", ("<=", 0))


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """As many processes as would take the whole machine, for as long as the block lasts."""
    loop = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(loop) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


async def under_load(report: Report, count: int, seconds: float) -> None:
    made = Checks(count, CHECK)
    async with made.running(HostDataPlane("bench")):
        with busy():
            await asyncio.sleep(seconds)
    told = f"{count:,} backends, all cores busy for {seconds:g} s"
    report.add(f"{told}: probes", sum(made.watched[0].outcomes.values()), "")
    report.add(f"{told}: probes that failed falsely", made.failures, "", ("<=", 0))
    report.add(f"{told}: verdicts that were false", made.changes, "", ("<=", 0))


class Dying:
    """Three servers behind a load balancer, one of which dies; a client that connects all the time."""

    def __init__(self, client: Station, servers: list[Station]) -> None:
        self.client = client
        self.servers = servers
        self.applied: list[float] = []
        self.misdirected: list[float] = []
        self.served = 0

    async def connect(self) -> None:
        """For ever; a connection that nobody answers within a second is one that was misdirected."""
        while True:
            began = time.monotonic()
            try:
                await self.client.ask_tcp(VIP, HTTP.port)
                self.served += 1
            except OSError:
                self.misdirected.append(began)
            await asyncio.sleep(0.01)

    async def measure(self) -> tuple[float, float, int]:
        """Seconds from a server's death to the kernel's change, to the last connection that was misdirected, and how
        many these were."""
        world, dataplane = World(), HostDataPlane("bench")
        found = [GuestNode(name=s.name, addresses=[str(s.address)]) for s in self.servers]
        patched = {"status": msgspec.to_builtins(GuestClusterStatus(nodes=found))}
        await world.client.merge_patch(GUESTCLUSTERS, "t", "c", patched, subresource="status")
        check = msgspec.structs.replace(CHECK, port=HTTP.backend_port)
        world.cluster.seed(LOADBALANCERS, lb("a", str(VIP), HTTP, health_check=check))
        agent = Agent(
            AgentConfig(node_name="h1", instance="bench", networks=(CONFIG,)),
            FakeKubeClient(world.cluster, program="h1"),
            dataplane,
            random.Random(1),
            connect=world.connect,
            make_prober=lambda segment, _network: SocketProber(segment.packets),
            make_watch=unwatched,
        )
        real = NftablesEngine.apply

        async def apply(engine: NftablesEngine, changes: Changes) -> None:
            await real(engine, changes)
            self.applied.append(time.monotonic())

        async with AsyncExitStack() as stack:
            for server in self.servers[1:]:
                await stack.enter_async_context(server.serving_tcp(HTTP.backend_port or 0))
            stack.enter_context(patch.object(NftablesEngine, "apply", apply))
            async with running(agent):
                async with self.servers[0].serving_tcp(HTTP.backend_port or 0):
                    await until(lambda: self._all_up(world), LIMIT)
                    self.misdirected.clear()
                    client = asyncio.create_task(self.connect())
                    await asyncio.sleep(random.uniform(0, CHECK.period_seconds))
                    assert not self.misdirected
                died = time.monotonic()
                await until(lambda: any(moment > died for moment in self.applied), LIMIT)
                changed = next(moment for moment in self.applied if moment > died)
                await asyncio.sleep(2)
                client.cancel()
                await asyncio.gather(client, return_exceptions=True)
        for network in await dataplane.networks():
            await dataplane.remove(network)
        last = max(self.misdirected, default=died)
        return changed - died, last - died, len(self.misdirected)

    async def _all_up(self, world: World) -> bool:
        backends = (await world.lb()).status.backends
        return len(backends) == len(self.servers) and all(b.health and b.health.healthy for b in backends)


def death(report: Report, rounds: int) -> None:
    changes, lasts, numbers = [], [], []
    with ExitStack() as stack:
        stack.enter_context(bridge())
        made = [
            stack.enter_context(station(name, f"10.99.0.{n}"))
            for name, n in (("client", 50), ("n1", 21), ("n2", 22), ("n3", 23))
        ]
        for _ in range(rounds):
            changed, last, number = asyncio.run(Dying(made[0], made[1:]).measure())
            changes.append(changed)
            lasts.append(last)
            numbers.append(number)
    most = float(PERIODS + CHECK.timeout_seconds)
    report.add(f"a server dies, {rounds} times: the kernel's change, slowest", max(changes), "s", ("<=", most))
    report.add("the last connection to it, slowest", max(lasts), "s", ("<=", most))
    after = max(last - changed for last, changed in zip(lasts, changes, strict=True))
    report.add("the last connection to it after the kernel's change, at most", 1000 * after, "ms", ("<=", 50))
    report.add("connections to it, in the mean", sum(numbers) / rounds, "")


def main() -> None:
    """Measure, print the table, keep the rows in ``build/bench.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="of each share of the CPU (default: %(default)s)")
    parser.add_argument("--load-seconds", type=float, default=600, help="under full load (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of a server's death (default: %(default)s)")
    options = parser.parse_args()
    report = Report(Path("build") / "bench.jsonl", f"make bench-health LOAD={options.load_seconds:g}")
    try:
        death(report, options.rounds)
        with bridge():
            asyncio.run(burst.same_machines(report, BURST))
            asyncio.run(burst.different_sets(report, BURST))
        with bridge(), nodes():
            for count in AIMS:
                asyncio.run(cost(report, count, options.seconds))
            http = msgspec.structs.replace(CHECK, protocol="HTTP", path="/healthz")
            asyncio.run(cost(report, max(AIMS), options.seconds, http))
            asyncio.run(under_load(report, max(AIMS), options.load_seconds))
    finally:
        print(report.table())
    sys.exit(0 if all(row.holds is not False for row in report.rows) else 1)


if __name__ == "__main__":
    main()
