"""The nodes' probes, over the shipped fake and with short periods."""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address

from cloudprovider.core.health import Check, Health, Outcome, Verdict
from cloudprovider.core.plan import IPAddress
from cloudprovider.probe.fake import FakeProber, FakeTargets
from cloudprovider.probe.nodes import NodeProbes, healthz
from tests.dhcp.waiting import until
from tests.probe.running import running

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHECK = Check(period=0.05, timeout=0.03)
ONE, TWO, SIX = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), IPv6Address("fd00::1")


class World:
    """Probes that run, and the nodes that they ask."""

    def __init__(self, check: Check = CHECK, at_once: int = 512) -> None:
        self.targets = FakeTargets()
        self.changes = 0
        self.probes = NodeProbes(FakeProber(self.targets), now=lambda: NOW, check=check, at_once=at_once)
        self.probes.on_change(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def answer(self, address: IPAddress, outcome: Outcome) -> None:
        self.targets.answers[healthz(address)] = outcome

    def asked(self, address: IPAddress) -> int:
        return self.targets.asked.count(healthz(address))

    def is_(self, address: IPAddress, verdict: Verdict) -> Callable[[], bool]:
        return lambda: self.probes.health(address).verdict is verdict

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        return running(self.probes.run())


async def test_nodes_are_asked_and_out_by_what_they_say() -> None:
    world = World()
    for node in (ONE, TWO, SIX):
        world.answer(node, Outcome.GOOD)
    world.probes.follow([ONE, TWO, SIX])
    assert world.probes.health(ONE) == Health()
    async with world.running():
        for node in (ONE, TWO, SIX):
            await until("good", world.is_(node, Verdict.GOOD))
        assert world.changes == 3
        assert (world.probes.draining, world.probes.failed) == (frozenset(), frozenset())

        world.answer(ONE, Outcome.DRAINING)
        world.answer(TWO, Outcome.BAD)
        world.answer(SIX, Outcome.SILENT)
        await until("draining", lambda: world.probes.draining == {ONE})
        await until("failed", lambda: world.probes.failed == {TWO, SIX})
        assert world.probes.health(SIX).verdict is Verdict.UNREACHABLE
        assert world.probes.health(SIX).since == NOW

        for node in (ONE, TWO, SIX):
            world.answer(node, Outcome.GOOD)
        await until("all back", lambda: not world.probes.draining | world.probes.failed)
    assert world.changes == 9


async def test_the_third_failure_takes_a_node_out_and_no_earlier_one() -> None:
    world = World()
    world.answer(ONE, Outcome.GOOD)
    world.probes.follow([ONE])
    async with world.running():
        await until("good", world.is_(ONE, Verdict.GOOD))
        world.answer(ONE, Outcome.BAD)
        before = world.asked(ONE)
        at_change: list[int] = []
        world.probes.on_change(lambda: at_change.append(world.asked(ONE)))
        await until("failed", world.is_(ONE, Verdict.FAILED))
        assert at_change == [before + 3]


async def test_who_never_answered_is_not_out() -> None:
    world = World()
    world.answer(TWO, Outcome.BAD)
    world.answer(SIX, Outcome.UNASKED)
    world.probes.follow([ONE, TWO, SIX])
    async with world.running():
        await until("many probes", lambda: min(world.asked(node) for node in (ONE, TWO, SIX)) > 5)
    assert world.probes.failed == frozenset()
    assert world.changes == 0


async def test_who_goes_is_forgotten_and_unknown_when_it_comes_again() -> None:
    world = World()
    world.answer(ONE, Outcome.GOOD)
    world.answer(TWO, Outcome.GOOD)
    world.probes.follow([ONE, TWO])
    async with world.running():
        await until("good", world.is_(ONE, Verdict.GOOD))
        world.answer(ONE, Outcome.DRAINING)
        await until("draining", lambda: world.probes.draining)
        changes = world.changes
        world.probes.follow([TWO])
        assert world.probes.draining == frozenset()
        assert world.probes.health(ONE) == Health()
        asked, turns = world.asked(ONE), world.asked(TWO)
        await until("probes of the other", lambda: world.asked(TWO) > turns + 3)
        assert world.asked(ONE) == asked
        world.probes.follow([ONE, TWO])
        await until("asked again", lambda: world.asked(ONE) > asked + 3)
        assert world.probes.health(ONE).verdict is Verdict.UNKNOWN
    assert world.changes == changes


async def test_an_answer_that_comes_after_its_node_has_gone_and_come_again_counts_for_nobody() -> None:
    world = World(Check(period=0.05, timeout=0.3, failure_threshold=1))
    world.answer(ONE, Outcome.BAD)
    world.probes.follow([ONE])
    async with world.running():
        await until("an answer", lambda: world.probes.health(ONE).reached)
        world.targets.answers.clear()
        await until("a probe under way", lambda: world.targets.open)  # would find it unreachable
        world.probes.follow([])
        world.answer(ONE, Outcome.BAD)
        world.probes.follow([ONE])
        await until("the former probe's end", lambda: world.targets.open == 0)
        await until("an answer", lambda: world.probes.health(ONE).reached)
    assert world.changes == 0
    assert world.probes.failed == frozenset()


async def test_who_comes_while_nobody_is_followed_is_asked_too() -> None:
    world = World()
    world.answer(ONE, Outcome.GOOD)
    async with world.running():
        await until("it waits", lambda: world.probes._rounds._waiting is not None)
        world.probes.follow([ONE])
        await until("good", world.is_(ONE, Verdict.GOOD))


async def test_an_unchanged_set_costs_nothing_and_keeps_what_is_known() -> None:
    world = World()
    world.answer(ONE, Outcome.GOOD)
    world.probes.follow([ONE, TWO])
    async with world.running():
        await until("good", world.is_(ONE, Verdict.GOOD))
        places = world.probes._rounds._rings[CHECK.period]._places
        world.probes.follow({TWO, ONE})
        assert world.probes._rounds._rings[CHECK.period]._places is places
        world.probes.follow([ONE])
        assert world.probes.health(ONE).verdict is Verdict.GOOD


async def test_never_more_are_under_way_than_allowed_and_nobody_is_left_out() -> None:
    world = World(Check(period=0.2, timeout=0.1), at_once=7)
    nodes = [ONE + number for number in range(50)]
    world.probes.follow(nodes)
    async with world.running():
        await until("two turns", lambda: all(world.asked(node) >= 2 for node in nodes))
    assert world.targets.most_open == 7
    assert max(world.asked(node) for node in nodes) <= 4


async def test_a_node_has_one_probe_at_a_time_where_the_timeout_is_longer_than_the_period() -> None:
    world = World(Check(period=0.02, timeout=0.2))
    world.probes.follow([ONE])
    async with world.running():
        await until("three probes", lambda: world.asked(ONE) >= 3)
    assert world.targets.most_open == 1


async def test_a_thousand_nodes_are_never_asked_in_a_bunch() -> None:
    world = World(Check(period=1.0, timeout=0.5))
    nodes = [ONE + number for number in range(1000)]
    for node in nodes:
        world.answer(node, Outcome.GOOD)
    world.probes.follow(nodes)
    async with world.running():
        await until("one turn", lambda: len(world.targets.asked) >= 1000)
    assert world.targets.most_open < 100
