"""From LoadBalancers and GuestClusters to the plan of each network: what this host's kernel should do.

:class:`ForwardingTable` is pure state. Objects go in as they change; out come, per network, the whole plan (start,
repair) or just the delta since the last one that was applied. A load balancer costs as much as it has listeners,
whatever else there is; a cluster's node that comes or goes costs the groups it is in.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import CLUSTER_LABEL, LoadBalancer
from cloudprovider.core.plan import Changes, Forward, GroupId, IPAddress, ListenerKey, Plan

LoadBalancerKey = tuple[str, str]
"""(namespace, name) of a LoadBalancer."""

_GROUP_BITS = 24
_REFUSE = GroupId(0)


@dataclass(frozen=True, order=True)
class GroupKey:
    """A set of nodes by name: of one cluster, all that take traffic or (``all_nodes`` false) those of ``names``."""

    namespace: str
    cluster: str
    family: int
    all_nodes: bool = True
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Why a load balancer is not served, or not wholly. ``reason`` is the condition's reason."""

    reason: str
    message: str


@dataclass(frozen=True)
class Wanted:
    """What one load balancer wants of this host. ``problem``: nothing of it can be served."""

    network: str = ""
    vips: tuple[IPAddress, ...] = ()
    listeners: tuple[tuple[ListenerKey, GroupKey, Forward], ...] = ()
    problem: Problem | None = None
    partial: Problem | None = None

    def __iter__(self) -> Iterator[ListenerKey]:
        return (key for key, _, _ in self.listeners)


def wanted(lb: LoadBalancer) -> Wanted | None:
    """Read one object; None when it asks nothing of any host (no address yet, going away, or a stock provider's)."""
    try:
        return _wanted(lb)
    except ValueError as err:  # an address or a CIDR that is none
        return Wanted(problem=Problem("InvalidSpec", f"{err}. Correct it in the LoadBalancer."))


def _wanted(lb: LoadBalancer) -> Wanted | None:
    spec, status = lb.spec, lb.status
    if lb.metadata.deletion_timestamp or not status.addresses:
        return None
    if spec.workload_type != "cluster":
        return Wanted(
            problem=Problem(
                "WorkloadNotSupported", "This version forwards for guest clusters only (spec.workloadType: cluster)."
            )
        )
    if spec.service is None:
        return None
    if spec.mode == "dsr":
        return Wanted(
            problem=Problem("ModeNotSupported", "This version forwards in mode nat only; set the mode to auto or nat.")
        )
    cluster = lb.metadata.labels.get(CLUSTER_LABEL, "")
    sources = frozenset(ip_network(s, strict=False) for s in spec.source_ranges)
    listeners: list[tuple[ListenerKey, GroupKey, Forward]] = []
    without_node_port = sorted({f"{x.protocol} {x.port}" for x in spec.listeners if x.backend_port is None})
    vips = tuple(ip_address(a.ip) for a in status.addresses)
    local = spec.external_traffic_policy == "Local"
    for vip in vips:
        group = GroupKey(
            lb.metadata.namespace, cluster, vip.version, not local, tuple(sorted(spec.endpoint_nodes)) if local else ()
        )
        listeners += [
            (
                ListenerKey(vip, x.protocol, x.port),
                group,
                Forward(_REFUSE, x.backend_port, by_client=spec.session_affinity == "ClientIP", sources=sources),
            )
            for x in spec.listeners
            if x.backend_port is not None
        ]
    partial = None
    if without_node_port:
        partial = Problem(
            "NoNodePort",
            f"No node port for {', '.join(without_node_port)}: mode nat needs one. Remove "
            "allocateLoadBalancerNodePorts: false from the Service.",
        )
    return Wanted(status.addresses[0].network, vips, tuple(listeners), partial=partial)


@dataclass
class _Network:
    vips: dict[IPAddress, set[LoadBalancerKey]] = field(default_factory=dict)
    forwards: dict[ListenerKey, Forward] = field(default_factory=dict)
    groups: dict[GroupId, frozenset[IPAddress]] = field(default_factory=dict)
    users: dict[GroupKey, set[ListenerKey]] = field(default_factory=dict)
    touched_forwards: set[ListenerKey] = field(default_factory=set)
    touched_groups: set[GroupId] = field(default_factory=set)


class ForwardingTable:
    """All that this host should forward. ``networks``: the ones it stands on."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = {name: _Network() for name in networks}
        self._clusters: dict[tuple[str, str], dict[str, tuple[IPAddress, ...]]] = {}
        self._wanted: dict[LoadBalancerKey, Wanted] = {}
        self._owners: dict[ListenerKey, LoadBalancerKey] = {}
        self._waiting: dict[ListenerKey, set[LoadBalancerKey]] = {}
        self._ids: dict[GroupKey, GroupId] = {}
        self._taken: dict[GroupId, GroupKey] = {}

    # Objects in.

    def set_cluster(self, cluster: GuestCluster) -> frozenset[IPAddress]:
        """Take a tenant's nodes; return the addresses that are in no set of it any more."""
        key = cluster.key
        before = self._clusters.get(key, {})
        nodes = {n.name: tuple(ip_address(a) for a in n.addresses) for n in cluster.status.nodes}
        if nodes == before and key in self._clusters:
            return frozenset()
        self._clusters[key] = nodes
        self._refresh_cluster(key)
        return _addresses(before) - _addresses(nodes)

    def remove_cluster(self, key: tuple[str, str]) -> frozenset[IPAddress]:
        """Forget a tenant; its load balancers refuse from now on."""
        before = self._clusters.pop(key, {})
        self._refresh_cluster(key)
        return _addresses(before)

    def set_load_balancer(self, lb: LoadBalancer) -> frozenset[ListenerKey]:
        """Take a load balancer as it is now; return the listeners that it gave up."""
        want = wanted(lb)
        if want is None:
            return self.remove_load_balancer(lb.key)
        if want.problem is None and want.network not in self._networks:
            name = want.network or "the management network"
            known = ", ".join(sorted(n or "management" for n in self._networks)) or "none"
            want = Wanted(
                problem=Problem(
                    "NetworkNotConfigured",
                    f"This host does not stand on {name} (it stands on: {known}). Add it to the agent's networks file.",
                )
            )
        before = self._wanted.get(lb.key)
        if before == want:
            return frozenset()
        gone = self._drop(lb.key, before) if before else frozenset()
        self._wanted[lb.key] = want
        if want.problem is None:
            self._add(lb.key, want)
        return frozenset(k for k in gone if k not in self._owners)

    def remove_load_balancer(self, key: LoadBalancerKey) -> frozenset[ListenerKey]:
        """Forget a load balancer; return the listeners that nobody serves any more."""
        before = self._wanted.pop(key, None)
        gone = self._drop(key, before) if before else frozenset()
        return frozenset(k for k in gone if k not in self._owners)

    # Plans out.

    def plan(self, network: str) -> Plan:
        """The whole of one network."""
        state = self._networks[network]
        return Plan(frozenset(state.vips), dict(state.groups), dict(state.forwards))

    def take_changes(self, network: str) -> Changes:
        """The delta since the last call; if it can't be applied, compare :meth:`plan` with what is there instead."""
        state = self._networks[network]
        changes = Changes(
            groups={g: state.groups.get(g) for g in state.touched_groups},
            forwards={k: state.forwards.get(k) for k in state.touched_forwards},
        )
        state.touched_groups.clear()
        state.touched_forwards.clear()
        return changes

    def vips(self, network: str) -> frozenset[IPAddress]:
        """The addresses to answer for on one network."""
        return frozenset(self._networks[network].vips)

    def load_balancer(self, key: LoadBalancerKey) -> Wanted | None:
        """What a load balancer wants of this host; None if nothing."""
        return self._wanted.get(key)

    def users_of(self, network: str, vip: IPAddress) -> frozenset[LoadBalancerKey]:
        """The load balancers that an address stands for."""
        return frozenset(self._networks[network].vips.get(vip, ()))

    def of_cluster(self, key: tuple[str, str]) -> frozenset[LoadBalancerKey]:
        """The load balancers of one tenant."""
        return frozenset(
            lb
            for lb, want in self._wanted.items()
            if any((g.namespace, g.cluster) == key for _, g, _ in want.listeners)
        )

    def has_nodes(self, key: LoadBalancerKey) -> bool:
        """Whether a load balancer has a node to send to, on each of its addresses."""
        want = self._wanted.get(key)
        return want is not None and all(self._members(group) for _, group, _ in want.listeners)

    def displaced(self, key: LoadBalancerKey) -> Mapping[ListenerKey, LoadBalancerKey]:
        """The listeners of a load balancer that another one had first."""
        want = self._wanted.get(key)
        return {k: o for k in (want or ()) if (o := self._owners[k]) != key}

    # Inside.

    def _add(self, lb: LoadBalancerKey, want: Wanted) -> None:
        state = self._networks[want.network]
        for vip in want.vips:
            state.vips.setdefault(vip, set()).add(lb)
        for key, group, forward in want.listeners:
            if self._owners.setdefault(key, lb) != lb:
                self._waiting.setdefault(key, set()).add(lb)
                continue
            state.users.setdefault(group, set()).add(key)
            state.forwards[key] = Forward(
                self._enter(state, group), forward.backend_port, forward.by_client, forward.sources
            )
            state.touched_forwards.add(key)

    def _drop(self, lb: LoadBalancerKey, want: Wanted) -> frozenset[ListenerKey]:
        if want.problem is not None:
            return frozenset()
        state = self._networks[want.network]
        for vip in want.vips:
            users = state.vips[vip]
            users.discard(lb)
            if not users:
                del state.vips[vip]
        gone: set[ListenerKey] = set()
        for key, group, _ in want.listeners:
            if self._owners.get(key) != lb:
                self._waiting.get(key, set()).discard(lb)
                continue
            del self._owners[key]
            del state.forwards[key]
            state.touched_forwards.add(key)
            gone.add(key)
            state.users[group].discard(key)
            if not state.users[group]:
                del state.users[group]
                self._leave(group)
            for heir in sorted(self._waiting.pop(key, ())):
                self._add_listener(heir, key)
        return frozenset(gone)

    def _add_listener(self, lb: LoadBalancerKey, key: ListenerKey) -> None:
        want = self._wanted[lb]
        mine = tuple(x for x in want.listeners if x[0] == key)
        self._add(lb, Wanted(want.network, (), mine))

    def _members(self, group: GroupKey) -> frozenset[IPAddress]:
        nodes = self._clusters.get((group.namespace, group.cluster), {})
        names = nodes.keys() if group.all_nodes else nodes.keys() & set(group.names)
        return frozenset(a for name in names for a in nodes[name] if a.version == group.family)

    def _enter(self, state: _Network, group: GroupKey) -> GroupId:
        """The id of a group that is now in use on a network; 0 while it has no member."""
        members = self._members(group)
        if not members:
            return _REFUSE
        number = self._id(group)
        if state.groups.get(number) != members:
            state.groups[number] = members
            state.touched_groups.add(number)
        return number

    def _leave(self, group: GroupKey) -> None:
        """Take a group off the networks that no longer use it; forget its id when none does."""
        number = self._ids.get(group)
        if number is None:
            return
        for state in self._networks.values():
            if group not in state.users and state.groups.pop(number, None) is not None:
                state.touched_groups.add(number)
        if not any(group in s.users for s in self._networks.values()):
            del self._ids[group], self._taken[number]

    def _refresh_cluster(self, cluster: tuple[str, str]) -> None:
        for state in self._networks.values():
            for group in [g for g in state.users if (g.namespace, g.cluster) == cluster]:
                number = self._enter(state, group)
                for key in state.users[group]:
                    old = state.forwards[key]
                    if old.group != number:
                        state.forwards[key] = Forward(number, old.backend_port, old.by_client, old.sources)
                        state.touched_forwards.add(key)
                stale = self._ids.get(group)
                if number == _REFUSE and stale is not None and state.groups.pop(stale, None) is not None:
                    state.touched_groups.add(stale)

    def _id(self, group: GroupKey) -> GroupId:
        """A stable number: the hash of the group's name, the next free one where two names meet."""
        if group in self._ids:
            return self._ids[group]
        name = "\0".join((group.namespace, group.cluster, str(group.family), str(group.all_nodes), *group.names))
        digest = int.from_bytes(hashlib.blake2s(name.encode(), digest_size=3).digest(), "big")
        for step in range(1 << _GROUP_BITS):
            number = GroupId((digest + step) % ((1 << _GROUP_BITS) - 1) + 1)
            if number not in self._taken:
                self._ids[group] = number
                self._taken[number] = group
                return number
        raise AssertionError("more groups than ids")  # 16 million groups do not fit into a host's memory


def _addresses(nodes: Mapping[str, tuple[IPAddress, ...]]) -> frozenset[IPAddress]:
    return frozenset(a for addresses in nodes.values() for a in addresses)
