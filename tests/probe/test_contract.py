"""What every prober does: the real one, and the fake that stands for it elsewhere."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.questions import HttpGet, Tls
from cloudprovider.probe.api import Prober, Target
from cloudprovider.probe.fake import FakeProber, FakeTargets
from cloudprovider.probe.prober import SocketProber
from tests.dhcp.waiting import until
from tests.probe.servers import OK, UNAVAILABLE, Behaviour, here, resetting, saying, serving


@dataclass
class World:
    """A prober and targets: each test has one of every kind."""

    prober: Prober
    targets: dict[Outcome, Target]
    under_way: Callable[[], int]
    ended: list[tuple[Outcome, Outcome]] = field(default_factory=list)
    """Expected and real outcomes, in order of their ends."""

    async def begin(self, expected: Outcome, timeout: float = 5.0) -> None:
        await self.prober.begin(self.targets[expected], timeout, lambda found: self.noted(expected, found))

    def noted(self, expected: Outcome, found: Answer) -> None:
        assert bool(found.said) is (found.outcome is not Outcome.GOOD)
        self.ended.append((expected, found.outcome))


def fake_world() -> World:
    answers: dict[Target, Outcome] = {
        Target(IPv4Address("192.0.2.1") + number, 80, HttpGet()): outcome
        for number, outcome in enumerate(Outcome)
        if outcome is not Outcome.SILENT
    }
    targets = FakeTargets(answers=answers)
    found: dict[Outcome, Target] = {outcome: target for target, outcome in answers.items()}
    found[Outcome.SILENT] = Target(IPv4Address("192.0.2.99"), 80)
    return World(FakeProber(targets), found, lambda: targets.open)


@contextlib.asynccontextmanager
async def real_world(host: str) -> AsyncIterator[World]:
    """On loopback. Silence: a listener whose queue is full drops what comes."""
    family = socket.AF_INET if ":" not in host else socket.AF_INET6
    async with contextlib.AsyncExitStack() as stack:
        found: dict[Outcome, Target] = {}
        kinds: dict[Outcome, Behaviour] = {
            Outcome.GOOD: saying(OK),
            Outcome.DRAINING: saying(UNAVAILABLE),
            Outcome.BAD: resetting,
        }
        for outcome, answer in kinds.items():
            listening = socket.create_server((host, 0), family=family)
            await stack.enter_async_context(serving(listening, answer))
            found[outcome] = Target(ip_address(host), listening.getsockname()[1], HttpGet())
        full = stack.enter_context(socket.create_server((host, 0), family=family, backlog=0))
        stack.enter_context(socket.create_connection(full.getsockname()[:2]))
        found[Outcome.SILENT] = Target(ip_address(host), full.getsockname()[1])
        nowhere = IPv4Address("192.0.2.1") if family is socket.AF_INET else IPv6Address("2001:db8::1")
        found[Outcome.UNASKED] = Target(nowhere, 80)  # the sandbox has no way there
        prober = SocketProber(here)
        try:
            yield World(prober, found, lambda: len(prober._running))
        finally:
            prober.close()


@pytest.fixture(params=["fake", "127.0.0.1", "::1"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        yield fake_world()
        return
    async with real_world(request.param) as made:
        yield made


@pytest.mark.parametrize("expected", [outcome for outcome in Outcome if outcome is not Outcome.SILENT])
async def test_each_outcome(world: World, expected: Outcome) -> None:
    await world.begin(expected)
    assert world.ended == []
    await until("an outcome", lambda: world.ended)
    assert world.ended == [(expected, expected)]
    assert world.under_way() == 0


async def test_silence_takes_the_whole_timeout(world: World) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    await world.begin(Outcome.SILENT, timeout=0.2)
    await until("an outcome", lambda: world.ended)
    assert world.ended == [(Outcome.SILENT, Outcome.SILENT)]
    assert 0.19 < loop.time() - began < 2


async def test_many_go_on_beside_each_other_and_each_ends_once(world: World) -> None:
    for _ in range(20):
        for expected in Outcome:
            await world.begin(expected, timeout=0.5)
    await until("all outcomes", lambda: len(world.ended) >= 100)
    assert all(expected is found for expected, found in world.ended)
    assert world.under_way() == 0
    await asyncio.sleep(0.05)  # one that came twice would show now
    assert len(world.ended) == 100


async def test_nothing_ends_after_close(world: World) -> None:
    for expected in Outcome:
        await world.begin(expected, timeout=0.05)
    world.prober.close()
    assert world.under_way() == 0
    await asyncio.sleep(0.1)  # the time in which it would
    assert world.ended == []
    world.prober.close()


async def test_a_closed_prober_asks_nobody(world: World) -> None:
    world.prober.close()
    with pytest.raises(RuntimeError, match="closed"):
        await world.begin(Outcome.GOOD)


async def test_a_timeout_is_above_zero(world: World) -> None:
    with pytest.raises(ValueError, match="timeout"):
        await world.begin(Outcome.GOOD, timeout=0)


async def test_an_authority_that_is_none_is_said_whoever_answers(world: World) -> None:
    question = HttpGet(tls=Tls(verify=True, authority="no certificate"))
    world.targets[Outcome.BAD] = replace(world.targets[Outcome.GOOD], question=question)
    found: list[Answer] = []
    await world.prober.begin(world.targets[Outcome.BAD], 5.0, found.append)
    await until("an answer", lambda: found)
    assert found == [Answer(Outcome.BAD, "certificateAuthority is no certificate in PEM")]
    assert world.under_way() == 0
