"""The pools' statuses: summaries for people, written when they have changed, at most once a second each; and an event
where a pool comes to be wrong or full, or right again."""

import asyncio
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

import msgspec

from cloudprovider.core.api.meta import Condition
from cloudprovider.core.api.pool import IPPoolStatus
from cloudprovider.core.conditions import carry_times, condition, find
from cloudprovider.core.news import ADDRESSES_LEFT, NO_OVERLAP, POOL_RIGHT, POOL_WRONG, News
from cloudprovider.core.pools import PoolView
from cloudprovider.core.poolstatus import FULL, NEARLY_FULL, filling, free, summarize
from cloudprovider.core.reasons import Heard
from cloudprovider.core.times import rfc3339
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import Clock
from cloudprovider.host.loadbalancers import FIELD_MANAGER
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import IPPOOLS

INTERVAL: Final = 1.0
SETTLE: Final = 0.1
"""Seconds from a change to its summary: whoever has just been given an address comes first."""
_EARLY: Final = 0.001
"""A timer may come a rounding error too early; that is not worth another one."""

READY: Final = "Ready"
OVERLAP: Final = "Overlap"


class PoolStatuses:
    """Follows the address book."""

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        book: AddressBook,
        events: EventRecorder,
        *,
        now: Clock,
        rng: random.Random,
    ) -> None:
        self._client = client
        self._caches = caches
        self._book = book
        self._events = events
        self._now = now
        self._told: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self.queue: WorkQueue[str] = WorkQueue(self._reconcile, name="pools", workers=1, rng=rng)
        book.on_pool(self._tell)

    async def run(self) -> None:
        """Work until cancelled; start it when the caches have synced."""
        await self.queue.run()

    def _tell(self, name: str) -> None:
        self._told.setdefault(name, asyncio.get_running_loop().time())
        self.queue.add(name)

    async def _reconcile(self, name: str) -> float | None:
        view = self._book.views().get(name)
        if view is None:
            self._written.pop(name, None)
            self._told.pop(name, None)
            return None
        loop = asyncio.get_running_loop()
        due = max(self._told.get(name, -SETTLE) + SETTLE, self._written.get(name, -INTERVAL) + INTERVAL)
        if (wait := due - loop.time()) > _EARLY:
            return wait
        self._told.pop(name, None)
        pool = self._caches.pools.get("", name) or view.pool
        left = free(self._book.ledger, view)
        wanted = [*_conditions(view), *filling(view, left)]
        conditions = carry_times(pool.status.conditions, wanted, rfc3339(self._now()))
        status = summarize(self._book.ledger, view, left, self._book.last_allocated(name), conditions)
        if status == pool.status:
            return None
        patch = {
            "apiVersion": IPPOOLS.api_version,
            "kind": IPPOOLS.kind,
            "metadata": {"name": name, "uid": pool.metadata.uid},
            "status": _body(status),
        }
        written = await self._client.apply(IPPOOLS, "", name, patch, field_manager=FIELD_MANAGER, subresource="status")
        self._written[name] = loop.time()  # not before: a write that fails is for the queue to repeat, ever more slowly
        self._caches.pools.observe(written)
        # Once it is written: a program that takes over says nothing twice.
        for news, message in _news(pool.status.conditions, conditions):
            self._events.record(IPPOOLS, written, news, message)
        return None


def _body(status: IPPoolStatus) -> Mapping[str, object]:
    # A zero is news here, and a default elsewhere.
    counts = {"total": status.total, "available": status.available}
    return {**cast("dict[str, object]", msgspec.to_builtins(status)), **counts}


def _conditions(view: PoolView) -> list[Condition]:
    """``Ready``: addresses can be given from it. ``Overlap``: an older pool has some of what it names."""
    if view.ranges is None:
        message = f"{view.error}: correct the ranges; what is allocated stays"
        return [condition("Ready", "False", "InvalidRanges", message)]
    found = [condition("Ready", "True", "Ready", "it hands out addresses")]
    if view.overlaps:
        listed = "; ".join(
            f'{", ".join(s.text for s in o.segments)} are handed out by the older pool "{o.other}"'
            for o in view.overlaps
        )
        message = f"{listed}: take them out of one of the pools; until then this one leaves them out"
        found.append(condition("Overlap", "True", "OverlapsOlderPool", message))
    return found


def _news(before: Sequence[Condition], after: Sequence[Condition]) -> Iterator[tuple[News, str]]:
    """What to tell as events, each with its message: each reason when it comes, and that all is well again."""
    was, ready = find(before, READY), find(after, READY)
    if ready is not None and ready.status == "False" and (was is None or was.reason != ready.reason):
        yield POOL_WRONG.because(Heard(ready.reason)), ready.message
    if was is not None and was.status == "False" and ready is not None and ready.status == "True":
        yield POOL_RIGHT, "its ranges are right again: it hands out addresses"
    known, overlap = find(before, OVERLAP), find(after, OVERLAP)
    if overlap is not None and known is None:
        yield POOL_WRONG.because(Heard(overlap.reason)), overlap.message
    if overlap is None and known is not None and ready is not None and ready.status == "True":
        yield NO_OVERLAP, "no older pool hands out any of its addresses any more"
    for kind in (NEARLY_FULL, FULL):
        now = find(after, kind)
        if now is not None and find(before, kind) is None:
            yield POOL_WRONG.because(Heard(now.reason)), now.message
    if find(before, FULL) is not None and find(after, FULL) is None:
        yield ADDRESSES_LEFT, "it has addresses to hand out again"
