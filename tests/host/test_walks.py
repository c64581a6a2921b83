"""Walks on the API server in memory, in virtual time: thousands of steps, and every moment of rest is a long one."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from typing_extensions import override

from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from tests.host.walks.machine import Walks
from tests.host.world import World
from tests.kube.virtualtime import VirtualTimeLoop

SETTLED = 30.0
"""Virtual seconds after which all that can happen has."""
STORM = 3000
"""More writes than this between two moments of rest are no end of them."""
SEEDS = (1, 2, 3)
STEPS = 3500
"""At least so many steps are taken with each."""


class InMemory(Walks):
    @override
    def loop(self) -> asyncio.AbstractEventLoop:
        return VirtualTimeLoop()

    @override
    async def open(self) -> World:
        loop = asyncio.get_running_loop()

        def now() -> datetime:
            return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=loop.time())

        cluster = FakeCluster(now)
        self.writes: list[str] = []

        async def noted(call: Call) -> None:
            """Who writes without end would never let virtual time pass: hold it up, to be found at the next rest."""
            if call.verb not in {"get", "list", "watch"}:
                self.writes.append(f"{call.program}: {call.verb} {call.resource} {call.name}")
            if len(self.writes) == STORM:
                print("They write without end:", *self.writes[-10:], sep="\n")
            if len(self.writes) >= STORM:
                await asyncio.Event().wait()

        cluster.before = noted
        return World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster, program="host"), now=now)

    @override
    async def rest(self, holds: Callable[[], Coroutine[Any, Any, list[str]]]) -> list[str]:
        await asyncio.sleep(SETTLED)
        assert len(self.writes) < STORM, self.writes[-10:]
        self.writes.clear()
        return await holds()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", SEEDS)
def test_any_walk(number: int) -> None:
    InMemory.taken.clear()
    walks = settings(
        max_examples=120,
        stateful_step_count=40,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(InMemory), settings=walks)
    print(dict(InMemory.taken))
    assert sum(InMemory.taken.values()) >= STEPS, InMemory.taken
