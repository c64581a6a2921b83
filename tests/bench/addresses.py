"""What addresses cost: ``python -m tests.bench.addresses`` (and part of ``make bench``).

The core alone, on the CPU's clock; the host program over an API server in memory, so that what is measured is ours;
and DHCP with the real servers.
"""

import asyncio
import gc
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import msgspec

from cloudprovider.core.allocation import Allocator
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import BLOCK_SIZE, Allocation, IPBlock, IPBlockSpec, IPPool, IPPoolSpec, Range
from cloudprovider.core.naming import block_name
from cloudprovider.core.pools import survey
from cloudprovider.core.ranges import Version
from cloudprovider.core.wants import Granted, Release, Want
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.bench.report import Report
from tests.dhcp.measure import measure_all
from tests.host.views import vm
from tests.host.world import World, pool, subnet

NOW: Final = "2026-01-01T00:00:00Z"
BATCH: Final = 1000
ROUNDS: Final = 9
TAKEN: Final = (10, 1000, 60_000)
POOLS: Final[Sequence[tuple[str, str, Version]]] = (("a /16", "10.0.0.0/16", 4), ("a /64", "fd00::/64", 6))
WAITING: Final = 5000
HELD: Final = 50_000
SINGLES: Final = 9


class Core:
    """One pool and its blocks, as the host keeps them, without an API server."""

    def __init__(self, cidr: str, version: Version) -> None:
        self._version: Version = version
        self._allocator = Allocator()
        made = IPPool(metadata=ObjectMeta(name="p", uid="u"), spec=IPPoolSpec(ranges=[Range(subnet=cidr)]))
        self._allocator.set_pools(survey([made]))
        self._writes = 0

    def give(self, names: Sequence[str]) -> list[Granted]:
        """Decide over a batch, and take over its blocks as an API server returns them."""
        wants = [Want(owner=name, uid="u", pool="p", version=self._version) for name in names]
        proposal = self._allocator.propose(wants, now=NOW)
        for block in proposal.writes:
            self._writes += 1
            metadata = msgspec.structs.replace(block.metadata, resource_version=str(self._writes))
            self._allocator.written(proposal, msgspec.structs.replace(block, metadata=metadata))
        return [outcome for outcome in proposal.outcomes if isinstance(outcome, Granted)]

    def take_back(self, granted: Sequence[Granted]) -> None:
        releases = [Release(pool="p", address=g.address, owner=g.want.owner, uid="u") for g in granted]
        proposal = self._allocator.propose((), releases, now=NOW)
        for block in proposal.writes:
            self._allocator.written(proposal, block)

    def fill(self, count: int, rng: random.Random) -> None:
        """Take ``count``, and a third more that goes back: holes all over."""
        given: list[Granted] = []
        spare = min(count // 3, 5000)
        for first in range(0, count + spare, BATCH):
            given += self.give([f"ns/f{i}" for i in range(first, min(first + BATCH, count + spare))])
        self.take_back(rng.sample(given, spare))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the garbage collector, whose turn would fall to one or the other."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def pure(report: Report) -> None:
    """Microseconds of CPU for each address of a batch, by what is taken; all in turn, the median of all rounds."""
    cores: dict[tuple[str, int], Core] = {}
    for name, cidr, version in POOLS:
        for taken in TAKEN:
            cores[name, taken] = Core(cidr, version)
            cores[name, taken].fill(taken, random.Random(taken))
    spent: dict[tuple[str, int], list[float]] = {key: [] for key in cores}
    with _quiet():
        for number in range(ROUNDS):
            for key, core in cores.items():
                names = [f"ns/r{number}-{i}" for i in range(BATCH)]
                began = time.process_time()
                granted = core.give(names)
                spent[key].append((time.process_time() - began) / BATCH * 1e6)
                assert len(granted) == BATCH
                core.take_back(granted)
    for name, _, _ in POOLS:
        cost = {taken: statistics.median(spent[name, taken]) for taken in TAKEN}
        for taken in TAKEN:
            report.add(f"core: an address of {name}, {taken:,} taken", cost[taken], "us CPU")
        report.add(
            f"core: the same of {name}, {TAKEN[-1]:,} taken to {TAKEN[0]}",
            cost[TAKEN[-1]] / cost[TAKEN[0]],
            "",
            ("<", 1.3),
        )
        report.add(f"core: addresses of {name} a second", 1e6 / cost[TAKEN[0]], "1/s", (">=", 100_000))


class Writes:
    """A world in memory that counts what is written into blocks, and how much."""

    def __init__(self) -> None:
        self.cluster = FakeCluster(utc_now)
        self.count = 0
        self.cluster.before = self._count
        self.world = World(
            client=FakeKubeClient(self.cluster), connect=lambda: FakeKubeClient(self.cluster, program="host")
        )

    async def _count(self, call: Call) -> None:
        self.count += call.program == "host" and call.resource == "ipblocks" and call.verb in {"create", "replace"}


async def until_served(host: Host, names: Sequence[str]) -> None:
    """Wait until all of them have an address."""
    async with asyncio.timeout(120):
        for name in names:
            while (lb := host.caches.load_balancers.get("team-a", name)) is None or not lb.status.address:  # noqa: ASYNC110
                await asyncio.sleep(0.0005)


async def waiting(report: Report) -> None:
    """Many wait for a pool; it comes."""
    made = Writes()
    names = [f"lb{i}" for i in range(WAITING)]
    for name in names:
        await made.world.client.create(LOADBALANCERS, vm(name))
    async with made.world.host() as host:
        async with asyncio.timeout(120):
            while not all(lb.status.conditions for lb in host.caches.load_balancers.objects.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        began = time.monotonic()
        await made.world.client.create(IPPOOLS, pool("p", subnet("10.0.0.0/16")))
        await until_served(host, names)
        report.add(f"{WAITING:,} that wait for a pool: seconds until all are served", time.monotonic() - began, "s")
        report.add(f"{WAITING:,} that wait for a pool: block updates", made.count, "", ("<=", 100))


async def one_more(report: Report) -> None:
    """A lone address of a pool that is empty, and of one that has given many, in turn. On the CPU's clock: on
    the wall's, two or three milliseconds are mostly what else the machine does."""
    worlds = {0: Writes(), HELD: Writes()}
    for held, made in worlds.items():
        await made.world.client.create(IPPOOLS, pool("p", subnet("10.0.0.0/16")))
        for first in range(0, held, BLOCK_SIZE - 2):
            made.cluster.seed(IPBLOCKS, full_block(first // (BLOCK_SIZE - 2)))
    took: dict[int, list[float]] = {held: [] for held in worlds}
    async with worlds[0].world.host() as empty, worlds[HELD].world.host() as full:
        with _quiet():
            for number in range(SINGLES):
                for held, host in ((0, empty), (HELD, full)):
                    name = f"lb{number}"
                    await asyncio.sleep(1.2)  # a lone one: no batch is under way, and the pool's summary is written
                    began = time.process_time()
                    await worlds[held].world.client.create(LOADBALANCERS, vm(name))
                    await until_served(host, [name])
                    took[held].append((time.process_time() - began) * 1e3)
    cost = {held: statistics.median(times) for held, times in took.items()}
    for held in worlds:
        report.add(f"host: one more address with {held:,} taken", cost[held], "ms CPU")
    report.add("host: the same, ratio", cost[HELD] / cost[0], "", ("<", 1.3))


def full_block(number: int) -> IPBlock:
    """A block of hosts' own addresses, which no audit takes back."""
    first = IPv4Address("10.0.0.0") + number * BLOCK_SIZE
    records = {str(first + i): Allocation(owner=f"agent/{number}-{i}") for i in range(1, BLOCK_SIZE - 1)}
    return IPBlock(
        api_version=IPBLOCKS.api_version,
        kind=IPBLOCKS.kind,
        metadata=ObjectMeta(name=block_name("p", first)),
        spec=IPBlockSpec(pool="p", first=str(first), allocations=records),
    )


def add_rows(report: Report) -> None:
    """Measure all of it."""
    pure(report)
    asyncio.run(waiting(report))
    asyncio.run(one_more(report))
    for server, seconds in measure_all().items():
        report.add(f"300 leases by DHCP from {server}", seconds, "s", ("<=", 3))


if __name__ == "__main__":
    rows = Report(Path("build") / "bench-addresses.jsonl", "python -m tests.bench.addresses")
    add_rows(rows)
    print(rows.table())
