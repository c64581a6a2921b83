"""The walks themselves: what tenants, operators, machines and misfortune do to a host, in any order, and what must hold
after it. One machine for every kind of API server."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from typing_extensions import override

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.api.pool import IPBlock, IPPool
from cloudprovider.core.errors import BridgeError, NotFound
from cloudprovider.core.lbobject import object_key
from cloudprovider.core.rules.holdings import holdings
from cloudprovider.core.rules.pools import check_pool
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.walks.agent import Agent, Link
from tests.host.walks.expected import (
    Place,
    State,
    counts,
    faults,
    fits,
    handed,
    path,
    records,
    right,
    settled_counts,
    tenant,
)
from tests.host.walks.scene import (
    EDITS,
    FAMILIES,
    FIXED,
    INTRUDED,
    MACHINES,
    NAMES,
    NAMESPACE,
    RESERVED,
    SERVICES,
    TENANTS,
    VLAN,
    Names,
    Wish,
    changed,
    machine,
    pools,
    request,
)
from tests.host.walks.witness import Witness
from tests.host.world import World, guest_cluster

T = TypeVar("T")


@dataclass(frozen=True)
class Rest:
    """The last moment of rest. ``up``: which load balancer had which place up on a link."""

    state: State = field(default_factory=lambda: State({}, (), {}, {}))
    up: frozenset[tuple[tuple[str, str], Place]] = frozenset()

    def limit_of_pool(self, pool: str) -> float:
        found = self.state.pools.get(pool)
        return math.inf if found is None else found.spec.addresses_per_tenant or math.inf

    def limit_of_tenant(self, path: str) -> float:
        found = self.state.clusters.get(path)
        return math.inf if found is None else found.spec.quota.addresses


names = st.sampled_from(NAMES)
wishes = st.builds(
    Wish,
    ipam=st.sampled_from(["pool"] * 5 + ["dhcp"]),
    ip_pool=st.sampled_from(["", "", "p", "q", "r"]),
    network=st.sampled_from(["", "", "", VLAN]),
    fixed=st.sampled_from(["", "", "", *FIXED]),
    families=st.sampled_from(["single", "single", *FAMILIES]),
    primary=st.sampled_from(["", "", "", "", "a", "b"]),
)
LIMIT = 300.0
"""Seconds that no step may take."""
pauses = st.sampled_from([0.0, 0.0, 0.1, 0.3, 1.0])


class Walks(RuleBasedStateMachine):
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
                    await self._delete(lb)
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

    # --- what tenants and machines' owners do ----------------------------------------------------------------------

    @precondition(lambda self: self.hosts)
    @rule(name=names, wish=wishes, which=st.integers(0, 1), pause=pauses)
    def ask(self, name: str, wish: Wish, which: int, pause: float) -> None:
        self.count("ask")
        self.run(self._ask(name, wish, which, pause))

    @precondition(lambda self: self.hosts)
    @rule(name=names, wish=wishes, which=st.integers(0, 1), pause=pauses)
    def ask_again(self, name: str, wish: Wish, which: int, pause: float) -> None:
        self.count("ask")
        self.run(self._ask(name, wish, which, pause))

    @precondition(lambda self: self.hosts)
    @rule(wanted=st.dictionaries(names, wishes, min_size=3, max_size=8), which=st.integers(0, 1), pause=pauses)
    def ask_at_once(self, wanted: dict[str, Wish], which: int, pause: float) -> None:
        """A burst: many in one batch."""
        for _ in wanted:
            self.count("ask")

        async def all_of_them() -> None:
            await asyncio.gather(*(self._ask(name, wish, which, 0.0) for name, wish in wanted.items()))
            await asyncio.sleep(pause)

        self.run(all_of_them())

    async def _ask(self, name: str, wish: Wish, which: int, pause: float) -> None:
        if name in MACHINES:
            made = await self._ask_for_machine(name, wish)
        else:
            host = self.hosts[which % len(self.hosts)][0]
            owner, key = SERVICES[name], self.names.key(name)
            try:
                await host.backend.ensure(owner, key, request(name, wish), ())
            except BridgeError:  # its limits, or its predecessor is still going: it asks again later
                if await self.world.load_balancer(object_key(owner, key)) is None:
                    self.names.gone(name)
                return
            made = await self.world.load_balancer(object_key(owner, key))
        if made is not None:
            self.asked.setdefault(path(made), []).append(made)
        await asyncio.sleep(pause)

    async def _ask_for_machine(self, name: str, wish: Wish) -> LoadBalancer | None:
        wanted = machine(name, wish)
        have = await self.world.load_balancer(wanted.key)
        if have is None:
            return await self.admin.create(LOADBALANCERS, wanted)
        if have.metadata.deletion_timestamp:
            return None
        patch = {
            "metadata": {"annotations": {NETWORK_ANNOTATION: wish.network or None}},
            "spec": msgspec.to_builtins(wanted.spec) | {"ipPool": wanted.spec.ip_pool},
        }
        defaults = {"ipam": "pool", "addresses": [], "ipFamilies": [], "ipFamilyPolicy": "SingleStack"}
        patch["spec"] = {**defaults, **patch["spec"]}
        return await self.admin.merge_patch(LOADBALANCERS, *wanted.key, patch)

    @precondition(lambda self: self.hosts)
    @rule(name=names, which=st.integers(0, 1), pause=pauses)
    def delete(self, name: str, which: int, pause: float) -> None:
        self.count("delete")
        self.run(self._delete_by_name(name, which, pause))

    async def _delete_by_name(self, name: str, which: int, pause: float) -> None:
        if name in MACHINES:
            if (lb := await self.world.load_balancer((NAMESPACE, name))) is not None:
                await self._delete(lb)
        elif name in self.names.uids:
            owner, key = SERVICES[name], self.names.key(name)
            if (lb := await self.world.load_balancer(object_key(owner, key))) is not None:
                self.asked.setdefault(path(lb), []).append(lb)
            host = self.hosts[which % len(self.hosts)][0]
            await host.backend.delete(owner, key)
            left = await self.world.load_balancer(object_key(owner, key))
            if left is None or left.metadata.deletion_timestamp:
                self.names.gone(name)
        await asyncio.sleep(pause)

    async def _delete(self, lb: LoadBalancer) -> None:
        self.asked.setdefault(path(lb), []).append(lb)
        try:
            await self.admin.delete(LOADBALANCERS, *lb.key)
        except NotFound:
            return

    # --- what operators do -----------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(list(EDITS)), which=st.integers(0, 4), pause=pauses, forced=st.booleans())
    def edit_ranges(self, name: str, which: int, pause: float, *, forced: bool) -> None:
        """As admission lets through, or past it: its webhook does not answer."""
        self.count("edit a pool")
        ranges = list(EDITS[name][which % len(EDITS[name])])
        self.run(self._edit(name, pause, forced=forced and not self.lost, ranges=ranges))

    @rule(name=st.sampled_from(["p", "q"]), which=st.integers(0, 2), pause=pauses)
    def reserve(self, name: str, which: int, pause: float) -> None:
        self.count("reserve")
        kept = list(RESERVED[name][which % len(RESERVED[name])])
        self.run(self._edit(name, pause, forced=False, reservations=kept))

    @rule(name=st.sampled_from(list(EDITS)), most=st.integers(0, 3), pause=pauses)
    def limit_a_pool(self, name: str, most: int, pause: float) -> None:
        self.count("limit")
        self._loosen(name, most or math.inf)
        self.run(self._edit(name, pause, forced=False, addresses_per_tenant=most))

    def _loosen(self, whose: str, most: float) -> None:
        self.loosest[whose] = max(most, self.loosest.get(whose, 0))

    async def _edit(self, name: str, pause: float, *, forced: bool, **spec: Any) -> None:
        every = {p.metadata.name: p for p in (await self.admin.list(IPPOOLS)).items}
        old = every[name]
        new = changed(old, **spec)
        held = holdings(b for b in await self.world.blocks() if b.spec.pool == name)
        if not forced and not self.hosts:
            return  # nobody answers for admission, and it fails closed
        if self.lost and "ranges" in spec and not _reaches_what_is_shown(new, every, await self.world.load_balancers()):
            return  # whose records are lost just now, an operator can't know
        if not forced and check_pool(new, old, every.values(), held).violations:
            return
        fields: dict[str, Any] = msgspec.to_builtins(new.spec)
        body = {"ranges": fields["ranges"], "reservations": fields.get("reservations", [])}
        body["addressesPerTenant"] = new.spec.addresses_per_tenant
        await self.admin.merge_patch(IPPOOLS, "", name, {"spec": body})
        await asyncio.sleep(pause)

    @rule(which=st.sampled_from(TENANTS), most=st.integers(1, 6), pause=pauses)
    def limit_a_tenant(self, which: Any, most: int, pause: float) -> None:
        self.count("limit")
        patch = {"spec": {"quota": {"addresses": most}}}
        self._loosen(which.path, most)

        async def patched() -> None:
            await self.admin.merge_patch(GUESTCLUSTERS, which.namespace, which.cluster, patch)
            await asyncio.sleep(pause)

        self.run(patched())

    @rule(which=st.integers(0, 5), pause=pauses)
    def lose_a_block(self, which: int, pause: float) -> None:
        self.count("lose a block")
        self.run(self._lose(which, pause))

    async def _lose(self, which: int, pause: float) -> None:
        state = await self._state()
        blocks = [b for b in state.blocks if _can_be_recorded_anew(b, state)]
        if blocks:
            name = blocks[which % len(blocks)].metadata.name
            self.lost = True
            self.witness.taken_away.add(name)
            await self.admin.delete(IPBLOCKS, "", name)
        await asyncio.sleep(pause)

    # --- misfortune ------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.hosts) < 2)
    @rule(pause=pauses)
    def start_a_host(self, pause: float) -> None:
        self.count("start a host")
        self.run(self._start_host())
        self.run(asyncio.sleep(pause))

    @precondition(lambda self: self.hosts)
    @rule()
    def kill_a_host(self) -> None:
        self.count("kill a host")
        self.run(self._kill_host())

    @rule(pause=pauses)
    def start_or_kill_the_agent(self, pause: float) -> None:
        self.count("start or kill the agent")
        self.run(self._start_agent() if self.agent is None else self._kill_agent())
        self.run(asyncio.sleep(pause))

    @rule(ip=st.sampled_from(INTRUDED), network=st.sampled_from(["", "", VLAN]), pause=pauses)
    def another_machine(self, ip: str, network: str, pause: float) -> None:
        """One that is none of ours takes an address, or leaves it."""
        self.count("conflict")
        self.link.intruders ^= {(network, ip)}
        self.intruded.add((network, ip))
        self.run(self._told(pause))

    @rule(pause=pauses)
    def the_dhcp_server_falls_silent_or_speaks(self, pause: float) -> None:
        self.count("lease")
        self.link.silent = not self.link.silent
        self.run(self._told(pause))

    @precondition(lambda self: self.link.leases)
    @rule(which=st.integers(0, 5), pause=pauses)
    def a_lease_ends(self, which: int, pause: float) -> None:
        self.count("lease")
        uid = sorted(self.link.leases)[which % len(self.link.leases)]
        ip = self.link.leases.pop(uid)
        for places in self.link.up.values():
            if places.get(("", ip)) == uid:
                del places["", ip]
        self.run(self._told(pause))

    async def _told(self, pause: float) -> None:
        if self.agent is not None:
            self.agent[0].look_again()
        await asyncio.sleep(pause)

    # --- rest ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.hosts and self.restless)
    @rule()
    def come_to_rest(self) -> None:
        self.count("rest")
        self.run(self._settle())

    @precondition(lambda self: len(self.hosts) == 1 and self.agent is not None)
    @rule(agent_too=st.booleans())
    def restart_and_nothing_changes(self, agent_too: bool) -> None:
        self.count("restart")
        self.run(self._restart(agent_too=agent_too))

    async def _restart(self, *, agent_too: bool) -> None:
        await self._settle()
        before = await self._state()
        await self._kill_host()
        if agent_too and self.agent is not None:
            await self._kill_agent()
            await self._start_agent()
        await self._start_host()
        await self._settle()
        after = await self._state()
        found = list(differences(before, after))
        self.failed = bool(found)
        assert not found, "\n".join(found)

    async def _settle(self) -> None:
        found = await self.rest(self._wrong)
        self.failed = bool(found)
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
        roots = {name: {_root(lb) for lb in (*asked, before.get(name, asked[0]))} for name, asked in self.asked.items()}
        for name, now in state.lbs.items():
            was = before.get(name)
            if was is None or was.metadata.uid != now.metadata.uid or now.metadata.deletion_timestamp:
                continue
            asked = self.asked.get(name, [])
            mine = {_root(lb) for lb in (*asked, was)}
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


def _can_be_recorded_anew(block: IPBlock, state: State) -> bool:
    """Whether all that it records is shown by its owners, who belong together and stay, and is its pool's to hand out:
    nobody promises more."""
    shown = {(name, a.ip_pool, a.ip) for name, lb in state.lbs.items() for a in lb.status.addresses}
    hands = handed(state.pools[block.spec.pool], state.pools.values()) or set()
    for record in records([block]):
        owners = [owner for owner, _ in record.owners]
        if record.ip not in hands or any((owner, record.pool, record.ip) not in shown for owner in owners):
            return False
        lbs = [state.lbs[owner] for owner in owners]
        if any(lb.metadata.deletion_timestamp for lb in lbs) or len({_root(lb) for lb in lbs}) > 1:
            return False
    return True


def _reaches_what_is_shown(pool: IPPool, every: Mapping[str, IPPool], lbs: Iterable[LoadBalancer]) -> bool:
    hands = handed(pool, [*(p for name, p in every.items() if name != pool.metadata.name), pool]) or set()
    return all(a.ip in hands for lb in lbs for a in lb.status.addresses if a.ip_pool == pool.metadata.name)


def differences(before: State, after: State) -> Iterator[str]:
    """Yield what a restart has changed: of the blocks nothing may, not even by a write that leaves them as they were.
    Of two reasons to refuse an address, both true, the other one may be told after it."""
    for one, other in (
        (
            {name: _essence(lb) for name, lb in before.lbs.items()},
            {name: _essence(lb) for name, lb in after.lbs.items()},
        ),
        (
            {name: pool.status for name, pool in before.pools.items()},
            {n: pool.status for n, pool in after.pools.items()},
        ),
        ({b.metadata.name: b for b in before.blocks}, {b.metadata.name: b for b in after.blocks}),
    ):
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                yield f"a restart has changed {name}:\n  {one.get(name)}\n  {other.get(name)}"


def _essence(lb: LoadBalancer) -> tuple[object, ...]:
    told = [(c.type, c.status) for c in lb.status.conditions]
    return lb.metadata.uid, lb.spec, msgspec.structs.replace(lb.status, conditions=[]), told


def _root(lb: LoadBalancer) -> tuple[str, str]:
    """Whose address it shares: its own name, or that of its primary."""
    service = lb.spec.service
    own = lb.metadata.name if service is None else f"{service.namespace}/{service.name}"
    return tenant(lb), lb.spec.primary_service or own
