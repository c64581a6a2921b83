"""Who is probed when, where the periods differ, over the shipped fake."""

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.probe.api import Target
from cloudprovider.probe.fake import FakeProber, FakeTargets
from cloudprovider.probe.rounds import Rounds, Turn
from tests.dhcp.waiting import until
from tests.probe.running import running

FIRST = IPv4Address("10.0.0.1")


def turn(number: int, period: float = 0.05, timeout: float = 0.03) -> Turn:
    return Turn(Target(FIRST + number, 80), period, timeout)


class World:
    def __init__(self, at_once: int = 512) -> None:
        self.targets = FakeTargets()
        self.ended: list[tuple[str, Answer]] = []
        self.rounds: Rounds[str] = Rounds(
            FakeProber(self.targets), str.encode, lambda key, answer: self.ended.append((key, answer)), at_once=at_once
        )

    def follow(self, wanted: Mapping[str, Turn], outcome: Outcome = Outcome.GOOD) -> None:
        self.targets.answers.update(dict.fromkeys((each.target for each in wanted.values()), outcome))
        self.rounds.follow(wanted)

    def counts(self) -> Counter[str]:
        return Counter(key for key, _ in self.ended)

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        return running(self.rounds.run())


async def test_each_goes_at_its_own_pace() -> None:
    world = World()
    world.follow({"quick": turn(1, 0.05), "slow": turn(2, 0.5)})
    async with world.running():
        await until("three slow ones", lambda: world.counts()["slow"] >= 3)
    assert 15 <= world.counts()["quick"] <= 45


async def test_a_subject_that_is_asked_something_else_begins_anew_and_its_former_answer_is_nobodys() -> None:
    world = World()
    world.follow({"a": turn(1, timeout=0.3)}, Outcome.SILENT)
    async with world.running():
        await until("a probe under way", lambda: world.targets.open)
        world.follow({"a": replace(turn(1), target=Target(FIRST, 81))})
        await until("answers", lambda: world.ended)
        await until("the former one's end", lambda: world.targets.open == 0)
    assert {answer.outcome for _, answer in world.ended} == {Outcome.GOOD}


async def test_one_that_changes_its_period_goes_on_by_the_new_one() -> None:
    world = World()
    world.follow({"a": turn(1, 100.0), "b": turn(2, 100.0)})
    async with world.running():
        world.follow({"a": turn(1), "b": turn(2, 100.0)})
        await until("many", lambda: world.counts()["a"] > 5)
        world.follow({})
    assert world.rounds._rings == {}


async def test_where_all_are_silent_no_period_is_left_out() -> None:
    """With a bound of two at once, and each taking 0.1 s, the quick ones would take all there is."""
    world = World(at_once=2)
    quick = {f"quick{n}": turn(n, 0.05, 0.1) for n in range(10)}
    slow = {f"slow{n}": turn(10 + n, 0.5, 0.1) for n in range(3)}
    world.follow({**quick, **slow}, Outcome.SILENT)
    async with world.running():
        await until("everybody", lambda: len(world.counts()) == 13)
    assert world.targets.most_open == 2
