"""From the host's objects to the kernel, and back into their status: what an agent does while it serves."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address

import msgspec

from cloudprovider.agent.forwarder import NetworkForwarder
from cloudprovider.core.agentstatus import Observation, report, reported
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import LoadBalancer, LoadBalancerStatus
from cloudprovider.core.errors import NotFound
from cloudprovider.core.forwarding import ForwardingTable, LoadBalancerKey, Problem
from cloudprovider.dataplane.api import DataPlane, NetworkConfig
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS

log = logging.getLogger(__name__)

FIELD_MANAGER = "cloudprovider-agent"
REPORT_WORKERS = 32


class AgentController:
    """Serves the host cluster's load balancers on the networks that this host stands on.

    ``now`` is the wall clock, for conditions. :meth:`run` may be cancelled and a new controller made at any time: all
    that it knows comes from the API server and the kernel.
    """

    def __init__(
        self,
        node: str,
        networks: Sequence[NetworkConfig],
        client: KubeClient,
        dataplane: DataPlane,
        *,
        rng: random.Random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._node = node
        self._client = client
        self._now = now
        self._load_balancers: Informer[LoadBalancer] = Informer(client, LOADBALANCERS, rng=rng)
        self._clusters: Informer[GuestCluster] = Informer(client, GUESTCLUSTERS, rng=rng)
        self._load_balancers.on_change(self._load_balancer_changed)
        self._clusters.on_change(self._cluster_changed)
        self._reports: WorkQueue[LoadBalancerKey] = WorkQueue(
            self._report, name="status", workers=REPORT_WORKERS, rng=rng
        )
        self._table = ForwardingTable(n.name for n in networks)
        self._forwarders = {
            n.name: NetworkForwarder(
                n.name, partial(dataplane.open, n), self._table, self._reports.add, jitter=rng.random
            )
            for n in networks
        }

    @property
    def not_ready(self) -> Sequence[str]:
        """Why this agent does not (yet) do its work; empty when it does."""
        reasons = []
        if not (self._load_balancers.synced.is_set() and self._clusters.synced.is_set()):
            reasons.append("the host's LoadBalancers and GuestClusters have not been read yet")
        reasons += [
            f"network {network or 'management'}: {forwarder.trouble}"
            for network, forwarder in self._forwarders.items()
            if forwarder.trouble
        ]
        return reasons

    async def run(self) -> None:
        """Serve until cancelled. Nothing is taken away before the objects have been read."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._load_balancers.run())
            group.create_task(self._clusters.run())
            await self._load_balancers.synced.wait()
            await self._clusters.synced.wait()
            for forwarder in self._forwarders.values():
                group.create_task(forwarder.run())
            group.create_task(self._reports.run())

    # Changes of objects: into the table, and on to the networks that they touch.

    def _load_balancer_changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        obj = new or old
        if obj is None:
            return
        key = obj.key
        before = self._table.load_balancer(key)
        gone = self._table.remove_load_balancer(key) if new is None else self._table.set_load_balancer(new)
        after = self._table.load_balancer(key)
        for want in (before, after):
            if want is not None and want.problem is None:
                forwarder = self._forwarders[want.network]
                forwarder.touch(key, obj.metadata.generation)
                if want is before:
                    forwarder.forget_listeners(key, gone)
        if new is not None:
            self._reports.add(key)

    def _cluster_changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        obj = new or old
        if obj is None:
            return
        had_nodes = old is not None and bool(old.status.nodes)
        gone = self._table.remove_cluster(obj.key) if new is None else self._table.set_cluster(new)
        for forwarder in self._forwarders.values():
            forwarder.forget_backends(gone)
            forwarder.wake()
        if gone or had_nodes != (new is not None and bool(new.status.nodes)):
            for key in self._table.of_cluster(obj.key):
                self._reports.add(key)

    # Back into the status.

    async def _report(self, key: LoadBalancerKey) -> None:
        lb = self._load_balancers.get(*key)
        if lb is None:
            return
        said = self._says(lb)
        if said is None or said == reported(lb):
            return
        patch = {"metadata": {"uid": lb.metadata.uid}, "status": msgspec.to_builtins(said)}
        try:
            written = await self._client.apply(
                LOADBALANCERS, *key, patch, field_manager=FIELD_MANAGER, subresource="status"
            )
        except NotFound:
            return  # gone meanwhile
        self._load_balancers.observe(written)

    def _says(self, lb: LoadBalancer) -> LoadBalancerStatus | None:
        """What the status should say of the agent's part; None while that is not known yet."""
        want = self._table.load_balancer(lb.key)
        if want is None:
            # Given up only once no address of it is on the link: then it may be given to somebody else.
            return None if self._still_up(lb) else LoadBalancerStatus()
        addresses = want.vips
        generation = lb.metadata.generation
        problem = want.problem
        if problem is None:
            forwarder = self._forwarders[want.network]
            addresses = forwarder.held(want.vips)
            generation = forwarder.generation(lb.key)
            problem = forwarder.problem(want.vips) or self._displaced(lb.key)
            if problem is None and (addresses != want.vips or generation != lb.metadata.generation):
                return None
        else:
            addresses = ()
        seen = Observation(generation, addresses, problem, want.partial, self._table.has_nodes(lb.key))
        return report(lb, self._node, seen, self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))

    def _still_up(self, lb: LoadBalancer) -> bool:
        vips = [ip_address(a.ip) for a in lb.status.addresses]
        return any(
            forwarder.on_link(v for v in vips if not self._table.users_of(network, v))
            for network, forwarder in self._forwarders.items()
        )

    def _displaced(self, key: LoadBalancerKey) -> Problem | None:
        for listener, (namespace, name) in self._table.displaced(key).items():
            other = f"LoadBalancer {name}" if namespace == key[0] else "another LoadBalancer"
            return Problem(
                "ListenerInUse", f"{listener.protocol} {listener.port} of {listener.vip} is {other}'s already."
            )
        return None


async def give_up(client: KubeClient, node: str) -> int:
    """Take this host's name off every load balancer that it held; return how many. For ``agent leave``."""
    count = 0
    for lb in (await client.list(LOADBALANCERS)).items:
        if lb.status.holder is not None and lb.status.holder.node == node:
            patch = {"metadata": {"uid": lb.metadata.uid}, "status": {}}
            await client.apply(LOADBALANCERS, *lb.key, patch, field_manager=FIELD_MANAGER, subresource="status")
            count += 1
    return count
