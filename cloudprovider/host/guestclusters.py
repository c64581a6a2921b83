"""The bridge's part of each GuestCluster's status (all but the machines and the nodes' health): written whole by
server-side apply, and only when it has changed."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec

from cloudprovider.core.api.guestcluster import REBIND_ANNOTATION, GuestCluster, GuestClusterStatus
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import carry_times, condition
from cloudprovider.core.conditiontypes import Type
from cloudprovider.core.errors import KubeError, NotFound
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.reasons import TenantReason
from cloudprovider.core.times import rfc3339
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import Clock
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS

_log = logging.getLogger(__name__)

FIELD_MANAGER: Final = "cloudprovider-bridge"
SEEN_SECONDS: Final = 60.0
"""``lastSeenTime`` is written this often at most, unless something else is to be written anyway."""

INVENTORY_HELD_BACK: Final = "InventoryHeldBack"
NODES_REJECTED: Final = "NodesRejected"
_CONDITIONS: Final = frozenset({INVENTORY_HELD_BACK, NODES_REJECTED})


class GuestClusterStatuses:
    """Reads from the cache, writes through it; the writes of one tenant come one after the other."""

    def __init__(self, client: KubeClient, caches: Caches, *, now: Clock, rng: random.Random) -> None:
        self._client = client
        self._caches = caches
        self._now = now
        self._rng = rng
        self._locks: dict[Tenant, asyncio.Lock] = {}
        self._seen: set[Tenant] = set()

    async def update(
        self, tenant: Tenant, change: Callable[[GuestClusterStatus], GuestClusterStatus], *, exclusive: bool = False
    ) -> None:
        """Let the tenant's status be ``change`` of what it is. Nothing is written if that is the same.

        ``exclusive``: only if nobody has changed the object since (raises Conflict). Raises NotFound if there is no
        such GuestCluster (any more), and the other KubeErrors.
        """
        async with self._locks.setdefault(tenant, asyncio.Lock()):
            cluster = self._caches.guest_cluster(tenant)
            if cluster is None:
                self._locks.pop(tenant, None)
                raise NotFound(f"there is no GuestCluster {tenant.path}", status=404)
            now = rfc3339(self._now())
            wanted = change(cluster.status)
            mine = [c for c in wanted.conditions if c.type in _CONDITIONS]
            wanted = msgspec.structs.replace(wanted, conditions=carry_times(cluster.status.conditions, mine, now))
            have = [c for c in cluster.status.conditions if c.type in _CONDITIONS]
            if msgspec.structs.replace(cluster.status, conditions=have) == wanted:
                return
            self._seen.discard(tenant)
            await self._apply(cluster, msgspec.structs.replace(wanted, last_seen_time=now), exclusive=exclusive)

    def seen(self, tenant: Tenant) -> None:
        """The guest has called."""
        self._seen.add(tenant)

    async def use_up_rebind(self, cluster: GuestCluster) -> None:
        """Take the operator's annotation away, on just this version of the object. Raises Conflict."""
        patch = {
            "metadata": {
                "resourceVersion": cluster.metadata.resource_version,
                "annotations": {REBIND_ANNOTATION: None},
            }
        }
        self._caches.guest_clusters.observe(await self._client.merge_patch(GUESTCLUSTERS, *cluster.key, patch))

    async def run(self) -> None:
        """Write down who was seen, until cancelled."""
        while True:
            await asyncio.sleep(SEEN_SECONDS * self._rng.uniform(1.0, 1.1))
            for tenant in list(self._seen):
                self._seen.discard(tenant)
                try:
                    now = rfc3339(self._now())
                    await self.update(tenant, lambda s, now=now: msgspec.structs.replace(s, last_seen_time=now))  # type: ignore[misc]
                except NotFound:
                    continue
                except KubeError as error:
                    _log.warning(
                        "When a guest was last seen could not be written.",
                        extra={"tenant": tenant.path, "error": str(error)},
                    )

    async def _apply(self, cluster: GuestCluster, status: GuestClusterStatus, *, exclusive: bool) -> None:
        own = msgspec.structs.replace(status, machines=[], node_health=[])
        metadata = {"name": cluster.metadata.name, "namespace": cluster.metadata.namespace, "uid": cluster.metadata.uid}
        if exclusive:
            metadata["resourceVersion"] = cluster.metadata.resource_version
        patch = {
            "apiVersion": GUESTCLUSTERS.api_version,
            "kind": GUESTCLUSTERS.kind,
            "metadata": metadata,
            "status": cast("dict[str, object]", msgspec.to_builtins(own)),
        }
        written = await self._client.apply(
            GUESTCLUSTERS, *cluster.key, patch, field_manager=FIELD_MANAGER, subresource="status"
        )
        self._caches.guest_clusters.observe(written)


def with_condition(conditions: Sequence[Condition], kind: Type, reason: TenantReason, message: str) -> list[Condition]:
    """Return the conditions with ``kind`` saying this, or without it where ``message`` is empty."""
    rest = [c for c in conditions if c.type != kind]
    return [*rest, condition(kind, "True", reason, message)] if message else rest
