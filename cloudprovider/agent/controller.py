"""From the host's objects to the kernel, and back into their status: what an agent does while it serves."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial

import msgspec

from cloudprovider.agent.backendhealth import BackendChecks
from cloudprovider.agent.fellows import Fellows, MakeWatch
from cloudprovider.agent.forwarder import NetworkForwarder
from cloudprovider.agent.holdings import Holdings
from cloudprovider.agent.leases import Connect, Leases
from cloudprovider.agent.membership import Membership
from cloudprovider.agent.metrics import AgentMetrics, label
from cloudprovider.agent.nodehealth import MakeProber, NodeHealth
from cloudprovider.agent.nodereports import NodeReports
from cloudprovider.agent.observing import Observer
from cloudprovider.agent.readings import NetworkState, read_backends, read_dhcp, read_networks, read_traffic
from cloudprovider.agent.routing import MakeSpeaker, Routing
from cloudprovider.agent.traces import AgentTraces
from cloudprovider.core.agentstatus import Leasing, reported
from cloudprovider.core.answerers import Answerers, Where
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.errors import NotFound
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.hosts import Presence
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.news import CLAIMED_BY_OTHER, LEASE_LOST, RULES_MENDED
from cloudprovider.core.permissions import SYSTEM
from cloudprovider.core.plan import IPAddress, ListenerKey
from cloudprovider.core.returns import Returns
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.core.wanted import LoadBalancerKey, Problem, parsed, without
from cloudprovider.dataplane.api import DataPlane, NetworkConfig
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.metrics import read_queues
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.registry import Readings
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS

log = logging.getLogger(__name__)

FIELD_MANAGER = "cloudprovider-agent"
REPORT_WORKERS = 32
HEALTH_AFTER = 1.0
"""Seconds after which the status says what checks have found out: many backends may change at once."""
SLICE = 500
"""So many load balancers are looked at in one go when hosts came or went."""
TELL_AFTER = 0.05
"""Seconds until the Lease says who is silent: what a dead host had is taken over before."""
REVIEW_EVERY = 1.0
"""Seconds between two looks at nodes that were left out."""


class AgentController:
    """Serves the host cluster's load balancers on the networks that this host stands on.

    ``connect`` makes the DHCP client of a network, ``make_prober`` what probes its nodes, ``make_speaker`` what speaks
    BGP there (None: nobody); ``namespace``: where the passwords for that are; ``events`` is run by the caller;
    ``metrics`` counts. ``now`` is the wall clock, ``clock`` a monotonic one, in seconds.
    :meth:`run` may be cancelled and a new controller made at any time: all that it knows comes from the API server and
    the kernel.
    """

    def __init__(
        self,
        node: str,
        networks: Sequence[NetworkConfig],
        client: KubeClient,
        dataplane: DataPlane,
        events: EventRecorder,
        *,
        hosts: Membership,
        connect: Connect,
        make_prober: MakeProber,
        make_watch: MakeWatch,
        make_speaker: MakeSpeaker | None = None,
        namespace: str = SYSTEM,
        rng: random.Random,
        metrics: AgentMetrics,
        now: Callable[[], datetime],
        clock: Callable[[], float] = time.monotonic,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        self._traces = AgentTraces(tracer)
        self._node = node
        self._client = client
        self._dataplane = dataplane
        self._events = events
        self._hosts = hosts
        self._now = now
        self._load_balancers: Informer[LoadBalancer] = Informer(client, LOADBALANCERS, rng=rng)
        self._clusters: Informer[GuestCluster] = Informer(client, GUESTCLUSTERS, rng=rng)
        self._load_balancers.on_change(self._load_balancer_changed)
        self._clusters.on_change(self._cluster_changed)
        self._reports: WorkQueue[LoadBalancerKey] = WorkQueue(
            self._report, name="status", workers=REPORT_WORKERS, rng=rng
        )
        self._configs = {n.name: n for n in networks}
        self._table = ForwardingTable(self._configs, clock)
        self._returns = Returns()
        self._answerers = Answerers()
        self._leases = {
            n.name: Leases(n.name, connect, self._lease_changed, now=now, jitter=rng.random) for n in networks
        }
        self._health = {
            n.name: NodeHealth(
                n.name,
                lambda segment, network: metrics.counted(make_prober(segment, network), network, of_nodes=True),
                partial(self._table.modes.node_addresses, n.name),
                self._health_changed,
                now=now,
            )
            for n in networks
        }
        self._node_reports = NodeReports(
            client,
            self._clusters,
            self._table,
            self._failing,
            speaks_for=lambda cluster: self._holdings.speaks_for(cluster),  # noqa: PLW0108 - which is made below
            field_manager=FIELD_MANAGER,
            now=now,
            rng=rng,
        )
        self._checks = BackendChecks(
            self._table,
            lambda segment, network: metrics.counted(make_prober(segment, network), network, of_nodes=False),
            ours=lambda key: self._holdings.is_ours(key),  # noqa: PLW0108 - which is made below
            healthy=self._wake,
            changed=lambda key: self._reports.add_after(key, HEALTH_AFTER),
            now=now,
        )
        self._forwarders: dict[str, NetworkForwarder] = {}
        self._holdings = Holdings(
            node,
            self._table,
            self._forwarders,
            hosts,
            get=lambda key: self._load_balancers.get(*key),
            write=self._write,
            changed=self._changed_hands,
            is_cut_off=lambda network: network in self._fellows and self._fellows[network].is_cut_off,
            is_down=lambda network, host: network in self._fellows and self._fellows[network].is_down(host),
            took=metrics.took,
            rng=rng,
        )
        self._fellows = {n.name: Fellows(node, n, make_watch, changed=self._heard) for n in networks}
        self._routing = Routing(
            node,
            namespace,
            self._configs,
            client,
            make_speaker=make_speaker,
            table=self._table,
            forwarders=self._forwarders,
            fellows=self._fellows,
            get=lambda key: self._load_balancers.get(*key),
            now=now,
            rng=rng,
        )
        self._forwarders |= {
            n.name: NetworkForwarder(
                n,
                partial(dataplane.open, n),
                self._table,
                self._look_at,
                adopted=self._adopted,
                defended=partial(self._defended, n.name),
                beside=[
                    self._leases[n.name].run,
                    self._health[n.name].run,
                    partial(self._checks.run, n.name),
                    self._fellows[n.name].run,
                    partial(self._routing.speak, n),
                ],
                returned=partial(self._frame_returned, n.name),
                mended=self._rules_mended,
                fellows=self._holdings.on(n.name),
                traces=self._traces,
                metrics=metrics.of(n.name),
                jitter=rng.random,
            )
            for n in networks
        }
        self._looking: asyncio.Task[None] | None = None
        self._look_again = False
        self._observer = Observer(
            node,
            self._table,
            self._forwarders,
            self._configs,
            returns=self._returns,
            backends=self._checks.backends,
            predecessor=self._holdings.predecessors.of,
            now=now,
        )

    @property
    def not_ready(self) -> Sequence[str]:
        """Why this agent does not (yet) do its work; empty when it does."""
        reasons = [told for told in (self._load_balancers.not_synced, self._clusters.not_synced) if told]
        reasons += [
            f"network {network or 'management'}: {forwarder.trouble}"
            for network, forwarder in self._forwarders.items()
            if forwarder.trouble
        ]
        reasons += [
            f"network {network or 'management'}: host {twin} has the same MAC there: see docs/hosts.md"
            for network in self._forwarders
            if (twin := self._twin(network))
        ]
        return reasons

    async def read(self) -> Readings:
        """What is to be told in metrics: of networks and checks as they stand, of kernels and DHCP as they count."""
        traffic = {label(network): await forwarder.traffic() for network, forwarder in self._forwarders.items()}
        await asyncio.sleep(0)  # others' turn: there may be thousands of load balancers
        passed = [*read_traffic({network: found for network, found in traffic.items() if found is not None})]
        await asyncio.sleep(0)
        return (
            *read_queues([self._reports]),
            *read_networks({label(network): self._state(network) for network in self._forwarders}),
            *read_backends(*self._checks.count()),
            *self._routing.read(),
            *read_dhcp({label(network): leases.counts() for network, leases in self._leases.items()}),
            *passed,
        )

    def _state(self, network: str) -> NetworkState:
        forwarder, leases = self._forwarders[network], self._leases[network]
        held, claiming, failed = forwarder.addresses
        expiry = leases.earliest_expiry()
        return NetworkState(
            up=not forwarder.trouble,
            held=held,
            claiming=claiming,
            failed=failed,
            listeners=len(self._table.plan(network).forwards),
            nodes_failing=len(self._health[network].failing),
            leases=leases.states(),
            expiry=None if expiry is None else expiry.timestamp(),
            hosts=self._fellows[network].heard,
        )

    async def run(self) -> None:
        """Serve until cancelled. Nothing is taken away before the objects have been read."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._load_balancers.run())
            group.create_task(self._clusters.run())
            await self._load_balancers.synced.wait()
            await self._clusters.synced.wait()
            await self._hosts.synced.wait()
            self._hosts.on_change(self._hosts_changed)
            self._hosts_changed()
            for lb in list(self._load_balancers.objects.values()):
                self._put(lb)
            self._checks.begin(self._load_balancers.objects)
            present = await self._dataplane.networks()
            for network in set(present) - self._forwarders.keys():
                log.info("network of no configuration any more: removed", extra={"network": network or "management"})
                await self._dataplane.remove(network)
            for network, forwarder in self._forwarders.items():
                group.create_task(forwarder.run(adopt=network in present))
            group.create_task(self._reports.run())
            group.create_task(self._holdings.run())
            group.create_task(self._node_reports.run())
            group.create_task(self._routing.run())
            group.create_task(self._review())

    # Changes of objects: into the table, and on to the networks that they touch.

    def _load_balancer_changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        self._traces.changed(old, new, listed=not self._load_balancers.synced.is_set())
        obj = new or old
        if obj is None:
            return
        if new is None:
            self._returns.forget(obj.key)
            self._put(obj, gone=True)
            self._holdings.forget(obj.key)
            self._look_at(obj.key)
            return
        if not self._hosts.synced.is_set():
            return  # whose it is can't be told yet
        self._put(new)
        self._look_at(new.key)

    def _look_at(self, key: LoadBalancerKey) -> None:
        """The kernel may do something else for it now."""
        self._routing.touch(key)
        self._reports.add(key)

    def _changed_hands(self, key: LoadBalancerKey) -> None:
        lb = self._load_balancers.get(*key)
        if lb is not None:
            self._follow_leases(lb)
            self._checks.follow(key)
            self._reports.add(key)

    def _heard(self) -> None:
        """Another host is silent, or heard again: what it had is looked at first, then others are told."""
        self._hosts_changed()
        asyncio.get_running_loop().call_later(TELL_AFTER, lambda: self._hosts.set_standing(self._standing()))

    def _hosts_changed(self) -> None:
        """Somebody came or went: whose a load balancer is may be another now, and who speaks for a cluster."""
        for fellows in self._fellows.values():
            fellows.follow(self._hosts.roster.hosts)
        for cluster in self._clusters.objects:
            self._node_reports.add(cluster)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_at_all())
        else:
            self._look_again = True

    async def _look_at_all(self) -> None:
        self._look_again = True
        while self._look_again:
            self._look_again = False
            objects = self._load_balancers.objects
            dead = {host for host in self._hosts.roster.hosts if any(f.is_down(host) for f in self._fellows.values())}
            # First those that nobody has any more.
            keys = sorted(objects, key=lambda k, o=objects: _holder(o[k]) not in dead)  # type: ignore[misc]
            for start in range(0, len(keys), SLICE):
                for key in keys[start : start + SLICE]:
                    if (lb := self._load_balancers.get(*key)) is not None:
                        self._holdings.consider(lb)
                await asyncio.sleep(0)

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
            self._holdings.consider(lb)
            self._follow_leases(lb)
            self._checks.take_over(lb)
            left = self._table.set_load_balancer(without(lb, self._ended(lb)))
        self._checks.follow(key)
        after = self._table.load_balancer(key)
        for other in self._table.take_concerned():
            self._reports.add(other)
        for network in frozenset().union(*(want.networks for want in (before, after) if want is not None)):
            forwarder = self._forwarders[network]
            forwarder.touch(key, lb.metadata.generation)
            forwarder.forget_listeners(key, left.get(network, ()))

    def _follow_leases(self, lb: LoadBalancer) -> None:
        if not self._holdings.is_ours(lb.key):
            for leases in self._leases.values():
                leases.abandon(lb.key)
            return
        lease = lb.status.lease
        shown = {a.ip for a in (*lb.status.addresses, *lb.status.next_addresses)}
        for network, leases in self._leases.items():
            held = leases.address(lb.key) or (parsed(lease.ip) if lease is not None else None)
            visible = held is not None and not lb.metadata.deletion_timestamp and str(held) in shown
            leases.follow(lb, in_use=visible or (held is not None and self._observer.on_link(lb.key, network, held)))

    def _forget_leases(self, key: LoadBalancerKey) -> None:
        """It vanished without its finalizer: its lease goes back once the address is off the link."""
        for network, leases in self._leases.items():
            held = leases.address(key)
            if held is None or not self._observer.on_link(key, network, held):
                leases.forget(key)

    def _ended(self, lb: LoadBalancer) -> frozenset[str]:
        """The addresses by DHCP in its status for which there is no lease (any more)."""
        addresses = (*lb.status.addresses, *lb.status.next_addresses)
        by_dhcp = [a for a in addresses if not a.ip_pool and a.network in self._leases]
        return frozenset(a.ip for a in by_dhcp if str(self._leases[a.network].address(lb.key)) != a.ip)

    def _cluster_changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        obj = new or old
        if obj is None:
            return
        concerned = self._table.remove_cluster(obj.key) if new is None else self._table.set_cluster(new)
        if old is None or new is None or old.status.nodes != new.status.nodes:
            for key in self._table.of_cluster(obj.key):
                self._checks.follow(key)
            if new is not None and new.status.node_health:
                self._node_reports.add(new.key)
        for forwarder in self._forwarders.values():
            forwarder.wake()
        for key in concerned:
            self._reports.add(key)

    def _failing(self) -> Mapping[IPAddress, str]:
        """The nodes that are unfit on any network, and why."""
        return {node: why for health in self._health.values() for node, why in health.failing.items()}

    def _health_changed(self, nodes: frozenset[IPAddress]) -> None:
        for key in self._table.set_failing(frozenset(self._failing())):
            self._reports.add(key)
        self._node_reports.changed(nodes)
        for forwarder in self._forwarders.values():
            forwarder.wake()

    def _wake(self, key: LoadBalancerKey) -> None:
        want = self._table.load_balancer(key)
        for network in want.networks if want is not None else ():
            self._forwarders[network].wake()

    def _rules_mended(self, keys: Iterable[LoadBalancerKey]) -> None:
        for key in keys:
            lb = self._load_balancers.get(*key)
            if lb is not None:
                message = f"Somebody else had changed its rules on host {self._node}; they are as they should be again."
                self._events.record(LOADBALANCERS, lb, RULES_MENDED, message)

    def _frame_returned(self, network: str, listener: ListenerKey, mac: MACAddress) -> None:
        key = self._table.owner(network, listener)
        if key is not None:
            for node in self._table.named(network, key, mac):
                self._returns.returned(key, node, self._table.clock())

    async def _review(self) -> None:
        """Leave out the nodes that send back what comes for a load balancer, and take them in again in time; forget
        in time that nodes have claimed addresses; tell the other hosts how this one stands."""
        while True:
            if not any(forwarder.is_opening for forwarder in self._forwarders.values()):
                self._hosts.set_standing(self._standing())
            await asyncio.sleep(REVIEW_EVERY)
            for key in self._returns.concerned():
                nodes = self._table.backends_of(key).keys()
                left_out = self._returns.left_out(key, nodes, self._table.clock())
                if self._table.set_refusing(key, left_out):
                    log.info("nodes left out", extra={"load_balancer": "/".join(key), "nodes": sorted(left_out)})
                    self._wake(key)
                self._reports.add(key)
            for where in self._answerers.places():
                self._tell_of_answerers(where)

    def _tell_of_answerers(self, where: Where) -> None:
        for key in self._table.set_answerers(where, self._answerers.nodes(where, self._table.clock())):
            self._reports.add(key)
            self._forwarders[where[0]].wake()

    def _adopted(self) -> None:
        """It is known what a network's kernel has: those who want nothing of it any more can be told so."""
        for key in self._load_balancers.objects:
            self._reports.add(key)

    def _defended(self, network: str, vip: IPAddress, mac: str) -> None:
        log.warning("somebody else claims an address of ours; it is defended", extra={"address": str(vip), "mac": mac})
        for key in self._table.users_of(network, vip):
            lb = self._load_balancers.get(*key)
            if lb is not None:
                named = self._table.named(network, key, MACAddress.parse(mac))
                self._node_claims(network, key, named)
                nodes = ", ".join(sorted(named))
                who, remedy = f"{mac} claims", "change it there"
                if nodes:
                    who = f"Node {nodes} ({mac}) claims"
                    remedy = "if kube-proxy there runs in mode ipvs, set its strictARP to true"
                message = f"{who} {vip} too, which host {self._node} has up and defends: {remedy}."
                self._events.record(LOADBALANCERS, lb, CLAIMED_BY_OTHER, message)

    def _node_claims(self, network: str, key: LoadBalancerKey, nodes: Iterable[str]) -> None:
        want = self._table.load_balancer(key)
        if want is not None:
            for node in nodes:
                self._answerers.claimed((network, want.cluster), node, self._table.clock())
                self._tell_of_answerers((network, want.cluster))

    # Back into the status.

    async def _report(self, key: LoadBalancerKey) -> None:
        lb = self._load_balancers.get(*key)
        if lb is None:
            self._forget_leases(key)
            return
        self._holdings.consider(lb)
        if not self._holdings.may_write(lb):
            return
        self._decline(lb)
        self._follow_leases(lb)
        leasing = self._leasing(lb)
        said = self._observer.status(lb, leasing)
        if said == reported(lb):
            return
        with self._traces.reports(lb, said):
            try:
                await self._write(lb, said)
                self._holdings.written(lb)
            except NotFound:
                return  # gone meanwhile
        self._tell_of_loss(lb, leasing)

    async def _write(self, lb: LoadBalancer, status: object) -> None:
        """Only on the version that was looked at: what another host has written meanwhile stands."""
        metadata = {"uid": lb.metadata.uid, "resourceVersion": lb.metadata.resource_version}
        patch = {"metadata": metadata, "status": msgspec.to_builtins(status)}
        written = await self._client.apply(
            LOADBALANCERS, *lb.key, patch, field_manager=FIELD_MANAGER, subresource="status"
        )
        self._load_balancers.observe(written)

    def _standing(self) -> dict[str, Presence]:
        found = {}
        for network, forwarder in self._forwarders.items():
            if forwarder.mac:
                config = self._configs[network]
                own = (i.ip for i in (config.address, config.address6) if i is not None)
                found[network] = Presence(
                    mac=forwarder.mac,
                    addresses=tuple(str(a) for a in own),
                    ready=self._serves(network),
                    silent=tuple(sorted(self._fellows[network].down)),
                )
        return found

    def _serves(self, network: str) -> bool:
        """Whether this host may have addresses there. It keeps them while an agent is restarted."""
        forwarder = self._forwarders[network]
        up = forwarder.in_line or forwarder.goes_on
        return up and not self._fellows[network].is_cut_off and not self._twin(network)

    def _twin(self, network: str) -> str:
        """Another host with this one's MAC on a network, of which the first by name goes on; "" for none."""
        first = self._hosts.roster.first_with(network, self._forwarders[network].mac)
        return first if first < self._node else ""

    def _leasing(self, lb: LoadBalancer) -> Leasing | None:
        """Of the network that it asks for; until it has a lease there, that of the network which it leaves."""
        network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "")
        found = {name: said for name, leases in self._leases.items() if (said := leases.leasing(lb)) is not None}
        asked = found.pop(network, None)
        if asked is not None and asked.lease is not None:
            return asked
        for left in found.values():
            return left if asked is None else Leasing(left.lease, asked.problem)
        if asked is not None:
            return asked
        if lb.spec.ipam != "dhcp" or lb.metadata.deletion_timestamp or network in self._leases:
            return None
        name = network or "the management network"
        message = f"This host does not stand on {name}: no lease is asked for. Add it to the agent's networks file."
        return Leasing(None, Problem("NetworkNotConfigured", message))

    def _decline(self, lb: LoadBalancer) -> None:
        """Tell the DHCP client of an address that was found with somebody else when it was to be brought up."""
        for network, leases in self._leases.items():
            address = leases.address(lb.key)
            if address is not None:
                for mac in self._forwarders[network].foreign([address]).values():
                    leases.conflict(lb.key, mac)

    def _tell_of_loss(self, before: LoadBalancer, leasing: Leasing | None) -> None:
        lease = before.status.lease
        if lease is None or leasing is None or (leasing.lease is not None and leasing.lease.ip == lease.ip):
            return
        why = f"Its lease has ended: {leasing.problem.message.rstrip('.')}." if leasing.problem is not None else ""
        if leasing.lease is not None:
            why = f"{why} {leasing.lease.ip} is leased now.".lstrip()
        self._events.record(LOADBALANCERS, before, LEASE_LOST, f"{lease.ip} is off the link. {why}".rstrip())


def _holder(lb: LoadBalancer) -> str:
    return lb.status.holder.node if lb.status.holder is not None else ""


async def give_up(client: KubeClient, node: str) -> int:
    """Take this host's name off every load balancer that it held; return how many. For ``agent leave``."""
    count = 0
    for lb in (await client.list(LOADBALANCERS)).items:
        if lb.status.holder is not None and lb.status.holder.node == node:
            patch = {"metadata": {"uid": lb.metadata.uid}, "status": {}}
            await client.apply(LOADBALANCERS, *lb.key, patch, field_manager=FIELD_MANAGER, subresource="status")
            count += 1
    return count
