"""Which changes of a pool are refused, which are only warned of, and in which words."""

import msgspec
import pytest

from cloudprovider.core.api.pool import Allocation, IPBlock, IPBlockSpec, IPPool, Reservation, Scope
from cloudprovider.core.rules.holdings import Holding, holdings, listed
from cloudprovider.core.rules.pools import check_deletion, check_pool, looks_at_holders
from cloudprovider.core.rules.verdict import Verdict
from tests.core.pools import pool

OWN = [Scope(project="p", namespace="n", guest_cluster="g")]


def held(*addresses: str, owner: str = "team/web", uid: str = "u") -> list[Holding]:
    allocations = {a: Allocation(owner=owner, uid=uid) for a in addresses}
    return holdings([IPBlock(spec=IPBlockSpec(pool="a", first="10.0.0.0", allocations=allocations))])


def own(name: str, *ranges: str, priority: int = 0, network: str = "") -> IPPool:
    return pool(name, *ranges, scope=OWN, priority=priority, network=network)


def excluding(base: IPPool, *texts: str) -> IPPool:
    ranges = [msgspec.structs.replace(r, exclude=list(texts)) for r in base.spec.ranges]
    return msgspec.structs.replace(base, spec=msgspec.structs.replace(base.spec, ranges=ranges))


def reserving(base: IPPool, *addresses: str) -> IPPool:
    reservations = [Reservation(address=a, namespace="n", load_balancer="web") for a in addresses]
    return msgspec.structs.replace(base, spec=msgspec.structs.replace(base.spec, reservations=reservations))


def found(verdict: Verdict) -> list[tuple[str, str]]:
    return [(v.field, v.reason) for v in verdict.violations]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (own("a"), []),
        (own("a", "banana"), [("spec.ranges[0].subnet", "InvalidCIDR")]),
        (own("a", "10.0.0.0/24", "10.0.0.128/25"), [("spec.ranges[1]", "Overlap")]),
        (excluding(own("a"), "10.0.0.5", "10.0.0.64/26", "10.0.0.7-10.0.0.9"), []),
        (excluding(own("a"), "banana"), [("spec.ranges[0].exclude[0]", "InvalidValue")]),
        (excluding(own("a"), "10.0.0.5", "10.9.0.5"), [("spec.ranges[0].exclude[1]", "OutsideSubnet")]),
        (reserving(own("a"), "10.0.0.5"), []),
        (reserving(own("a"), "10.0.0.5", "10.9.0.5"), [("spec.reservations[1].address", "AddressNotInPool")]),
        (reserving(own("a"), "10.0.0.5", "10.0.0.5"), [("spec.reservations[1].address", "Duplicate")]),
        (
            reserving(excluding(own("a"), "10.0.0.5"), "10.0.0.5"),
            [("spec.reservations[0].address", "AddressNotInPool")],
        ),
    ],
)
def test_a_pool_by_itself(new: IPPool, expected: list[tuple[str, str]]) -> None:
    assert found(check_pool(new, None, [], [])) == expected


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (own("b", "10.0.0.128/25"), [("spec.ranges", "Overlap")]),
        (excluding(own("b", "10.0.0.128/25"), "10.0.0.128/25"), []),
        (own("b", "10.1.0.0/24", priority=7), [("spec.selector.priority", "Duplicate")]),
        (own("b", "10.0.0.128/25", priority=7, network="default/other"), []),
        (own("b", "10.1.0.0/24", priority=8), []),
        (own("b", "banana"), []),  # it hands out nothing
        (own("a", "10.0.0.128/25", priority=7), []),  # itself, as it is stored
    ],
)
def test_a_pool_beside_another(other: IPPool, expected: list[tuple[str, str]]) -> None:
    assert found(check_pool(own("a", priority=7), None, [other], [])) == expected


def test_an_overlap_names_the_other_pool_and_the_common_part() -> None:
    (violation,) = check_pool(own("b", "10.0.0.128/25"), None, [own("a")], []).violations
    assert violation.message == (
        '10.0.0.130-10.0.0.254 is in the pool "a" on this network too: take it out of one of them'
    )


def test_priority_zero_is_none() -> None:
    assert check_pool(own("a"), None, [own("b", "10.1.0.0/24")], []) == Verdict()


def test_one_global_pool_a_network() -> None:
    new = pool("b", "10.1.0.0/24")
    assert found(check_pool(new, None, [pool("a")], [])) == [("spec.selector.scope", "Duplicate")]
    assert check_pool(new, None, [pool("a", network="default/other")], []) == Verdict()


def test_everything_that_is_wrong_is_told_at_once() -> None:
    new = pool("c", "10.0.0.0/24", priority=7)
    others = [pool("a", "10.0.0.128/25"), own("b", "10.1.0.0/24", priority=7)]
    assert found(check_pool(new, None, others, [])) == [
        ("spec.ranges", "Overlap"),
        ("spec.selector.scope", "Duplicate"),
        ("spec.selector.priority", "Duplicate"),
    ]


def test_what_was_wrong_before_is_a_warning() -> None:
    """So that it can be mended in steps."""
    old, other = own("a", "10.0.0.0/24", priority=7), own("b", "10.0.0.0/25", priority=7)
    smaller = own("a", "10.0.0.0/24=10.0.0.100-10.0.0.200", priority=7)
    verdict = check_pool(smaller, old, [old, other], [])
    assert verdict.violations == ()
    assert verdict.warnings == (
        'spec.ranges: 10.0.0.100-10.0.0.126 is still in the pool "b" on this network too: the older pool hands it out',
        'spec.selector.priority: 7 is the pool "b"\'s priority on this network too: choose another, or 0 for none',
    )
    wider = own("a", "10.0.0.0/24", priority=7)
    assert found(check_pool(wider, smaller, [other], [])) == [("spec.ranges", "Overlap")]


def test_wrong_before_and_as_wrong_now_is_a_warning() -> None:
    old = own("a", "banana")
    verdict = check_pool(own("a", "banana", priority=3), old, [old], [])
    assert verdict.violations == ()
    assert verdict.warnings == (
        'spec.ranges[0].subnet: "banana" is no subnet: write it like 192.168.1.0/24 or fd00::/64',
    )


def test_moving_to_another_network_counts_as_new_there() -> None:
    old, other = own("a", priority=7, network="default/x"), own("b", "10.0.0.0/25", priority=7)
    assert found(check_pool(own("a", priority=7), old, [old, other], [])) == [
        ("spec.ranges", "Overlap"),
        ("spec.selector.priority", "Duplicate"),
    ]


@pytest.mark.parametrize(
    ("new", "field"),
    [
        (own("a", "10.0.0.0/24=10.0.0.10-10.0.0.20"), "spec.ranges"),
        (own("a", "10.0.0.128/25"), "spec.ranges"),
        (own("a", "10.1.0.0/24"), "spec.ranges"),
        (own("a", "10.0.0.0/24=-@10.0.0.5"), "spec.ranges[0].gateway"),
        (excluding(own("a"), "10.0.0.4/30"), "spec.ranges[0].exclude"),
    ],
)
def test_nothing_is_taken_from_under_its_holder(new: IPPool, field: str) -> None:
    verdict = check_pool(new, own("a"), [], held("10.0.0.5"))
    assert found(verdict) == [(field, "InUse")]
    assert verdict.violations[0].message == (
        "this takes out what is in use: 10.0.0.5 (team/web); keep it in the ranges until its holder is deleted or has"
        " another address"
    )


def test_each_field_that_takes_something_out_is_named_with_its_holders() -> None:
    new = excluding(own("a", "10.0.0.0/24=10.0.0.1-10.0.0.99"), "10.0.0.5", "10.0.0.6")
    verdict = check_pool(new, own("a"), [], held("10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.200"))
    assert [(v.field, "10.0.0.7" in v.message) for v in verdict.violations] == [
        ("spec.ranges", False),
        ("spec.ranges[0].exclude", False),
    ]
    assert "10.0.0.200" in verdict.violations[0].message
    assert "10.0.0.5 (team/web), 10.0.0.6 (team/web);" in verdict.violations[1].message


@pytest.mark.parametrize(
    "new",
    [
        own("a", "10.0.0.0/23=10.0.0.1-10.0.1.254"),
        own("a", "10.0.0.0/24", "10.7.0.0/24"),
        own("a", "10.7.0.0/24", "10.0.0.0/24"),
        own("a", "10.0.0.0/24=10.0.0.5-10.0.0.9"),
        excluding(own("a"), "10.0.0.6"),
    ],
)
def test_growing_and_what_touches_no_holder_is_fine(new: IPPool) -> None:
    assert check_pool(new, own("a"), [], held("10.0.0.5")) == Verdict()


def test_what_lay_outside_before_stands_in_nobodys_way() -> None:
    assert check_pool(own("a", "10.0.0.0/25"), own("a"), [], held("10.9.9.9")) == Verdict()


def test_of_ranges_that_could_not_be_read_nothing_is_lost() -> None:
    old = own("a", "banana")
    assert check_pool(own("a"), old, [], held("10.0.0.5")) == Verdict()
    assert found(check_pool(own("a", "10.1.0.0/24"), old, [], held("10.0.0.5"))) == [("spec.ranges", "InUse")]


def test_the_network_of_a_pool_in_use_stays() -> None:
    new = own("a", network="default/x")
    assert check_pool(new, own("a"), [], []) == Verdict()
    verdict = check_pool(new, own("a"), [], held("10.0.0.5"))
    assert found(verdict) == [("spec.selector.network", "InUse")]
    assert "10.0.0.5 (team/web)" in verdict.violations[0].message


def test_holders_are_asked_for_where_they_matter() -> None:
    assert not looks_at_holders(own("a"), None)
    assert not looks_at_holders(own("a", priority=7), own("a"))
    assert looks_at_holders(own("a", "10.0.0.0/25"), own("a"))
    assert looks_at_holders(own("a", network="default/x"), own("a"))


def test_a_pool_in_use_is_not_deleted() -> None:
    assert check_deletion("a", []) == Verdict()
    (violation,) = check_deletion("a", held(*(f"10.0.0.{n}" for n in range(10, 22)))).violations
    assert violation.message == (
        'the pool "a" is in use: 10.0.0.10 (team/web), 10.0.0.11 (team/web), 10.0.0.12 (team/web),'
        " 10.0.0.13 (team/web), 10.0.0.14 (team/web), and 7 more; delete these first, or have them take"
        " addresses of another pool"
    )


def test_holders_are_hosts_and_sharers_too() -> None:
    spec = IPBlockSpec(
        pool="a",
        first="10.0.0.0",
        allocations={
            "10.0.0.7": Allocation(owner="agent/host-1"),
            "10.0.0.6": Allocation(owner="agent/web", uid="u", sharers={"team/b": "2", "team/a": "1"}),
            "nonsense": Allocation(owner="team/x", uid="u"),
        },
    )
    assert listed(holdings([IPBlock(spec=spec)])) == (
        "10.0.0.6 (agent/web, shared with team/a, team/b), 10.0.0.7 (the host host-1)"
    )
    assert check_deletion("a", holdings([IPBlock(spec=spec)])).violations
