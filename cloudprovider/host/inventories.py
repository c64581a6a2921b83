"""The guests' inventories: removing what a guest no longer has, with a brake."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import msgspec

from cloudprovider.bridge.api import Reason
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, InventoryRecord
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import Inventory, InventoryResult, ServiceKey, Tenant
from cloudprovider.core.tenancy import HeldRemovals, judge_inventory
from cloudprovider.core.times import rfc3339
from cloudprovider.host.clock import Clock
from cloudprovider.host.guestclusters import INVENTORY_HELD_BACK, GuestClusterStatuses, with_condition

Key = tuple[str, str]

SETTLE_SECONDS: Final = 60.0
"""What was asked for within this time is not removed by an inventory: that may have been on its way before the
request was (a call takes 30 s at most). The next inventory finds it."""
DELETIONS: Final = 4
"""Deletions at the same time."""


class Inventories:
    """Judges inventories. What waits for a second one is kept in memory: after a start it takes two more."""

    def __init__(
        self,
        statuses: GuestClusterStatuses,
        *,
        now: Clock,
        time: Callable[[], float],
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._statuses = statuses
        self._now = now
        self._time = time
        self._settle_seconds = settle_seconds
        self._held: dict[Tenant, HeldRemovals] = {}
        self._ensured: dict[Key, float] = {}

    def ensured(self, key: Key) -> None:
        """A load balancer has just been asked for."""
        self._ensured[key] = self._time()

    def forget(self, key: Key) -> None:
        """A load balancer is gone."""
        self._ensured.pop(key, None)

    def check(self, cluster: GuestCluster, inventory: Inventory) -> None:
        """Check who sent the inventory. Raises BridgeError STALE_LEADER."""
        record = cluster.status.inventory
        if record is not None and inventory.fencing_token < record.fencing_token:
            raise BridgeError(
                f"the inventory is of leader {inventory.fencing_token}, leader {record.fencing_token} has sent one"
                " since: this program is no longer the leader",
                reason=Reason.STALE_LEADER,
                retryable=False,
            )

    async def report(
        self,
        tenant: Tenant,
        cluster: GuestCluster,
        inventory: Inventory,
        present: Mapping[ServiceKey, Key],
        delete: Callable[[Tenant, ServiceKey], Awaitable[None]],
    ) -> InventoryResult:
        """Delete what the inventory (checked before) lets go of ``present``."""
        settled = self._time() - self._settle_seconds
        removable = [s for s, key in present.items() if self._ensured.get(key, settled) <= settled]
        verdict = judge_inventory(inventory, present, removable, self._held.get(tenant, HeldRemovals()))
        if verdict.held.services:
            self._held[tenant] = verdict.held
        else:
            self._held.pop(tenant, None)
        if inventory.complete:
            await self._record(tenant, inventory, verdict.held, len(present))
        places = asyncio.Semaphore(DELETIONS)

        async def remove(service: ServiceKey) -> None:
            async with places:
                await delete(tenant, service)

        results = await asyncio.gather(*(remove(service) for service in verdict.delete), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error  # all have been tried; the next inventory finds what is left
        return InventoryResult(deleted=verdict.delete, held_back=len(verdict.held.services))

    async def _record(self, tenant: Tenant, inventory: Inventory, held: HeldRemovals, present: int) -> None:
        message = ""
        if held.services:
            message = (
                f"the guest's inventory lacks {len(held.services)} of its {present} load balancers: they stay until"
                " another list of the guest's says the same"
            )

        def change(status: GuestClusterStatus) -> GuestClusterStatus:
            record = InventoryRecord(
                services=len(inventory.items),
                resource_version=inventory.resource_version,
                fencing_token=inventory.fencing_token,
                time=rfc3339(self._now()),
            )
            old = status.inventory
            if old is not None and msgspec.structs.replace(old, time=record.time) == record:
                record = old
            return msgspec.structs.replace(
                status,
                inventory=record,
                conditions=with_condition(status.conditions, INVENTORY_HELD_BACK, "SuddenlySmall", message),
            )

        await self._statuses.update(tenant, change)
