"""Harvester's annotation ``manuallyReleaseIP`` on a pool: an operator has a record freed whose load balancer is gone.

The audit frees such records by itself; the annotation does it at once, and is taken away when it has been heeded.
"""

import random
from typing import Final

from cloudprovider.core.api.pool import MANUALLY_RELEASE_ANNOTATION, IPPool
from cloudprovider.core.errors import Conflict, InvalidRequest, NotFound
from cloudprovider.core.news import NOT_RELEASED, RELEASED
from cloudprovider.core.rules.holdings import holdings
from cloudprovider.core.rules.release import ReleaseOrder, check_release, parse_release
from cloudprovider.core.wants import Release
from cloudprovider.host.batches import Batches
from cloudprovider.host.book import AddressBook
from cloudprovider.host.caches import Caches
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import IPPOOLS

_LOOK_AGAIN: Final = 1.0
"""Seconds until it is looked whether the record is gone."""


class ManualReleases:
    """Follows the pools' annotations."""

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        book: AddressBook,
        batches: Batches,
        events: EventRecorder,
        *,
        rng: random.Random,
    ) -> None:
        self._client = client
        self._caches = caches
        self._book = book
        self._batches = batches
        self._events = events
        self.queue: WorkQueue[str] = WorkQueue(self._reconcile, name="manual-releases", workers=1, rng=rng)
        caches.pools.on_change(self._changed)

    async def run(self) -> None:
        """Work until cancelled; start it when the caches have synced."""
        await self.queue.run()

    def _changed(self, _: IPPool | None, new: IPPool | None) -> None:
        if new is not None and MANUALLY_RELEASE_ANNOTATION in new.metadata.annotations:
            self.queue.add(new.metadata.name)

    async def _reconcile(self, name: str) -> float | None:
        pool = self._caches.pools.get("", name)
        text = pool.metadata.annotations.get(MANUALLY_RELEASE_ANNOTATION) if pool is not None else None
        if pool is None or text is None:
            return None
        try:
            order = parse_release(text)
        except InvalidRequest as wrong:
            self._events.record(IPPOOLS, pool, NOT_RELEASED, str(wrong))
            await self._take_away(pool)
            return None
        exists = self._caches.load_balancers.get(order.namespace, order.name) is not None
        held = holdings(self._book.ledger.blocks_of(name))
        verdict = check_release(order, held, exists=exists)
        if verdict.violations:
            self._events.record(IPPOOLS, pool, NOT_RELEASED, verdict.violations[0].message)
        elif found := self._records(name, order):
            self._batches.release(found)
            message = f"{order.address} of {order.owner}, which is gone, is given back as the annotation asks"
            self._events.record(IPPOOLS, pool, RELEASED, message)
            return _LOOK_AGAIN
        await self._take_away(pool)
        return None

    def _records(self, pool: str, order: ReleaseOrder) -> list[Release]:
        return [
            Release(pool=pool, address=h.address, owner=h.owner, uid=h.uid)
            for h in self._book.ledger.held_by(order.owner)
            if (h.pool, h.address) == (pool, order.address)
        ]

    async def _take_away(self, pool: IPPool) -> None:
        patch = {
            "metadata": {
                "resourceVersion": pool.metadata.resource_version,
                "annotations": {MANUALLY_RELEASE_ANNOTATION: None},
            }
        }
        try:
            self._caches.pools.observe(await self._client.merge_patch(IPPOOLS, "", pool.metadata.name, patch))
        except NotFound:
            return
        except Conflict:
            return  # changed meanwhile: the watch brings it, and with it another look
