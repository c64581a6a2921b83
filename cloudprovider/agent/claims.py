"""Which of one network's addresses are up, on their way up, or not to be had; and who is to be told."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial

from cloudprovider.agent.traces import AgentTraces
from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.wanted import LoadBalancerKey, Problem
from cloudprovider.dataplane.api import Announcer, Claim

log = logging.getLogger(__name__)

CONFLICT_RETRY = 60.0
"""Seconds until an address that somebody else has is probed again (RFC 5227 section 2.1.1, RATE_LIMIT_INTERVAL)."""
CLAIM_RETRY = 5.0
FELLOW_RETRY = 1.0
"""Seconds until a fellow is asked again that still answers for an address which this host is to take from it."""
AT_ONCE = 4
"""Batches of addresses that are probed beside each other."""


class Claims:
    """Brings up the addresses that are wanted, beside all else, and takes away those that are not.

    Only those are looked at that may not be as they should: a change costs the same however many addresses are up.
    ``users``: the load balancers that an address stands for now, none if it is not wanted; ``changed``: look at these
    again; ``wake``: there is something to claim again, or room for it; ``conflicted``: somebody else was found to have
    an address. ``granted``: an address that a fellow gives to this host, so that nobody need be asked; ``is_fellow``:
    whether who answers for an address is a host of this instance. ``is_usurped``: whether whoever answers for an
    address, and is no fellow, has no right to it, as a fellow had it until now: then it is taken all the same, and
    ``usurped`` is told.
    ``is_orphaned``: whether the fellow that had an address is known to be silent, so that its clients wait.
    """

    def __init__(
        self,
        network: str,
        users: Callable[[IPAddress], frozenset[LoadBalancerKey]],
        *,
        changed: Callable[[Iterable[LoadBalancerKey]], None],
        wake: Callable[[], None],
        granted: Callable[[IPAddress], bool],
        is_fellow: Callable[[IPAddress, str], bool],
        is_usurped: Callable[[IPAddress], bool],
        usurped: Callable[[IPAddress, str], None],
        is_orphaned: Callable[[IPAddress], bool],
        traces: AgentTraces,
        conflicted: Callable[[], None],
        jitter: Callable[[], float],
    ) -> None:
        self._network = network
        self._granted = granted
        self._is_fellow = is_fellow
        self._is_usurped = is_usurped
        self._usurped = usurped
        self._is_orphaned = is_orphaned
        self._users = users
        self._changed = changed
        self._wake = wake
        self._traces = traces
        self._conflicted = conflicted
        self._jitter = jitter
        self._unsettled: set[IPAddress] = set()
        """All that are wanted and not up, but for those that will be ``touched`` when their time has come; and all that
        are up and not wanted."""
        self._held: set[IPAddress] = set()
        self._claiming: set[IPAddress] = set()
        self._claimed_for: dict[IPAddress, frozenset[LoadBalancerKey]] = {}
        """Who wanted an address when it was brought up: they are told when it is off the link, also one that they gave
        up while it was on its way."""
        self._to_take: set[IPAddress] = set()
        """Those that are taken without asking again."""
        self._failed: dict[IPAddress, Problem] = {}
        self._foreign: dict[IPAddress, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def held(self) -> Collection[IPAddress]:
        """The addresses that are up and announced."""
        return self._held

    @property
    def claiming(self) -> Collection[IPAddress]:
        """Those on their way up."""
        return self._claiming

    @property
    def failed(self) -> Mapping[IPAddress, Problem]:
        """Those that can't be brought up now, and why."""
        return self._failed

    @property
    def foreign(self) -> Mapping[IPAddress, str]:
        """Those that somebody else was found to have, and the MAC."""
        return self._foreign

    def touch(self, vips: Iterable[IPAddress]) -> None:
        """These may be wanted now, or not any more."""
        self._unsettled.update(vips)

    async def take_over(self, announcer: Announcer, wanted: frozenset[IPAddress]) -> None:
        """Begin with what is on the link."""
        self._claiming.clear()
        self._held = set(await announcer.held())
        self.touch(self._held ^ wanted)

    async def withdraw(self, announcer: Announcer) -> None:
        """Take away, and forget, what is not wanted."""
        unwanted = {vip for vip in self._unsettled if not self._users(vip)}
        for vip in unwanted:
            self._failed.pop(vip, None)
            self._foreign.pop(vip, None)
        # Before anything is waited for: what comes up meanwhile, though it is not wanted any more, is looked at again.
        self._unsettled -= unwanted
        surplus = unwanted & self._held
        if surplus:
            since = self._traces.now()
            try:
                await announcer.withdraw(surplus)
            except DataPlaneError:
                self.touch(surplus)
                raise
            self._held -= surplus
            for vip in surplus:
                concerned = self._claimed_for.pop(vip, frozenset())
                self._traces.withdrawn(concerned, self._network, vip, since=since)
                self._changed(concerned)

    def claim(self, announcer: Announcer) -> None:
        """Begin to bring up what is wanted and lacks."""
        if len(self._tasks) >= AT_ONCE:
            return
        free = {v for v in self._unsettled if self._users(v)} - self._held - self._claiming - self._failed.keys()
        self._unsettled = {v for v in self._unsettled if not self._users(v)}
        if not free:
            return
        self._claiming |= free
        self._claimed_for.update({vip: self._users(vip) for vip in free})
        granted = {vip for vip in free if vip in self._to_take or self._granted(vip)}
        self._to_take -= granted
        orphaned = {vip for vip in free - granted if self._is_orphaned(vip)}
        works = (
            (granted, self._take_all),
            (orphaned, partial(self._claim_all, hurried=True)),
            (free - granted - orphaned, self._claim_all),
        )
        for part, work in works:
            if part:
                task = asyncio.create_task(work(announcer, sorted(part, key=lambda a: (a.version, int(a)))))
                self._tasks.add(task)
                task.add_done_callback(self._claimed)

    async def recount(self, announcer: Announcer) -> int:
        """How many addresses somebody else took away, or left, since we last knew."""
        before = set(self._held)
        held = await announcer.held()
        lost = (before & self._held) - held
        for vip in lost:
            log.warning("address was taken away by somebody else", extra={"address": str(vip)})
        strange = held - before - self._held - self._claiming
        self._held = (self._held - lost) | strange
        self.touch(lost | strange)
        return len(lost) + len(strange)

    async def stop(self) -> None:
        """Give up what is on its way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _claimed(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._wake()

    async def _take_all(self, announcer: Announcer, vips: list[IPAddress]) -> None:
        async def take() -> list[Claim]:
            await announcer.take(vips)
            return [Claim(vip) for vip in vips]

        await self._settle(vips, take())

    async def _claim_all(self, announcer: Announcer, vips: list[IPAddress], *, hurried: bool = False) -> None:
        await self._settle(vips, announcer.claim(vips, hurried=hurried))

    async def _settle(self, vips: list[IPAddress], claiming: Awaitable[list[Claim]]) -> None:
        since = self._traces.now()
        try:
            claims = await claiming
        except DataPlaneError as err:
            log.error("address not brought up", extra={"network": self._network, "error": str(err)})  # noqa: TRY400
            for vip in vips:
                self._put_off(vip, Problem("KernelRefused", f"{err} It is tried again."), CLAIM_RETRY)
            claims = []
        self._claiming -= set(vips)
        self.touch(vips)
        for claim in claims:
            if claim.conflict and self._is_fellow(claim.address, claim.conflict):
                self._put_off(claim.address, _fellow(claim), FELLOW_RETRY)
            elif claim.conflict and self._is_usurped(claim.address):
                self._usurped(claim.address, claim.conflict)
                self._to_take.add(claim.address)
            elif claim.conflict:
                self._foreign[claim.address] = claim.conflict
                self._conflicted()
                self._put_off(claim.address, _conflict(claim), CONFLICT_RETRY)
            else:
                self._foreign.pop(claim.address, None)
                self._held.add(claim.address)
        for vip in vips:
            users, failed = self._users(vip), self._failed.get(vip)
            self._traces.announced(users, self._network, vip, since=since, why=failed.reason if failed else "")
            self._changed(users)

    def _put_off(self, vip: IPAddress, problem: Problem, seconds: float) -> None:
        log.warning("address not announced", extra={"address": str(vip), "reason": problem.message})
        self._failed[vip] = problem
        asyncio.get_running_loop().call_later(seconds * (0.9 + 0.2 * self._jitter()), self._try_again, vip)

    def _try_again(self, vip: IPAddress) -> None:
        self._failed.pop(vip, None)
        self.touch([vip])
        self._wake()


def _fellow(claim: Claim) -> Problem:
    return Problem("HeldByAnotherHost", f"{claim.address} is still answered for by another host, {claim.conflict}.")


def _conflict(claim: Claim) -> Problem:
    return Problem("AddressConflict", f"{claim.address} is in use on this network by {claim.conflict}.")
