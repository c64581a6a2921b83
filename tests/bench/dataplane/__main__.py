"""The bench of the data plane: ``make bench-dataplane``, inside the lab's sandbox."""

import argparse
import asyncio
import contextlib
import sys
import tempfile
from pathlib import Path

from tests.bench.dataplane import traffic, ways
from tests.bench.dataplane.ours import MODES, OTHERS, Ours, ours
from tests.bench.dataplane.topology import Topology, topology
from tests.bench.dataplane.ways import Way
from tests.bench.report import Report

LEAST_ROUNDS = 7


async def measure_traffic(made: Topology, report: Report, rounds: int, folder: Path, logs: Path) -> str:
    """All ways on one topology, in turn; return the table of ratios."""
    async with contextlib.AsyncExitStack() as stack:
        found: list[Way] = [ways.routing(made), ways.direct(made)]
        numbers = iter(range(1, 100))
        mine: list[Ours] = []
        for mode in MODES:
            for others in (0, OTHERS):
                mine.append(await stack.enter_async_context(ours(made, mode, next(numbers), others)))
                found.append(mine[-1].way(others))
        found.append(stack.enter_context(ways.nftlb(made, next(numbers), folder)))
        found.append(stack.enter_context(ways.haproxy(made, next(numbers), folder, logs)))
        found.append(stack.enter_context(ways.kube_proxy(made, next(numbers), folder, logs)))
        samples, failed = traffic.measure(made, found, rounds)
        traffic.add_rows(report, found, samples, failed)
        return traffic.matrix(found, samples)


async def measure(report: Report, rounds: int, folder: Path, logs: Path) -> str:
    with topology(logs) as made:
        return await measure_traffic(made, report, rounds, folder, logs)


def main() -> None:
    """Measure, print the tables, keep the rows in ``build/bench.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=LEAST_ROUNDS, help="of the traffic (default: %(default)s)")
    options = parser.parse_args()
    build = Path("build")
    report = Report(build / "bench.jsonl", f"make bench-dataplane ROUNDS={options.rounds}")
    logs = build / "bench-dataplane-logs"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            print(asyncio.run(measure(report, options.rounds, Path(folder), logs)), end="\n\n")
        finally:
            print(report.table())
    sys.exit(0 if all(row.holds is not False for row in report.rows) else 1)


if __name__ == "__main__":
    main()
