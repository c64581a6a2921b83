"""A second, smaller walk: who comes back, and what is kept for whom, in pools with room to spare. There each address
that somebody is given can be told in advance, as far as documented: docs/pools.md."""

import asyncio
import random
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from typing_extensions import override

from cloudprovider.core.api.pool import Reservation
from cloudprovider.host.assembly import Host
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import IPPOOLS, LOADBALANCERS
from tests.host.views import vm
from tests.host.world import World, pool, subnet
from tests.kube.virtualtime import VirtualTimeLoop

SEEDS: Final = (1, 2, 3)
POOLS: Final = {"p": "10.0.0.", "q": "10.0.1."}
NAMES: Final = ("a", "b", "c", "d", "e")
NAMESPACE: Final = vm().metadata.namespace
SETTLED: Final = 5.0
"""Virtual seconds after which all that can happen has."""

names = st.sampled_from(NAMES)
pools = st.sampled_from(list(POOLS))


def _now() -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC)


class Returns(RuleBasedStateMachine):
    """``last``: who had each address last, by pool; ``kept``: for whom an address is reserved."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.stack = AsyncExitStack()
        self.has: dict[str, tuple[str, str]] = {}
        """Pool and address, by name."""
        self.last: dict[tuple[str, str], str] = {}
        self.kept: dict[tuple[str, str], str] = {}
        self.run(self._begin())

    def run(self, step: Coroutine[Any, Any, None]) -> None:
        self.runner.run(step)

    async def _begin(self) -> None:
        cluster = FakeCluster(_now)
        self.world = World(
            client=FakeKubeClient(cluster),
            connect=lambda: FakeKubeClient(cluster, program="host"),
            now=_now,
            rng=random.Random(1),
        )
        for name, prefix in POOLS.items():
            await self.world.client.create(IPPOOLS, pool(name, subnet(f"{prefix}0/27", f"{prefix}2", f"{prefix}21")))
        await self._start()

    async def _start(self) -> None:
        host: Host = await self.stack.enter_async_context(self.world.host())
        await self.stack.enter_async_context(self.world.agent(host))

    @override
    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.runner.close()

    @rule(name=names, where=pools)
    def ask(self, name: str, where: str) -> None:
        self.run(self._ask(name, where))

    async def _ask(self, name: str, where: str) -> None:
        if name in self.has:
            patch = {"spec": {"ipPool": where}}
            await self.world.client.merge_patch(LOADBALANCERS, NAMESPACE, name, patch)
        else:
            await self.world.client.create(LOADBALANCERS, vm(name, ip_pool=where))
        await asyncio.sleep(SETTLED)
        given = await self.world.load_balancer((NAMESPACE, name))
        assert given is not None
        (address,) = given.status.addresses
        got = address.ip_pool, address.ip
        if self.has.get(name, ("", ""))[0] != where:
            self._judge(name, where, got)
        self.has[name] = got
        self.last[got] = name
        await self._recorded()

    def _judge(self, name: str, where: str, got: tuple[str, str]) -> None:
        taken = set(self.has.values())
        assert got[0] == where
        assert got not in taken
        assert self.kept.get(got, name) == name, f"{got} is reserved for {self.kept[got]}, and given to {name}"
        mine = {place for place, owner in self.kept.items() if owner == name and place[0] == where} - taken
        had = {
            p for p, owner in self.last.items() if owner == name and p[0] == where and self.kept.get(p, name) == name
        }
        expected = mine or had - taken
        assert not expected or got in expected, f"{name} is given {got}, not one of {expected}"

    @rule(name=names)
    def delete(self, name: str) -> None:
        if name in self.has:
            self.run(self._delete(name))

    async def _delete(self, name: str) -> None:
        await self.world.client.delete(LOADBALANCERS, NAMESPACE, name)
        await asyncio.sleep(SETTLED)
        del self.has[name]
        await self._recorded()

    @rule(where=pools, which=st.integers(2, 10), name=st.sampled_from([*NAMES, "nobody", ""]))
    def reserve(self, where: str, which: int, name: str) -> None:
        """Keep an address for somebody (who may not exist), or no longer."""
        place = where, f"{POOLS[where]}{which}"
        self.kept.pop(place, None)
        if name:
            self.kept[place] = name
        self.run(self._reserve(where))

    async def _reserve(self, where: str) -> None:
        kept = [
            Reservation(address=ip, namespace=NAMESPACE, load_balancer=name)
            for (named, ip), name in sorted(self.kept.items())
            if named == where
        ]
        await self.world.client.merge_patch(IPPOOLS, "", where, {"spec": {"reservations": msgspec.to_builtins(kept)}})
        await asyncio.sleep(SETTLED)
        await self._recorded()

    @rule()
    def restart(self) -> None:
        self.run(self._restart())

    async def _restart(self) -> None:
        await self.stack.aclose()
        await self._start()
        await asyncio.sleep(SETTLED)
        await self._recorded()

    async def _recorded(self) -> None:
        """The blocks say the same."""
        blocks = await self.world.blocks()
        held = {(b.spec.pool, ip): a.owner for b in blocks for ip, a in b.spec.allocations.items()}
        assert held == {place: f"{NAMESPACE}/{name}" for name, place in self.has.items()}
        before = {(b.spec.pool, ip): owner for b in blocks for ip, owner in b.spec.history.items()}
        assert before == {p: f"{NAMESPACE}/{name}" for p, name in self.last.items() if p not in held}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", SEEDS)
def test_any_walk(number: int) -> None:
    walks = settings(
        max_examples=60,
        stateful_step_count=40,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    run_state_machine_as_test(seed(number)(Returns), settings=walks)
