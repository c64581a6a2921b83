"""From LoadBalancers and GuestClusters to the plan of each network: what this host's kernel should do.

:class:`ForwardingTable` is pure state. Objects go in as they change, and what is seen of nodes on the networks; out
come, per network, the whole plan (start, repair) or just the delta since the last one that was applied. A load balancer
costs as much as it has listeners, whatever else there is; a cluster's node that comes or goes costs the groups it is
in. How a change goes on without cutting connections is :mod:`cloudprovider.core.transitions`' matter.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.choices import Choices, ClusterKey, question_of
from cloudprovider.core.groups import GroupIds, GroupKey, Sightings, members
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.modes import Choice, NetworkFacts, without_node_ports
from cloudprovider.core.plan import Changes, Forward, GroupId, IPAddress, ListenerKey, Member, Plan
from cloudprovider.core.transitions import REFUSE, Transitions
from cloudprovider.core.wanted import LoadBalancerKey, Place, Problem, Wanted, WantedListener, wanted


@dataclass(frozen=True)
class _Way:
    """How one listener is forwarded, but for the group's number."""

    network: str
    key: ListenerKey
    group: GroupKey
    forward: Forward


@dataclass
class _Network:
    seen: Sightings = field(default_factory=Sightings)
    vips: dict[IPAddress, set[LoadBalancerKey]] = field(default_factory=dict)
    touched_vips: set[IPAddress] = field(default_factory=set)
    kernel: Transitions = field(default_factory=Transitions)
    users: dict[GroupKey, set[ListenerKey]] = field(default_factory=dict)
    owners: dict[ListenerKey, LoadBalancerKey] = field(default_factory=dict)
    waiting: dict[ListenerKey, set[LoadBalancerKey]] = field(default_factory=dict)


class ForwardingTable:
    """All that this host should forward. ``networks``: the ones it stands on; ``clock``: monotonic, in seconds."""

    def __init__(self, networks: Iterable[str], clock: Callable[[], float]) -> None:
        self.clock = clock
        self._networks = {name: _Network() for name in networks}
        self._clusters: dict[ClusterKey, dict[str, tuple[IPAddress, ...]]] = {}
        self._failing: frozenset[IPAddress] = frozenset()
        self._wanted: dict[LoadBalancerKey, Wanted] = {}
        self._ways: dict[LoadBalancerKey, tuple[_Way, ...]] = {}
        self._places: dict[LoadBalancerKey, tuple[Place, ...]] = {}
        self._refusing: dict[LoadBalancerKey, frozenset[str]] = {}
        self._healthy: dict[LoadBalancerKey, frozenset[str]] = {}
        self._choices = Choices(self._networks)
        self._ids = GroupIds()

    # In: objects.

    def set_cluster(self, cluster: GuestCluster) -> frozenset[LoadBalancerKey]:
        """Take a tenant's nodes; return the load balancers whose mode has changed by it."""
        nodes = {n.name: tuple(ip_address(a) for a in n.addresses) for n in cluster.status.nodes}
        if self._clusters.get(cluster.key, {}) == nodes:
            return frozenset()
        return self._cluster_changed(cluster.key, nodes)

    def remove_cluster(self, key: ClusterKey) -> frozenset[LoadBalancerKey]:
        """Forget a tenant; its load balancers refuse from now on."""
        return self._cluster_changed(key, {})

    def set_load_balancer(self, lb: LoadBalancer) -> Mapping[str, frozenset[ListenerKey]]:
        """Take a load balancer as it is now; return the listeners that it gave up, by network."""
        want = wanted(lb, self._networks)
        if want is None:
            return self.remove_load_balancer(lb.key)
        if self._wanted.get(lb.key) == want:
            return {}
        return self._replace(lb.key, want)

    def remove_load_balancer(self, key: LoadBalancerKey) -> Mapping[str, frozenset[ListenerKey]]:
        """Forget a load balancer; return the listeners that nobody serves any more, by network."""
        self._refusing.pop(key, None)
        self._healthy.pop(key, None)
        return self._replace(key, None)

    # In: what is seen on the networks.

    def set_facts(self, network: str, facts: NetworkFacts) -> frozenset[LoadBalancerKey]:
        """How this host stands on a network; return the load balancers whose mode has changed by it."""
        return self._choose_again(self._choices.set_facts(network, facts))

    def set_sightings(self, network: str, seen: Sightings) -> frozenset[LoadBalancerKey]:
        """Which nodes answer on a network, and with which MAC; return the load balancers that it concerns."""
        state = self._networks[network]
        if state.seen == seen:
            return frozenset()
        state.seen = seen
        return self._refresh(network, [g for g in state.users if g.mode == "dsr"])

    def set_failing(self, nodes: frozenset[IPAddress]) -> frozenset[LoadBalancerKey]:
        """Nodes that probes have found unable to take traffic; return the load balancers that it concerns."""
        changed = self._failing ^ nodes
        self._failing = nodes
        touched = {c for c, of in self._clusters.items() if changed & _addresses(of)}
        found: set[LoadBalancerKey] = set()
        for network, state in self._networks.items():
            found |= self._refresh(network, [g for g in state.users if (g.namespace, g.cluster) in touched])
        return frozenset(found)

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
        if want is not None and want.check is not None:
            self._replace(key, want)
        return True

    def adopt(self, network: str, found: Plan) -> None:
        """What the agent before has left in a network's kernel, to go on from."""
        self._networks[network].kernel.adopt(found, self.clock())

    # Out: plans.

    def plan(self, network: str) -> Plan:
        """The whole of one network."""
        state = self._networks[network]
        return Plan(frozenset(state.vips), dict(state.kernel.groups), dict(state.kernel.forwards))

    def take_changes(self, network: str) -> Changes:
        """The delta since the last call; if it can't be applied, compare :meth:`plan` with what is there instead."""
        return self._networks[network].kernel.take_changes(self.clock())

    def take_vips(self, network: str) -> frozenset[IPAddress]:
        """The addresses that have come, gone or changed hands since the last call."""
        state = self._networks[network]
        taken = frozenset(state.touched_vips)
        state.touched_vips.clear()
        return taken

    def transitions(self, network: str) -> Transitions:
        """What of a network goes on as before, and what is due."""
        return self._networks[network].kernel

    def followed(self, network: str) -> frozenset[IPAddress]:
        """The nodes whose MACs are to be known on a network: all that stand in the subnet of an address, also where it
        is forwarded in mode nat, so that a change to dsr finds them."""
        return self._choices.followed(network)

    def awaited(self, network: str) -> frozenset[IPAddress]:
        """Those of them of whom it can't be told yet whether they answer."""
        return self._networks[network].seen.awaited

    # Out: about load balancers.

    def vips(self, network: str) -> frozenset[IPAddress]:
        """The addresses to answer for on one network."""
        return frozenset(self._networks[network].vips)

    def load_balancer(self, key: LoadBalancerKey) -> Wanted | None:
        """What a load balancer wants of this host; None if nothing."""
        return self._wanted.get(key)

    def users_of(self, network: str, vip: IPAddress) -> frozenset[LoadBalancerKey]:
        """The load balancers that an address stands for."""
        return frozenset(self._networks[network].vips.get(vip, ()))

    def owner(self, network: str, listener: ListenerKey) -> LoadBalancerKey | None:
        """The load balancer that a listener is forwarded for."""
        return self._networks[network].owners.get(listener)

    def of_cluster(self, key: ClusterKey) -> frozenset[LoadBalancerKey]:
        """The load balancers of one tenant."""
        return frozenset(lb for lb, want in self._wanted.items() if want.cluster == key)

    def node_addresses(self, network: str) -> frozenset[IPAddress]:
        """Every node that load balancers on a network may go to."""
        return self._choices.node_addresses(network)

    def nodes_of(self, key: LoadBalancerKey) -> frozenset[str]:
        """The names of the nodes that a load balancer may go to."""
        want = self._wanted.get(key)
        nodes = self._clusters.get(want.cluster, {}) if want is not None else {}
        return frozenset(nodes if want is None or want.nodes is None else nodes.keys() & set(want.nodes))

    def backends(self, key: LoadBalancerKey) -> Mapping[str, tuple[IPAddress, ...]]:
        """The addresses of the nodes that a load balancer may go to, by name."""
        want = self._wanted.get(key)
        nodes = self._clusters.get(want.cluster, {}) if want is not None else {}
        return {name: nodes[name] for name in self.nodes_of(key) & nodes.keys()}

    def named(self, network: str, key: LoadBalancerKey, mac: MACAddress) -> frozenset[str]:
        """The names of a load balancer's nodes that answer on a network with this MAC."""
        want, macs = self._wanted.get(key), self._networks[network].seen.macs
        nodes = self._clusters.get(want.cluster, {}) if want is not None else {}
        return frozenset(name for name, addresses in nodes.items() if mac in (macs.get(a) for a in addresses))

    def choices(self, key: LoadBalancerKey) -> Mapping[Place, Choice]:
        """Which mode each address of a load balancer is forwarded in, and why."""
        want = self._wanted.get(key)
        if want is None:
            return {}
        return {Place(x.network, x.key.vip): self._choices[question_of(want, x)] for x in want.listeners}

    def trouble(self, key: LoadBalancerKey) -> Problem | None:
        """What of a load balancer its mode can't serve."""
        want = self._wanted.get(key)
        if want is None:
            return None
        for listener in want.listeners:
            choice = self._choices[question_of(want, listener)]
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
        return all(self._members(way.network, way.group) for way in self._ways.get(key, ())) and key in self._wanted

    def is_looking(self, key: LoadBalancerKey) -> bool:
        """Whether a load balancer waits for the first of its nodes to answer on the network: it won't take long."""
        for way in self._ways.get(key, ()):
            if way.group.mode == "dsr" and not self._members(way.network, way.group):
                nodes = self._clusters.get((way.group.namespace, way.group.cluster), {})
                if _addresses(nodes) & self._networks[way.network].seen.awaited:
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
            state = self._networks[place.network]
            state.vips[place.vip].discard(lb)
            if not state.vips[place.vip]:
                del state.vips[place.vip]
                state.touched_vips.add(place.vip)
        self._choices.ask(lb, before, want)
        after: tuple[_Way, ...] = ()
        if want is not None:
            self._wanted[lb] = want
            after = self._ways_of(lb, want)
            self._ways[lb] = after
            troubled = {place for place, choice in self.choices(lb).items() if choice.trouble}
            self._places[lb] = tuple(place for place in want.places if place not in troubled)
            for place in self._places[lb]:
                state = self._networks[place.network]
                state.vips.setdefault(place.vip, set()).add(lb)
                state.touched_vips.add(place.vip)
        kept = {(way.network, way.key): way.group for way in after}
        gone = self._take_out(lb, [way for way in ways if (way.network, way.key) not in kept])
        for way in ways:
            state = self._networks[way.network]
            if state.owners.get(way.key) == lb and kept.get((way.network, way.key), way.group) != way.group:
                state.users[way.group].discard(way.key)
        for way in after:
            self._put_in(lb, way)
        for group, network in {(way.group, way.network) for way in ways}:
            self._leave(network, group)
        return {n: frozenset(k for k in keys if k not in self._networks[n].owners) for n, keys in gone.items()}

    def _ways_of(self, lb: LoadBalancerKey, want: Wanted) -> tuple[_Way, ...]:
        found: list[_Way] = []
        for listener in want.listeners:
            choice = self._choices[question_of(want, listener)]
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
        if want.check is None:
            return want.nodes
        healthy = self._healthy.get(lb, frozenset())
        return tuple(sorted(healthy if want.nodes is None else healthy & set(want.nodes)))

    def _serves(self, want: Wanted, listener: WantedListener) -> bool:
        choice = self._choices[question_of(want, listener)]
        return not choice.trouble and (choice.mode == "dsr" or listener.backend_port is not None)

    def _put_in(self, lb: LoadBalancerKey, way: _Way) -> None:
        state = self._networks[way.network]
        if state.owners.setdefault(way.key, lb) != lb:
            state.waiting.setdefault(way.key, set()).add(lb)
            return
        state.users.setdefault(way.group, set()).add(way.key)
        self._forward(state, way, self._enter(way.network, way.group), self._wanted[lb])

    def _take_out(self, lb: LoadBalancerKey, ways: Iterable[_Way]) -> dict[str, set[ListenerKey]]:
        """Take these listeners from a load balancer, and let those who wait have them."""
        gone: defaultdict[str, set[ListenerKey]] = defaultdict(set)
        for way in ways:
            state = self._networks[way.network]
            if state.owners.get(way.key) != lb:
                state.waiting.get(way.key, set()).discard(lb)
                continue
            del state.owners[way.key]
            state.users.get(way.group, set()).discard(way.key)
            state.kernel.remove_forward(way.key)
            gone[way.network].add(way.key)
            for heir in sorted(state.waiting.pop(way.key, ())):
                for its in (x for x in self._ways[heir] if (x.network, x.key) == (way.network, way.key)):
                    self._put_in(heir, its)
        return gone

    # Inside: groups and modes.

    def _members(self, network: str, group: GroupKey) -> frozenset[Member]:
        nodes = self._clusters.get((group.namespace, group.cluster), {})
        return members(group, nodes, failing=self._failing, seen=self._networks[network].seen)

    def _forward(self, state: _Network, way: _Way, number: GroupId, want: Wanted) -> None:
        """Send a listener to a group; to nobody (0) it is by refusal, in mode nat."""
        key, forward = way.key, replace(way.forward, group=number)
        if number == REFUSE:
            forward = replace(forward, mode="nat", backend_port=forward.backend_port or key.port)
        elif forward.mode == "dsr":
            forward = replace(forward, backend_port=0)
        cut = self._failed(state, way.group, want) if want.reset_failed and want.check is not None else ()
        state.kernel.set_forward(key, forward, self.clock(), drain=want.drain, cut=cut)

    def _failed(self, state: _Network, group: GroupKey, want: Wanted) -> frozenset[Member]:
        """The nodes that a load balancer does not go to because its check says so, as its connections know them."""
        nodes = self._clusters.get(want.cluster, {})
        names = (nodes.keys() if want.nodes is None else nodes.keys() & set(want.nodes)) - set(group.names or ())
        addresses = _addresses({name: nodes[name] for name in names})
        return frozenset(addresses | {state.seen.macs[a] for a in addresses if a in state.seen.macs})

    def _enter(self, network: str, group: GroupKey) -> GroupId:
        """The number of a group that is in use on a network; 0 while it has no member."""
        found = self._members(network, group)
        if not found:
            return REFUSE
        number = self._ids.give(group)
        self._networks[network].kernel.set_group(number, found, self.clock())
        return number

    def _leave(self, network: str, group: GroupKey) -> None:
        """Take a group off a network where no listener uses it; forget its number where none does anywhere."""
        state = self._networks[network]
        if state.users.get(group):
            return
        state.users.pop(group, None)
        number = self._ids.find(group)
        if number is None:
            return
        state.kernel.remove_group(number)
        if not any(group in other.users for other in self._networks.values()):
            self._ids.take_back(group)

    def _refresh(self, network: str, groups: Iterable[GroupKey]) -> frozenset[LoadBalancerKey]:
        """Look again who is in these groups; return the load balancers that have come to have nobody, or somebody."""
        state = self._networks[network]
        concerned: set[LoadBalancerKey] = set()
        for group in groups:
            number = self._enter(network, group)
            for key in state.users[group]:
                lb = state.owners[key]
                if (state.kernel.forwards[key].group == REFUSE) != (number == REFUSE):
                    way = next(w for w in self._ways[lb] if (w.network, w.key) == (network, key))
                    self._forward(state, way, number, self._wanted[lb])
                    concerned.add(lb)
            if number == REFUSE and (stale := self._ids.find(group)) is not None:
                state.kernel.remove_group(stale)
        return frozenset(concerned)

    def _cluster_changed(
        self, cluster: ClusterKey, nodes: dict[str, tuple[IPAddress, ...]]
    ) -> frozenset[LoadBalancerKey]:
        if nodes:
            self._clusters[cluster] = nodes
        else:
            self._clusters.pop(cluster, None)
        found = set(self._choose_again(self._choices.set_nodes(cluster, _addresses(nodes))))
        for network, state in self._networks.items():
            found |= self._refresh(network, [g for g in state.users if (g.namespace, g.cluster) == cluster])
        return frozenset(found)

    def _choose_again(self, changed: frozenset[LoadBalancerKey]) -> frozenset[LoadBalancerKey]:
        for lb in sorted(changed):
            self._replace(lb, self._wanted[lb])
        return changed


def _addresses(nodes: Mapping[str, tuple[IPAddress, ...]]) -> frozenset[IPAddress]:
    return frozenset(a for addresses in nodes.values() for a in addresses)
