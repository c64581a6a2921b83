"""What rules cost the engine: loaded, changed, read back; and addresses brought up."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey, Plan, chunks, diff
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.bench.report import Comparison, Report
from tests.dataplane.lan import CONFIG, bridge

TENANTS: Final = 10
NODES: Final = 8
COUNTS: Final = (1, 1000, 10_000)
ADDRESSES: Final = 1000
LOCAL: Final = 1000
"""Services with a node set of their own, and so a table of 10,007 slots each."""
LOCAL_READ_BACK: Final = 50
"""So many of them are read back. The kernel begins each slice of a dump by walking the set from its start
(net/netfilter/nf_tables_api.c, nf_tables_dump_set): twice as many take four times as long."""
_CHUNK: Final = 500
_CHANGES: Final = 300
_FIRST: Final = ListenerKey(IPv4Address("10.97.0.1"), "TCP", 80)
_NODE: Final = IPv4Address("10.99.0.11")


def group(number: int, nodes: int = NODES) -> Group:
    """A tenant's nodes."""
    return Group(frozenset(_NODE + 32 * number + i for i in range(nodes)))


def plan(count: int) -> Plan:
    """``count`` Services of ten tenants, each of an address of its own."""
    groups = {GroupId(1 + i): group(i) for i in range(min(count, TENANTS))}
    forwards = {
        replace(_FIRST, vip=_FIRST.vip + i): Forward(group=GroupId(1 + i % TENANTS), backend_port=30000 + i % 2000)
        for i in range(count)
    }
    return Plan(groups=groups, forwards=forwards)


async def bring(segment: KernelSegment, wanted: Plan) -> float:
    """Bring the kernel to a plan as the agent does at its start; return the seconds."""
    start = time.perf_counter()
    for part in chunks(diff(await segment.engine.observe(), wanted), _CHUNK):
        await segment.engine.apply(part)
    return time.perf_counter() - start


async def spent(rounds: int, action: Callable[[int], Awaitable[object]]) -> list[float]:
    """Milliseconds of each round."""
    found = []
    for turn in range(rounds):
        start = time.perf_counter()
        await action(turn)
        found.append(1000 * (time.perf_counter() - start))
    return found


async def add_median(
    report: Report,
    name: str,
    rounds: int,
    action: Callable[[int], Awaitable[object]],
    aim: tuple[Comparison, float] | None = None,
) -> None:
    report.add(f"{name}, median", statistics.median(await spent(rounds, action)), "ms", aim)


async def _changes(report: Report, segment: KernelSegment, count: int) -> None:
    engine = segment.engine

    async def change(turn: int) -> None:
        await engine.apply(Changes(forwards={_FIRST: Forward(group=GroupId(1), backend_port=20001 + turn % 2)}))

    async def come_and_go(turn: int) -> None:
        forward = None if turn % 2 else Forward(group=GroupId(1), backend_port=20001)
        await engine.apply(Changes(forwards={replace(_FIRST, protocol="UDP"): forward}))

    async def node(turn: int) -> None:
        await engine.apply(Changes(groups={GroupId(1): group(0, NODES - 1 + turn % 2)}))

    beside = f"{count:,} present"
    await add_median(report, f"engine: one Service changed, {beside}", _CHANGES, change, ("<", 1))
    await add_median(report, f"engine: one Service comes or goes, {beside}", _CHANGES, come_and_go, ("<", 1))
    await add_median(report, f"engine: a node of eight comes or goes, {beside}", 20, node)
    await add_median(report, f"engine: whether anybody else changed anything, {beside}", 100, _undisturbed(segment))


def _undisturbed(segment: KernelSegment) -> Callable[[int], Awaitable[object]]:
    return lambda _turn: segment.engine.undisturbed()


async def _read_back(report: Report, segment: KernelSegment, wanted: Plan) -> None:
    """Read all back and compare it, and change a Service every few milliseconds meanwhile."""
    what = f"engine: {len(wanted.forwards):,} Services read back and compared"
    alone = []
    for _ in range(3):
        start = time.perf_counter()
        assert not diff(await segment.engine.observe(), wanted)
        alone.append(time.perf_counter() - start)
    report.add(f"{what}, median", statistics.median(alone), "s", ("<", 2))

    waited: list[float] = []
    loop = asyncio.get_running_loop()

    async def change() -> None:
        due = loop.time()
        while True:
            forward = Forward(group=GroupId(1), backend_port=20001 + len(waited) % 2)
            await segment.engine.apply(Changes(forwards={_FIRST: forward}))
            waited.append(loop.time() - due)
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)

    changing = asyncio.create_task(change())
    start = time.perf_counter()
    await segment.engine.observe()
    report.add(f"{what}, while they change", time.perf_counter() - start, "s", ("<", 2))
    changing.cancel()
    await asyncio.gather(changing, return_exceptions=True)
    report.add("engine: longest that a change waited for that, its own time included", 1000 * max(waited), "ms")


async def _addresses(report: Report, segment: KernelSegment) -> None:
    families: dict[str, list[IPAddress]] = {
        "IPv4": [_FIRST.vip + i for i in range(ADDRESSES)],
        "IPv6": [IPv6Address("fd99::1000") + i for i in range(ADDRESSES)],
    }
    for family, vips in families.items():
        what = f"{ADDRESSES:,} {family} addresses"
        (probing,) = await spent(1, lambda _, v=vips: segment.announcer.probe(v))  # type: ignore[misc]
        (claiming,) = await spent(1, lambda _, v=vips: segment.announcer.claim(v))  # type: ignore[misc]
        (withdrawing,) = await spent(1, lambda _, v=vips: segment.announcer.withdraw(v))  # type: ignore[misc]
        report.add(f"{what} probed (200 ms of it waiting)", probing, "ms")
        report.add(f"{what} claimed (200 ms of it waiting)", claiming, "ms")
        report.add(f"{what} withdrawn", withdrawing, "ms")


async def _local(report: Report, segment: KernelSegment) -> None:
    """Services of policy Local, each with another set of nodes: what bounds their number is the tables."""
    engine = segment.engine
    await bring(segment, Plan())
    before, resident = kernel_bytes(), resident_bytes()
    seconds = await _load_local(segment, 0, LOCAL_READ_BACK)
    start = time.perf_counter()
    await engine.observe()
    what = f"engine: {LOCAL_READ_BACK:,} Local Services with node sets of their own"
    report.add(f"{what}: read back", time.perf_counter() - start, "s")
    seconds += await _load_local(segment, LOCAL_READ_BACK, LOCAL)
    what = f"engine: {LOCAL:,} Local Services with node sets of their own"
    report.add(f"{what}: loading", seconds, "s")
    report.add(f"{what}: memory of the kernel", (kernel_bytes() - before) / 1e6, "MB")
    report.add(f"{what}: memory of the process, more by", (resident_bytes() - resident) / 1e6, "MB")

    async def node(turn: int) -> None:
        await engine.apply(Changes(groups={GroupId(1): _local_group(0, 2 + turn % 2)}))

    await add_median(report, f"{what}: a node of one comes or goes", 20, node)


def _local_group(number: int, nodes: int = 3) -> Group:
    return Group(frozenset(_NODE + 8 * number + i for i in range(nodes)))


async def _load_local(segment: KernelSegment, first: int, end: int) -> float:
    start = time.perf_counter()
    groups = {GroupId(1 + i): _local_group(i) for i in range(first, end)}
    forwards = {
        replace(_FIRST, vip=_FIRST.vip + i): Forward(group=GroupId(1 + i), backend_port=30000)
        for i in range(first, end)
    }
    for part in chunks(Changes(groups=groups, forwards=forwards), _CHUNK):
        await segment.engine.apply(part)
    return time.perf_counter() - start


def kernel_bytes() -> int:
    """What the kernel's own objects take, on the whole machine (proc(5), meminfo)."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(1024 * int(fields[name].split()[0]) for name in ("Slab", "VmallocUsed", "Percpu"))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def measure(report: Report) -> None:
    """All rows, on a bridge that must be there."""
    dataplane = HostDataPlane("benrules")
    try:
        segment = await dataplane.open(CONFIG)
        start = time.perf_counter()
        await segment.engine.start()
        full = plan(COUNTS[-1])
        await bring(segment, full)
        report.add(
            f"engine: {COUNTS[-1]:,} Services of {NODES} backends, {TENANTS} tenants, loaded into an empty kernel",
            time.perf_counter() - start,
            "s",
            ("<", 5),
        )
        await _read_back(report, segment, full)
        await segment.close()
        segment = await dataplane.open(CONFIG)
        start = time.perf_counter()
        await segment.engine.start()
        await segment.engine.observe()
        report.add("engine: the same adopted from the agent before", time.perf_counter() - start, "s")
        for count in reversed(COUNTS):
            await bring(segment, plan(count))
            await _changes(report, segment, count)
        await _addresses(report, segment)
        await _local(report, segment)
    finally:
        await dataplane.remove("")
        await dataplane.close()


def add_rows(report: Report) -> None:
    with bridge():
        asyncio.run(measure(report))


if __name__ == "__main__":
    alone = Report(Path("build/bench-rules.jsonl"), "python -m tests.bench.dataplane.rules")
    add_rows(alone)
    print(alone.table())
