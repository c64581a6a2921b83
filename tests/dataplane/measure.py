"""What the data plane costs: ``PYTHONPATH=. tests/lab/sandbox python tests/dataplane/measure.py``.

Prints one line a figure: milliseconds (median of the rounds, and the longest), or MiB of memory.
"""

import asyncio
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import (
    Changes,
    Forward,
    ForwardMode,
    Group,
    GroupId,
    IPAddress,
    ListenerKey,
    Plan,
    chunks,
    diff,
)
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.lan import CONFIG, Station, bridge, station, until

ONE = GroupId(1)
NODES: dict[ForwardMode, Group] = {
    "nat": Group(frozenset(IPv4Address("10.99.0.11") + i for i in range(10))),
    "dsr": Group(frozenset(MACAddress(f"02:00:00:00:01:{i:02x}") for i in range(10))),
}
NINE = {mode: Group(frozenset(sorted(group.members, key=lambda m: m.packed)[1:])) for mode, group in NODES.items()}
FIRST = ListenerKey(IPv4Address("10.97.0.1"), "TCP", 80)


def forward(mode: ForwardMode, turn: int = 0) -> Forward:
    """One of two that differ by ``turn``, even or odd."""
    if mode == "nat":
        return Forward(group=ONE, backend_port=30000 + turn % 2)
    return Forward(group=ONE, mode="dsr", by_client=turn % 2 == 1)


def plan(count: int, mode: ForwardMode = "nat") -> Plan:
    """One group, ``count`` forwards, each of an address of its own."""
    keys = (ListenerKey(FIRST.vip + i, "TCP", 80) for i in range(count))
    return Plan(groups={ONE: NODES[mode]}, forwards={key: forward(mode) for key in keys})


async def timed(what: str, rounds: int, action: Callable[[int], Awaitable[object]]) -> None:
    spent: list[float] = []
    for turn in range(rounds):
        start = time.perf_counter()
        await action(turn)
        spent.append((time.perf_counter() - start) * 1000)
    print(f"{what:58} {statistics.median(spent):9.3f} ms   max {max(spent):9.3f}")


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def at(segment: KernelSegment, count: int, mode: ForwardMode) -> None:
    engine = segment.engine
    have = await engine.observe()
    await engine.apply(Changes(groups=dict.fromkeys(have.groups), forwards=dict.fromkeys(have.forwards)))
    start = time.perf_counter()
    for part in chunks(diff(Plan(), plan(count, mode)), 500):
        await engine.apply(part)
    print(f"{f'{mode}: {count} forwards loaded':58} {(time.perf_counter() - start) * 1000:9.3f} ms")

    async def change(turn: int) -> None:
        await engine.apply(Changes(forwards={FIRST: forward(mode, turn)}))

    async def node(turn: int) -> None:
        await engine.apply(Changes(groups={ONE: (NODES if turn % 2 else NINE)[mode]}))

    async def phase(turn: int) -> None:
        nine, ten = NINE[mode], NODES[mode]
        phases = (replace(nine, former=ten.members), replace(nine, pinned=True), nine, ten)
        await engine.apply(Changes(groups={ONE: phases[turn % 4]}))

    async def come_and_go(turn: int) -> None:
        comes = None if turn % 2 else forward(mode)
        await engine.apply(Changes(forwards={ListenerKey(FIRST.vip, "UDP", 53): comes}))

    await timed(f"{mode}: one forward changed, {count} present", 300, change)
    await timed(f"{mode}: one forward comes or goes, {count} present", 300, come_and_go)
    await timed(f"{mode}: a node of ten comes or goes, {count} present", 20, node)
    if mode == "dsr":
        await timed(f"{mode}: a node of ten leaves, phase by phase, {count} present", 20, phase)
    await timed(f"{mode}: observe, {count} present", 5, lambda _turn: engine.observe())
    await timed(f"{mode}: counters, {count} present", 5, lambda _turn: engine.counters())
    await timed(f"{mode}: undisturbed, {count} present", 100, lambda _turn: engine.undisturbed())
    print(f"{'peak memory of this process':58} {memory():9.1f} MiB")


async def groups(segment: KernelSegment) -> None:
    """Ten groups, each of ten thousand slots: 100,000 elements."""
    have = await segment.engine.observe()
    await segment.engine.apply(Changes(groups=dict.fromkeys(have.groups), forwards=dict.fromkeys(have.forwards)))
    many = Plan(groups={GroupId(g): NODES["nat"] for g in range(1, 11)}, forwards=plan(1).forwards)
    start = time.perf_counter()
    for part in chunks(diff(await segment.engine.observe(), many), 500):
        await segment.engine.apply(part)
    print(f"{'ten groups of 10,007 slots':58} {(time.perf_counter() - start) * 1000:9.3f} ms")
    await timed("observe, 100,000 slots", 3, lambda _turn: segment.engine.observe())


async def begin(dataplane: HostDataPlane) -> None:
    segment = await dataplane.open(CONFIG)
    start = time.perf_counter()
    await segment.engine.start()
    for part in chunks(diff(await segment.engine.observe(), plan(5000)), 500):
        await segment.engine.apply(part)
    print(
        f"{'start and 5,000 forwards, empty kernel, chunks of 500':58} {(time.perf_counter() - start) * 1000:9.3f} ms"
    )
    await segment.close()
    again = await dataplane.open(CONFIG)
    start = time.perf_counter()
    await again.engine.start()
    assert not diff(await again.engine.observe(), plan(5000))
    print(f"{'start and adopt 5,000 forwards':58} {(time.perf_counter() - start) * 1000:9.3f} ms")
    families: dict[str, list[IPAddress]] = {
        "IPv4": [FIRST.vip + i for i in range(1000)],
        "IPv6": [IPv6Address("fd99::1000") + i for i in range(1000)],
    }
    families["IPv4 and 1,000 IPv6"] = families["IPv4"] + families["IPv6"]
    for family, vips in families.items():
        start = time.perf_counter()
        await again.announcer.probe(vips)
        print(f"{f'probe 1,000 {family} addresses':58} {(time.perf_counter() - start) * 1000:9.3f} ms")
        start = time.perf_counter()
        await again.announcer.claim(vips)
        what = f"claim 1,000 {family} addresses (200 ms waiting)"
        print(f"{what:58} {(time.perf_counter() - start) * 1000:9.3f} ms")
        start = time.perf_counter()
        await again.announcer.withdraw(vips)
        print(f"{f'withdraw 1,000 {family} addresses':58} {(time.perf_counter() - start) * 1000:9.3f} ms")
    await dataplane.remove("")


async def watch(dataplane: HostDataPlane, neighbour: Station) -> None:
    """Nodes of both families, all of them addresses of one machine: what learning and confirming them costs."""
    families: dict[str, Callable[[int], IPAddress]] = {
        "IPv4": lambda i: IPv4Address("10.98.0.1") + i,
        "IPv6": lambda i: IPv6Address("fd98::1") + i,
    }
    for family, address in families.items():
        everybody = [address(i) for i in range(5000)]
        neighbour.take_all(everybody)
        for count in (1000, 5000):
            segment = await dataplane.open(CONFIG)
            start, spent = time.perf_counter(), time.process_time()
            segment.nodes.follow(everybody[:count])
            await until(lambda: len(segment.nodes.known) == count, "all are known", 60.0)  # noqa: B023
            took, spent = time.perf_counter() - start, time.process_time() - spent
            print(f"{f'{count} {family} nodes learnt':58} {took * 1000:9.1f} ms   CPU {spent * 1000:9.1f}")
            await asyncio.sleep(10)
            start, spent = time.perf_counter(), time.process_time()
            await asyncio.sleep(30)
            share = (time.process_time() - spent) / (time.perf_counter() - start)
            assert len(segment.nodes.known) == count
            print(f"{f'{count} {family} nodes confirmed, share of a core':58} {share * 100:9.2f} %")
            await segment.close()
    await dataplane.remove("")


async def main() -> None:
    dataplane = HostDataPlane("bench")
    with station("neighbour", "10.99.0.77") as neighbour:
        await watch(dataplane, neighbour)
    await begin(dataplane)
    segment = await dataplane.open(CONFIG)
    await segment.engine.start()
    for mode in NODES:
        for count in (1, 1000, 10_000):
            await at(segment, count, mode)
    await groups(segment)
    await dataplane.remove("")


if __name__ == "__main__":
    with bridge():
        asyncio.run(main())
