"""The pools of a host seen together: which may hand out what, when their ranges overlap."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import ip_address

from cloudprovider.core.api.pool import IPPool, Reservation
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.ranges import BlockId, PoolRanges, Segment, bit_of, block_of, overlaps, parse_ranges


@dataclass(frozen=True)
class Overlap:
    """What a pool may not hand out, because an older pool on its network does."""

    other: str
    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class PoolView:
    """A pool as it may be used.

    ``configured``: its ranges as written; ``ranges``: without what older pools on the same network hand out, and
    without any pool's gateway or host there. Both None when the ranges are wrong: ``error`` says how.
    """

    pool: IPPool
    configured: PoolRanges | None
    ranges: PoolRanges | None
    error: str = ""
    overlaps: tuple[Overlap, ...] = ()
    reserved: Mapping[IPAddress, Reservation] = field(default_factory=dict)
    hosts: frozenset[IPAddress] = frozenset()
    """Addresses of the host's own nodes, that it does not hand out either."""

    @property
    def name(self) -> str:
        """The pool's name."""
        return self.pool.metadata.name

    @property
    def network(self) -> str:
        """The network that the pool's addresses are on; empty is the management network."""
        return self.pool.spec.selector.network

    def reserved_mask(self, block: BlockId) -> int:
        """Return the mask of the addresses of ``block`` that are kept for somebody."""
        return self._reserved_masks.get(block, 0)

    @cached_property
    def _reserved_masks(self) -> Mapping[BlockId, int]:
        masks: defaultdict[BlockId, int] = defaultdict(int)
        for address in self.reserved:
            masks[block_of(address)] |= bit_of(address)
        return masks


def parse_reservations(
    reservations: Sequence[Reservation], ranges: PoolRanges, field: str = "spec.reservations"
) -> dict[IPAddress, Reservation]:
    """Read and check a pool's reservations. Raises InvalidRequest with everything that is wrong."""
    found: dict[IPAddress, Reservation] = {}
    violations: list[Violation] = []
    for i, reservation in enumerate(reservations):
        place = f"{field}[{i}].address"
        try:
            address = ip_address(reservation.address)
        except ValueError:
            message = f'"{reservation.address}" is no IP address: write it like 192.168.1.10 or fd00::10'
            violations.append(Violation(field=place, reason="InvalidAddress", message=message))
            continue
        if address in found:
            message = f"{address} is reserved already: keep one of the two"
            violations.append(Violation(field=place, reason="Duplicate", message=message))
        elif address not in ranges:
            message = f"{address} is not in the ranges of the pool: reserve one that it hands out"
            violations.append(Violation(field=place, reason="AddressNotInPool", message=message))
        else:
            found[address] = reservation
    if violations:
        raise InvalidRequest(*violations)
    return found


def survey(pools: Iterable[IPPool], hosts: frozenset[IPAddress] = frozenset()) -> dict[str, PoolView]:
    """Return how each pool may be used, by name. ``hosts``: the addresses of the host's own nodes, on its management
    network.

    No address is handed out by two pools of one network: the older one has it (creation time, then name). Networks
    are apart from each other, so overlaps between them are fine.
    """
    views: dict[str, PoolView] = {}
    reserved: dict[str, dict[IPAddress, Reservation]] = {}
    networks: defaultdict[str, list[tuple[IPPool, PoolRanges]]] = defaultdict(list)
    for pool in pools:
        try:
            ranges = parse_ranges(pool.spec.ranges)
            reserved[pool.metadata.name] = parse_reservations(pool.spec.reservations, ranges)
            networks[pool.spec.selector.network].append((pool, ranges))
        except InvalidRequest as wrong:
            views[pool.metadata.name] = PoolView(pool, None, None, str(wrong))
    for network, members in networks.items():
        members.sort(key=lambda m: (m[0].metadata.creation_timestamp, m[0].metadata.name))
        own = hosts if network == "" else frozenset()
        fixed = own.union(*(ranges.gateways for _, ranges in members))
        others = {Segment(a.version, int(a), int(a)) for a in fixed}
        for i, (pool, ranges) in enumerate(members):
            found = tuple(
                Overlap(older.metadata.name, common)
                for older, other in members[:i]
                if (common := overlaps(ranges, other))
            )
            closed = others.union(*(o.segments for o in found))
            name = pool.metadata.name
            views[name] = PoolView(pool, ranges, ranges.without(closed), "", found, reserved[name], own)
    return views
