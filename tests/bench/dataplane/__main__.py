"""The bench of the data plane: ``make bench-dataplane``, inside the lab's sandbox."""

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.bench.dataplane import agent, flows, rules, traffic, ways
from tests.bench.dataplane.ours import CASES, Case, ours
from tests.bench.dataplane.topology import ONE_WAY, TRACKED, Topology, topology
from tests.bench.report import Report

ROUNDS = 13


async def measure_traffic(made: Topology, report: Report, cases: Sequence[Case], rounds: int) -> str:
    """All ways on one topology, in turn; return the table of ratios."""
    async with contextlib.AsyncExitStack() as stack:
        found = [
            ways.routing(made),
            ways.routing(made, "routing again"),
            ways.routing(made, "routing, conntrack", TRACKED),
            ways.direct(made),
            ways.routing(made, "routing, one way", ONE_WAY, "direct"),
        ]
        numbers = iter(range(1, 100))
        mine = [await stack.enter_async_context(ours(made, case, next(numbers))) for case in cases]
        found += [one.way for one in mine]
        found.append(stack.enter_context(ways.nftlb(made, next(numbers))))
        found.append(stack.enter_context(ways.haproxy(made, next(numbers))))
        found.append(stack.enter_context(ways.kube_proxy(made, next(numbers))))
        samples, failed = traffic.measure(made, found, rounds)
        traffic.add_rows(report, found, samples, failed)
        for one in (one for one in mine if one.case == Case(one.case.mode)):
            await flows.add_rows(report, made, one)
        return traffic.matrix(found, samples)


def measure(report: Report, cases: Sequence[Case], rounds: int, folder: Path, logs: Path) -> str:
    with topology(folder, logs) as made:
        table = asyncio.run(measure_traffic(made, report, cases, rounds))
    rules.add_rows(report)
    agent.add_rows(report)
    return table


def main() -> None:
    """Measure, print the tables, keep the rows in ``build/bench.jsonl``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the traffic (default: %(default)s)")
    parser.add_argument("--modes", default="nat,dsr", help="of ours, with commas between (default: %(default)s)")
    options = parser.parse_args()
    cases = [case for case in CASES if case.mode in options.modes.split(",")]
    build = Path("build")
    report = Report(build / "bench.jsonl", f"make bench-dataplane ROUNDS={options.rounds} MODES={options.modes}")
    logs = build / "bench-dataplane-logs"
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        try:
            print(measure(report, cases, options.rounds, Path(folder), logs), end="\n\n")
        finally:
            print(report.table())
    sys.exit(0 if all(row.holds is not False for row in report.rows) else 1)


if __name__ == "__main__":
    main()
