"""Handing out addresses and taking them back, one batch at a time."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.allocation import Allocator, Proposal
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import Allocation, IPBlock, IPBlockSpec, IPPool
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import survey
from cloudprovider.core.ranges import Version
from cloudprovider.core.wants import Granted, Refused, Release, Want
from tests.core.pools import pool

NOW = "2026-01-01T00:00:00Z"


def allocator(*pools: IPPool) -> Allocator:
    made = Allocator()
    made.set_pools(survey(pools or (pool("p"),)))
    return made


def want(owner: str, pool: str = "p", **more: object) -> Want:
    fields: dict[str, object] = {"owner": f"ns/{owner}", "uid": f"uid-{owner}", "pool": pool, **more}
    return Want(**fields)  # type: ignore[arg-type]


def commit(target: Allocator, proposal: Proposal) -> Proposal:
    """Write every block, as the API server would take it."""
    for block in proposal.writes:
        version = str(int(block.metadata.resource_version or 0) + 1)
        metadata = msgspec.structs.replace(block.metadata, resource_version=version)
        target.written(proposal, msgspec.structs.replace(block, metadata=metadata))
    return proposal


def grant(target: Allocator, *wants: Want) -> list[str]:
    proposal = commit(target, target.propose(wants, now=NOW))
    return [str(o.address) if isinstance(o, Granted) else o.reason for o in proposal.outcomes]


def give_back(target: Allocator, owner: str, address: str, pool: str = "p") -> Proposal:
    release = Release(pool=pool, address=ip_address(address), owner=f"ns/{owner}", uid=f"uid-{owner}")
    return commit(target, target.propose((), [release], now=NOW))


def held(target: Allocator, owner: str) -> list[str]:
    return [str(h.address) for h in target.ledger.held_by(f"ns/{owner}")]


def refusal(target: Allocator, wanted: Want) -> Refused:
    (outcome,) = target.propose([wanted], now=NOW).outcomes
    assert isinstance(outcome, Refused)
    return outcome


def test_a_batch_is_one_write_a_block() -> None:
    target = allocator()
    proposal = target.propose([want(f"lb{i}") for i in range(200)], now=NOW)
    (block,) = proposal.writes
    assert len(block.spec.allocations) == 200
    assert {o.block for o in proposal.outcomes if isinstance(o, Granted)} == {block.metadata.name} == {"p-10.0.0.0"}
    assert block.spec.allocations["10.0.0.2"] == Allocation(owner="ns/lb0", uid="uid-lb0", since=NOW)
    assert block.metadata.labels == {"loadbalancer.harvesterhci.io/pool": "p"}
    assert [(r.kind, r.name, r.uid) for r in block.metadata.owner_references] == [("IPPool", "p", "uid-p")]


def test_a_batch_over_a_blocks_end_writes_both_blocks() -> None:
    target = allocator(pool("p", "10.0.0.0/23=10.0.0.254-10.0.1.1"))
    proposal = target.propose([want(f"lb{i}") for i in range(4)], now=NOW)
    assert [b.metadata.name for b in proposal.writes] == ["p-10.0.0.0", "p-10.0.1.0"]
    assert [o.block for o in proposal.outcomes if isinstance(o, Granted)] == ["p-10.0.0.0"] * 2 + ["p-10.0.1.0"] * 2


def test_nothing_happens_until_the_write_is_told() -> None:
    target = allocator()
    first = target.propose([want("a")], now=NOW)
    assert held(target, "a") == []
    assert target.propose([want("b")], now=NOW).outcomes[0] == Granted(want("b"), IPv4Address("10.0.0.2"), "p-10.0.0.0")
    commit(target, first)
    assert held(target, "a") == ["10.0.0.2"]


def test_asking_again_gives_the_same_and_writes_nothing() -> None:
    target = allocator()
    assert grant(target, want("a")) == ["10.0.0.2"]
    again = target.propose([want("a"), want("a")], now="2026-02-02T00:00:00Z")
    assert again.writes == ()
    assert [o for o in again.outcomes if isinstance(o, Granted) and o.block == ""] == list(again.outcomes)
    assert grant(target, want("a")) == ["10.0.0.2"]


def test_asking_twice_in_one_batch_gives_one_address() -> None:
    target = allocator()
    proposal = commit(target, target.propose([want("a"), want("a"), want("b")], now=NOW))
    assert [(str(o.address), o.block) for o in proposal.outcomes if isinstance(o, Granted)] == [
        ("10.0.0.2", "p-10.0.0.0"),
        ("10.0.0.2", "p-10.0.0.0"),
        ("10.0.0.3", "p-10.0.0.0"),
    ]


def test_one_address_of_each_family_and_pool() -> None:
    target = allocator(pool("p", "10.0.0.0/24", "fd00::/64"), pool("q", "10.1.0.0/24"))
    assert grant(target, want("a"), want("a", version=6), want("a", "q")) == ["10.0.0.2", "fd00::2", "10.1.0.2"]
    assert held(target, "a") == ["10.0.0.2", "fd00::2", "10.1.0.2"]


def test_the_search_goes_on_behind_the_last_and_wraps() -> None:
    target = allocator(pool("p", "10.0.0.0/29"))  # .2 to .6
    assert grant(target, *(want(n) for n in "abc")) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
    give_back(target, "a", "10.0.0.2")
    assert grant(target, want("d"), want("e"), want("f")) == ["10.0.0.5", "10.0.0.6", "10.0.0.2"]


def test_the_search_goes_on_after_a_restart() -> None:
    target = allocator()
    target.resume_after("p", IPv4Address("10.0.0.77"))
    assert grant(target, want("a")) == ["10.0.0.78"]
    assert target.last_allocated("p") == IPv4Address("10.0.0.78")


def test_each_ip_version_of_a_pool_goes_on_by_itself() -> None:
    target = allocator(pool("p", "10.0.0.0/24", "fd00::/64"))
    wants = [want("a"), want("a", version=6), want("b"), want("b", version=6)]
    assert grant(target, *wants) == ["10.0.0.2", "fd00::2", "10.0.0.3", "fd00::3"]
    assert str(target.last_allocated("p")) == "fd00::3"
    give_back(target, "a", "10.0.0.2")
    give_back(target, "a", "fd00::2")
    assert grant(target, want("c", version=6), want("c")) == ["fd00::4", "10.0.0.4"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["p", "q"]), st.sampled_from([4, 4, 6]), st.none() | st.integers(250, 261)),
        max_size=30,
    ),
    st.sets(st.integers(0, 11)),
)
def test_a_batch_gives_what_its_wants_would_get_one_by_one(
    asked: list[tuple[str, Version, int | None]], before: set[int]
) -> None:
    """The search of a batch goes on by itself, past what others of it ask for by name."""
    wants = [
        want(f"lb{i}", p, version=v, fixed=at(v, n) if n is not None else None) for i, (p, v, n) in enumerate(asked)
    ]
    taken = [want(f"old{n}", fixed=at(4, 250 + n)) for n in sorted(before)]
    whole, single = (allocator(pool("p", "10.0.0.0/23=10.0.0.250-10.0.1.5", "fd00::/125"), pool("q")) for _ in range(2))
    grant(whole, *taken)
    grant(single, *taken)
    assert grant(whole, *wants) == [outcome for wanted in wants for outcome in grant(single, wanted)]


def at(version: Version, number: int) -> IPAddress:
    return IPv4Address("10.0.0.0") + number if version == 4 else IPv6Address("fd00::") + number % 8


def test_an_owner_gets_back_what_it_gave_back_if_it_is_free() -> None:
    target = allocator()
    grant(target, *(want(n) for n in "abc"))
    give_back(target, "b", "10.0.0.3")
    assert grant(target, want("b", uid="another")) == ["10.0.0.3"]
    assert target.ledger.history("p", "ns/b") == []


def test_the_history_does_not_reserve() -> None:
    target = allocator(pool("p", "10.0.0.0/29=10.0.0.2-10.0.0.3"))
    grant(target, want("a"), want("b"))
    give_back(target, "a", "10.0.0.2")
    assert grant(target, want("c")) == ["10.0.0.2"]
    assert target.ledger.history("p", "ns/a") == []
    assert grant(target, want("a")) == ["PoolExhausted"]


def test_an_exhausted_pool_says_how_big_it_is_and_heals() -> None:
    target = allocator(pool("p", "10.0.0.0/29=10.0.0.2-10.0.0.3"))
    grant(target, want("a"), want("b"))
    refused = refusal(target, want("c"))
    assert refused.reason == "PoolExhausted"
    assert 'all 2 IPv4 addresses of the pool "p" are allocated: delete' in refused.message
    target.set_pools(survey([pool("p", "10.0.0.0/29")]))
    assert grant(target, want("c")) == ["10.0.0.4"]


def test_a_release_and_a_grant_of_the_same_address_in_one_write() -> None:
    target = allocator(pool("p", "10.0.0.5/32"))
    grant(target, want("a"))
    release = Release(pool="p", address=IPv4Address("10.0.0.5"), owner="ns/a", uid="uid-a")
    proposal = commit(target, target.propose([want("b"), want("a")], [release], now=NOW))
    assert [type(o) for o in proposal.outcomes] == [Granted, Refused]  # "a" gave it back and has it no more
    assert len(proposal.writes) == 1
    assert held(target, "a") == []
    assert held(target, "b") == ["10.0.0.5"]


def test_releasing_is_idempotent_and_never_takes_from_another() -> None:
    target = allocator()
    grant(target, want("a"))
    for release in (
        Release(pool="p", address=IPv4Address("10.0.0.2"), owner="ns/b", uid="uid-b"),
        Release(pool="p", address=IPv4Address("10.0.0.2"), owner="ns/a", uid="of-a-namesake"),
        Release(pool="p", address=IPv4Address("10.0.0.9"), owner="ns/a", uid="uid-a"),
        Release(pool="q", address=IPv4Address("10.0.0.2"), owner="ns/a", uid="uid-a"),
    ):
        proposal = target.propose((), [release, release], now=NOW)
        assert proposal.writes == ()
        assert proposal.released == ((release, ""), (release, ""))
    assert held(target, "a") == ["10.0.0.2"]
    give_back(target, "a", "10.0.0.2")
    assert give_back(target, "a", "10.0.0.2").writes == ()
    assert held(target, "a") == []


def test_a_release_twice_in_one_batch_waits_for_one_write() -> None:
    target = allocator()
    grant(target, want("a"))
    release = Release(pool="p", address=IPv4Address("10.0.0.2"), owner="ns/a", uid="uid-a")
    proposal = target.propose((), [release, release], now=NOW)
    assert [block for _, block in proposal.released] == ["p-10.0.0.0", "p-10.0.0.0"]
    assert proposal.writes[0].spec.history == {"10.0.0.2": "ns/a"}


def test_a_namesake_takes_over_what_the_gone_one_held() -> None:
    target = allocator()
    grant(target, want("a"))
    proposal = target.propose([want("a", uid="new"), want("a", uid="new")], now=NOW)
    assert [o.block for o in proposal.outcomes if isinstance(o, Granted)] == ["p-10.0.0.0"] * 2
    commit(target, proposal)
    assert [(str(h.address), h.uid) for h in target.ledger.held_by("ns/a")] == [("10.0.0.2", "new")]


def test_a_hosts_own_address_is_never_taken_over_by_a_load_balancer() -> None:
    """A load balancer "node1" in a namespace "agent" is not the host "agent/node1"."""
    target = allocator()
    assert grant(target, Want(owner="agent/node1", uid="", pool="p")) == ["10.0.0.2"]
    assert grant(target, Want(owner="agent/node1", uid="u", pool="p")) == ["10.0.0.3"]
    assert grant(target, Want(owner="agent/node1", uid="", pool="p")) == ["10.0.0.2"]


# --- fixed, preferred, adopted ---


def test_a_fixed_address_is_given_or_refused_never_replaced() -> None:
    target = allocator()
    nine = IPv4Address("10.0.0.9")
    assert grant(target, want("a", fixed=nine)) == ["10.0.0.9"]
    assert target.last_allocated("p") is None  # the search does not jump
    refused = refusal(target, want("b", fixed=nine))
    assert refused.reason == "AddressInUse"
    assert 'in use by the load balancer "ns/a"' in refused.message
    stranger = refusal(target, Want(owner="other/b", uid="u", pool="p", fixed=nine))
    assert stranger.reason == "AddressInUse"
    assert "ns/a" not in stranger.message


def test_two_who_ask_for_one_address_in_one_batch() -> None:
    target = allocator()
    nine = IPv4Address("10.0.0.9")
    assert grant(target, want("a", fixed=nine), want("b", fixed=nine)) == ["10.0.0.9", "AddressInUse"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("10.0.0.1", "is a gateway"),
        ("10.0.9.9", 'not in the ranges of the pool "p"'),
        ("10.0.0.0", "not in the ranges"),
    ],
)
def test_a_fixed_address_that_the_pool_does_not_hand_out(address: str, says: str) -> None:
    refused = refusal(allocator(), want("a", fixed=ip_address(address)))
    assert refused.reason == "AddressNotInPool"
    assert says in refused.message


def test_preferred_addresses_come_first_as_far_as_they_are_free_and_in_the_pool() -> None:
    target = allocator()
    wished: tuple[IPAddress, ...] = tuple(
        ip_address(a) for a in ("192.0.2.1", "fd00::9", "10.0.0.1", "10.0.0.9", "10.0.0.10")
    )
    assert grant(target, want("a", preferred=wished), want("b", preferred=wished), want("c", preferred=wished)) == [
        "10.0.0.9",
        "10.0.0.10",
        "10.0.0.2",
    ]


def test_an_address_in_use_is_adopted_even_outside_of_the_ranges() -> None:
    target = allocator(pool("p", "10.0.0.0/24=10.0.0.10-10.0.0.20"))
    assert grant(target, want("a", adopt=IPv4Address("10.0.0.99"))) == ["10.0.0.99"]
    # never a gateway, a network or broadcast address, or another subnet's
    for odd in ("10.0.0.1", "10.0.0.0", "10.0.0.255", "10.0.1.9"):
        assert grant(target, want(f"b{odd}", adopt=ip_address(odd)))[0] in {f"10.0.0.{n}" for n in range(10, 21)}
    # what is somebody else's tells nothing of what else to give: that is to be asked by its request
    assert refusal(target, want("c", adopt=IPv4Address("10.0.0.99"))).reason == "AddressInUse"


def test_the_address_in_use_counts_more_than_another_record() -> None:
    target = allocator()
    grant(target, want("a"))
    assert grant(target, want("a", adopt=IPv4Address("10.0.0.9"))) == ["10.0.0.9"]
    assert grant(target, want("a", adopt=IPv4Address("10.0.0.9"))) == ["10.0.0.9"]
    assert held(target, "a") == ["10.0.0.2", "10.0.0.9"]  # the audit gives the first one back
    grant(target, want("b"))
    assert refusal(target, want("b", adopt=IPv4Address("10.0.0.9"))).reason == "AddressInUse"


def test_what_an_owner_holds_outlives_a_pool_that_is_gone_or_wrong() -> None:
    target = allocator()
    grant(target, want("a"))
    for views in (survey([pool("p", "banana")]), {}):
        target.set_pools(views)
        assert grant(target, want("a")) == ["10.0.0.2"]
        assert refusal(target, want("b")).reason == "PoolNotFound"
    assert give_back(target, "a", "10.0.0.2").writes != ()


# --- several pools ---


def test_overlapping_pools_of_one_network_never_give_one_address_twice() -> None:
    old = pool("old", "10.0.0.0/24=10.0.0.10-10.0.0.12", created="2026-01-01T00:00:00Z")
    young = pool("young", "10.0.0.0/24=10.0.0.11-10.0.0.13", created="2026-02-01T00:00:00Z")
    target = allocator(young, old)
    assert grant(target, want("a", "young"), want("b", "young")) == ["10.0.0.13", "PoolExhausted"]
    refused = refusal(target, want("c", "young", fixed=IPv4Address("10.0.0.11")))
    assert refused.reason == "AddressNotInPool"
    assert "handed out by an older pool of the network" in refused.message
    assert "old" not in refused.message.replace("older", ""), "it may be another tenant's"


def test_what_a_younger_pool_gave_away_before_is_not_given_again_by_the_older() -> None:
    young = pool("young", "10.0.0.0/24=10.0.0.11-10.0.0.13", created="2026-02-01T00:00:00Z")
    target = allocator(young)
    assert grant(target, want("a", "young")) == ["10.0.0.11"]
    old = pool("old", "10.0.0.0/24=10.0.0.10-10.0.0.12", created="2026-01-01T00:00:00Z")
    target.set_pools(survey([old, young]))
    assert grant(target, want("b", "old"), want("c", "old"), want("d", "old")) == [
        "10.0.0.10",
        "10.0.0.12",
        "PoolExhausted",
    ]


def test_one_pools_gateway_is_handed_out_by_no_other_of_its_network() -> None:
    a = pool("a", "10.0.0.0/24=10.0.0.10-10.0.0.20@10.0.0.3")
    b = pool("b", "10.0.0.0/29=10.0.0.2-10.0.0.4@10.0.0.1")
    assert grant(allocator(a, b), want("x", "b"), want("y", "b"), want("z", "b")) == [
        "10.0.0.2",
        "10.0.0.4",
        "PoolExhausted",
    ]


def test_networks_are_apart_and_may_use_the_same_addresses() -> None:
    target = allocator(pool("a", network="default/a"), pool("b", network="default/b"))
    assert grant(target, want("x", "a"), want("x", "b")) == ["10.0.0.2", "10.0.0.2"]


# --- lost writes ---


def test_a_lost_write_is_computed_again_from_what_the_winner_wrote() -> None:
    ours, theirs = allocator(), allocator()
    lost = ours.propose([want("a")], now=NOW)
    commit(theirs, theirs.propose([want("b"), want("c")], now=NOW))
    assert isinstance(lost.outcomes[0], Granted)
    fresh = theirs.ledger.block("p-10.0.0.0")
    assert fresh is not None
    ours.load(fresh)
    assert grant(ours, want("a")) == ["10.0.0.4"]
    assert set(held(ours, "b")) == {"10.0.0.2"}


def test_a_write_whose_answer_was_lost_is_found_by_reading() -> None:
    target = allocator()
    (block,) = target.propose([want("a")], now=NOW).writes
    target.load(block)  # it had been written: the time-out told nothing
    assert target.propose([want("a")], now=NOW).writes == ()


def test_nothing_is_decided_while_a_block_is_in_doubt() -> None:
    target = allocator()
    (block,) = target.propose([want("a")], now=NOW).writes
    target.doubt(block.metadata.name)
    assert target.doubted == {"p-10.0.0.0"}
    with pytest.raises(RuntimeError, match=r"p-10\.0\.0\.0"):
        target.propose([want("a", fixed=IPv4Address("10.0.0.9"))], now=NOW)
    target.drop("p-10.0.0.0")  # read: it had not been written
    assert target.doubted == frozenset()
    assert grant(target, want("a", fixed=IPv4Address("10.0.0.9"))) == ["10.0.0.9"]


def test_a_block_deleted_by_hand_is_made_anew() -> None:
    target = allocator()
    grant(target, want("a"))
    target.drop("p-10.0.0.0")
    target.drop("p-10.0.0.0")
    assert held(target, "a") == []
    proposal = target.propose([want("a", adopt=IPv4Address("10.0.0.2"))], now=NOW)
    assert proposal.writes[0].metadata.resource_version == ""
    assert proposal.writes[0].spec.allocations.keys() == {"10.0.0.2"}


# --- blocks that somebody else wrote ---


def test_odd_entries_of_a_block_are_left_alone() -> None:
    target = allocator()
    odd = {"banana": Allocation(owner="x"), "10.9.9.9": Allocation(owner="y"), "10.0.0.5": Allocation(owner="ns/z")}
    spec = IPBlockSpec(pool="p", first="10.0.0.0", allocations=odd, history={"banana": "x"})
    target.load(IPBlock(metadata=ObjectMeta(name="p-10.0.0.0", resource_version="4"), spec=spec))
    (block,) = target.propose([want("a")], now=NOW).writes
    assert block.spec.allocations.keys() == {*odd, "10.0.0.2"}
    assert block.metadata.resource_version == "4"
    assert target.ledger.owners() == {"ns/z"}


@pytest.mark.parametrize(
    ("name", "first", "says"),
    [
        ("p-10.0.0.7", "10.0.0.7", "no multiple of 256"),
        ("p-banana", "banana", "banana"),
        ("odd", "10.0.0.0", "must be named p-10.0.0.0"),  # a second truth about the same addresses
    ],
)
def test_a_block_that_is_none_is_refused(name: str, first: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        allocator().load(IPBlock(metadata=ObjectMeta(name=name), spec=IPBlockSpec(pool="p", first=first)))


def test_ipv6_blocks_hold_256_addresses_too() -> None:
    target = allocator(pool("p", "fd00::/64=fd00::fe-fd00::101"))
    names = [
        o.block
        for o in target.propose([want(n, version=6) for n in "abcd"], now=NOW).outcomes
        if isinstance(o, Granted)
    ]
    assert names == [
        "p-fd00-0000-0000-0000-0000-0000-0000-0000",
        "p-fd00-0000-0000-0000-0000-0000-0000-0000",
        "p-fd00-0000-0000-0000-0000-0000-0000-0100",
        "p-fd00-0000-0000-0000-0000-0000-0000-0100",
    ]
    assert grant(target, want("a", version=6, fixed=IPv6Address("fd00::101"))) == ["fd00::101"]
