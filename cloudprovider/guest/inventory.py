"""Tells the host every Service that has a load balancer, so that it can collect what is left over.

Leftovers come from Services that went without their finalizer, and from a guest or a host restored from a backup.
Each inventory is of a fresh list. A Service that is younger than the list must not be taken for a leftover: what the
cache knows beyond it is added, and while an inventory is on its way no load balancer that it lacks is asked for.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Final

from cloudprovider.bridge.api import BridgeClient
from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.errors import CloudProviderError
from cloudprovider.core.exchange import Inventory, InventoryItem, ServiceKey
from cloudprovider.core.translate import Claim, Classes, service_key, shown_addresses
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import SERVICES

log = logging.getLogger(__name__)

PERIOD: Final = 300.0
"""Seconds from one inventory to the next."""
SETTLE: Final = 1.0
"""Seconds that an inventory which something has asked for waits for more of the same."""
BACKOFF: Final = Backoff(base=1.0, limit=60.0)


class InventoryReporter:
    """Reports after every (re)connection, every ``period`` seconds, and when asked to (:meth:`request`)."""

    def __init__(
        self,
        client: KubeClient,
        bridge: BridgeClient,
        services: Informer[Service],
        *,
        classes: Classes,
        fencing_token: int,
        connected: Callable[[], bool],
        rng: random.Random,
        period: float = PERIOD,
        settle: float = SETTLE,
    ) -> None:
        self._client = client
        self._bridge = bridge
        self._services = services
        self._classes = classes
        self._fencing_token = fencing_token
        self._connected = connected
        self._rng = rng
        self._period = period
        self._settle = settle
        self._wanted = asyncio.Event()
        self._under_way: tuple[frozenset[ServiceKey], asyncio.Future[None]] | None = None

    def request(self) -> None:
        """Have an inventory sent soon."""
        self._wanted.set()

    def gate(self, key: ServiceKey) -> asyncio.Future[None] | None:
        """Return what to wait for before the host is asked for a load balancer of ``key``; None: nothing."""
        if self._under_way is None or key in self._under_way[0]:
            return None
        return self._under_way[1]

    async def run(self) -> None:
        """Report until cancelled. Errors are logged, and it is tried again with backoff."""
        failures = 0
        while True:
            try:
                async with asyncio.timeout(self._period * self._rng.uniform(0.9, 1.0)):
                    await self._wanted.wait()
                    await asyncio.sleep(self._settle)
            except TimeoutError:
                pass
            self._wanted.clear()
            if not self._connected():
                continue  # the connection's return asks for one
            try:
                await self.report()
                failures = 0
            except CloudProviderError as e:
                failures += 1
                log.warning("The inventory was not taken; trying again.", extra={"error": str(e), "failures": failures})
                await asyncio.sleep(BACKOFF.delay(failures, self._rng))
                self._wanted.set()

    async def report(self) -> None:
        """Report once. Raises KubeError, BridgeError."""
        listed = await self._client.list(SERVICES)
        items = self._items(listed.items)
        items.update(
            (key, item) for key, item in self._items(self._services.objects.values()).items() if key not in items
        )
        under_way: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way = (frozenset(items), under_way)
        try:
            result = await self._bridge.report_inventory(
                Inventory(
                    items=tuple(items.values()),
                    resource_version=listed.resource_version,
                    complete=not listed.undecodable,
                    fencing_token=self._fencing_token,
                )
            )
        finally:
            self._under_way = None
            under_way.set_result(None)
        level = logging.WARNING if result.held_back else logging.INFO
        log.log(
            level,
            "The inventory was taken.",
            extra={"services": len(items), "deleted": len(result.deleted), "held_back": result.held_back},
        )

    def _items(self, services: Iterable[Service]) -> dict[ServiceKey, InventoryItem]:
        return {
            (key := service_key(service)): InventoryItem(key, shown_addresses(service))
            for service in services
            if self._classes.claim(service) is Claim.OURS
        }
