"""The pools' statuses: summaries for people, written when they have changed, at most once a second each."""

import asyncio
import random
from collections.abc import Mapping
from typing import Final, cast

import msgspec

from cloudprovider.core.api.meta import Condition
from cloudprovider.core.api.pool import IPPoolStatus
from cloudprovider.core.conditions import carry_times
from cloudprovider.core.pools import PoolView
from cloudprovider.core.poolstatus import summarize
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import Clock, rfc3339
from cloudprovider.host.loadbalancers import FIELD_MANAGER
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import IPPOOLS

INTERVAL: Final = 1.0


class PoolStatuses:
    """Follows the address book."""

    def __init__(
        self, client: KubeClient, caches: Caches, book: AddressBook, *, now: Clock, rng: random.Random
    ) -> None:
        self._client = client
        self._caches = caches
        self._book = book
        self._now = now
        self._written: dict[str, float] = {}
        self._queue: WorkQueue[str] = WorkQueue(self._reconcile, name="pools", workers=1, rng=rng)
        book.on_pool(self._queue.add)

    async def run(self) -> None:
        """Work until cancelled; start it when the caches have synced."""
        await self._queue.run()

    async def _reconcile(self, name: str) -> float | None:
        view = self._book.views().get(name)
        if view is None:
            self._written.pop(name, None)
            return None
        loop = asyncio.get_running_loop()
        wait = self._written.get(name, -INTERVAL) + INTERVAL - loop.time()
        if wait > 0:
            return wait
        pool = self._caches.pools.get("", name) or view.pool
        conditions = carry_times(pool.status.conditions, _conditions(view), rfc3339(self._now()))
        status = summarize(self._book.ledger, view, self._book.last_allocated(name), conditions)
        if status == pool.status:
            return None
        self._written[name] = loop.time()
        patch = {
            "apiVersion": IPPOOLS.api_version,
            "kind": IPPOOLS.kind,
            "metadata": {"name": name, "uid": pool.metadata.uid},
            "status": _body(status),
        }
        self._caches.pools.observe(
            await self._client.apply(IPPOOLS, "", name, patch, field_manager=FIELD_MANAGER, subresource="status")
        )
        return None


def _body(status: IPPoolStatus) -> Mapping[str, object]:
    # A zero is news here, and a default elsewhere.
    counts = {"total": status.total, "available": status.available}
    return {**cast("dict[str, object]", msgspec.to_builtins(status)), **counts}


def _conditions(view: PoolView) -> list[Condition]:
    """``Ready``: addresses can be given from it. ``Overlap``: an older pool has some of what it names."""
    if view.ranges is None:
        message = f"{view.error}: correct the ranges; what is allocated stays"
        return [Condition(type="Ready", status="False", reason="InvalidRanges", message=message)]
    found = [Condition(type="Ready", status="True", reason="Ready", message="it hands out addresses")]
    if view.overlaps:
        listed = "; ".join(
            f'{", ".join(s.text for s in o.segments)} are handed out by the older pool "{o.other}"'
            for o in view.overlaps
        )
        message = f"{listed}: take them out of one of the pools; until then this one leaves them out"
        found.append(Condition(type="Overlap", status="True", reason="OverlapsOlderPool", message=message[:32768]))
    return found
