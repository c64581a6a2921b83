"""A pool drawn: who holds what of it, in as many cells as fit on a screen."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

import msgspec

from cloudprovider.core.api.pool import IPBlock, IPPool
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView, survey
from cloudprovider.core.poolstatus import FULL, NEARLY_FULL
from cloudprovider.core.ranges import Segment, to_address
from cloudprovider.core.wanted import parsed

COLUMNS: Final = 64
ROWS: Final = 16
"""Most cells of a drawing: a /16 has 64 addresses in each."""

FREE, FULL_CELL, OTHERS, RESERVED, CONFLICT, HOST = ".", "#", "+", "=", "!", "*"
LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MOST: Final = 2**20
"""Addresses up to which a pool is drawn; of an IPv6 /64 there is nothing to see."""


class Holder(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Somebody, and how many addresses of the pool it has. ``mark``: its letter in the drawing."""

    name: str
    addresses: int
    mark: str


class MapRow(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A line of the drawing, and the address that it begins with."""

    first: str
    cells: str


class PoolMap(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A pool. ``cell``: addresses in each cell of ``rows``; 0: not drawn. ``exact``: read from the pool's blocks, not
    from its status, which may be a second old and names 1,000 at most."""

    name: str
    network: str
    ranges: list[str]
    total: int
    free: int
    reserved: int
    conflicts: int
    state: Literal["Ok", "NearlyFull", "Full", "Wrong"]
    message: str = ""
    holders: list[Holder] = []
    cell: int = 0
    rows: list[MapRow] = []
    exact: bool = True


def pool_maps(pools: Iterable[IPPool], blocks: Sequence[IPBlock] | None) -> list[PoolMap]:
    """Draw pools, by name. ``blocks`` None: they can't be read."""
    return [_drawn(view, blocks) for _, view in sorted(survey(pools).items())]


def _drawn(view: PoolView, blocks: Sequence[IPBlock] | None) -> PoolMap:
    pool, ranges = view.pool, view.ranges
    texts = [r.subnet for r in pool.spec.ranges]
    if ranges is None or view.configured is None:
        return PoolMap(
            name=view.name,
            network=view.network,
            ranges=texts,
            total=0,
            free=0,
            reserved=0,
            conflicts=0,
            state="Wrong",
            message=view.error,
        )
    held, conflicts = _held(pool, blocks)
    names = Counter(held.values())
    ranked = sorted(names, key=lambda n: (-names[n], n))
    tenants = [n for n in ranked if not n.startswith("agent/")]
    marks = {n: HOST for n in ranked if n.startswith("agent/")}
    marks |= {n: LETTERS[i] if i < len(LETTERS) else OTHERS for i, n in enumerate(tenants)}
    inside = {a for a in held if a in ranges}
    kept = {a for a in view.reserved if a not in held}
    free = ranges.size - len(inside | conflicts | kept)
    shown = {c.type: c for c in pool.status.conditions if c.status == "True"}
    state: Literal["Ok", "NearlyFull", "Full"] = "Ok"
    if FULL in shown or free == 0:
        state = "Full"
    elif NEARLY_FULL in shown or (ranges.size - free) * 100 >= pool.spec.nearly_full_percent * ranges.size:
        state = "NearlyFull"
    drawing = {a: marks[n] for a, n in held.items()}
    drawing |= dict.fromkeys(kept, RESERVED) | dict.fromkeys(conflicts, CONFLICT)
    size = sum(s.high - s.low + 1 for s in ranges.segments)
    cell = -(-size // (COLUMNS * ROWS)) if 0 < size <= _MOST else 0
    return PoolMap(
        name=view.name,
        network=view.network,
        ranges=[s.text for s in ranges.segments],
        total=ranges.size,
        free=free,
        reserved=len(kept),
        conflicts=len(conflicts),
        state=state,
        holders=[Holder(name=n, addresses=names[n], mark=marks[n]) for n in ranked],
        cell=cell,
        rows=list(_rows(ranges.segments, drawing, cell)) if cell else [],
        exact=blocks is not None,
    )


def _held(pool: IPPool, blocks: Sequence[IPBlock] | None) -> tuple[Mapping[IPAddress, str], set[IPAddress]]:
    """Address to who counts for it: a guest cluster, or a namespace, or a host; and what somebody else has."""
    if blocks is None:
        status = pool.status.allocated
        return {a: _whose(owner, "") for text, owner in status.items() if (a := parsed(text)) is not None}, set()
    mine = [b for b in blocks if b.spec.pool == pool.metadata.name]
    held = {
        a: _whose(record.owner, record.tenant)
        for b in mine
        for text, record in b.spec.allocations.items()
        if (a := parsed(text)) is not None
    }
    return held, {a for b in mine for text in b.spec.conflicts if (a := parsed(text)) is not None}


def _whose(owner: str, tenant: str) -> str:
    return tenant or (owner if owner.startswith("agent/") else owner.partition("/")[0])


def _rows(segments: Sequence[Segment], drawing: Mapping[IPAddress, str], cell: int) -> Iterator[MapRow]:
    """Each segment begins a line of its own, unless there are many: then all run on."""
    numbers = sorted((a.version, int(a), mark) for a, mark in drawing.items())
    lines = [
        [
            (str(to_address(s.version, low)), _cell(numbers, s.version, low, min(low + cell - 1, s.high)))
            for low in range(s.low, s.high + 1, cell)
        ]
        for s in segments
    ]
    if len(lines) > ROWS:
        lines = [[one for line in lines for one in line]]
    for line in lines:
        for start in range(0, len(line), COLUMNS):
            cells = line[start : start + COLUMNS]
            yield MapRow(first=cells[0][0], cells="".join(mark for _, mark in cells))


def _cell(numbers: Sequence[tuple[int, int, str]], version: int, low: int, high: int) -> str:
    found = numbers[bisect_left(numbers, (version, low, "")) : bisect_left(numbers, (version, high + 1, ""))]
    if not found:
        return FREE
    if low == high:
        return found[0][2]
    tenths = 10 * len(found) // (high - low + 1)
    return FULL_CELL if tenths >= 10 else str(max(1, tenths))
