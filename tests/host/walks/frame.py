"""The frame of a walk: its beginning and end, the programs that run, and what must hold at each moment of rest."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, ClassVar, TypeVar

from hypothesis.stateful import RuleBasedStateMachine
from typing_extensions import override

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.errors import NotFound
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS
from tests.host.walks.agent import Agent, Link
from tests.host.walks.expected import faults
from tests.host.walks.rest import Rest, root
from tests.host.walks.scene import (
    TENANTS,
    Names,
    pools,
)
from tests.host.walks.state import Place, State, path
from tests.host.walks.wishes import counts, fits, right, settled_counts
from tests.host.walks.witness import Witness
from tests.host.world import World, guest_cluster

T = TypeVar("T")
LIMIT = 300.0
"""Seconds that no step may take."""


class Frame(RuleBasedStateMachine):
    """``loop`` and ``world``: made by whoever knows the API server."""

    taken: ClassVar[Counter[str]]
    """Steps taken, by name, in all walks of this kind."""

    @override
    def __init_subclass__(cls) -> None:
        cls.taken = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.rng = random.Random(1)
        self.runner = asyncio.Runner(loop_factory=self.loop)
        self.names = Names()
        self.link = Link()
        self.hosts: list[tuple[Host, AsyncExitStack]] = []
        self.agent: tuple[Agent, AsyncExitStack] | None = None
        self.before = Rest()
        self.intruded: set[Place] = set()
        """Places that others have had since the last rest."""
        self.loosest: dict[str, float] = {}
        """The highest limit of each tenant and pool since then."""
        self.lost = False
        """Whether a block has been lost since."""
        self.doubled = False
        """Whether two hosts have run since."""
        self.killed = False
        """Whether a host has been killed since."""
        self.asked: dict[str, list[LoadBalancer]] = {}
        """What has been asked for since the last rest, by the objects' paths."""
        self.stack = AsyncExitStack()
        self.run(self._begin())

    # --- what differs between API servers --------------------------------------------------------------------------

    def loop(self) -> asyncio.AbstractEventLoop:
        raise NotImplementedError

    async def open(self) -> World:
        """Return the world, without a pool or load balancer."""
        raise NotImplementedError

    async def rest(self, holds: Callable[[], Coroutine[Any, Any, list[str]]]) -> list[str]:
        """Wait until all that can happen has, and return what ``holds`` finds wrong then."""
        raise NotImplementedError

    # --- the frame -------------------------------------------------------------------------------------------------

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        async def limited() -> T:
            async with asyncio.timeout(LIMIT):
                return await step

        try:
            return self.runner.run(limited())
        except BaseException:
            self.failed = True
            raise

    def count(self, name: str) -> None:
        self.taken[name] += 1
        self.restless = True

    async def _begin(self) -> None:
        self.world = await self.open()
        self.witness = await self.stack.enter_async_context(Witness(self.world.client).watching())
        self.admin = self.world.client
        for one in TENANTS:
            await self.admin.create(GUESTCLUSTERS, guest_cluster(one))
        for one_pool in pools():
            await self.admin.create(IPPOOLS, one_pool)
        await self._start_host()
        await self._start_agent()

    async def _start_host(self) -> None:
        stack = AsyncExitStack()
        self.doubled |= bool(self.hosts)
        self.hosts.append((await stack.enter_async_context(self.world.host()), stack))

    async def _kill_host(self) -> None:
        self.killed = True
        _, stack = self.hosts.pop(0)
        await stack.aclose()

    async def _start_agent(self) -> None:
        stack = AsyncExitStack()
        agent = Agent(self.admin, self.link, self.rng)
        self.agent = await stack.enter_async_context(agent.running()), stack

    async def _kill_agent(self) -> None:
        if self.agent is not None:
            await self.agent[1].aclose()
            self.agent = None

    @override
    def teardown(self) -> None:
        try:
            self.run(self._end())
        finally:
            self.runner.close()

    async def _end(self) -> None:
        """All goes in the end, and nothing is left."""
        try:
            if not self.witness.faults and not self.failed:
                if not self.hosts:
                    await self._start_host()
                if self.agent is None:
                    await self._start_agent()
                await self._settle()
                for lb in await self.world.load_balancers():
                    await self.drop(lb)
                await self._settle()
                assert await self.world.load_balancers() == []
                assert not any(block.spec.allocations for block in await self.world.blocks())
                assert self.link.leases == {}
                assert not any(self.link.up.values())
        finally:
            await self._kill_agent()
            while self.hosts:
                await self._kill_host()
            await self.stack.aclose()
            await self.close()

    async def close(self) -> None:
        """Leave nothing behind."""

    failed = False
    restless = True

    async def drop(self, lb: LoadBalancer) -> None:
        self.asked.setdefault(path(lb), []).append(lb)
        try:
            await self.admin.delete(LOADBALANCERS, *lb.key)
        except NotFound:
            return

    # --- rest ------------------------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        found = await self.rest(self._wrong)
        self.failed = bool(found)
        if found:
            print(*found, sep="\n")  # on a real API server it may not come about again, which is all that would be told
        assert not found, "\n".join(found)
        self._note(await self._state())
        self.restless = False

    async def _wrong(self) -> list[str]:
        if not await self.witness.caught_up():
            return ["the witness has not seen all"]
        state = await self._state()
        found = [*self.witness.faults]
        for place, one, other in self.link.together:
            if self.lost and not {"/".join(one), "/".join(other)} <= state.lbs.keys():
                continue  # it went while its record was lost: nobody writes that again
            if not self.witness.may_share(place, one, other):
                found.append(f"{place} is up for {one}, and has come up for {other}")
        found += faults(state, served=self.agent is not None)
        found += self._moves(state)
        found += self._over_limits(state)
        if self.doubled or self.killed or self.lost:
            self.witness.excuse_halves()
        found += self.witness.halves()
        return found

    async def _state(self) -> State:
        every_pool: list[IPPool] = list((await self.admin.list(IPPOOLS)).items)
        clusters = (await self.admin.list(GUESTCLUSTERS)).items
        return State(
            pools={p.metadata.name: p for p in every_pool},
            blocks=await self.world.blocks(),
            lbs={path(lb): lb for lb in await self.world.load_balancers()},
            clusters={"/".join(c.key): c for c in clusters},
        )

    def _note(self, state: State) -> None:
        self.before = Rest(
            state=state,
            up=frozenset((key, place) for key, places in self.link.up.items() for place in places),
        )
        self.asked.clear()
        self.loosest.clear()
        self.lost = self.killed = False
        self.intruded = set(self.link.intruders)
        self.doubled = len(self.hosts) > 1

    def _moves(self, state: State) -> Iterator[str]:
        """Yield what has another address than at the last rest, and no cause for it."""
        before = self.before.state.lbs
        roots = {name: {root(lb) for lb in (*asked, before.get(name, asked[0]))} for name, asked in self.asked.items()}
        for name, now in state.lbs.items():
            was = before.get(name)
            if was is None or was.metadata.uid != now.metadata.uid or now.metadata.deletion_timestamp:
                continue
            asked = self.asked.get(name, [])
            mine = {root(lb) for lb in (*asked, was)}
            if len(mine) > 1 or any(mine & others for other, others in roots.items() if other != name):
                continue  # its group has changed: all may have moved together
            settled = {(r.pool, r.ip) for r in right(self.before.state, was)}
            for old in was.status.addresses:
                if old.ip_pool and (old.ip_pool, old.ip) not in settled:
                    continue  # it was about to be left
                place = (old.network, old.ip)
                if any((a.ip_pool, a.network, a.ip) == (old.ip_pool, *place) for a in now.status.addresses):
                    continue
                if place in self.intruded and (now.key, place) not in self.before.up:
                    continue
                if old.ip_pool and all(fits(lb, old.ip_pool, old.ip, old.network) for lb in asked):
                    yield f"{name} has lost {old.ip} of {old.ip_pool} without cause; it has {now.status.addresses}"
                if not old.ip_pool and not asked and self.link.leases.get(now.metadata.uid) == old.ip:
                    yield f"{name} has lost its lease {old.ip} without cause"

    def _over_limits(self, state: State) -> Iterator[str]:
        """Yield who has more than it may, and than it had. Two hosts can't keep to it: a limit is of many blocks."""
        if self.doubled:
            return
        before, now = counts(self.before.state), settled_counts(state)
        for (whose, pool), count in now.items():
            most = self.before.limit_of_pool(pool) if pool else self.before.limit_of_tenant(whose)
            most = max(most, self.loosest.get(pool or whose, 0), before[whose, pool])
            if count > most:
                yield f"{whose} has {count} addresses of {pool or 'all pools'}, may have {most}"
