"""A pool's addresses drawn as a map: what is free, taken, kept, closed, and who has what. Pure.

A map has at most 256 cells. Of a small part each cell is an address; of a big one each stands for so many (a power of
two) that they fit, and leads to a map of its own: a /16 is one page of 256 blocks, and three steps go through a /64.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Literal

from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import PoolRanges, Segment, intersection, to_address
from cloudprovider.core.rules.holdings import Holding, holdings
from cloudprovider.core.wanted import parsed

CELLS: Final = 256

Kind = Literal["free", "taken", "host", "kept", "conflict", "closed", "part", "full"]
WORDS: Final[Mapping[Kind, str]] = {
    "free": "free",
    "taken": "taken",
    "host": "a host's own",
    "kept": "reserved",
    "conflict": "in use by a foreign device",
    "closed": "not handed out",
    "part": "partly taken",
    "full": "full",
}


@dataclass(frozen=True)
class Cell:
    """One address, or many. ``first`` and ``last`` in text, ``count`` of addresses that are handed out in it, of which
    ``taken`` are; ``level`` 0 to 4 says how much of it is taken."""

    first: str
    last: str
    kind: Kind
    text: str
    count: int = 1
    taken: int = 0
    level: int = 0

    @property
    def is_many(self) -> bool:
        """Whether it stands for more than one address."""
        return self.first != self.last


@dataclass(frozen=True)
class Map:
    """``cells`` from ``first`` to ``last``, each of ``step`` addresses."""

    first: str
    last: str
    step: int
    cells: Sequence[Cell]
    kinds: Sequence[tuple[Kind, str]]


@dataclass(frozen=True)
class Record:
    """Who has an address, for the table beside the map."""

    holding: Holding
    since: str

    @property
    def load_balancer(self) -> tuple[str, str] | None:
        """(namespace, name) of it, unless a host has it."""
        namespace, _, name = self.holding.owner.partition("/")
        return None if self.holding.is_hosts or not name else (namespace, name)


class PoolMaps:
    """The maps of one pool. ``view``: how it may be used; ``blocks``: its records."""

    def __init__(self, view: PoolView, blocks: Iterable[IPBlock]) -> None:
        blocks = tuple(blocks)
        self._view = view
        self._ranges = view.ranges or view.configured or PoolRanges((), ())
        self.held = {(h.address.version, int(h.address)): h for h in holdings(blocks)}
        self._taken = {v: sorted(n for version, n in self.held if version == v) for v in (4, 6)}
        self._since = {a: x.since for b in blocks for a, x in b.spec.allocations.items()}
        self._conflicts = {
            address: conflict
            for b in blocks
            for text, conflict in b.spec.conflicts.items()
            if (address := parsed(text)) is not None
        }

    def overview(self) -> list[Map]:
        """A map of each range, or of as much as fits in one."""
        return [self.part(r.segment) for r in (self._view.configured or self._ranges).ranges]

    def part(self, segment: Segment) -> Map:
        """A map of some consecutive addresses."""
        step = 1
        while (segment.high // step) - (segment.low // step) + 1 > CELLS:
            step *= 2
        start = segment.low - segment.low % step
        cells = []
        for low in range(start, segment.high + 1, step):
            piece = Segment(segment.version, max(low, segment.low), min(low + step - 1, segment.high))
            cells.append(self._one(piece) if piece.low == piece.high else self._many(piece))
        kinds = [(kind, word) for kind, word in WORDS.items() if any(c.kind == kind for c in cells)]
        return Map(_text(segment.version, segment.low), _text(segment.version, segment.high), step, cells, kinds)

    def records(self, segment: Segment | None = None) -> list[Record]:
        """Who has what, by address; of a part, if one is given."""
        found = sorted(self.held.items())
        return [
            Record(h, self._since.get(str(h.address), ""))
            for (version, number), h in found
            if segment is None or (version == segment.version and segment.low <= number <= segment.high)
        ]

    @property
    def size(self) -> int:
        """How many addresses are handed out."""
        return self._ranges.size

    def _one(self, piece: Segment) -> Cell:
        address = to_address(piece.version, piece.low)
        holding = self.held.get((piece.version, piece.low))
        conflict, kept = self._conflicts.get(address), self._view.reserved.get(address)
        text = str(address)
        if holding is not None:
            kind: Kind = "host" if holding.is_hosts else "taken"
            return Cell(text, text, kind, f"{text}: {holding.text.partition(' ')[2]}", 1, 1)
        if conflict is not None:
            return Cell(text, text, "conflict", f"{text}: {conflict.hardware_address} has it")
        if address not in self._ranges:
            is_gateway = address in self._ranges.gateways
            return Cell(text, text, "closed", f"{text}: {'the gateway' if is_gateway else 'excluded'}", 0)
        if kept is not None:
            whose = kept.load_balancer or f"{kept.guest_cluster}: {kept.service}"
            return Cell(text, text, "kept", f"{text}: reserved for {kept.namespace}/{whose}")
        return Cell(text, text, "free", f"{text}: free")

    def _many(self, piece: Segment) -> Cell:
        numbers = self._taken[piece.version]
        taken = bisect_right(numbers, piece.high) - bisect_left(numbers, piece.low)
        common = (intersection(piece, s) for s in self._ranges.segments)
        count = sum(c.high - c.low + 1 for c in common if c is not None)
        kind: Kind = "closed" if not count and not taken else "free" if not taken else "part"
        kind = "full" if taken and taken >= count else kind
        first, last = _text(piece.version, piece.low), _text(piece.version, piece.high)
        level = 0 if not taken else min(4, 1 + taken * 4 // (count + 1))
        free = max(0, count - taken)
        text = (
            f"{first} to {last}: {taken:,} taken, {_count(free)} free" if count or taken else f"{first}: not handed out"
        )
        return Cell(first, last, kind, text, count, taken, level)


def part_of(text: str) -> Segment | None:
    """Read a part of a map from a URL: "first-last". None if it is none."""
    first, dash, last = text.partition("-")
    try:
        low, high = ip_address(first), ip_address(last if dash else first)
    except ValueError:
        return None
    if low.version != high.version or int(low) > int(high) or "%" in text:
        return None
    return Segment(low.version, int(low), int(high))


def _text(version: Literal[4, 6], number: int) -> str:
    return str(to_address(version, number))


def _count(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"2^{count.bit_length() - 1}"
