"""Whom to ask for and when, by a clock that the test moves."""

import random
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.nodewatch import Ask, NodeWatch, Pace

NODE = IPv4Address("10.0.0.11")
SIX = IPv6Address("fd00::11")
MAC = MACAddress("02:00:00:00:00:11")
OTHER = MACAddress("02:00:00:00:00:12")
TICK = 0.025


class Network:
    """A watch, its clock, and who answers what it asks."""

    def __init__(self, pace: Pace | None = None, seed: int = 1) -> None:
        self.watch = NodeWatch(pace or Pace(), random.Random(seed).random)
        self.now = 1000.0
        self.there: dict[IPAddress, MACAddress] = {}
        self.asked: list[tuple[float, Ask]] = []
        self.changes: list[float] = []

    def follow(self, *addresses: IPAddress) -> None:
        if self.watch.follow(addresses, self.now):
            self.changes.append(self.now)

    def hear(self, address: IPAddress, mac: MACAddress) -> None:
        if self.watch.hear(address, mac, self.now):
            self.changes.append(self.now)

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> float:
        """Let time go by; return how much did."""
        begin = self.now
        while self.now < begin + seconds - 1e-6 and not until():
            due = self.watch.due(self.now)
            self.now = min(max(due, self.now + TICK) if due is not None else begin + seconds, begin + seconds)
            asks, changed = self.watch.asks(self.now)
            if changed:
                self.changes.append(self.now)
            for ask in asks:
                self.asked.append((self.now, ask))
                mac = self.there.get(ask.address)
                if mac is not None and ask.to in {None, mac}:
                    self.hear(ask.address, mac)
        return self.now - begin


def test_a_node_is_learnt_at_once_and_confirmed_by_unicast() -> None:
    net = Network()
    net.there = {NODE: MAC, SIX: OTHER}
    net.follow(NODE, SIX)
    net.run(0.1)
    assert net.watch.known == {NODE: MAC, SIX: OTHER}
    assert [ask.to for _, ask in net.asked] == [None, None]
    net.asked.clear()
    net.run(60.0)
    assert {ask for _, ask in net.asked} == {Ask(NODE, MAC), Ask(SIX, OTHER)}
    times = [when for when, ask in net.asked if ask.address == NODE]
    assert all(3.9 <= later - earlier <= 5.1 for earlier, later in pairwise(times))
    assert len(net.changes) == 2


def test_a_silent_node_is_lost_within_eight_seconds_and_found_again() -> None:
    net = Network()
    net.there = {NODE: MAC}
    net.follow(NODE)
    net.run(30.0)
    net.there.clear()
    net.asked.clear()
    assert net.run(60.0, until=lambda: not net.watch.known) <= 8.2
    assert [ask.to for _, ask in net.asked] == [MAC] * 3 + [None]  # and asked for by everybody at once
    net.there = {NODE: OTHER}  # another machine has it
    net.run(0.7)
    assert net.watch.known == {NODE: OTHER}


def test_two_lost_answers_do_not_matter() -> None:
    net = Network()
    net.there = {NODE: MAC}
    net.follow(NODE)
    net.run(6.0)
    net.there.clear()
    net.asked.clear()
    net.run(60.0, until=lambda: len(net.asked) == 3)
    net.hear(NODE, MAC)  # to the third question
    net.there = {NODE: MAC}
    net.run(60.0)
    assert len(net.changes) == 1


def test_what_never_answers_is_asked_less_and_less_often() -> None:
    net = Network()
    net.follow(NODE)
    net.run(600.0)
    times = [when - 1000.0 for when, _ in net.asked]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    for gap, planned in zip(gaps, [0.5, 1, 2, 4, 8, 16, *[30] * 50], strict=False):
        assert planned - TICK <= gap <= 1.1 * planned + TICK
    assert {ask.to for _, ask in net.asked} == {None}


def test_a_node_that_speaks_up_by_itself_is_known_at_once_whatever_the_backoff() -> None:
    net = Network()
    net.follow(NODE)
    net.run(600.0)
    net.asked.clear()
    net.hear(NODE, MAC)
    assert net.watch.known == {NODE: MAC}
    net.run(5.1)
    assert net.asked[0][1] == Ask(NODE, MAC)  # and is confirmed like any other, not in half a minute


def test_another_mac_counts_at_once() -> None:
    net = Network()
    net.there = {NODE: MAC}
    net.follow(NODE)
    net.run(3.0)
    net.there = {NODE: OTHER}
    net.hear(NODE, OTHER)
    assert net.watch.known == {NODE: OTHER}
    net.asked.clear()
    net.run(30.0)
    assert {ask for _, ask in net.asked} == {Ask(NODE, OTHER)}
    assert len(net.changes) == 2


def test_silence_means_something_only_after_a_second() -> None:
    net = Network()
    net.there = {SIX: MAC}
    assert not net.watch.settled(NODE, net.now)
    net.follow(NODE, SIX)
    assert not net.watch.settled(NODE, net.now)
    net.run(0.9)
    assert net.watch.settled(SIX, net.now)
    assert not net.watch.settled(NODE, net.now)
    assert [ask.address for _, ask in net.asked].count(NODE) == 2  # one lost frame does not decide
    net.run(0.2)
    assert net.watch.settled(NODE, net.now)


def test_silence_before_the_question_means_nothing() -> None:
    """A thousand new ones are asked for in two seconds, and none is settled before its own."""
    net = Network()
    addresses = [NODE + i for i in range(1000)]
    net.follow(*addresses)
    net.run(1.1)
    asked = {ask.address for _, ask in net.asked}
    assert len(asked) < 600
    assert not any(net.watch.settled(a, net.now) for a in addresses if a not in asked)


def test_who_is_followed_no_longer_is_forgotten_and_not_asked() -> None:
    net = Network()
    net.there = {NODE: MAC, SIX: OTHER}
    net.follow(NODE, SIX)
    net.run(1.0)
    net.follow(SIX)
    assert net.watch.known == {SIX: OTHER}
    assert not net.watch.settled(NODE, net.now)
    assert len(net.changes) == 3
    net.asked.clear()
    net.hear(NODE, MAC)
    net.run(30.0)
    assert {ask.address for _, ask in net.asked} == {SIX}
    net.follow(NODE)
    net.run(0.1)
    assert net.watch.known == {NODE: MAC}
    net.follow()
    assert net.watch.known == {}
    net.run(60.0)
    assert net.watch.due(net.now) is None


def test_thousands_are_spread_over_the_period_from_the_first_on() -> None:
    net = Network()
    net.there = {NODE + i: MAC for i in range(1000)}
    net.follow(*net.there)
    net.run(10.0)
    net.asked.clear()
    net.run(20.0)
    assert {ask.to for _, ask in net.asked} == {MAC}
    a_second = Counter(int(when) for when, _ in net.asked)
    assert all(120 <= n <= 400 for n in a_second.values()), a_second  # 1,000 every 4 to 5 s
    at_once = Counter(when for when, _ in net.asked)
    assert max(at_once.values()) <= 20


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 100))
def test_frames_are_bounded_whatever_happens(count: int, alive: float, seed: int) -> None:
    net = Network(Pace(per_second=100), seed)
    rng = random.Random(seed)
    net.there = {NODE + i: MAC for i in range(count) if rng.random() < alive}
    net.follow(*(NODE + i for i in range(count)))
    net.run(3.0)
    net.watch.restart(net.now)
    net.run(3.0)
    a_second = Counter(int(when) for when, _ in net.asked)
    assert all(n <= 111 for n in a_second.values()), a_second


def test_more_than_the_pace_allows_are_asked_in_turn() -> None:
    net = Network(Pace(per_second=100))
    net.there = {NODE + i: MAC for i in range(1000)}  # ten seconds' worth
    net.follow(*net.there)
    net.run(11.0)
    assert len(net.watch.known) == 1000
    net.run(60.0)
    assert len(net.watch.known) == 1000  # waiting for its turn is no silence
    turns = Counter(ask.address for _, ask in net.asked)
    assert max(turns.values()) - min(turns.values()) <= 2


def test_a_link_that_comes_back_starts_anew() -> None:
    net = Network()
    there: dict[IPAddress, MACAddress] = {NODE: MAC, SIX: OTHER}
    net.there = dict(there)
    net.follow(NODE, SIX)
    net.run(10.0)
    net.there.clear()
    net.run(100.0)
    assert net.watch.known == {}
    net.there = dict(there)
    net.watch.restart(net.now)
    assert not net.watch.settled(NODE, net.now)
    net.run(0.1)
    assert net.watch.known == there


def test_a_link_that_was_gone_for_a_moment_has_everybody_confirmed_within_a_second() -> None:
    net = Network()
    net.there = {NODE + i: MAC for i in range(100)}
    net.follow(*net.there)
    net.run(10.0)
    net.there = {NODE: MAC}
    net.watch.restart(net.now)
    net.run(4.2)  # three seconds of silence, the first question within one
    assert net.watch.known == {NODE: MAC}


def test_it_is_told_when_silence_has_come_to_mean_something() -> None:
    net = Network()
    net.there = {SIX: MAC}
    net.follow(NODE, SIX, NODE + 1)
    net.run(0.9)
    assert len(net.changes) == 1  # of the one that answered
    net.follow(NODE, SIX)
    net.run(60.0)
    assert [1.0 <= when - 1000.0 <= 1.0 + TICK for when in net.changes[1:]] == [True]
    assert net.watch.settled(NODE, net.changes[1])
