import random
import time
from collections import Counter
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.maglev import SIZES, lookup_table, table_size

NODES = [IPv4Address("10.0.0.10") + i for i in range(10)]
SMALL = 251


@given(st.sets(st.integers(1, 2**32 - 2).map(IPv4Address), min_size=1, max_size=50))
def test_every_node_has_its_share_within_one_slot(addresses: set[IPv4Address]) -> None:
    nodes = sorted(addresses)
    shares = Counter(lookup_table(nodes, SMALL))
    assert set(shares) == set(range(len(nodes)))
    assert max(shares.values()) - min(shares.values()) <= 1


@given(st.sets(st.integers(1, 2**32 - 2).map(IPv4Address), min_size=2, max_size=20), st.data())
def test_it_is_decided_by_the_nodes_alone(addresses: set[IPv4Address], data: st.DataObject) -> None:
    nodes = sorted(addresses)
    assert lookup_table(nodes, SMALL) == lookup_table(list(nodes), SMALL)
    gone = data.draw(st.sampled_from(nodes))
    rest = [n for n in nodes if n != gone]
    assert gone not in {rest[i] for i in lookup_table(rest, SMALL)}


@pytest.mark.parametrize("count", [*range(2, 21), 25, 30, 40, 50, 100])
def test_a_node_that_leaves_moves_little_more_than_its_own_flows(count: int) -> None:
    """Each set of nodes with the size that it has in truth: between two sizes nearly all flows would move."""
    nodes = [NODES[0] + i for i in range(count)]
    hashes = random.Random(count).sample(range(1 << 32), 20_000)

    def chosen(some: list[IPv4Address]) -> list[IPv4Address]:
        size = table_size(len(some))
        table = lookup_table(some, size)
        return [some[table[number % size]] for number in hashes]

    before = chosen(nodes)
    for leaving in range(min(count, 5)):
        after = chosen(nodes[:leaving] + nodes[leaving + 1 :])
        moved = sum(b != a for b, a in zip(before, after, strict=True)) / len(hashes)
        assert moved < 1 / count + 0.02


def test_the_size_grows_with_the_nodes_and_has_a_hundred_slots_for_each() -> None:
    assert [table_size(n) for n in (1, 2, 20, 21, 100, 101, 5000)] == [
        1_021,
        4_099,
        4_099,
        10_007,
        10_007,
        65_537,
        65_537,
    ]
    assert all(table_size(n) >= 100 * n for n in range(1, 656))


@pytest.mark.parametrize("size", SIZES)
def test_the_sizes_are_primes(size: int) -> None:
    assert all(size % divisor for divisor in range(2, int(size**0.5) + 1))


@pytest.mark.parametrize("count", [0, SMALL + 1])
def test_a_table_that_cannot_be_filled_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="can't be filled"):
        lookup_table([IPv4Address(i + 1) for i in range(count)], SMALL)


def test_more_nodes_than_an_index_of_16_bits_holds() -> None:
    assert max(lookup_table([IPv4Address(i + 1) for i in range(65_537)], 65_537)) == 65_536


def test_it_is_fast_enough_for_the_event_loop() -> None:
    best = min(_timed() for _ in range(5))
    assert best < 0.06  # 10 ms where it was measured; twice the 30 ms that is allowed, for a busy machine


def _timed() -> float:
    start = time.process_time()
    lookup_table(NODES, 10_007)
    return time.process_time() - start
