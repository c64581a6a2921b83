"""The controller's part of each GuestCluster's status: the virtual machines that its nodes are."""

import random
from typing import Final

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.errors import NotFound
from cloudprovider.core.guestmachines import machines_of
from cloudprovider.host.caches import Caches, differ
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.cache import Key
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import GUESTCLUSTERS

FIELD_MANAGER: Final = "cloudprovider-controller"
_GATHER_SECONDS: Final = 0.1
"""A cluster's machines are looked at this long after the first change of one: a rolling update touches many."""


class GuestMachines:
    """Follows the caches, and writes what has changed. While it is not known which machines there are, all stays."""

    def __init__(self, client: KubeClient, caches: Caches, *, rng: random.Random) -> None:
        self._client = client
        self._caches = caches
        self.queue: WorkQueue[Key] = WorkQueue(self._write, name="guest-machines", workers=2, rng=rng)
        caches.guest_clusters.on_change(self._cluster_changed)
        caches.machines.on_change(self._machine_changed)
        caches.machines.on_served(self._served)

    async def run(self) -> None:
        """Work until cancelled."""
        await self.queue.run()

    async def _write(self, key: Key) -> None:
        cluster = self._caches.guest_clusters.get(*key)
        if cluster is None or not self._caches.machines.synced.is_set():
            return
        machines = machines_of(cluster, self._caches.machines.get)
        if machines == cluster.status.machines:
            return
        patch: dict[str, object] = {
            "apiVersion": GUESTCLUSTERS.api_version,
            "kind": GUESTCLUSTERS.kind,
            "metadata": {"name": key[1], "namespace": key[0], "uid": cluster.metadata.uid},
            "status": {"machines": msgspec.to_builtins(machines)} if machines else {},
        }
        try:
            written = await self._client.apply(
                GUESTCLUSTERS, *key, patch, field_manager=FIELD_MANAGER, subresource="status"
            )
        except NotFound:
            return
        self._caches.guest_clusters.observe(written)

    def _cluster_changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        if new is None:
            if old is not None:
                self.queue.forget(old.key)
        elif old is None or (old.status.nodes, old.status.machines) != (new.status.nodes, new.status.machines):
            self.queue.add_after(new.key, _GATHER_SECONDS)

    def _machine_changed(self, old: VirtualMachineInstance | None, new: VirtualMachineInstance | None) -> None:
        vmi = new or old
        if vmi is not None and differ(old, new):
            for cluster in self._caches.clusters_in(vmi.metadata.namespace):
                self.queue.add_after(cluster.key, _GATHER_SECONDS)

    def _served(self) -> None:
        for key in self._caches.guest_clusters.objects:
            self.queue.add(key)
