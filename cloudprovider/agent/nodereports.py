"""What the node probes find, into the status of the GuestClusters: a node's health once for all load balancers."""

import random
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Final

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.errors import NotFound
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.nodehealth import nodes_told
from cloudprovider.core.plan import IPAddress
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import GUESTCLUSTERS

GATHER_SECONDS: Final = 1.0
"""Many nodes may fail at once: a cluster's are written together."""
WORKERS: Final = 4


class NodeReports:
    """Speaks of the clusters that this agent's ``table`` has load balancers of. ``failing()``: the addresses that
    probes have found unfit, and why; ``speaks_for(cluster)``: whether it is this host that is to say so, of several;
    ``now``: the wall clock."""

    def __init__(
        self,
        client: KubeClient,
        clusters: Informer[GuestCluster],
        table: ForwardingTable,
        failing: Callable[[], Mapping[IPAddress, str]],
        *,
        speaks_for: Callable[[tuple[str, str]], bool],
        field_manager: str,
        now: Callable[[], datetime],
        rng: random.Random,
    ) -> None:
        self._client = client
        self._clusters = clusters
        self._table = table
        self._failing = failing
        self._speaks_for = speaks_for
        self._manager = field_manager
        self._now = now
        self._queue: WorkQueue[tuple[str, str]] = WorkQueue(self._write, name="nodes", workers=WORKERS, rng=rng)

    async def run(self) -> None:
        """Write until cancelled."""
        await self._queue.run()

    def add(self, cluster: tuple[str, str]) -> None:
        """Another word may be to be said of a cluster's nodes."""
        self._queue.add_after(cluster, GATHER_SECONDS)

    def changed(self, addresses: AbstractSet[IPAddress]) -> None:
        """Probes judge these otherwise now."""
        for key in self._table.clusters_with(addresses):
            self.add(key)

    async def _write(self, key: tuple[str, str]) -> None:
        cluster = self._clusters.get(*key)
        if cluster is None or not self._table.of_cluster(key) or not self._speaks_for(key):
            return
        said = nodes_told(cluster.status.node_health, cluster.status.nodes, self._failing(), self._now())
        if said == cluster.status.node_health:
            return
        patch: dict[str, object] = {
            "metadata": {"uid": cluster.metadata.uid},
            "status": {"nodeHealth": msgspec.to_builtins(said)} if said else {},
        }
        try:
            written = await self._client.apply(
                GUESTCLUSTERS, *key, patch, field_manager=self._manager, subresource="status"
            )
        except NotFound:
            return
        self._clusters.observe(written)
