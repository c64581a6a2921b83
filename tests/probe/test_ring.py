"""When whom to probe: everybody once a period, spread over it, whoever comes and goes."""

from collections import Counter
from itertools import pairwise
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.probe.ring import Ring

PERIOD = 5.0


def ring(members: int, now: float = 1000.0) -> Ring[str]:
    made: Ring[str] = Ring(PERIOD, str.encode, now)
    made.follow([f"node{i}" for i in range(members)])
    return made


def drive(made: Ring[str], now: float, until: float, most: int = 1000, step: float = 0.01) -> list[tuple[float, str]]:
    taken: list[tuple[float, str]] = []
    while now < until:
        taken += [(now, member) for member in made.take(now, most)]
        now += step
    return taken


def test_nobody_is_never_due() -> None:
    made = ring(0)
    assert made.next_at() == inf
    assert made.take(2000.0, 10) == []


@given(st.integers(1, 50), st.floats(0, 1e6))
def test_everybody_is_due_once_a_period(members: int, start: float) -> None:
    taken = drive(ring(members, start), start, start + 4 * PERIOD)
    times: dict[str, list[float]] = {}
    for now, member in taken:
        times.setdefault(member, []).append(now)
    assert len(times) == members
    assert all(abs(b - a - PERIOD) < 0.03 for each in times.values() for a, b in pairwise(each))


def test_probes_are_spread_over_the_period() -> None:
    taken = drive(ring(1000), 1000.0, 1005.0)
    a_tenth = Counter(int((now - 1000.0) * 2) for now, _ in taken)
    assert all(60 < a_tenth[tenth] < 140 for tenth in range(10)), a_tenth


def test_offsets_stay_whoever_comes_or_goes() -> None:
    made = ring(20)
    before = {member: now % PERIOD for now, member in drive(made, 1000.0, 1005.0)}
    made.follow([f"node{i}" for i in range(10, 500)])
    after = {member: now % PERIOD for now, member in drive(made, 1005.0, 1010.0)}
    assert all(abs(after[f"node{i}"] - before[f"node{i}"]) < 0.03 for i in range(10, 20))
    assert "node9" not in after


def test_after_a_hold_up_all_go_on_at_their_pace_and_nobody_is_due_before_a_period_is_over() -> None:
    made = ring(100)
    before = drive(made, 1000.0, 1005.0)
    after = drive(made, 1018.0, 1018.0 + PERIOD - 0.2)
    last = {member: now for now, member in before}
    assert all(now - last[member] >= PERIOD for now, member in after)
    assert max(Counter(round(now, 2) for now, _ in after).values()) <= 4
    assert len(after) > 90


def test_who_is_held_up_for_good_has_a_longer_period_and_loses_nobody() -> None:
    taken = drive(ring(1000), 1000.0, 1000.0 + 4 * PERIOD, most=1)  # 100 a second instead of 200
    counts = Counter(member for _, member in taken)
    assert len(counts) == 1000
    assert set(counts.values()) == {1, 2}
    assert len(taken) > 1900


def test_who_has_long_been_empty_begins_at_its_pace() -> None:
    made = ring(0)
    made.take(1500.0, 10)
    made.follow([f"node{i}" for i in range(100)])
    taken = drive(made, 1500.0, 1500.0 + PERIOD - 0.2)
    assert max(Counter(round(now, 2) for now, _ in taken).values()) <= 4
    assert len(taken) > 90


def test_who_comes_new_is_due_within_a_period() -> None:
    made = ring(1)
    made.take(1003.0, 10)
    made.follow([f"node{i}" for i in range(100)])
    assert len({member for _, member in drive(made, 1003.0, 1008.0)}) == 100


def test_next_at_is_when_take_gives_somebody() -> None:
    made = ring(3)
    due = made.next_at()
    assert made.take(due - 0.001, 10) == []
    assert len(made.take(due, 10)) == 1


def test_equal_hashes_are_two_members() -> None:
    made: Ring[bytes] = Ring(PERIOD, lambda member: member, 0.0)
    made.follow([b"plumless", b"buckeroo"])  # the same CRC-32
    assert [*made.take(PERIOD, 1), *made.take(PERIOD, 1)] in (
        [b"plumless", b"buckeroo"],
        [b"buckeroo", b"plumless"],
    )
