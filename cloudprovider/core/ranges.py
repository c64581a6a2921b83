"""The addresses of a pool: reading its ranges, counting them, and finding the next free one, without listing them.

The defaults are Harvester's (``MakeRange`` in load-balancer-harvester): the range starts at the subnet's first host
and ends at its last, the gateway is the first host; network and broadcast address are left out, and so are every
gateway and what a range excludes. A /32 (or /128) is one address without a gateway. In a /31 (RFC 3021) both addresses
are hosts. IPv6 has no broadcast address; a subnet's first address is the routers' anycast address (RFC 4291 section
2.6.1).

Inside, an address is (version, number), and 256 neighbours, aligned, are a *block*: a bit mask of 256 bits says which
of them are taken, so that looking for a free one costs a few operations a block.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from itertools import chain
from typing import Final, Literal, NamedTuple

from cloudprovider.core.api.pool import BLOCK_SIZE, Range
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.plan import IPAddress, IPNetwork

Version = Literal[4, 6]

_VERSIONS: Final[tuple[Version, Version]] = (4, 6)


class BlockId(NamedTuple):
    """256 neighbouring addresses; ``first`` is a multiple of 256."""

    version: Version
    first: int

    @property
    def address(self) -> IPAddress:
        """The block's first address."""
        return to_address(self.version, self.first)


def block_of(address: IPAddress) -> BlockId:
    """Return the block that an address is in."""
    number = int(address)
    return BlockId(address.version, number - number % BLOCK_SIZE)


def bit_of(address: IPAddress) -> int:
    """Return the mask of its block in which just this address is set."""
    return 1 << int(address) % BLOCK_SIZE


def to_address(version: Version, number: int) -> IPAddress:
    """Return the address with this number."""
    return IPv4Address(number) if version == 4 else IPv6Address(number)


class Segment(NamedTuple):
    """Consecutive addresses, both ends included."""

    version: Version
    low: int
    high: int

    def holds(self, address: IPAddress) -> bool:
        """Whether an address is one of them."""
        return address.version == self.version and self.low <= int(address) <= self.high

    @property
    def text(self) -> str:
        """ "first-last", or the one address."""
        low, high = to_address(self.version, self.low), to_address(self.version, self.high)
        return str(low) if low == high else f"{low}-{high}"


@dataclass(frozen=True, slots=True)
class AddressRange:
    """One range of a pool with its defaults filled in; ``start`` to ``end`` still holds the gateway and what is
    ``excluded``."""

    subnet: IPNetwork
    start: IPAddress
    end: IPAddress
    gateway: IPAddress | None
    excluded: tuple[Segment, ...] = ()

    @property
    def segment(self) -> Segment:
        """From ``start`` to ``end``."""
        return Segment(self.start.version, int(self.start), int(self.end))


@dataclass(frozen=True)
class PoolRanges:
    """All ranges of a pool. ``segments``: what may be handed out, in the order in which it is."""

    ranges: tuple[AddressRange, ...]
    segments: tuple[Segment, ...]

    @cached_property
    def size(self) -> int:
        """How many addresses may be handed out."""
        return sum(s.high - s.low + 1 for s in self.segments)

    @cached_property
    def versions(self) -> frozenset[Version]:
        """The IP versions of which there is an address to hand out."""
        return frozenset(s.version for s in self.segments)

    @cached_property
    def gateways(self) -> frozenset[IPAddress]:
        """The gateways of all ranges."""
        return frozenset(r.gateway for r in self.ranges if r.gateway is not None)

    def __contains__(self, address: object) -> bool:
        """Whether ``address`` may be handed out."""
        if not isinstance(address, IPv4Address | IPv6Address):
            return False
        return any(s.holds(address) for s in self.segments)

    def range_of(self, address: IPAddress) -> AddressRange | None:
        """Return the range that ``address`` belongs to: the one that holds it, else the first with its subnet."""
        inside = [r for r in self.ranges if address.version == r.subnet.version and address in r.subnet]
        number = int(address)
        return next((r for r in inside if int(r.start) <= number <= int(r.end)), inside[0] if inside else None)

    def without(self, taken: Iterable[Segment]) -> "PoolRanges":
        """Return the same ranges with ``taken`` never handed out."""
        return PoolRanges(self.ranges, _subtract(self.segments, taken))

    def free_after(
        self, version: Version, after: IPAddress | None, taken: Callable[[BlockId], int]
    ) -> Iterator[IPAddress]:
        """Yield the free addresses behind ``after`` through the ranges in order, then from the beginning, each once.

        ``after`` None, or an address that is in no range any more: from the beginning. ``taken`` returns the mask of
        a block's taken addresses, and is asked again before each. Costs a few operations per block that is full.
        """
        segments = self._by_version[version]
        number = int(after) if after is not None and after.version == version else -1
        parts = [(s.low, s.high) for s in segments]
        for place, (low, high) in enumerate(parts):
            if low <= number <= high:  # the rest of it, those behind it, those before it, and at last up to itself
                parts = [(number + 1, high), *parts[place + 1 :], *parts[:place], (low, number)]
                break
        for low, high in parts:
            for first in range(low - low % BLOCK_SIZE, high + 1, BLOCK_SIZE):
                block, left = BlockId(version, first), _bits(low, high, first)
                while free := left & ~taken(block):
                    bit = free & -free
                    left &= -bit << 1
                    yield to_address(version, first + bit.bit_length() - 1)

    def mask(self, block: BlockId) -> int:
        """Return the mask of the addresses of ``block`` that may be handed out."""
        mask = 0
        for s in self.segments:
            if s.version == block.version and s.low < block.first + BLOCK_SIZE and s.high >= block.first:
                mask |= _mask(s, block.first)
        return mask

    @cached_property
    def _by_version(self) -> Mapping[Version, tuple[Segment, ...]]:
        return {v: tuple(s for s in self.segments if s.version == v) for v in _VERSIONS}


def parse_ranges(ranges: Sequence[Range], field: str = "spec.ranges") -> PoolRanges:
    """Read and check a pool's ranges. Raises InvalidRequest with everything that is wrong, ``field`` in front.

    A range whose start lies behind its end is read the other way round, as Harvester does.
    """
    violations: list[Violation] = []
    parsed: list[AddressRange] = []
    places: list[int] = []
    if not ranges:
        violations.append(Violation(field=field, reason="Required", message="a pool needs at least one range"))
    for i, r in enumerate(ranges):
        one = _parse_range(r, f"{field}[{i}]", violations)
        if one is None:
            continue
        for place, other in zip(places, parsed, strict=True):
            common = intersection(one.segment, other.segment)
            if common is not None:
                violations.append(
                    Violation(
                        field=f"{field}[{i}]",
                        reason="Overlap",
                        message=f"{common.text} is in {field}[{place}] too: take it out of one of them",
                    )
                )
        parsed.append(one)
        places.append(i)
    if violations:
        raise InvalidRequest(*violations)
    gateways = [Segment(g.version, int(g), int(g)) for g in (r.gateway for r in parsed) if g is not None]
    closed = chain(gateways, *(r.excluded for r in parsed))
    return PoolRanges(tuple(parsed), _subtract((r.segment for r in parsed), closed))


def intersection(a: Segment, b: Segment) -> Segment | None:
    """Return what both segments have in common, None if nothing."""
    if a.version != b.version or a.low > b.high or b.low > a.high:
        return None
    return Segment(a.version, max(a.low, b.low), min(a.high, b.high))


def overlaps(a: PoolRanges, b: PoolRanges) -> tuple[Segment, ...]:
    """Return what two pools both would hand out."""
    common = (intersection(x, y) for x in a.segments for y in b.segments)
    return tuple(c for c in common if c is not None)


def _mask(segment: Segment, first: int) -> int:
    return _bits(segment.low, segment.high, first)


def _bits(low: int, high: int, first: int) -> int:
    """The mask of the addresses from ``low`` to ``high`` in the block at ``first``."""
    return (2 << min(high - first, BLOCK_SIZE - 1)) - (1 << max(low - first, 0))


def _subtract(segments: Iterable[Segment], taken: Iterable[Segment]) -> tuple[Segment, ...]:
    left = list(segments)
    for t in taken:
        rest: list[Segment] = []
        for s in left:
            common = intersection(s, t)
            if common is None:
                rest.append(s)
                continue
            if s.low < common.low:
                rest.append(s._replace(high=common.low - 1))
            if common.high < s.high:
                rest.append(s._replace(low=common.high + 1))
        left = rest
    return tuple(left)


def _parse_range(r: Range, field: str, violations: list[Violation]) -> AddressRange | None:
    try:
        if "/" not in r.subnet or not r.subnet.rpartition("/")[2].isdecimal() or "%" in r.subnet:
            raise ValueError
        subnet = ip_network(r.subnet, strict=False)
    except ValueError:
        message = f'"{r.subnet}" is no subnet: write it like 192.168.1.0/24 or fd00::/64'
        violations.append(Violation(field=f"{field}.subnet", reason="InvalidCIDR", message=message))
        return None
    base = subnet.network_address
    if base.is_multicast or base.is_loopback or base.is_unspecified:
        message = f"{r.subnet} can't be handed out: it is a multicast, loopback or unspecified subnet"
        violations.append(Violation(field=f"{field}.subnet", reason="UnusableSubnet", message=message))
        return None
    first, last = _hosts(subnet)
    default_gateway = None if subnet.num_addresses == 1 else base + 1
    found = len(violations)
    start = _parse_host(r.range_start, subnet, f"{field}.rangeStart", violations) or first
    end = _parse_host(r.range_end, subnet, f"{field}.rangeEnd", violations) or last
    gateway = _parse_host(r.gateway, subnet, f"{field}.gateway", violations) or default_gateway
    excluded = [_parse_excluded(text, subnet, f"{field}.exclude[{i}]", violations) for i, text in enumerate(r.exclude)]
    if len(violations) > found:
        return None
    low, high = sorted((start, end), key=int)
    return AddressRange(subnet, low, high, gateway, tuple(e for e in excluded if e is not None))


def _parse_excluded(text: str, subnet: IPNetwork, field: str, violations: list[Violation]) -> Segment | None:
    """An address, a subnet, or "first-last", inside ``subnet``."""
    first, dash, last = text.partition("-")
    try:
        if "%" in text:
            raise ValueError
        if dash:
            ends = ip_address(first.strip()), ip_address(last.strip())
        else:
            network = ip_network(text.strip(), strict=False)
            ends = network.network_address, network.broadcast_address
        if ends[0].version != ends[1].version or int(ends[0]) > int(ends[1]):
            raise ValueError
    except ValueError:
        message = f'"{text}" is no address, subnet, or first-last: write it like {subnet.network_address}, or'
        message = f"{message} {subnet}, or {subnet.network_address}-{subnet.broadcast_address}"
        violations.append(Violation(field=field, reason="InvalidValue", message=message))
        return None
    if not all(end.version == subnet.version and end in subnet for end in ends):
        message = f"{text} lies outside of the subnet {subnet}"
        violations.append(Violation(field=field, reason="OutsideSubnet", message=message))
        return None
    return Segment(subnet.version, int(ends[0]), int(ends[1]))


def _hosts(subnet: IPNetwork) -> tuple[IPAddress, IPAddress]:
    """First and last address that a host may have."""
    if subnet.num_addresses <= 2:
        return subnet.network_address, subnet.broadcast_address
    return subnet.network_address + 1, subnet.broadcast_address - (1 if subnet.version == 4 else 0)


def _parse_host(text: str, subnet: IPNetwork, field: str, violations: list[Violation]) -> IPAddress | None:
    if not text:
        return None
    try:
        address = ip_address(text)
        if "%" in text:
            raise ValueError
    except ValueError:
        message = f'"{text}" is no IP address: write it like 192.168.1.10 or fd00::10'
        violations.append(Violation(field=field, reason="InvalidAddress", message=message))
        return None
    if address.version != subnet.version or address not in subnet:
        message = f"{text} lies outside of the subnet {subnet}"
        violations.append(Violation(field=field, reason="OutsideSubnet", message=message))
        return None
    first, last = _hosts(subnet)
    if not int(first) <= int(address) <= int(last):
        what = "network" if address == subnet.network_address else "broadcast"
        message = f"{text} is the {what} address of {subnet}: no host can have it"
        violations.append(Violation(field=field, reason="NotAHost", message=message))
        return None
    return address
