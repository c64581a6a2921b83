"""One network's kernel, kept as the table says: rules first, the address probed beside them, then announced.

All changes that came since the last turn go into one kernel transaction. What the kernel refuses, and what somebody
else changed, is mended by comparing the whole plan with what is really there.

An agent that starts takes over what is in the kernel as it is, and waits a moment for the nodes to answer before it
changes anything: what is forwarded goes on meanwhile.
"""

import asyncio
import contextlib
import errno
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Protocol

from cloudprovider.agent.claims import Claims
from cloudprovider.agent.endings import Endings
from cloudprovider.agent.metrics import NetworkMetrics
from cloudprovider.agent.readings import Traffic
from cloudprovider.agent.repair import bring_in_line
from cloudprovider.agent.traces import AgentTraces
from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.groups import Sightings
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.modes import NetworkFacts
from cloudprovider.core.plan import Changes, IPAddress, ListenerKey, Plan, chunks
from cloudprovider.core.tracing import NO_TRACER
from cloudprovider.core.wanted import LoadBalancerKey, Problem
from cloudprovider.dataplane.api import NetworkConfig, Segment

log = logging.getLogger(__name__)

LOOK_EVERY = 3.0
"""Seconds between two looks at whether the kernel still has the rules that it was told."""
HELD_EVERY = 10
"""Every how many looks the addresses on the link are read back, too."""
FIRST_LOOK = 2.0
"""Seconds that nodes have to answer before an agent that starts changes what the one before has left."""
PASS_EVERY = 1.0
"""Seconds between two looks at what only time changes, and at frames that came back."""
PINS_EVERY = 10
"""Every how many of those looks pinned flows are counted: they may last for hours."""
GROUPS_AT_ONCE, FORWARDS_AT_ONCE = 16, 200
"""What one transaction takes of a change of more groups than this: a group is 1 to 10 ms of work, for which all else
that the agent does waits, and a transaction of the kernel some 10 ms. Load balancers do not depend on each other."""
RETRY_FIRST, RETRY_MOST = 0.5, 30.0


class FellowAddresses(Protocol):
    """What the other hosts of the instance have to do with one network's addresses."""

    def granted(self, vip: IPAddress) -> bool:
        """Whether a fellow gives this address to this host, so that nobody need be asked for it."""
        ...

    def is_fellow(self, vip: IPAddress, mac: str) -> bool:
        """Whether who answers for an address with a MAC is one of them, as far as is known."""
        ...

    def is_usurped(self, vip: IPAddress) -> bool:
        """Whether an address is to be taken from a fellow, so that nobody else has a right to it."""
        ...

    def is_orphaned(self, vip: IPAddress) -> bool:
        """Whether the fellow that has an address, as its record says, is known to be silent."""
        ...

    def may_have(self, vip: IPAddress, mac: str) -> bool | None:
        """Whether who announces an address of ours is the fellow that is to have it; None: a fellow, of which that is
        not known."""
        ...


class NetworkForwarder:
    """Drives one :class:`~cloudprovider.dataplane.api.Segment`, got by ``open_segment``, tried until it succeeds.

    ``report(key)``: look at this load balancer again. ``adopted()``: now it is known what is on the link. ``defended
    (vip, mac)``: somebody else claims an address that is up. ``beside``: what else works on the segment
    while it is open, until it is cancelled. ``returned(listener, mac)``: a node has sent back frames of a listener.
    ``mended(keys)``: somebody else had changed the rules of these load balancers, which are as they should be again.
    ``config``: how this host stands on the network; ``metrics``: what counts.
    """

    def __init__(
        self,
        config: NetworkConfig,
        open_segment: Callable[[], Awaitable[Segment]],
        table: ForwardingTable,
        report: Callable[[LoadBalancerKey], None],
        *,
        adopted: Callable[[], None],
        defended: Callable[[IPAddress, str], None],
        beside: Iterable[Callable[[Segment], Coroutine[None, None, None]]],
        returned: Callable[[ListenerKey, MACAddress], None],
        mended: Callable[[Iterable[LoadBalancerKey]], None],
        fellows: FellowAddresses,
        metrics: NetworkMetrics,
        traces: AgentTraces | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._network = config.name
        self._traces = traces or AgentTraces(NO_TRACER)
        self._open_segment = open_segment
        self._table = table
        self._report = report
        self._adopted = adopted
        self._defended = defended
        self._beside = tuple(beside)
        self._returned = returned
        self._mended = mended
        self._config = config
        self._metrics = metrics
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._pending: dict[LoadBalancerKey, int] = {}
        self._endings = Endings(
            partial(table.transitions, config.name), table.clock, changed=self._concern, wake=self._wake.set
        )
        self._claims = Claims(
            config.name,
            partial(table.users_of, config.name),
            changed=self._concern,
            wake=self._wake.set,
            granted=fellows.granted,
            is_fellow=fellows.is_fellow,
            is_usurped=fellows.is_usurped,
            usurped=self._claimed,
            is_orphaned=fellows.is_orphaned,
            traces=self._traces,
            conflicted=metrics.conflicted,
            jitter=jitter,
        )
        self._fellows = fellows
        self._unknown = True
        """Until the kernel has once been brought in line, the agent before may have left anything."""
        self._found: Plan | None = None
        """What the agent before has left, until it is brought in line."""
        self._attempt = 0
        self._resync = True
        self._generations: dict[LoadBalancerKey, int] = {}
        self._refusal = ""
        self._refused_listeners: dict[ListenerKey, str] = {}
        self._disturbed = False
        self._segment: Segment | None = None
        self._followed: frozenset[IPAddress] | None = None
        """The nodes of whom it was seen last who answers; None: they must be looked at again."""

    # What the agent asks.

    def touch(self, key: LoadBalancerKey, generation: int) -> None:
        """The table has changed for this load balancer."""
        self._pending[key] = generation
        self._wake.set()

    def forget_listeners(self, key: LoadBalancerKey, listeners: Iterable[ListenerKey]) -> None:
        """A load balancer has given these up: their connections go before its addresses may go to others."""
        self._endings.forget_listeners(key, listeners)
        self._wake.set()

    def held(self, vips: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of the addresses that are up and announced."""
        return tuple(v for v in vips if v in self._claims.held)

    def on_link(self, vips: Iterable[IPAddress]) -> bool:
        """Whether any of the addresses is up, on its way up, or has connections of a listener that is gone; True, too,
        while that is not known yet."""
        if self._unknown:
            return any(True for _ in vips)
        somehow = (self._claims.held, self._claims.claiming, self._endings.vips)
        return any(v in those for v in vips for those in somehow)

    def generation(self, key: LoadBalancerKey) -> int:
        """The generation of the spec that the kernel forwards by; 0 while none."""
        return self._generations.get(key, 0)

    @property
    def mac(self) -> str:
        """What addresses are announced with here, "" while the network is not open."""
        return "" if self._segment is None else self._segment.mac

    @property
    def in_line(self) -> bool:
        """Whether the kernel does what the table says."""
        return self._segment is not None and not (self._unknown or self._resync or self._refusal)

    @property
    def goes_on(self) -> bool:
        """Whether the kernel still does what the agent before has told it, as this one is about to take that over."""
        return self._segment is not None and self._unknown and not self._refusal

    @property
    def is_opening(self) -> bool:
        """Whether it is not known yet how this host stands on the network."""
        return self._segment is None and not self._refusal

    async def ask(self, vips: Iterable[IPAddress]) -> bool:
        """Whether anybody else on the network answers for one of the addresses. Raises DataPlaneError."""
        if self._segment is None:
            raise DataPlaneError("the network is not open")
        return any(claim.conflict for claim in await self._segment.announcer.probe(list(vips)))

    def wake(self) -> None:
        """The table has changed (a cluster's nodes, what is seen of them)."""
        self._wake.set()

    def problem(self, vips: Iterable[IPAddress]) -> Problem | None:
        """Why an address can't be served now, if the kernel or the network says so."""
        for vip in vips:
            if vip in self._claims.failed:
                return self._claims.failed[vip]
            for listener, why in self._refused_listeners.items():
                if listener.vip == vip:
                    return Problem("KernelRefused", why)
        return Problem("KernelRefused", self._refusal) if self._refusal else None

    def foreign(self, vips: Iterable[IPAddress]) -> dict[IPAddress, str]:
        """Those of the addresses that somebody else was found to have, and the MAC."""
        return {v: self._claims.foreign[v] for v in vips if v in self._claims.foreign}

    @property
    def trouble(self) -> str:
        """Why the network is not served, "" when it is."""
        return self._refusal

    async def traffic(self) -> Traffic | None:
        """What the kernel has counted; None while the network is not open, or can't be read."""
        if self._segment is None:
            return None
        try:
            listeners = await self._segment.engine.counters()
            nodes = await self._segment.engine.member_counters()
        except DataPlaneError as err:
            log.warning("counters not read", extra={"network": self._network, "error": str(err)})
            return None
        await asyncio.sleep(0)  # others' turn: there may be thousands
        owners: dict[ListenerKey, str] = {}
        for listener in listeners:
            if (owner := self._table.owner(self._network, listener)) is not None:
                owners[listener] = "/".join(owner)
        return Traffic(listeners, owners, nodes)

    @property
    def addresses(self) -> tuple[int, int, int]:
        """How many are up and announced, on their way up, and not to be had now."""
        return len(self._claims.held), len(self._claims.claiming), len(self._claims.failed)

    @property
    def beware(self) -> str:
        """What is limited on this network, "" where nothing is."""
        return self._segment.host_obstacle if self._segment is not None else ""

    # The work.

    async def run(self, *, adopt: bool = True) -> None:
        """Work for ever; cancelled, it leaves rules and addresses as they are. ``adopt``: there is a namespace of the
        agent before. Where the link itself vanishes, the network is opened anew."""
        while True:
            try:
                await self._serve(adopt=adopt)
            except DataPlaneError as err:
                if err.errno != errno.ENODEV:
                    raise
                await asyncio.sleep(self._refused(err))
                adopt = self._resync = True

    async def _serve(self, *, adopt: bool) -> None:
        self._unknown = adopt
        self._segment = segment = await self._opened()
        others = [
            asyncio.create_task(self._tick(segment)),
            asyncio.create_task(self._pass(segment)),
            *(asyncio.create_task(work(segment)) for work in self._beside),
        ]
        for task in others:
            task.add_done_callback(self._ended)
        try:
            self._followed = None
            segment.nodes.on_change(self._nodes_changed)
            if adopt:
                await self._first_look(segment)
            self._wake.set()
            while True:
                await self._wake.wait()
                self._wake.clear()
                for task in others:
                    if task.done():
                        task.result()  # it works for ever: this is its error
                if delay := await self._turn(segment):
                    await asyncio.sleep(delay)
                    self._wake.set()
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._claims.stop()
            self._segment = None
            await segment.close()

    def _ended(self, _: "asyncio.Task[None]") -> None:
        self._wake.set()

    async def _opened(self) -> Segment:
        while True:
            try:
                segment = await self._open_segment()
                await segment.engine.start()
                self._concern(self._table.set_facts(self._network, _facts(self._config, segment)))
                await self._claims.take_over(segment.announcer, self._table.vips(self._network))
                segment.announcer.on_conflict(self._claimed)
                segment.announcer.yield_to(self._fellows.may_have)
            except DataPlaneError as err:
                delay = self._refused(err)
                for vip in self._table.vips(self._network):
                    self._concern(self._table.users_of(self._network, vip))
                await asyncio.sleep(delay)
            else:
                return segment

    def _claimed(self, vip: IPAddress, mac: str) -> None:
        self._metrics.claimed()
        self._defended(vip, mac)

    async def _first_look(self, segment: Segment) -> None:
        """See who of the nodes answers, and take over what the agent before has left."""
        loop = asyncio.get_running_loop()
        end = loop.time() + FIRST_LOOK
        self._sight(segment)
        while self._table.awaited(self._network) and (left := end - loop.time()) > 0:
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
            self._sight(segment)
        try:
            self._found, fixed = await segment.engine.observe(), await segment.static_neighbours.observe()
            self._concern(self._table.adopt(self._network, self._found, fixed))
        except DataPlaneError as err:
            log.warning("kernel not read back", extra={"network": self._network, "error": str(err)})

    def _sight(self, segment: Segment) -> None:
        """Follow the nodes that matter here, and tell the table who answers."""
        followed = self._table.modes.followed(self._network)
        if followed is self._followed:
            return
        segment.nodes.follow(followed)
        self._followed = followed
        awaited = frozenset(node for node in followed if not segment.nodes.settled(node))
        self._concern(self._table.set_sightings(self._network, Sightings(dict(segment.nodes.known), awaited)))

    def _nodes_changed(self) -> None:
        self._followed = None
        self._wake.set()

    def _concern(self, keys: Iterable[LoadBalancerKey]) -> None:
        for key in keys:
            self._report(key)

    def _refused(self, err: DataPlaneError) -> float:
        self._refusal = str(err)
        self._metrics.refused()
        delay = min(RETRY_MOST, RETRY_FIRST * 2.0**self._attempt) * (0.5 + self._jitter())
        self._attempt = min(self._attempt + 1, 16)
        log.error("kernel refused", extra={"network": self._network, "error": str(err), "retry_in": round(delay, 1)})
        return delay

    async def _turn(self, segment: Segment) -> float:
        """Bring the kernel up to the table; return the seconds to wait before the next try if it refused, else 0."""
        delay = 0.0
        self._sight(segment)
        self._claims.touch(self._table.take_vips(self._network))
        batch, self._pending = self._pending, {}
        changes, fixed = self._table.take_changes(self._network), self._table.take_fixed(self._network)
        try:
            await self._claims.withdraw(segment.announcer)
            with self._traces.commits(self._network, batch if changes or fixed or self._resync else ()):
                await self._commit(segment, changes, fixed)
            await self._endings.flush(segment, lambda: self._apply(segment, self._table.take_changes(self._network)))
        except DataPlaneError as err:
            self._pending = {**batch, **self._pending}
            self._resync = True
            if err.errno == errno.ENODEV:
                raise
            delay = self._refused(err)
        else:
            self._attempt, self._resync, self._refusal, self._disturbed = 0, False, "", False
            if self._unknown:
                self._unknown = False
                self._adopted()
            self._generations.update(batch)
            for key in batch:
                want = self._table.load_balancer(key)
                if want is None or self._network not in want.networks:
                    self._generations.pop(key, None)
        self._claims.claim(segment.announcer)
        self._concern(batch)
        return delay

    async def _commit(self, segment: Segment, changes: Changes, fixed: Mapping[IPAddress, MACAddress | None]) -> None:
        if self._resync:
            await segment.static_neighbours.set(self._table.fixed(self._network))
            await self._repair(segment)
            if self._unknown:
                await self._endings.find_strays(segment.connections)
            return
        if fixed:  # before anything is sent to whom they stand for
            await segment.static_neighbours.change(fixed)
        await self._apply(segment, changes)

    async def _apply(self, segment: Segment, changes: Changes) -> None:
        if len(changes.groups) <= GROUPS_AT_ONCE:
            parts = iter((changes,) if changes else ())
        else:
            parts = chunks(changes, FORWARDS_AT_ONCE, groups=GROUPS_AT_ONCE)
        for part in parts:
            began = time.perf_counter()
            await segment.engine.apply(part)
            self._metrics.applied(time.perf_counter() - began)
            await asyncio.sleep(0)
            for listener in part.forwards:
                self._refused_listeners.pop(listener, None)

    async def _repair(self, segment: Segment) -> None:
        have, self._found = self._found, None
        began = time.perf_counter()
        found = await bring_in_line(segment.engine, self._table.plan(self._network), have)
        self._metrics.read_back(time.perf_counter() - began)
        forwards = found.changes.forwards
        if left := [key for key, forward in forwards.items() if forward is None]:
            await segment.connections.forget_listeners(left)
        for key, why in found.refused.items():
            log.error("listener refused", extra={"network": self._network, "listener": _name(key), "error": why})
        concerned = self._owners({*found.refused, *self._refused_listeners})
        self._refused_listeners = dict(found.refused)
        self._concern(concerned)
        if not (found.changes or found.rules):
            return
        log.info(
            "kernel brought in line",
            extra={
                "network": self._network,
                "rules": found.rules,
                "forwards": len(forwards),
                "groups": len(found.changes.groups),
            },
        )
        if self._disturbed:
            self._metrics.repaired("rules", int(found.rules))
            self._metrics.repaired("listeners", len(forwards))
            self._metrics.repaired("groups", len(found.changes.groups))
            self._mended(self._owners(self._table.plan(self._network).forwards if found.rules else forwards))

    def _owners(self, listeners: Iterable[ListenerKey]) -> frozenset[LoadBalancerKey]:
        owners = (self._table.owner(self._network, listener) for listener in listeners)
        return frozenset(owner for owner in owners if owner is not None)

    async def _pass(self, segment: Segment) -> None:
        """See what time has changed: flows to be ended, changes that nobody needs any more, frames that came back."""
        for look in itertools.count(1):
            await asyncio.sleep(PASS_EVERY * (0.9 + 0.2 * self._jitter()))
            transitions = self._table.transitions(self._network)
            try:
                if transitions.has_pinned and look % PINS_EVERY == 0:
                    pins = await segment.engine.pins()
                    transitions.release({listener for listener, _ in pins})
                    transitions.drain_strays(pins, self._table.clock())
                    self._wake.set()
                if self._table.passes_frames(self._network):
                    for listener, mac in await segment.engine.returned():
                        self._metrics.returned()
                        self._returned(listener, mac)
            except DataPlaneError as err:
                log.warning("flows not looked at", extra={"network": self._network, "error": str(err)})
            released = not self._unknown and self._table.release_fixed(self._network)
            if released or transitions.busy:
                self._wake.set()

    async def _tick(self, segment: Segment) -> None:
        """See what others change: the rules soon (one number to compare), the addresses now and then (a dump)."""
        for look in itertools.count(1):
            await asyncio.sleep(LOOK_EVERY * (0.9 + 0.2 * self._jitter()))
            try:
                disturbed = not await segment.engine.undisturbed()
                if mended := await segment.static_neighbours.repair():
                    self._metrics.repaired("neighbours", mended)
                    log.warning("neighbours put right", extra={"network": self._network, "entries": mended})
                if look % HELD_EVERY == 0:
                    changed = await self._claims.recount(segment.announcer)
                    self._metrics.repaired("addresses", changed)
                    disturbed |= changed > 0
            except DataPlaneError as err:
                if err.errno == errno.ENODEV:
                    raise
                log.warning("kernel not read back", extra={"network": self._network, "error": str(err)})
                continue
            if disturbed:
                self._resync = self._disturbed = True
                self._wake.set()


def _facts(config: NetworkConfig, segment: Segment) -> NetworkFacts:
    own = tuple(address for address in (config.address, config.address6) if address is not None)
    gateways = frozenset(gateway for gateway in (config.gateway, config.gateway6) if gateway is not None)
    hands_over = config.masquerade and not segment.handover_obstacle
    return NetworkFacts(own, gateways, segment.dsr_obstacle, hands_over=hands_over)


def _name(listener: ListenerKey) -> str:
    return f"{listener.vip} {listener.protocol} {listener.port}"
