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
from cloudprovider.agent.leases import Connect, Leases
from cloudprovider.core.agentstatus import Leasing, Observation, report, reported
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, ForeignAddress, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.errors import NotFound
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.wanted import LoadBalancerKey, Place, Problem, Wanted, without
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

    ``connect`` makes the DHCP client of a network. ``now`` is the wall clock. :meth:`run` may be cancelled and a new
    controller made at any time: all that it knows comes from the API server and the kernel.
    """

    def __init__(
        self,
        node: str,
        networks: Sequence[NetworkConfig],
        client: KubeClient,
        dataplane: DataPlane,
        *,
        connect: Connect,
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
        self._leases = {
            n.name: Leases(n.name, connect, self._lease_changed, now=now, jitter=rng.random) for n in networks
        }
        self._forwarders = {
            n.name: NetworkForwarder(
                n.name,
                partial(dataplane.open, n),
                self._table,
                self._reports.add,
                beside=self._leases[n.name].run,
                jitter=rng.random,
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
        if new is None:
            self._put(obj, gone=True)
            for leases in self._leases.values():
                leases.forget(obj.key)
            return
        self._follow_leases(new)
        self._put(new)
        self._reports.add(new.key)

    def _lease_changed(self, key: LoadBalancerKey) -> None:
        """A lease has come, has been renewed, or is over: then its address goes at once."""
        lb = self._load_balancers.get(*key)
        if lb is not None:
            self._put(lb)
            self._reports.add(key)

    def _put(self, lb: LoadBalancer, *, gone: bool = False) -> None:
        key = lb.key
        before = self._table.load_balancer(key)
        if gone:
            left = self._table.remove_load_balancer(key)
        else:
            left = self._table.set_load_balancer(without(lb, self._ended(lb)))
        after = self._table.load_balancer(key)
        for network in frozenset().union(*(want.networks for want in (before, after) if want is not None)):
            forwarder = self._forwarders[network]
            forwarder.touch(key, lb.metadata.generation)
            forwarder.forget_listeners(key, left.get(network, ()))

    def _follow_leases(self, lb: LoadBalancer) -> None:
        lease = lb.status.lease
        shown = {a.ip for a in (*lb.status.addresses, *lb.status.next_addresses)}
        for network, leases in self._leases.items():
            held = leases.address(lb) or (ip_address(lease.ip) if lease is not None else None)
            visible = held is not None and not lb.metadata.deletion_timestamp and str(held) in shown
            leases.follow(lb, in_use=visible or (held is not None and self._forwarders[network].on_link([held])))

    def _ended(self, lb: LoadBalancer) -> frozenset[str]:
        """The addresses by DHCP in its status for which there is no lease (any more)."""
        leased = {str(a) for leases in self._leases.values() if (a := leases.address(lb)) is not None}
        addresses = (*lb.status.addresses, *lb.status.next_addresses)
        return frozenset(a.ip for a in addresses if not a.ip_pool and a.ip not in leased and a.network in self._leases)

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
        self._decline(lb)
        self._follow_leases(lb)
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
        leasing = self._leasing(lb)
        now = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if want is None:
            # Given up only once no address of it is on the link: then it may be given to somebody else.
            return None if self._still_up(lb) else report(lb, self._node, None, leasing, now)
        addresses = tuple(v for network, v in want.places if self._forwarders[network].held([v]))
        generation = min((self._forwarders[p.network].generation(lb.key) for p in want.shown), default=0)
        problem, awaited = want.problem, want.awaited
        if problem is None:
            problem = self._problem(want.shown) or self._displaced(lb.key)
            awaited = awaited or self._problem(want.following)
            complete = {p.vip for p in want.shown}.issubset(addresses) and generation == lb.metadata.generation
            if problem is None and not complete:
                return None
        elif not want.places:
            generation = lb.metadata.generation
        if self._withdrawing(lb, want):
            return None
        has_nodes = self._table.has_nodes(lb.key)
        foreign = self._foreign(want)
        seen = Observation(generation, addresses, problem, want.partial, has_nodes, awaited, foreign)
        return report(lb, self._node, seen, leasing, now)

    def _problem(self, places: Sequence[Place]) -> Problem | None:
        found = (self._forwarders[network].problem([vip]) for network, vip in places)
        return next((p for p in found if p is not None), None)

    def _foreign(self, want: Wanted) -> tuple[ForeignAddress, ...]:
        return tuple(
            ForeignAddress(ip=str(vip), hardware_address=mac)
            for network, vip in want.places
            for mac in self._forwarders[network].foreign([vip]).values()
        )

    def _withdrawing(self, lb: LoadBalancer, want: Wanted) -> bool:
        """Whether an address that it gave up is still on the link: so long the holder names it."""
        if lb.status.holder is None:
            return False
        left = {ip_address(a) for a in lb.status.holder.addresses} - {p.vip for p in want.places}
        return any(
            forwarder.on_link(v for v in left if not self._table.users_of(network, v))
            for network, forwarder in self._forwarders.items()
        )

    def _leasing(self, lb: LoadBalancer) -> Leasing | None:
        for leases in self._leases.values():
            if (found := leases.leasing(lb)) is not None:
                return found
        network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "")
        if lb.spec.ipam != "dhcp" or lb.metadata.deletion_timestamp or network in self._leases:
            return None
        name = network or "the management network"
        message = f"This host does not stand on {name}: no lease is asked for. Add it to the agent's networks file."
        return Leasing(None, Problem("NetworkNotConfigured", message))

    def _decline(self, lb: LoadBalancer) -> None:
        """Tell the DHCP client of an address that was found with somebody else when it was to be brought up."""
        for network, leases in self._leases.items():
            address = leases.address(lb)
            if address is not None:
                for mac in self._forwarders[network].foreign([address]).values():
                    leases.conflict(lb.key, mac)

    def _still_up(self, lb: LoadBalancer) -> bool:
        holder = lb.status.holder
        known = (*lb.status.addresses, *lb.status.next_addresses)
        vips = {ip_address(a) for a in (*(a.ip for a in known), *(holder.addresses if holder is not None else ()))}
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
