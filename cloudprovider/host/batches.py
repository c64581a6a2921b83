"""Many waiting load balancers, few writes: addresses are given and taken back in batches, one write for each block.

The first request after a pause is served at once; after that a write goes out at most every MIN_SECONDS, in a burst
(many waited last time) up to MAX_SECONDS later where that fills the batch.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Final

from cloudprovider.core.addressing import Refusal
from cloudprovider.core.allocation import Proposal
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.errors import AlreadyExists, Conflict, KubeError, NotFound
from cloudprovider.core.ranges import Version
from cloudprovider.core.times import rfc3339
from cloudprovider.core.wants import Granted, Refused, Release, Reopen, Want
from cloudprovider.host.book import AddressBook, Room
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import Clock
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.resources import IPBLOCKS

_log = logging.getLogger(__name__)

Key = tuple[str, str]
"""(namespace, name) of a LoadBalancer."""

MIN_SECONDS: Final = 0.25
MAX_SECONDS: Final = 0.5
BURST: Final = 8
FULL: Final = 25
"""A batch of BURST or more lets the next one wait for FULL, MAX_SECONDS at most."""
LIMIT: Final = 1000
"""Load balancers in one batch: what a decision may take of the loop's time (some 0.1 ms each)."""
ROUNDS: Final = 16
"""So often it is decided anew for those who need two addresses and get in each other's way."""
WRITES: Final = 4
"""Blocks written at the same time."""
BACKOFF: Final = Backoff(base=0.2, limit=10.0)

_ROOM_REASONS = frozenset({"PoolExhausted", "AddressInUse", "AddressConflict", "QuotaExceeded", "TooManySharers"})


class Batches:
    """Collects wants and releases, and carries them out. ``done`` is called with every load balancer whose case has
    been decided, one way or the other, once that stands in the API server; ``block_write`` with how each write of a
    block has ended: written, conflict or failed."""

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        book: AddressBook,
        *,
        now: Clock,
        rng: random.Random,
        done: Callable[[Key], None],
        is_due: Callable[[Release], bool],
        block_write: Callable[[str], None],
    ) -> None:
        self._client = client
        self._caches = caches
        self._book = book
        self._now = now
        self._rng = rng
        self._done = done
        self._is_due = is_due
        self._block_write = block_write
        self._wants: dict[Key, None] = {}
        self._releases: dict[tuple[str, str, str], Release] = {}
        self._reopened: dict[tuple[str, str], Reopen] = {}
        self._decided: dict[Key, Refusal | None] = {}
        self._without_second: set[Key] = set()
        """Those of ``_decided`` that could do without an address of a second family, and would like to have one."""
        self._giving_back: set[Key] = set()
        self._pending = asyncio.Event()
        self._full = asyncio.Event()
        book.on_room(self._room)

    def want(self, key: Key) -> None:
        """Let the load balancer have what it lacks."""
        self.forget(key)
        self._wants[key] = None
        self._wake()

    def release(self, releases: Iterable[Release]) -> None:
        """Give addresses back."""
        for release in releases:
            self._releases[release.pool, str(release.address), release.owner] = release
            self._wake()

    def is_giving_back(self, key: Key) -> bool:
        """Whether an address of the load balancer is being given back just now: what it has is not known until then."""
        return key in self._giving_back

    def reopen(self, reopened: Iterable[Reopen]) -> None:
        """Let addresses that somebody else had be handed out again."""
        for one in reopened:
            self._reopened[one.pool, str(one.address)] = one
            self._wake()

    def refusal(self, key: Key) -> Refusal | None:
        """Return why the load balancer does not get what it lacks, as far as it has been decided."""
        return self._decided.get(key)

    def is_decided(self, key: Key) -> bool:
        """Whether there is nothing to be had for the load balancer until something changes."""
        return key in self._decided

    def forget(self, key: Key) -> None:
        """Its request has changed, or it is gone: what was decided no longer counts."""
        self._decided.pop(key, None)
        self._without_second.discard(key)

    def reconsider(self, key: Key) -> None:
        """Decide anew, if it was decided that there is nothing to be had; what was said stays said until then."""
        if key in self._decided:
            self._wants[key] = None
            self._wake()

    def retry_all(self) -> None:
        """Decide anew about all that were refused: a tenant's limits or a namespace's project have changed."""
        self._room(Room.POOLS_CHANGED)

    def retry_limited(self) -> None:
        """Decide anew about all whose tenant had no room: one of its leases no longer counts."""
        for key, refusal in self._decided.items():
            if refusal is not None and refusal.reason == "QuotaExceeded":
                self._wants[key] = None
        if self._wants:
            self._wake()

    async def run(self) -> None:
        """Carry out what comes until cancelled. Refused and failed writes are logged, and tried again with backoff."""
        loop = asyncio.get_running_loop()
        last, burst, failures = 0.0, False, 0
        while True:
            await self._pending.wait()
            await self._pace(last, burst=burst)
            sound = await self._settle_doubts()
            if sound:
                keys, releases, reopened = self._take()
                if not (keys or releases or reopened):
                    continue  # no batch, so the next one need not keep a distance from it
                last = loop.time()
                burst = len(keys) + len(releases) >= BURST
                sound = await self._carry_out(keys, releases, reopened)
            if sound:
                failures = 0
            else:
                failures += 1
                await asyncio.sleep(BACKOFF.delay(failures, self._rng))

    async def _pace(self, last: float, *, burst: bool) -> None:
        passed = asyncio.get_running_loop().time() - last
        if passed < MIN_SECONDS:
            await asyncio.sleep(MIN_SECONDS - passed)
        if burst and passed < MAX_SECONDS and not self._full.is_set():
            try:
                async with asyncio.timeout(MAX_SECONDS - max(passed, MIN_SECONDS)):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _wake(self) -> None:
        self._pending.set()
        if len(self._wants) + len(self._releases) >= FULL:
            self._full.set()

    def _take(self) -> tuple[list[Key], list[Release], list[Reopen]]:
        keys = list(self._wants)[:LIMIT]
        for key in keys:
            del self._wants[key]
        releases = list(self._releases.values())
        self._releases.clear()
        reopened = list(self._reopened.values())
        self._reopened.clear()
        self._full.clear()
        if not self._wants:
            self._pending.clear()
        return keys, releases, reopened

    async def _carry_out(self, keys: Sequence[Key], releases: Sequence[Release], reopened: Sequence[Reopen]) -> bool:
        """Decide, write, tell. False if something has to be tried again and nothing got on."""
        asked: list[Want] = []
        lbs: dict[str, LoadBalancer] = {}
        due: list[Release] = []
        for release in releases:
            if self._is_due(release):
                due.append(release)
            else:
                self._done(_key(release.owner))
        releases = due
        for key in keys:
            lb = self._caches.load_balancers.get(*key)
            if lb is None or lb.metadata.deletion_timestamp:
                continue
            choice = self._book.choose(lb)
            if not choice.wants:
                if not self._book.lacks(lb):
                    self.forget(key)
                    self._done(key)  # it has it already: an earlier write had come through
                else:
                    self._decide(key, choice.refusal)
            lbs[f"{key[0]}/{key[1]}"] = lb
            asked += choice.wants
        # What is in use already comes before who only showed it once, that before who asks for one by name.
        asked.sort(key=lambda w: (w.adopt is None, not w.preferred, w.fixed is None))
        proposal = self._whole(asked, releases, reopened, lbs)
        self._giving_back = {_key(release.owner) for release in releases}
        try:
            written = await self._write_all(proposal)
        finally:
            self._giving_back = set()
        tried = len(written)
        lost = [name for name, stored in written.items() if not stored]
        self._tell_grants(proposal, written, lbs)
        again = [release for release, block in proposal.released if block in lost]
        self.release(again)
        for release, _ in proposal.released:
            self._done(_key(release.owner))
        if asked or releases:
            _log.info(
                "A batch of addresses is decided.",
                extra={"asked": len(asked), "released": len(releases), "blocks": tried, "lost": len(lost)},
            )
        return not lost or len(lost) < tried

    def _whole(
        self,
        asked: list[Want],
        releases: Sequence[Release],
        reopened: Sequence[Reopen],
        lbs: dict[str, LoadBalancer],
    ) -> Proposal:
        """Propose; one that can't get all that it must have gets nothing new, rather than half."""
        now = rfc3339(self._now())
        refused: list[Granted | Refused] = []
        for left in range(ROUNDS, -1, -1):
            proposal = self._book.propose(asked, releases, reopened, now=now)
            short = self._short(proposal, lbs)
            halves = dict.fromkeys(
                o.want.owner
                for o in proposal.outcomes
                if isinstance(o, Granted) and o.want.adopt is None and o.block and o.want.owner in short
            )
            if not halves:
                break
            # What one lacks another may have half of: who comes first makes room, and the rest is decided anew.
            gone = {next(iter(halves))} | {h for h in halves if not _is_blocked(h, halves, proposal)} if left else short
            refused += (o for o in proposal.outcomes if isinstance(o, Refused) and o.want.owner in gone)
            asked = [w for w in asked if w.owner not in gone]
        return replace(proposal, outcomes=(*proposal.outcomes, *refused))

    def _short(self, proposal: Proposal, lbs: dict[str, LoadBalancer]) -> set[str]:
        """Who does not get all that it must have."""
        granted = _versions(proposal)
        return {
            o.want.owner
            for o in proposal.outcomes
            if isinstance(o, Refused)
            and o.want.adopt is None
            and not self._book.is_optional(o.want, lbs[o.want.owner], granted[o.want.owner])
        }

    def _tell_grants(self, proposal: Proposal, written: dict[str, bool], lbs: dict[str, LoadBalancer]) -> None:
        refusals: dict[str, Refusal | None] = {}
        lost_to_others: set[str] = set()
        without_second: set[str] = set()
        granted = _versions(proposal)
        in_part = {o.want.owner for o in proposal.outcomes if isinstance(o, Granted) and o.block}
        for outcome in proposal.outcomes:
            owner = outcome.want.owner
            if isinstance(outcome, Granted):
                if outcome.block and not written[outcome.block]:
                    refusals.pop(owner, None)
                    if (lb := lbs.pop(owner, None)) is not None:  # else another one of its addresses was lost too
                        self.want(lb.key)
                elif owner in lbs:
                    refusals.setdefault(owner, None)
            elif owner in lbs:
                optional = outcome.want.adopt is None and self._book.is_optional(
                    outcome.want, lbs[owner], granted[owner]
                )
                if optional:
                    refusals.setdefault(owner, None)
                    without_second.add(owner)
                elif outcome.want.adopt is not None and outcome.reason == "AddressInUse":
                    refusals.setdefault(owner, None)
                    lost_to_others.add(owner)
                else:
                    refusals[owner] = Refusal(outcome.reason, outcome.message)
        for owner, refusal in refusals.items():
            key = lbs[owner].key
            if refusal is None and not self._book.lacks(lbs[owner]):
                self.forget(key)
                self._done(key)  # it has all that it could have: nothing to remember
            elif owner in lost_to_others or (refusal is None and owner in in_part and owner not in without_second):
                self.want(key)  # it has got what was asked for; what else it needs has not been looked at
            else:
                self._decide(key, refusal, without_second=owner in without_second)

    def _decide(self, key: Key, refusal: Refusal | None, *, without_second: bool = False) -> None:
        if without_second:
            self._without_second.add(key)
        else:
            self._without_second.discard(key)
        known = self._decided.get(key)
        if key in self._decided and known == refusal:
            return
        self._decided[key] = refusal
        self._done(key)

    def _room(self, room: Room) -> None:
        """Something was freed, or pools changed: all that were refused for it are asked about again."""
        for key, refusal in list(self._decided.items()):
            waits = key in self._without_second if refusal is None else refusal.reason in _ROOM_REASONS
            if waits or room is Room.POOLS_CHANGED:
                self._wants[key] = None  # what was decided stays said until it is decided anew
        if self._wants:
            self._wake()

    # --- writing -------------------------------------------------------------------------------------------------

    async def _write_all(self, proposal: Proposal) -> dict[str, bool]:
        places = asyncio.Semaphore(WRITES)

        async def write(block: IPBlock) -> bool:
            async with places:
                return await self._write(proposal, block)

        results = await asyncio.gather(*(write(block) for block in proposal.writes))
        return dict(zip((b.metadata.name for b in proposal.writes), results, strict=True))

    async def _write(self, proposal: Proposal, block: IPBlock) -> bool:
        """Write one block if nobody else has; False: it is to be decided anew, by what is there then."""
        name = block.metadata.name
        try:
            if block.metadata.resource_version:
                stored = await self._client.replace(IPBLOCKS, block)
            else:
                stored = await self._client.create(IPBLOCKS, block)
        except KubeError as error:
            self._block_write("conflict" if isinstance(error, Conflict | AlreadyExists) else "failed")
            _log.warning("A block was not written; trying again.", extra={"block": name, "error": str(error)})
            self._book.doubt(name)
            return False
        self._block_write("written")
        self._book.written(proposal, stored)
        return True

    async def _settle_doubts(self) -> bool:
        """Read what an unanswered or refused write has left; False: the API server does not answer."""
        for name in self._book.doubted():
            try:
                self._book.reread(name, await self._client.get(IPBLOCKS, "", name))
            except NotFound:
                self._book.reread(name, None)
            except KubeError as error:
                _log.warning("A block could not be read anew.", extra={"block": name, "error": str(error)})
                return False
        return True


def _is_blocked(owner: str, halves: Iterable[str], proposal: Proposal) -> bool:
    """Whether what an owner lacks could be what others of ``halves`` have, or what their tenant may have no more."""
    taken = {
        (o.want.pool, o.want.version)
        for o in proposal.outcomes
        if isinstance(o, Granted) and o.want.owner != owner and o.want.owner in halves
    }
    return any(
        o.reason == "QuotaExceeded" or (o.want.pool, o.want.version) in taken
        for o in proposal.outcomes
        if isinstance(o, Refused) and o.want.owner == owner
    )


def _versions(proposal: Proposal) -> defaultdict[str, list[Version]]:
    """Of which versions each owner gets an address."""
    found: defaultdict[str, list[Version]] = defaultdict(list)
    for outcome in proposal.outcomes:
        if isinstance(outcome, Granted):
            found[outcome.want.owner].append(outcome.want.version)
    return found


def _key(owner: str) -> Key:
    namespace, _, name = owner.partition("/")
    return namespace, name
