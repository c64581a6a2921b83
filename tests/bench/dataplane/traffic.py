"""What a way costs beside its limit: interleaved rounds, each way in turn, and medians of the rounds' ratios.

A ratio is taken within one round, where a machine that others use as well is nearly the same for both of its sides.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.dataplane.topology import Topology
from tests.bench.dataplane.ways import Way
from tests.bench.report import Comparison, Report
from tests.lab.process import LabError

SECONDS: Final = 0.3
"""One measurement's length."""


@dataclass(frozen=True)
class Figure:
    """What is told of one kind of load. ``aims``: of our modes, for the ratio to the limit."""

    name: str
    unit: str
    value: Callable[[Mapping[str, Any]], float]
    aims: Mapping[str, tuple[Comparison, float]]


@dataclass(frozen=True)
class Kind:
    """One kind of load, as load/main.go knows it."""

    what: str
    count: int
    figures: tuple[Figure, ...]


def _aims(nat: tuple[Comparison, float], dsr: tuple[Comparison, float]) -> dict[str, tuple[Comparison, float]]:
    return {"nat": nat, "dsr": dsr}


def _stream(count: int, name: str, nat: float) -> Kind:
    figure = Figure(
        name, "Gbit/s", lambda told: told["bytes"] * 8e-9 / told["seconds"], _aims((">=", nat), (">=", 0.95))
    )
    return Kind("stream", count, (figure,))


KINDS: Final = (
    _stream(1, "TCP, 1 stream", 0.93),
    _stream(4, "TCP, 4 streams", 0.90),
    Kind(
        "connect",
        4,
        (
            Figure(
                "new connections",
                "1/s",
                lambda told: told["connections"] / told["seconds"],
                _aims((">=", 0.82), (">=", 0.95)),
            ),
        ),
    ),
    Kind(
        "roundtrip",
        1,
        (
            Figure("round trip p50", "us", lambda told: told["p50"], _aims(("<=", 1.15), ("<=", 1.15))),
            Figure("round trip p99", "us", lambda told: told["p99"], {}),
        ),
    ),
    Kind(
        "datagrams",
        64,
        (
            Figure(
                "small UDP, 64 flows",
                "1/s",
                lambda told: told["arrived"] / told["seconds"],
                _aims((">=", 0.73), (">=", 0.95)),
            ),
        ),
    ),
)

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""By figure, by way, one value a round."""


def measure(
    topology: Topology, ways: Sequence[Way], rounds: int, seconds: float = SECONDS
) -> tuple[Samples, Mapping[str, int]]:
    """All kinds of load on all ways, ``rounds`` times ``seconds``; and the connections that failed, by way."""
    samples: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    failed = dict.fromkeys((way.name for way in ways), 0)
    for way in ways:  # neighbours, routes and caches
        told = topology.load("connect", seconds / 4, 1, way.targets)
        if not told["connections"]:
            raise LabError(f"nobody gets through by {way.name}: {told['errors']}")
    for turn in range(rounds):
        for kind in KINDS:
            for i in range(len(ways)):
                way = ways[(i + turn) % len(ways)]
                if kind.what == "datagrams" and not way.udp:
                    continue
                told = _one(topology, kind, way, seconds)
                failed[way.name] += told.get("failed", 0)
                for figure in kind.figures:
                    samples[figure.name][way.name].append(figure.value(told))
    return samples, failed


def _one(topology: Topology, kind: Kind, way: Way, seconds: float) -> dict[str, Any]:
    if kind.what != "datagrams":
        return topology.load(kind.what, seconds, kind.count, way.targets)
    before = topology.datagrams()
    told = topology.load(kind.what, seconds, kind.count, way.targets)
    return {**told, "arrived": topology.datagrams() - before}


def ratio(values: Sequence[float], limit: Sequence[float]) -> float:
    return statistics.median(_ratios(values, limit))


def spread(values: Sequence[float], limit: Sequence[float]) -> float:
    """Half the distance between the quartiles of the rounds' ratios."""
    first, _, third = statistics.quantiles(_ratios(values, limit), n=4)
    return (third - first) / 2


def _ratios(values: Sequence[float], limit: Sequence[float]) -> list[float]:
    return [value / most for value, most in zip(values, limit, strict=True)]


def add_rows(report: Report, ways: Sequence[Way], samples: Samples, failed: Mapping[str, int]) -> None:
    """A row for each figure and way, and for failed connections."""
    for figure in (figure for kind in KINDS for figure in kind.figures):
        found = samples[figure.name]
        for way in ways:
            if way.name not in found:
                continue
            if way.name == way.limit:
                report.add(f"{figure.name}: {way.name}", statistics.median(found[way.name]), figure.unit)
                continue
            aim = figure.aims.get(way.name.partition(",")[0])
            report.add(f"{figure.name}: {way.name} to {way.limit}", ratio(found[way.name], found[way.limit]), "", aim)
    for way in ways:
        report.add(f"connections that failed: {way.name}", failed[way.name], "", ("<=", 0))


def matrix(ways: Sequence[Way], samples: Samples) -> str:
    """The ratios as one table: a line a way, a column a figure; of the limits the figures themselves. The
    ± is half the distance between the quartiles of the rounds."""
    figures = [figure for kind in KINDS for figure in kind.figures]
    lines = [["", *(f"{figure.name}" for figure in figures)]]
    for way in ways:
        cells = [way.name if way.name == way.limit else f"{way.name} / {way.limit}"]
        for figure in figures:
            found = samples[figure.name]
            if way.name not in found:
                cells.append("-")
            elif way.name == way.limit:
                value = statistics.median(found[way.name])
                cells.append(f"{value:,.{0 if value >= 1000 else 1}f} {figure.unit}")
            else:
                pair = found[way.name], found[way.limit]
                cells.append(f"{ratio(*pair):.2f} ± {spread(*pair):.2f}")
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    )
