"""The pools of a host seen together: which may hand out what, when their ranges overlap."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.errors import InvalidRequest
from cloudprovider.core.ranges import PoolRanges, Segment, overlaps, parse_ranges


@dataclass(frozen=True)
class Overlap:
    """What a pool may not hand out, because an older pool on its network does."""

    other: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class PoolView:
    """A pool as it may be used.

    ``configured``: its ranges as written; ``ranges``: without what older pools on the same network hand out, and
    without any pool's gateway there. Both None when the ranges are wrong: ``error`` says how.
    """

    pool: IPPool
    configured: PoolRanges | None
    ranges: PoolRanges | None
    error: str = ""
    overlaps: tuple[Overlap, ...] = ()

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.pool.metadata.name

    @property
    def network(self) -> str:
        """The network that the pool's addresses are on; empty is the management network."""
        return self.pool.spec.selector.network


def survey(pools: Iterable[IPPool]) -> dict[str, PoolView]:
    """Return how each pool may be used, by name.

    No address is handed out by two pools of one network: the older one has it (creation time, then name). Networks
    are apart from each other, so overlaps between them are fine.
    """
    views: dict[str, PoolView] = {}
    networks: defaultdict[str, list[tuple[IPPool, PoolRanges]]] = defaultdict(list)
    for pool in pools:
        try:
            networks[pool.spec.selector.network].append((pool, parse_ranges(pool.spec.ranges)))
        except InvalidRequest as wrong:
            views[pool.metadata.name] = PoolView(pool, None, None, str(wrong))
    for members in networks.values():
        members.sort(key=lambda m: (m[0].metadata.creation_timestamp, m[0].metadata.name))
        gateways = {Segment(g.version, int(g), int(g)) for _, ranges in members for g in ranges.gateways}
        for i, (pool, ranges) in enumerate(members):
            found = tuple(
                Overlap(older.metadata.name, common)
                for older, other in members[:i]
                if (common := overlaps(ranges, other))
            )
            closed = gateways.union(*(o.segments for o in found))
            views[pool.metadata.name] = PoolView(pool, ranges, ranges.without(closed), "", found)
    return views
