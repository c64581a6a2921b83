"""From LoadBalancers and GuestClusters to the plan of each network: what this host's kernel should do.

:class:`ForwardingTable` is pure state. Objects go in as they change, and what is seen of nodes on the networks; out
come, per network, the whole plan (start, repair) or just the delta since the last one that was applied. A load balancer
costs as much as it has listeners, whatever else there is; a cluster's node that comes or goes costs the groups it is
in. The virtual machines that a load balancer chooses by label are a cluster of its own. How a node is reached is
:mod:`cloudprovider.core.reach`'s matter, how a change goes on without cutting connections that of
:mod:`cloudprovider.core.transitions`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from cloudprovider.core.answerers import Where
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.backends import usable
from cloudprovider.core.choices import Choices, ClusterKey, question_of
from cloudprovider.core.grouping import Grouping
from cloudprovider.core.groups import GroupKey, Node, Sightings
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.members import machines_of, nodes_of
from cloudprovider.core.modes import Choice, NetworkFacts, why_not_direct, without_node_ports
from cloudprovider.core.plan import Changes, Forward, GroupId, IPAddress, ListenerKey, Member, Plan
from cloudprovider.core.reach import Reach
from cloudprovider.core.transitions import REFUSE, Transitions
from cloudprovider.core.wanted import (
    LoadBalancerKey,
    Place,
    Problem,
    Wanted,
    WantedListener,
    cluster_of,
    is_for_machines,
    wanted,
)


@dataclass(frozen=True)
class _Way:
    """How one listener is forwarded, but for the group's number."""

    network: str
    key: ListenerKey
    group: GroupKey
    forward: Forward


@dataclass
class _Network:
    vips: dict[IPAddress, set[LoadBalancerKey]] = field(default_factory=dict)
    """The addresses that this host answers for."""
    standing: defaultdict[IPAddress, set[LoadBalancerKey]] = field(default_factory=lambda: defaultdict(set))
    """All addresses, whoever answers for them."""
    touched_vips: set[IPAddress] = field(default_factory=set)
    kernel: Transitions = field(default_factory=Transitions)
    owners: dict[ListenerKey, LoadBalancerKey] = field(default_factory=dict)
    waiting: dict[ListenerKey, set[LoadBalancerKey]] = field(default_factory=dict)


class ForwardingTable:
    """All that this host should forward. ``networks``: the ones it stands on; ``clock``: monotonic, in seconds."""

    def __init__(self, networks: Iterable[str], clock: Callable[[], float]) -> None:
        self.clock = clock
        self._networks = {name: _Network() for name in networks}
        self._reach = Reach(self._networks)
        self._groups = Grouping(self._networks, self._reach)
        self._wanted: dict[LoadBalancerKey, Wanted] = {}
        self._ways: dict[LoadBalancerKey, tuple[_Way, ...]] = {}
        self._places: dict[LoadBalancerKey, tuple[Place, ...]] = {}
        self._refusing: dict[LoadBalancerKey, frozenset[str]] = {}
        self._healthy: dict[LoadBalancerKey, frozenset[str]] = {}
        self._predecessors: dict[LoadBalancerKey, Mapping[str, tuple[IPAddress, ...]]] = {}
        self.modes = Choices(self._networks)
        self._concerned: set[LoadBalancerKey] = set()
        self._others: set[LoadBalancerKey] = set()
        """Load balancers whose addresses another host has up."""

    # In: objects.

    def set_cluster(self, cluster: GuestCluster) -> frozenset[LoadBalancerKey]:
        """Take a tenant's nodes; return the load balancers whose mode has changed by it."""
        nodes = nodes_of(cluster)
        if self._reach.nodes(cluster.key) == nodes:
            return frozenset()
        changed = self.modes.set_nodes(cluster.key, _addresses(nodes.values()))
        return self._nodes_changed(cluster.key, nodes, changed)

    def remove_cluster(self, key: ClusterKey) -> frozenset[LoadBalancerKey]:
        """Forget a tenant; its load balancers refuse from now on."""
        return self._nodes_changed(key, {}, self.modes.set_nodes(key, frozenset()))

    def set_load_balancer(self, lb: LoadBalancer) -> Mapping[str, frozenset[ListenerKey]]:
        """Take a load balancer as it is now; return the listeners that it gave up, by network."""
        want = wanted(lb, self._networks)
        if want is None:
            return self.remove_load_balancer(lb.key)
        if is_for_machines(lb):
            self._set_machines(lb)
        if self._wanted.get(lb.key) == want:
            return {}
        return self._replace(lb.key, want)

    def remove_load_balancer(self, key: LoadBalancerKey) -> Mapping[str, frozenset[ListenerKey]]:
        """Forget a load balancer; return the listeners that nobody serves any more, by network."""
        self._refusing.pop(key, None)
        self._healthy.pop(key, None)
        self._predecessors.pop(key, None)
        before = self._wanted.get(key)
        gone = self._replace(key, None)
        self._others.discard(key)
        if before is not None and self.modes.forget_machines(before.cluster):
            self._nodes_changed(before.cluster, {}, frozenset())
        return gone

    def set_ours(self, key: LoadBalancerKey, *, ours: bool) -> bool:
        """Whether this host is to answer for a load balancer's addresses; it forwards what comes for them anyhow, so
        that hosts can follow each other without a gap. Ours is what was never said to be another's. Return whether
        that is a change."""
        if ours == (key not in self._others):
            return False
        (self._others.discard if ours else self._others.add)(key)
        for place in self._places.get(key, ()):
            (self._answer if ours else self._fall_silent)(key, place)
        return True

    def is_ours(self, key: LoadBalancerKey) -> bool:
        """Whether this host is to answer for its addresses."""
        return key not in self._others

    def take_concerned(self) -> frozenset[LoadBalancerKey]:
        """The load balancers, since the last call, that have come to have somebody to send to, or nobody any more, as
        another one has changed: both claimed one machine's address."""
        taken = frozenset(self._concerned)
        self._concerned.clear()
        return taken

    # In: what is seen on the networks.

    def set_facts(self, network: str, facts: NetworkFacts) -> frozenset[LoadBalancerKey]:
        """How this host stands on a network; return the load balancers whose mode has changed by it."""
        handed_over = self._reach.facts(network).hands_over
        concerned = self._reach.set_facts(network, facts)
        if facts.hands_over != handed_over:
            for lb in [lb for lb in self._predecessors if lb in self._wanted]:
                self._replace(lb, self._wanted[lb])
        return self._choose_again(self.modes.set_facts(network, facts)) | self._refresh_all(network, concerned)

    def set_answerers(self, where: Where, nodes: frozenset[str]) -> frozenset[LoadBalancerKey]:
        """Which of a cluster's nodes answer for addresses themselves; return the load balancers that it concerns."""
        if self.modes.answerers(where) == nodes:
            return frozenset()
        self._choose_again(self.modes.set_answerers(where, nodes))
        return self.of_cluster(where[1])

    def set_sightings(self, network: str, seen: Sightings) -> frozenset[LoadBalancerKey]:
        """Which nodes answer on a network, and with which MAC; return the load balancers that it concerns."""
        if self._reach.seen(network) == seen:
            return frozenset()
        in_nat = self._reach.set_seen(network, seen)
        return self._refresh(network, {*self._groups.by_mac(network), *self._groups.of(network, in_nat)})

    def set_failing(self, nodes: frozenset[IPAddress]) -> frozenset[LoadBalancerKey]:
        """Nodes that probes have found unable to take traffic; return the load balancers that it concerns."""
        changed = self._groups.failing ^ nodes
        self._groups.failing = nodes
        touched = self._reach.clusters_with(changed)
        return frozenset[LoadBalancerKey]().union(*(self._refresh_all(n, touched) for n in self._networks))

    def set_refusing(self, key: LoadBalancerKey, nodes: frozenset[str]) -> bool:
        """The nodes (by name) that send back what comes for this load balancer: they get nothing of it. Return
        whether that is a change."""
        want = self._wanted.get(key)
        if want is None or self._refusing.get(key, frozenset()) == nodes:
            return False
        self._refusing[key] = nodes
        self._replace(key, want)
        return True

    def set_healthy(self, key: LoadBalancerKey, nodes: frozenset[str]) -> bool:
        """The nodes (by name) that pass this load balancer's own check: it goes to them alone, and refuses where there
        is none. Without a check it says nothing. Return whether that is a change."""
        if self._healthy.get(key, frozenset()) == nodes:
            return False
        self._healthy[key] = nodes
        want = self._wanted.get(key)
        if want is not None and want.check is not None and want.machines:
            self._groups.passing[want.cluster] = nodes
            for network in want.networks:
                self._refresh_all(network, {want.cluster})
        elif want is not None and want.check is not None:
            self._replace(key, want)
        return True

    def set_predecessor(self, key: LoadBalancerKey, ways: Mapping[str, tuple[IPAddress, ...]]) -> bool:
        """The host that had a load balancer's addresses before this one, by its own addresses on each network; none:
        nobody's connections are to go on. Return whether that is a change."""
        if self._predecessors.get(key, {}) == ways:
            return False
        if ways:
            self._predecessors[key] = ways
        else:
            del self._predecessors[key]
        if (want := self._wanted.get(key)) is not None:
            self._replace(key, want)
        return True

    def adopt(self, network: str, found: Plan, fixed: Mapping[IPAddress, MACAddress]) -> frozenset[LoadBalancerKey]:
        """What the agent before has left in a network's kernel, rules and fixed neighbours, to go on from; return the
        load balancers that it concerns."""
        concerned = self._refresh_all(network, self._reach.adopt(network, fixed))
        state = self._networks[network]
        state.kernel = state.kernel.from_there(found, self.clock())
        return concerned

    # Out: plans.

    def plan(self, network: str) -> Plan:
        """The whole of one network."""
        state = self._networks[network]
        return Plan(frozenset(state.vips), dict(state.kernel.groups), dict(state.kernel.forwards))

    def take_changes(self, network: str) -> Changes:
        """The delta since the last call; if it can't be applied, compare :meth:`plan` with what is there instead."""
        return self._networks[network].kernel.take_changes(self.clock())

    def fixed(self, network: str) -> Mapping[IPAddress, MACAddress]:
        """The neighbours whose MAC is known without asking, whatever anybody answers for them."""
        return self._reach.fixed(network)

    def take_fixed(self, network: str) -> Mapping[IPAddress, MACAddress | None]:
        """What has changed of them since the last call; None: not any more."""
        return self._reach.take_fixed(network)

    def release_fixed(self, network: str) -> bool:
        """Have those forgotten that nobody claims and no connection goes to any more; return whether there are any."""
        return self._reach.release(network, self._networks[network].kernel.draining)

    def take_vips(self, network: str) -> frozenset[IPAddress]:
        """The addresses that have come, gone or changed hands since the last call."""
        state = self._networks[network]
        taken = frozenset(state.touched_vips)
        state.touched_vips.clear()
        return taken

    def transitions(self, network: str) -> Transitions:
        """What of a network goes on as before, and what is due."""
        return self._networks[network].kernel

    def passes_frames(self, network: str) -> bool:
        """Whether anything on a network is forwarded in mode dsr."""
        return bool(self._groups.by_mac(network))

    def awaited(self, network: str) -> frozenset[IPAddress]:
        """Those of the nodes that are followed there of whom it can't be told yet whether they answer."""
        return self._reach.seen(network).awaited

    # Out: about load balancers.

    def vips(self, network: str) -> frozenset[IPAddress]:
        """The addresses to answer for on one network."""
        return frozenset(self._networks[network].vips)

    def load_balancer(self, key: LoadBalancerKey) -> Wanted | None:
        """What a load balancer wants of this host; None if nothing."""
        return self._wanted.get(key)

    def users_of(self, network: str, vip: IPAddress) -> frozenset[LoadBalancerKey]:
        """The load balancers that this host answers for an address for."""
        return frozenset(self._networks[network].vips.get(vip, ()))

    def standing_on(self, place: Place) -> frozenset[LoadBalancerKey]:
        """The load balancers that an address stands for, whoever answers for it."""
        return frozenset(self._networks[place.network].standing.get(place.vip, ()))

    def owner(self, network: str, listener: ListenerKey) -> LoadBalancerKey | None:
        """The load balancer that a listener is forwarded for."""
        return self._networks[network].owners.get(listener)

    def of_cluster(self, key: ClusterKey) -> frozenset[LoadBalancerKey]:
        """The load balancers of one tenant."""
        return frozenset(lb for lb, want in self._wanted.items() if want.cluster == key)

    def clusters_with(self, addresses: AbstractSet[IPAddress]) -> AbstractSet[ClusterKey]:
        """The tenants of which a node has any of these."""
        return self._reach.clusters_with(addresses)

    def backends_of(self, key: LoadBalancerKey) -> Mapping[str, tuple[IPAddress, ...]]:
        """The nodes, or virtual machines, that a load balancer may go to, and their addresses, by name."""
        want = self._wanted.get(key)
        if want is None:
            return {}
        nodes = self._reach.nodes(want.cluster)
        return {n: node.addresses for n, node in nodes.items() if want.nodes is None or n in want.nodes}

    def named(self, network: str, key: LoadBalancerKey, mac: MACAddress) -> frozenset[str]:
        """The names of a load balancer's nodes that have this MAC on a network."""
        want = self._wanted.get(key)
        nodes = self._reach.nodes(want.cluster) if want is not None else {}
        macs = {name: {self._reach.mac(network, node, a) for a in node.addresses} for name, node in nodes.items()}
        return frozenset(name for name, its in macs.items() if mac in its)

    def choices(self, key: LoadBalancerKey) -> Mapping[Place, Choice]:
        """Which mode each address of a load balancer is forwarded in, and why."""
        want = self._wanted.get(key)
        if want is None:
            return {}
        return {Place(x.network, x.key.vip): self.modes[question_of(want, x)] for x in want.listeners}

    def trouble(self, key: LoadBalancerKey) -> Problem | None:
        """What of a load balancer its mode can't serve."""
        want = self._wanted.get(key)
        if want is None:
            return None
        for listener in want.listeners:
            choice = self.modes[question_of(want, listener)]
            if choice.trouble:
                return Problem("ModeNotPossible", f"{listener.key.vip}: {choice.trouble}")
        lacking = [x.key for x in want.listeners if not self._serves(want, x)]
        if not lacking:
            return None
        return Problem("NoNodePort", without_node_ports(lacking))

    def places(self, key: LoadBalancerKey) -> frozenset[Place]:
        """The addresses of a load balancer that are announced: not those that its mode can't serve."""
        return frozenset(self._places.get(key, ()))

    def has_nodes(self, key: LoadBalancerKey) -> bool:
        """Whether a load balancer has a node to send to, on each of its addresses."""
        return (
            all(self._groups.members(way.network, way.group) for way in self._ways.get(key, ())) and key in self._wanted
        )

    def is_looking(self, key: LoadBalancerKey) -> bool:
        """Whether a load balancer waits for the first of its nodes to answer on the network: it won't take long."""
        for way in self._ways.get(key, ()):
            if way.group.mode == "dsr" and not self._groups.members(way.network, way.group):
                nodes = self._reach.nodes((way.group.namespace, way.group.cluster))
                if _addresses(nodes.values()) & self.awaited(way.network):
                    return True
        return False

    def displaced(self, key: LoadBalancerKey) -> Mapping[ListenerKey, LoadBalancerKey]:
        """The listeners of a load balancer that another one had first."""
        ways = self._ways.get(key, ())
        return {w.key: o for w in ways if (o := self._networks[w.network].owners[w.key]) != key}

    # Inside: load balancers.

    def _replace(self, lb: LoadBalancerKey, want: Wanted | None) -> Mapping[str, frozenset[ListenerKey]]:
        before, ways = self._wanted.pop(lb, None), self._ways.pop(lb, ())
        for place in self._places.pop(lb, ()):
            self._leave(lb, place)
            if lb not in self._others:
                self._fall_silent(lb, place)
        for each in (before, want):
            if each is not None and each.machines:
                self._groups.passing.pop(each.cluster, None)
        if want is not None and want.machines and want.check is not None:
            self._groups.passing[want.cluster] = self._healthy.get(lb, frozenset())
        self.modes.ask(lb, before, want)
        self._use(before, want)
        after: tuple[_Way, ...] = ()
        if want is not None:
            self._wanted[lb] = want
            after = self._ways_of(lb, want)
            self._ways[lb] = after
            troubled = {place for place, choice in self.choices(lb).items() if choice.trouble}
            self._places[lb] = tuple(place for place in want.places if place not in troubled)
            for place in self._places[lb]:
                self._networks[place.network].standing[place.vip].add(lb)
                if lb not in self._others:
                    self._answer(lb, place)
        kept = {(way.network, way.key): way.group for way in after}
        gone = self._take_out(lb, [way for way in ways if (way.network, way.key) not in kept])
        for way in ways:
            state = self._networks[way.network]
            if state.owners.get(way.key) == lb and kept.get((way.network, way.key), way.group) != way.group:
                self._groups.part(way.network, way.group, way.key)
        for way in after:
            self._put_in(lb, way)
        for group, network in {(way.group, way.network) for way in ways}:
            self._groups.leave(network, group, self._networks[network].kernel)
        return {n: frozenset(k for k in keys if k not in self._networks[n].owners) for n, keys in gone.items()}

    def _leave(self, lb: LoadBalancerKey, place: Place) -> None:
        standing = self._networks[place.network].standing
        standing[place.vip].discard(lb)
        if not standing[place.vip]:
            del standing[place.vip]

    def _answer(self, lb: LoadBalancerKey, place: Place) -> None:
        state = self._networks[place.network]
        state.vips.setdefault(place.vip, set()).add(lb)
        state.touched_vips.add(place.vip)

    def _fall_silent(self, lb: LoadBalancerKey, place: Place) -> None:
        state = self._networks[place.network]
        state.vips[place.vip].discard(lb)
        if not state.vips[place.vip]:
            del state.vips[place.vip]
            state.touched_vips.add(place.vip)

    def _ways_of(self, lb: LoadBalancerKey, want: Wanted) -> tuple[_Way, ...]:
        found: list[_Way] = []
        for listener in want.listeners:
            choice = self.modes[question_of(want, listener)]
            if not self._serves(want, listener):
                continue
            group = GroupKey(
                *want.cluster,
                listener.key.vip.version,
                choice.mode,
                self._names(lb, want),
                tuple(sorted(self._refusing.get(lb, ()))),
            )
            forward = Forward(
                REFUSE,
                listener.backend_port or 0,
                by_client=want.by_client,
                sources=listener.sources,
                mode=choice.mode,
            )
            found.append(_Way(listener.network, listener.key, group, forward))
        return tuple(found)

    def _names(self, lb: LoadBalancerKey, want: Wanted) -> tuple[str, ...] | None:
        if want.check is None or want.machines:
            return want.nodes
        healthy = self._healthy.get(lb, frozenset())
        return tuple(sorted(healthy if want.nodes is None else healthy & set(want.nodes)))

    def _serves(self, want: Wanted, listener: WantedListener) -> bool:
        choice = self.modes[question_of(want, listener)]
        return not choice.trouble and (choice.mode == "dsr" or listener.backend_port is not None)

    def _put_in(self, lb: LoadBalancerKey, way: _Way) -> None:
        state = self._networks[way.network]
        if state.owners.setdefault(way.key, lb) != lb:
            state.waiting.setdefault(way.key, set()).add(lb)
            return
        self._groups.join(way.network, way.group, way.key)
        want, cut = self._wanted[lb], self._cut(lb, way.network)
        number = self._groups.enter(way.network, way.group, state.kernel, self.clock(), cut if want.machines else ())
        self._forward(state, way, number, want, cut)

    def _take_out(self, lb: LoadBalancerKey, ways: Iterable[_Way]) -> dict[str, set[ListenerKey]]:
        """Take these listeners from a load balancer, and let those who wait have them."""
        gone: defaultdict[str, set[ListenerKey]] = defaultdict(set)
        for way in ways:
            state = self._networks[way.network]
            if state.owners.get(way.key) != lb:
                state.waiting.get(way.key, set()).discard(lb)
                continue
            del state.owners[way.key]
            self._groups.part(way.network, way.group, way.key)
            state.kernel.remove_forward(way.key)
            gone[way.network].add(way.key)
            for heir in sorted(state.waiting.pop(way.key, ())):
                for its in (x for x in self._ways[heir] if (x.network, x.key) == (way.network, way.key)):
                    self._put_in(heir, its)
        return gone

    # Inside: groups and modes.

    def _forward(self, state: _Network, way: _Way, number: GroupId, want: Wanted, cut: frozenset[Member]) -> None:
        """Send a listener to a group; to nobody (0) it is by refusal, in mode nat."""
        key, forward = way.key, replace(way.forward, group=number)
        if number == REFUSE:
            forward = replace(forward, mode="nat", backend_port=forward.backend_port or key.port)
        elif forward.mode == "dsr":
            forward = replace(forward, backend_port=0)
        if forward.mode == "nat" and key.protocol == "TCP" and self._reach.facts(way.network).hands_over:
            before = self._predecessors.get(state.owners[key], {}).get(way.network, ())
            forward = replace(forward, predecessor=next((a for a in before if a.version == key.vip.version), None))
        state.kernel.set_forward(key, forward, self.clock(), drain=want.drain, cut=cut)

    def _cut(self, lb: LoadBalancerKey, network: str) -> frozenset[Member]:
        """The nodes that a load balancer does not go to because its check says so, as its connections know them, where
        these are to be cut."""
        want, healthy = self._wanted[lb], self._healthy.get(lb, frozenset())
        found: set[Member] = set()
        if want.check is None or not want.reset_failed:
            return frozenset()
        for name, node in self._reach.nodes(want.cluster).items():
            if name not in healthy and (want.nodes is None or name in want.nodes):
                macs = (self._reach.mac(network, node, address) for address in node.addresses)
                found.update(node.addresses, (mac for mac in macs if mac is not None))
        return frozenset(found)

    def _refresh(self, network: str, groups: Iterable[GroupKey]) -> frozenset[LoadBalancerKey]:
        """Look again who is in these groups; return the load balancers that have come to have nobody, or somebody."""
        state = self._networks[network]
        concerned: set[LoadBalancerKey] = set()
        for group in groups:
            users = self._groups.users(network, group)
            of = next((state.owners[key] for key in users), None)
            cut = self._cut(of, network) if of is not None and self._wanted[of].machines else ()
            number = self._groups.enter(network, group, state.kernel, self.clock(), cut)
            for key in users:
                lb = state.owners[key]
                if (state.kernel.forwards[key].group == REFUSE) != (number == REFUSE):
                    way = next(w for w in self._ways[lb] if (w.network, w.key) == (network, key))
                    self._forward(state, way, number, self._wanted[lb], self._cut(lb, way.network))
                    concerned.add(lb)
            if number == REFUSE:
                self._groups.empty(group, state.kernel)
        return frozenset(concerned)

    def _set_machines(self, lb: LoadBalancer) -> None:
        cluster, machines = cluster_of(lb), machines_of(lb)
        obstacle = why_not_direct(lb.spec.listeners, usable(lb.status.backends))
        changed = self.modes.set_machines(cluster, _addresses(machines.values()), obstacle)
        if changed or self._reach.nodes(cluster) != machines:
            self._concerned |= self._nodes_changed(cluster, machines, changed) - {lb.key}

    def _nodes_changed(
        self, cluster: ClusterKey, nodes: Mapping[str, Node], mode_changed: frozenset[LoadBalancerKey]
    ) -> frozenset[LoadBalancerKey]:
        concerned = self._reach.set_nodes(cluster, nodes)
        found = set(self._choose_again(mode_changed))
        for network in self._networks:
            found |= self._refresh_all(network, {cluster, *concerned.get(network, ())})
        return frozenset(found)

    def _use(self, before: Wanted | None, after: Wanted | None) -> None:
        """A load balancer has come to be on networks, or left them."""
        old, new = _stands(before), _stands(after)
        for here, step in ((new - old, 1), (old - new, -1)):
            for network, cluster in here:
                concerned = self._reach.use(network, cluster, step)
                self._concerned |= self._refresh_all(network, concerned)

    def _refresh_all(self, network: str, clusters: AbstractSet[ClusterKey]) -> frozenset[LoadBalancerKey]:
        """Look again who is in the groups of these clusters."""
        return self._refresh(network, self._groups.of(network, clusters))

    def _choose_again(self, changed: frozenset[LoadBalancerKey]) -> frozenset[LoadBalancerKey]:
        for lb in sorted(changed):
            self._replace(lb, self._wanted[lb])
        return changed


def _addresses(nodes: Iterable[Node]) -> frozenset[IPAddress]:
    return frozenset(address for node in nodes for address in node.addresses)


def _stands(want: Wanted | None) -> frozenset[tuple[str, ClusterKey]]:
    """On which networks it has listeners, and whose nodes they go to."""
    return frozenset() if want is None else frozenset((x.network, want.cluster) for x in want.listeners)
