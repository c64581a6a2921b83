"""Ranges of a pool: Harvester's defaults, what is refused, and a search that does not depend on the pool's size."""

from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.api.pool import Range
from cloudprovider.core.errors import InvalidRequest
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.ranges import (
    BlockId,
    PoolRanges,
    Segment,
    Version,
    bit_of,
    block_of,
    overlaps,
    parse_ranges,
)


def parse(*ranges: Range) -> PoolRanges:
    return parse_ranges(ranges)


def addresses(ranges: PoolRanges) -> list[str]:
    """Everything that is handed out, in order."""
    return [str(a) for version in sorted(ranges.versions) for a in ranges.free_after(version, None, lambda _: 0)]


def next_free(
    ranges: PoolRanges, version: Version, after: IPAddress | None, taken: Callable[[BlockId], int]
) -> IPAddress | None:
    return next(ranges.free_after(version, after, taken), None)


@pytest.mark.parametrize(
    ("given_range", "total", "first", "last", "gateway"),
    [
        (Range(subnet="10.0.0.0/24"), 253, "10.0.0.2", "10.0.0.254", "10.0.0.1"),
        (Range(subnet="10.0.0.0/24", gateway="10.0.0.254"), 253, "10.0.0.1", "10.0.0.253", "10.0.0.254"),
        (
            Range(subnet="10.0.0.0/24", range_start="10.0.0.8", range_end="10.0.0.9"),
            2,
            "10.0.0.8",
            "10.0.0.9",
            "10.0.0.1",
        ),
        (Range(subnet="10.0.0.0/24", range_start="10.0.0.250"), 5, "10.0.0.250", "10.0.0.254", "10.0.0.1"),
        (Range(subnet="10.0.0.0/24", range_end="10.0.0.5"), 4, "10.0.0.2", "10.0.0.5", "10.0.0.1"),
        (Range(subnet="10.0.0.77/24"), 253, "10.0.0.2", "10.0.0.254", "10.0.0.1"),  # host bits set
        (
            Range(subnet="10.0.0.0/24", range_start="10.0.0.9", range_end="10.0.0.8"),
            2,
            "10.0.0.8",
            "10.0.0.9",
            "10.0.0.1",
        ),
        (Range(subnet="10.0.0.7/32"), 1, "10.0.0.7", "10.0.0.7", None),
        (Range(subnet="10.0.0.4/30"), 1, "10.0.0.6", "10.0.0.6", "10.0.0.5"),
        (Range(subnet="10.0.0.4/31"), 1, "10.0.0.4", "10.0.0.4", "10.0.0.5"),
        (Range(subnet="10.0.0.0/16"), 65533, "10.0.0.2", "10.0.255.254", "10.0.0.1"),
        (Range(subnet="fd00::/120"), 254, "fd00::2", "fd00::ff", "fd00::1"),  # no broadcast in IPv6
        (Range(subnet="fd00::7/128"), 1, "fd00::7", "fd00::7", None),
    ],
)
def test_defaults_are_harvesters(given_range: Range, total: int, first: str, last: str, gateway: str | None) -> None:
    ranges = parse(given_range)
    assert ranges.size == total
    assert ip_address(first) in ranges
    assert ip_address(last) in ranges
    assert ip_address(first) - 1 not in ranges
    assert ip_address(last) + 1 not in ranges
    assert ranges.ranges[0].gateway == (ip_address(gateway) if gateway else None)


def test_ranges_are_handed_out_in_the_order_written() -> None:
    ranges = parse(
        Range(subnet="10.0.1.0/24", range_start="10.0.1.8", range_end="10.0.1.9"),
        Range(subnet="10.0.0.4/30"),
        Range(subnet="10.0.0.1/32"),
    )
    assert addresses(ranges) == ["10.0.1.8", "10.0.1.9", "10.0.0.6", "10.0.0.1"]


def test_a_gateway_in_the_middle_is_left_out_of_every_range() -> None:
    ranges = parse(
        Range(subnet="10.0.0.0/28", gateway="10.0.0.5", range_end="10.0.0.6"),
        Range(subnet="10.0.0.0/24", gateway="10.0.0.3", range_start="10.0.0.10", range_end="10.0.0.11"),
    )
    assert addresses(ranges) == [f"10.0.0.{n}" for n in (1, 2, 4, 6, 10, 11)]
    assert ranges.size == 6


def test_both_families_in_one_pool() -> None:
    ranges = parse(Range(subnet="10.0.0.4/30"), Range(subnet="fd00::7/128"))
    assert ranges.versions == {4, 6}
    assert addresses(ranges) == ["10.0.0.6", "fd00::7"]


@pytest.mark.parametrize(
    ("ranges", "field", "reason"),
    [
        ([], "spec.ranges", "Required"),
        ([Range(subnet="10.0.0.300/24")], "spec.ranges[0].subnet", "InvalidCIDR"),
        ([Range(subnet="10.0.0.0")], "spec.ranges[0].subnet", "InvalidCIDR"),
        ([Range(subnet="10.0.0.0/255.255.255.0")], "spec.ranges[0].subnet", "InvalidCIDR"),
        ([Range(subnet="fe80::%eth0/64")], "spec.ranges[0].subnet", "InvalidCIDR"),
        ([Range(subnet="239.1.0.0/16")], "spec.ranges[0].subnet", "UnusableSubnet"),
        ([Range(subnet="0.0.0.0/0")], "spec.ranges[0].subnet", "UnusableSubnet"),
        ([Range(subnet="10.0.0.0/24", range_start="10.0.1.1")], "spec.ranges[0].rangeStart", "OutsideSubnet"),
        ([Range(subnet="10.0.0.0/24", range_end="fd00::1")], "spec.ranges[0].rangeEnd", "OutsideSubnet"),
        ([Range(subnet="10.0.0.0/24", range_end="banana")], "spec.ranges[0].rangeEnd", "InvalidAddress"),
        ([Range(subnet="10.0.0.0/24", range_start="10.0.0.0")], "spec.ranges[0].rangeStart", "NotAHost"),
        ([Range(subnet="10.0.0.0/24", range_end="10.0.0.255")], "spec.ranges[0].rangeEnd", "NotAHost"),
        ([Range(subnet="10.0.0.0/24", gateway="10.0.0.255")], "spec.ranges[0].gateway", "NotAHost"),
        ([Range(subnet="fd00::/64", gateway="fd00::")], "spec.ranges[0].gateway", "NotAHost"),
        ([Range(subnet="10.0.0.0/24"), Range(subnet="10.0.0.128/25")], "spec.ranges[1]", "Overlap"),
    ],
)
def test_wrong_ranges_are_refused_by_field(ranges: list[Range], field: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(*ranges)
    assert [(v.field, v.reason) for v in raised.value.violations] == [(field, reason)]


def test_everything_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse(Range(subnet="x"), Range(subnet="10.0.0.0/24", range_start="1.1.1.1", gateway="10.0.0.255"))
    assert [v.field for v in raised.value.violations] == [
        "spec.ranges[0].subnet",
        "spec.ranges[1].rangeStart",
        "spec.ranges[1].gateway",
    ]


def test_overlap_of_pools_is_what_both_hand_out() -> None:
    a = parse(Range(subnet="10.0.0.0/24", range_start="10.0.0.10", range_end="10.0.0.20"))
    b = parse(Range(subnet="10.0.0.0/24", range_start="10.0.0.20", range_end="10.0.0.30"))
    c = parse(Range(subnet="10.0.0.0/24", range_start="10.0.0.21", range_end="10.0.0.30"))
    assert [s.text for s in overlaps(a, b)] == ["10.0.0.20"]
    assert overlaps(a, c) == ()


def test_a_cursor_outside_of_the_ranges_starts_anew() -> None:
    ranges = parse(Range(subnet="10.0.0.0/28"))
    assert next_free(ranges, 4, IPv4Address("192.0.2.1"), lambda _: 0) == IPv4Address("10.0.0.2")
    assert next_free(ranges, 4, IPv6Address("fd00::1"), lambda _: 0) == IPv4Address("10.0.0.2")


def test_the_search_wraps_and_ends() -> None:
    ranges = parse(Range(subnet="10.0.0.0/29"))  # .2 to .6
    free = {IPv4Address("10.0.0.3")}
    taken = ranges.mask(BlockId(4, int(IPv4Address("10.0.0.0")))) & ~bit_of(*free)
    assert next_free(ranges, 4, IPv4Address("10.0.0.5"), lambda _: taken) == IPv4Address("10.0.0.3")
    assert next_free(ranges, 4, IPv4Address("10.0.0.3"), lambda _: taken) == IPv4Address("10.0.0.3")
    assert next_free(ranges, 4, IPv4Address("10.0.0.5"), lambda _: (1 << 256) - 1) is None


def test_what_is_taken_meanwhile_is_passed_and_nothing_comes_twice() -> None:
    taken = 0
    search = parse(Range(subnet="10.0.0.0/29")).free_after(4, IPv4Address("10.0.0.4"), lambda _: taken)
    assert next(search) == IPv4Address("10.0.0.5")  # and is not taken
    taken |= bit_of(IPv4Address("10.0.0.6")) | bit_of(IPv4Address("10.0.0.3"))
    assert [str(a) for a in search] == ["10.0.0.2", "10.0.0.4"]


def test_the_last_free_address_of_a_full_16_is_found_block_by_block() -> None:
    ranges = parse(Range(subnet="10.0.0.0/16"))
    last = IPv4Address("10.0.0.2")
    asked: list[BlockId] = []

    def taken(block: BlockId) -> int:
        asked.append(block)
        return ~bit_of(last) if block == block_of(last) else -1

    assert next_free(ranges, 4, last, taken) == last
    assert len(asked) <= 258  # once a block, the first one in two parts


def test_a_64_of_ipv6_costs_nothing() -> None:
    ranges = parse(Range(subnet="fd00::/64"))
    assert ranges.size == 2**64 - 2
    asked: list[BlockId] = []

    def taken(block: BlockId) -> int:
        asked.append(block)
        return 0

    assert next_free(ranges, 6, IPv6Address("fd00::ffff:ffff:ffff:ffff"), taken) == IPv6Address("fd00::2")
    assert asked == [BlockId(6, int(IPv6Address("fd00::")))]


hosts = st.integers(1, 1022)


@st.composite
def some_ranges(draw: st.DrawFn) -> list[Range]:
    """Ranges that do not overlap, in 10.0.0.0/22, in any order."""
    marks = sorted(draw(st.sets(hosts, min_size=2, max_size=8)))
    pairs = list(zip(marks[::2], marks[1::2], strict=False))
    base = int(IPv4Address("10.0.0.0"))
    return draw(
        st.permutations(
            [
                Range(
                    subnet="10.0.0.0/22",
                    range_start=str(IPv4Address(base + low)),
                    range_end=str(IPv4Address(base + high)),
                    gateway=str(IPv4Address(base + draw(hosts))),
                )
                for low, high in pairs
            ]
        )
    )


@given(some_ranges(), st.sets(hosts), hosts)
def test_the_search_agrees_with_a_list_of_all_addresses(written: list[Range], used: set[int], cursor: int) -> None:
    base = int(IPv4Address("10.0.0.0"))
    ranges = parse(*written)
    gateways = {int(ip_address(r.gateway)) for r in written}
    order = [
        n
        for r in written
        for n in range(int(ip_address(r.range_start)), int(ip_address(r.range_end)) + 1)
        if n not in gateways
    ]
    assert ranges.size == len(order)
    at = base + cursor
    if at in order:
        place = order.index(at) + 1
        order = order[place:] + order[:place]
    taken = {base + u for u in used}
    expected = [IPv4Address(n) for n in order if n not in taken]
    masks: dict[BlockId, int] = {}
    for n in taken:
        address = IPv4Address(n)
        masks[block_of(address)] = masks.get(block_of(address), 0) | bit_of(address)
    assert list(ranges.free_after(4, IPv4Address(at), lambda b: masks.get(b, 0))) == expected


@given(some_ranges(), some_ranges())
def test_what_is_taken_away_is_gone_and_nothing_else(a: list[Range], b: list[Range]) -> None:
    left, other = parse(*a), parse(*b)
    rest = left.without(other.segments)
    for n in range(1024):
        address = IPv4Address(int(IPv4Address("10.0.0.0")) + n)
        assert (address in rest) == (address in left and address not in other)


def test_a_segment_reads_as_people_write_it() -> None:
    assert Segment(4, int(IPv4Address("10.0.0.1")), int(IPv4Address("10.0.0.9"))).text == "10.0.0.1-10.0.0.9"


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["10.0.0.3"], ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]),
        (["10.0.0.4/31"], ["10.0.0.2", "10.0.0.3", "10.0.0.6"]),
        (["10.0.0.2-10.0.0.4", "10.0.0.6"], ["10.0.0.5"]),
        ([" 10.0.0.2 - 10.0.0.5 "], ["10.0.0.6"]),
        (["10.0.0.0/29"], []),
        (["10.0.0.1"], ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]),  # the gateway anyway
    ],
)
def test_what_is_excluded_is_not_handed_out(exclude: list[str], left: list[str]) -> None:
    assert addresses(parse(Range(subnet="10.0.0.0/29", exclude=exclude))) == left


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("banana", "InvalidValue"),
        ("10.0.0.5-10.0.0.2", "InvalidValue"),
        ("10.0.0.2-fd00::1", "InvalidValue"),
        ("10.0.0.2-", "InvalidValue"),
        ("10.0.0.0/33", "InvalidValue"),
        ("fe80::1%eth0", "InvalidValue"),
        ("10.0.1.2", "OutsideSubnet"),
        ("10.0.0.0/28", "OutsideSubnet"),
        ("fd00::1", "OutsideSubnet"),
    ],
)
def test_what_cant_be_excluded_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse(Range(subnet="10.0.0.0/29", exclude=["10.0.0.2", text]))
    (violation,) = refused.value.violations
    assert (violation.field, violation.reason) == ("spec.ranges[0].exclude[1]", reason)
    assert text in violation.message


def test_an_ipv6_range_excludes_too() -> None:
    made = parse(Range(subnet="fd00::/125", exclude=["fd00::2", "fd00::4-fd00::6"]))
    assert addresses(made) == ["fd00::3", "fd00::7"]
