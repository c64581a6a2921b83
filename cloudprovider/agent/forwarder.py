"""One network's kernel, kept as the table says: rules first, the address probed beside them, then announced.

All changes that came since the last turn go into one kernel transaction. What the kernel refuses, and what somebody
else changed, is mended by comparing the whole plan with what is really there.
"""

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.plan import IPAddress, ListenerKey, chunks, diff
from cloudprovider.core.wanted import LoadBalancerKey, Problem
from cloudprovider.dataplane.api import Claim, Segment

log = logging.getLogger(__name__)

LOOK_EVERY = 3.0
"""Seconds between two looks at whether the kernel still has the rules that it was told."""
HELD_EVERY = 10
"""Every how many looks the addresses on the link are read back, too."""
CONFLICT_RETRY = 60.0
"""Seconds until an address that somebody else has is probed again (RFC 5227 section 2.1.1, RATE_LIMIT_INTERVAL)."""
CLAIM_RETRY = 5.0
FLUSH_PAUSE = 0.25
"""Seconds between two walks through the connections."""
CHUNK = 500
"""Elements in one transaction when a whole table is loaded or mended."""
CLAIMS_AT_ONCE = 4
RETRY_FIRST, RETRY_MOST = 0.5, 30.0


class NetworkForwarder:
    """Drives one :class:`~cloudprovider.dataplane.api.Segment`, got by ``open_segment``, tried until it succeeds.

    ``report(key)``: look at this load balancer again. ``adopted()``: now it is known what is on the link. ``defended
    (vip, mac)``: somebody else claims an address that is up. ``beside(segment)``: what else works on the segment while
    it is open, until it is cancelled.
    """

    def __init__(
        self,
        network: str,
        open_segment: Callable[[], Awaitable[Segment]],
        table: ForwardingTable,
        report: Callable[[LoadBalancerKey], None],
        *,
        adopted: Callable[[], None],
        defended: Callable[[IPAddress, str], None],
        beside: Callable[[Segment], Coroutine[None, None, None]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._network = network
        self._open_segment = open_segment
        self._table = table
        self._report = report
        self._adopted = adopted
        self._defended = defended
        self._beside = beside
        self._jitter = jitter
        self._wake = asyncio.Event()
        self._pending: dict[LoadBalancerKey, int] = {}
        self._forgotten: dict[ListenerKey, LoadBalancerKey] = {}
        self._dead: set[IPAddress] = set()
        self._flushed_at = -FLUSH_PAUSE
        self._flush_due = False
        self._claiming: set[IPAddress] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[IPAddress] = set()
        self._unknown = True
        """Until the kernel has once been brought in line, the agent before may have left anything."""
        self._failed: dict[IPAddress, Problem] = {}
        self._foreign: dict[IPAddress, str] = {}
        self._attempt = 0
        self._resync = True
        self._generations: dict[LoadBalancerKey, int] = {}
        self._refusal = ""

    # What the agent asks.

    def touch(self, key: LoadBalancerKey, generation: int) -> None:
        """The table has changed for this load balancer."""
        self._pending[key] = generation
        self._wake.set()

    def forget_listeners(self, key: LoadBalancerKey, listeners: Iterable[ListenerKey]) -> None:
        """A load balancer has given these up: their connections go before its addresses may go to others."""
        self._forgotten.update(dict.fromkeys(listeners, key))
        self._wake.set()

    def forget_backends(self, backends: Iterable[IPAddress]) -> None:
        """These nodes are gone: the UDP connections to them go."""
        self._dead.update(backends)
        self._wake.set()

    def held(self, vips: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
        """Those of the addresses that are up and announced."""
        return tuple(v for v in vips if v in self._held)

    def on_link(self, vips: Iterable[IPAddress]) -> bool:
        """Whether any of the addresses is up, on its way up, or has connections of a listener that is gone; True, too,
        while that is not known yet."""
        if self._unknown:
            return any(True for _ in vips)
        left = {listener.vip for listener in self._forgotten}
        return any(v in self._held or v in self._claiming or v in left for v in vips)

    def generation(self, key: LoadBalancerKey) -> int:
        """The generation of the spec that the kernel forwards by; 0 while none."""
        return self._generations.get(key, 0)

    def wake(self) -> None:
        """The table has changed (a cluster's nodes)."""
        self._wake.set()

    def problem(self, vips: Iterable[IPAddress]) -> Problem | None:
        """Why an address can't be served now, if the kernel or the network says so."""
        for vip in vips:
            if vip in self._failed:
                return self._failed[vip]
        return Problem("KernelRefused", self._refusal) if self._refusal else None

    def foreign(self, vips: Iterable[IPAddress]) -> dict[IPAddress, str]:
        """Those of the addresses that somebody else was found to have, and the MAC."""
        return {v: self._foreign[v] for v in vips if v in self._foreign}

    @property
    def trouble(self) -> str:
        """Why the network is not served, "" when it is."""
        return self._refusal

    # The work.

    async def run(self, *, adopt: bool = True) -> None:
        """Work for ever; cancelled, it leaves rules and addresses as they are. ``adopt``: there is a namespace of the
        agent before."""
        self._unknown = adopt
        segment = await self._opened()
        others = [asyncio.create_task(self._tick(segment)), asyncio.create_task(self._beside(segment))]
        for task in others:
            task.add_done_callback(self._ended)
        try:
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
            for task in (*others, *self._tasks):
                task.cancel()
            await asyncio.gather(*others, *self._tasks, return_exceptions=True)
            await segment.close()

    def _ended(self, _: "asyncio.Task[None]") -> None:
        self._wake.set()

    async def _opened(self) -> Segment:
        while True:
            try:
                segment = await self._open_segment()
                await segment.engine.start()
                self._held = set(await segment.announcer.held())
                segment.announcer.on_conflict(self._defended)
            except DataPlaneError as err:
                delay = self._refused(err)
                for vip in self._table.vips(self._network):
                    for key in self._table.users_of(self._network, vip):
                        self._report(key)
                await asyncio.sleep(delay)
            else:
                return segment

    def _refused(self, err: DataPlaneError) -> float:
        self._refusal = str(err)
        delay = min(RETRY_MOST, RETRY_FIRST * 2.0**self._attempt) * (0.5 + self._jitter())
        self._attempt = min(self._attempt + 1, 16)
        log.error("kernel refused", extra={"network": self._network, "error": str(err), "retry_in": round(delay, 1)})
        return delay

    async def _turn(self, segment: Segment) -> float:
        """Bring the kernel up to the table; return the seconds to wait before the next try if it refused, else 0."""
        delay = 0.0
        batch, self._pending = self._pending, {}
        changes = self._table.take_changes(self._network)
        try:
            wanted = self._table.vips(self._network)
            for known in (self._failed, self._foreign):
                for vip in known.keys() - wanted:
                    del known[vip]
            surplus = self._held - wanted
            if surplus:
                await segment.announcer.withdraw(surplus)
                self._held -= surplus
            if self._resync:
                await self._repair(segment)
            elif changes:
                await segment.engine.apply(changes)
            await self._flush(segment)
        except DataPlaneError as err:
            self._pending = {**batch, **self._pending}
            self._resync = True
            delay = self._refused(err)
        else:
            self._attempt, self._resync, self._refusal = 0, False, ""
            if self._unknown:
                self._unknown = False
                self._adopted()
            self._generations.update(batch)
            for key in batch:
                want = self._table.load_balancer(key)
                if want is None or self._network not in want.networks:
                    self._generations.pop(key, None)
        self._claim(segment)
        for key in batch:
            self._report(key)
        return delay

    async def _repair(self, segment: Segment) -> None:
        if not await segment.engine.intact():
            await segment.engine.start()
        have = await segment.engine.observe()
        changes = diff(have, self._table.plan(self._network))
        for part in chunks(changes, CHUNK):
            await segment.engine.apply(part)
            await asyncio.sleep(0)  # others' turn: a whole table takes a while
        if left := [key for key, forward in changes.forwards.items() if forward is None]:
            await segment.connections.forget_listeners(left)  # of load balancers that went while no agent ran
        if changes:
            log.info(
                "kernel brought in line",
                extra={"network": self._network, "forwards": len(changes.forwards), "groups": len(changes.groups)},
            )

    async def _flush(self, segment: Segment) -> None:
        """Forget connections, at most every FLUSH_PAUSE: the kernel walks its whole table each time."""
        if not (self._forgotten or self._dead):
            return
        loop = asyncio.get_running_loop()
        early = self._flushed_at + FLUSH_PAUSE - loop.time()
        if early > 0:
            if not self._flush_due:
                self._flush_due = True
                loop.call_later(early, self._wake.set)
            return
        self._flushed_at, self._flush_due = loop.time(), False
        forgotten, dead = dict(self._forgotten), set(self._dead)
        plan = self._table.plan(self._network)
        await segment.connections.forget_listeners(forgotten.keys() - plan.forwards.keys())
        left = dead - frozenset().union(*(group.members for group in plan.groups.values()))
        await segment.connections.forget_backends(dict.fromkeys(left, plan.forwards.keys()))
        for listener, key in forgotten.items():
            if self._forgotten.get(listener) == key:
                del self._forgotten[listener]
        self._dead -= dead
        for key in set(forgotten.values()):
            self._report(key)

    def _claim(self, segment: Segment) -> None:
        free = self._table.vips(self._network) - self._held - self._claiming - self._failed.keys()
        if not free or len(self._tasks) >= CLAIMS_AT_ONCE:
            return
        self._claiming |= free
        task = asyncio.create_task(self._claim_all(segment, sorted(free, key=lambda a: (a.version, int(a)))))
        self._tasks.add(task)
        task.add_done_callback(self._claimed)

    def _claimed(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._wake.set()

    async def _claim_all(self, segment: Segment, vips: list[IPAddress]) -> None:
        try:
            claims = await segment.announcer.claim(vips)
        except DataPlaneError as err:
            log.error("address not brought up", extra={"network": self._network, "error": str(err)})  # noqa: TRY400
            for vip in vips:
                self._put_off(vip, Problem("KernelRefused", f"{err} It is tried again."), CLAIM_RETRY)
            claims = []
        self._claiming -= set(vips)
        for claim in claims:
            if claim.conflict:
                self._foreign[claim.address] = claim.conflict
                self._put_off(claim.address, _conflict(claim), CONFLICT_RETRY)
            else:
                self._foreign.pop(claim.address, None)
                self._held.add(claim.address)
        for vip in vips:
            for key in self._table.users_of(self._network, vip):
                self._report(key)

    def _put_off(self, vip: IPAddress, problem: Problem, seconds: float) -> None:
        log.warning("address not announced", extra={"address": str(vip), "reason": problem.message})
        self._failed[vip] = problem
        asyncio.get_running_loop().call_later(seconds * (0.9 + 0.2 * self._jitter()), self._try_again, vip)

    def _try_again(self, vip: IPAddress) -> None:
        self._failed.pop(vip, None)
        self._wake.set()

    async def _tick(self, segment: Segment) -> None:
        """See what others change: the rules soon (one number to compare), the addresses now and then (a dump)."""
        for look in itertools.count(1):
            await asyncio.sleep(LOOK_EVERY * (0.9 + 0.2 * self._jitter()))
            try:
                disturbed = not await segment.engine.undisturbed()
                if look % HELD_EVERY == 0:
                    disturbed |= await self._recount(segment)
            except DataPlaneError as err:
                log.warning("kernel not read back", extra={"network": self._network, "error": str(err)})
                continue
            if disturbed:
                self._resync = True
                self._wake.set()

    async def _recount(self, segment: Segment) -> bool:
        """Whether somebody else took an address away, or left one, since we last knew."""
        before = set(self._held)
        held = await segment.announcer.held()
        lost = (before & self._held) - held
        for vip in lost:
            log.warning("address was taken away by somebody else", extra={"address": str(vip)})
        strange = held - before - self._held - self._claiming
        self._held = (self._held - lost) | strange
        return bool(lost or strange)


def _conflict(claim: Claim) -> Problem:
    return Problem("AddressConflict", f"{claim.address} is in use on this network by {claim.conflict}.")
