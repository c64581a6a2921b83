"""Pools seen together, and the summary in their status."""

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_address

from cloudprovider.core.allocation import Allocator
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.api.pool import IPPoolStatus
from cloudprovider.core.ledger import Ledger
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import Overlap, PoolView, survey
from cloudprovider.core.poolstatus import MAX_ENTRIES, free, summarize
from cloudprovider.core.ranges import Segment
from cloudprovider.core.refusals import not_in_pool
from cloudprovider.core.wants import Release, Want
from tests.core.pools import pool


def summary(
    ledger: Ledger, view: PoolView, last: IPAddress | None, conditions: Sequence[Condition] = ()
) -> IPPoolStatus:
    return summarize(ledger, view, free(ledger, view), last, conditions)


def test_the_younger_pool_yields_then_the_name() -> None:
    old = pool("z", "10.0.0.0/24=10.0.0.10-10.0.0.20", created="2026-01-01T00:00:00Z")
    young = pool("a", "10.0.0.0/24=10.0.0.15-10.0.0.30", created="2026-01-01T00:00:01Z")
    twin = pool("b", "10.0.0.0/24=10.0.0.30-10.0.0.31", created="2026-01-01T00:00:01Z")
    views = survey([twin, young, old])
    fifteen, thirty = int(IPv4Address("10.0.0.15")), int(IPv4Address("10.0.0.30"))
    assert views["z"].overlaps == ()
    assert views["a"].overlaps == (Overlap("z", (Segment(4, fifteen, fifteen + 5),)),)
    assert views["b"].overlaps == (Overlap("a", (Segment(4, thirty, thirty),)),)
    assert {n: v.ranges.size for n, v in views.items() if v.ranges} == {"z": 11, "a": 10, "b": 1}


def test_networks_are_apart() -> None:
    views = survey([pool("a", network="default/a"), pool("b", network="default/b")])
    assert not any(v.overlaps for v in views.values())


def test_the_hosts_own_addresses_are_in_no_pool_of_its_network() -> None:
    own = IPv4Address("10.0.0.7")
    views = survey([pool("p", "10.0.0.0/29"), pool("q", "10.0.0.0/29", network="default/q")], frozenset({own}))
    assert {n: v.ranges.size for n, v in views.items() if v.ranges} == {"p": 5, "q": 5}
    own = IPv4Address("10.0.0.3")
    views = survey([pool("p", "10.0.0.0/29"), pool("q", "10.0.0.0/29", network="default/q")], frozenset({own}))
    assert {n: v.ranges.size for n, v in views.items() if v.ranges} == {"p": 4, "q": 5}
    assert not_in_pool(own, views["p"]) == "10.0.0.3 is the host's own: ask for another address"


def test_wrong_ranges_spoil_only_their_own_pool() -> None:
    views = survey([pool("bad", "banana"), pool("good")])
    assert views["bad"].ranges is None
    assert "spec.ranges[0].subnet" in views["bad"].error
    assert views["good"].ranges is not None


def filled(count: int, *ranges: str) -> Allocator:
    target = Allocator()
    target.set_pools(survey([pool("p", *ranges)]))
    wants = [Want(owner=f"ns/lb{i}", uid=str(i), pool="p") for i in range(count)]
    proposal = target.propose(wants, now="")
    for block in proposal.writes:
        target.written(proposal, block)
    return target


def test_the_summary_counts_and_lists() -> None:
    target = filled(3, "10.0.0.0/24")
    back = Release(pool="p", address=IPv4Address("10.0.0.3"), owner="ns/lb1", uid="1")
    proposal = target.propose((), [back], now="")
    target.written(proposal, proposal.writes[0])
    ready = Condition(type="Ready", status="True")
    status = summary(target.ledger, survey([pool("p")])["p"], target.last_allocated("p"), [ready])
    assert (status.total, status.available, status.last_allocated) == (253, 251, "10.0.0.4")
    assert status.allocated == {"10.0.0.2": "ns/lb0", "10.0.0.4": "ns/lb2"}
    assert status.allocated_history == {"10.0.0.3": "ns/lb1"}
    assert not status.truncated
    assert status.conditions == [ready]


def test_the_summary_is_cut_and_says_so() -> None:
    target = filled(MAX_ENTRIES + 1, "10.0.0.0/16")
    status = summary(target.ledger, survey([pool("p", "10.0.0.0/16")])["p"], None)
    assert len(status.allocated) == MAX_ENTRIES
    assert status.truncated
    assert status.available == 65533 - MAX_ENTRIES - 1
    assert list(status.allocated) == sorted(status.allocated, key=ip_address)  # the first ones
    assert not summary(
        filled(MAX_ENTRIES, "10.0.0.0/16").ledger, survey([pool("p", "10.0.0.0/16")])["p"], None
    ).truncated


def test_available_leaves_out_what_falls_outside_or_belongs_to_an_older_pool() -> None:
    target = filled(10, "10.0.0.0/24")  # .2 to .11
    view = survey([pool("p", "10.0.0.0/24=10.0.0.10-10.0.0.19")])["p"]
    assert summary(target.ledger, view, None).available == 8
    old = pool("old", "10.0.0.0/24=10.0.0.16-10.0.0.40", created="1")
    view = survey([pool("p", "10.0.0.0/24=10.0.0.10-10.0.0.19"), old])["p"]
    status = summary(target.ledger, view, None)
    assert (status.total, status.available) == (10, 4)


def test_huge_and_wrong_pools_have_a_status_too() -> None:
    status = summary(Ledger(), survey([pool("p", "fd00::/48")])["p"], None)
    assert status.total == status.available == 2**63 - 1
    status = summary(Ledger(), survey([pool("p", "banana")])["p"], None)
    assert (status.total, status.available) == (0, 0)
