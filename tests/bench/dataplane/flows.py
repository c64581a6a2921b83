"""What becomes of flows while the nodes behind them change."""

import asyncio
from typing import Final

from cloudprovider.core.plan import Changes, Group
from tests.bench.dataplane.ours import NODES, Ours
from tests.bench.dataplane.topology import Topology
from tests.bench.report import Report

REWRITES_PER_SECOND: Final = 100
LOAD_SECONDS: Final = 5.0
LOAD_THREADS: Final = 4
FLOWS: Final = 2000


async def add_rows(report: Report, topology: Topology, ours: Ours, seconds: float = LOAD_SECONDS) -> None:
    """Connections that failed while slots were rewritten, and flows that moved when one node of ten left."""
    done, failed, rewrites = await _rewritten(topology, ours, seconds)
    what = f"{ours.case.mode}: slots rewritten {REWRITES_PER_SECOND} times a second under load"
    report.add(f"{what}: rewritten, in truth", rewrites / seconds, "1/s")
    report.add(f"{what}: connections made", done, "")
    report.add(f"{what}: connections that failed", failed, "", ("<=", 0))
    report.add(f"{ours.case.mode}: flows moved when 1 of 10 nodes left", await _moved(topology, ours), "%", ("<", 12))


async def _rewritten(topology: Topology, ours: Ours, seconds: float) -> tuple[int, int, int]:
    """Connections made and failed, and how often the last node left or came back meanwhile. All nodes serve on."""
    ten, nine = ours.group(), ours.group(without=1)
    sets = [(ten, nine), (nine, ten)]
    targets = ours.way.targets
    load = asyncio.create_task(asyncio.to_thread(topology.load, "connect", seconds, LOAD_THREADS, targets))
    loop = asyncio.get_running_loop()
    started, turns = loop.time(), 0
    while not load.done():
        now, former = sets[turns % 2]
        # Where nothing is remembered, the change itself says where flows that are under way go.
        group = Group(now.members, former=former.members) if ours.case.mode == "dsr" else now
        await ours.segment.engine.apply(Changes(groups={NODES: group}))
        turns += 1
        await asyncio.sleep(max(0.0, started + turns / REWRITES_PER_SECOND - loop.time()))
    told = await load
    await ours.segment.engine.apply(Changes(groups={NODES: ten}))
    return told["connections"], told["failed"], turns


async def _moved(topology: Topology, ours: Ours) -> float:
    """Percent of flows whose node is another one, those of the node that left among them."""
    targets = ours.way.targets
    await ours.remove_nodes(0)
    before: list[str] = topology.load("where", 0, FLOWS, targets)["names"]
    await ours.remove_nodes(1)
    after: list[str] = topology.load("where", 0, FLOWS, targets)["names"]
    await ours.remove_nodes(0)
    if not all(before + after):
        raise RuntimeError(f"of {2 * FLOWS} questions {(before + after).count('')} were not answered")
    return 100 * sum(b != a for b, a in zip(before, after, strict=True)) / FLOWS
