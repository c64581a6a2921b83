"""One row per figure: a table for people, JSON lines for programs (``build/bench.jsonl``)."""

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

Comparison = Literal["<", "<=", ">", ">="]
COMPARE: Final[Mapping[Comparison, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One figure. ``aim`` is "" where there is none, and ``holds`` null then."""

    name: str
    value: float
    unit: str
    aim: str
    holds: bool | None
    command: str


class Report:
    """Collects rows, and writes each as soon as it is known, so that a bench that breaks off has told what it saw.

    The rows that ``command`` wrote before make way, those of other commands stay.
    """

    def __init__(self, path: Path, command: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        path.write_bytes(b"".join(line for line in lines if msgspec.json.decode(line, type=Row).command != command))
        self._path = path
        self._command = command
        self.rows: list[Row] = []

    def add(self, name: str, value: float, unit: str, aim: tuple[Comparison, float] | None = None) -> Row:
        """Add a figure; ``aim`` is what it should be, e.g. ``("<", 2.0)``."""
        row = Row(
            name=name,
            value=round(value, 3),
            unit=unit,
            aim=f"{aim[0]} {aim[1]:g}" if aim else "",
            holds=COMPARE[aim[0]](value, aim[1]) if aim else None,
            command=self._command,
        )
        self.rows.append(row)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")
        return row

    def table(self) -> str:
        """All rows, aligned; a figure that misses its aim is marked."""
        cells = [("figure", "value", "unit", "aim", "")]
        marks = {True: "holds", False: "MISSED", None: ""}
        cells += [(r.name, f"{r.value:,.3f}".rstrip("0").rstrip("."), r.unit, r.aim, marks[r.holds]) for r in self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(5)]
        lines = [
            f"{name:<{widths[0]}}  {value:>{widths[1]}} {unit:<{widths[2]}}  {aim:<{widths[3]}}  {mark}".rstrip()
            for name, value, unit, aim, mark in cells
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join(lines)
