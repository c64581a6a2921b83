"""From LoadBalancers and GuestClusters to the plan of each network: what this host's kernel should do.

:class:`ForwardingTable` is pure state. Objects go in as they change; out come, per network, the whole plan (start,
repair) or just the delta since the last one that was applied. A load balancer costs as much as it has listeners,
whatever else there is; a cluster's node that comes or goes costs the groups it is in.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey, Member, Plan
from cloudprovider.core.wanted import REFUSE, GroupKey, LoadBalancerKey, Wanted, wanted

_GROUP_BITS = 24


@dataclass
class _Network:
    vips: dict[IPAddress, set[LoadBalancerKey]] = field(default_factory=dict)
    forwards: dict[ListenerKey, Forward] = field(default_factory=dict)
    groups: dict[GroupId, Group] = field(default_factory=dict)
    users: dict[GroupKey, set[ListenerKey]] = field(default_factory=dict)
    owners: dict[ListenerKey, LoadBalancerKey] = field(default_factory=dict)
    waiting: dict[ListenerKey, set[LoadBalancerKey]] = field(default_factory=dict)
    touched_forwards: set[ListenerKey] = field(default_factory=set)
    touched_groups: set[GroupId] = field(default_factory=set)


class ForwardingTable:
    """All that this host should forward. ``networks``: the ones it stands on."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = {name: _Network() for name in networks}
        self._clusters: dict[tuple[str, str], dict[str, tuple[IPAddress, ...]]] = {}
        self._wanted: dict[LoadBalancerKey, Wanted] = {}
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

    def set_load_balancer(self, lb: LoadBalancer) -> Mapping[str, frozenset[ListenerKey]]:
        """Take a load balancer as it is now; return the listeners that it gave up, by network."""
        want = wanted(lb, self._networks)
        if want is None:
            return self.remove_load_balancer(lb.key)
        before = self._wanted.get(lb.key)
        if before == want:
            return {}
        gone = self._drop(lb.key, before, frozenset(want)) if before else {}
        self._wanted[lb.key] = want
        self._add(lb.key, want)
        return self._without_heirs(gone)

    def remove_load_balancer(self, key: LoadBalancerKey) -> Mapping[str, frozenset[ListenerKey]]:
        """Forget a load balancer; return the listeners that nobody serves any more, by network."""
        before = self._wanted.pop(key, None)
        return self._without_heirs(self._drop(key, before) if before else {})

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
            if any((g.namespace, g.cluster) == key for _, _, g, _ in want.listeners)
        )

    def has_nodes(self, key: LoadBalancerKey) -> bool:
        """Whether a load balancer has a node to send to, on each of its addresses."""
        want = self._wanted.get(key)
        return want is not None and all(self._members(group) for _, _, group, _ in want.listeners)

    def displaced(self, key: LoadBalancerKey) -> Mapping[ListenerKey, LoadBalancerKey]:
        """The listeners of a load balancer that another one had first."""
        want = self._wanted.get(key)
        return {k: o for network, k in (want or ()) if (o := self._networks[network].owners[k]) != key}

    # Inside.

    def _add(self, lb: LoadBalancerKey, want: Wanted) -> None:
        for place in want.places:
            self._networks[place.network].vips.setdefault(place.vip, set()).add(lb)
        for network, key, group, forward in want.listeners:
            self._add_listener(lb, self._networks[network], key, group, forward)

    def _add_listener(
        self, lb: LoadBalancerKey, state: _Network, key: ListenerKey, group: GroupKey, forward: Forward
    ) -> None:
        if state.owners.setdefault(key, lb) != lb:
            state.waiting.setdefault(key, set()).add(lb)
            return
        state.users.setdefault(group, set()).add(key)
        state.forwards[key] = replace(forward, group=self._enter(state, group))
        state.touched_forwards.add(key)

    def _drop(
        self, lb: LoadBalancerKey, want: Wanted, kept: frozenset[tuple[str, ListenerKey]] = frozenset()
    ) -> dict[str, set[ListenerKey]]:
        """Take out what it wanted, and let those who wait have its listeners, but for what is ``kept``."""
        for place in want.places:
            vips = self._networks[place.network].vips
            vips[place.vip].discard(lb)
            if not vips[place.vip]:
                del vips[place.vip]
        gone: defaultdict[str, set[ListenerKey]] = defaultdict(set)
        for network, key, group, _ in want.listeners:
            state = self._networks[network]
            if state.owners.get(key) != lb:
                state.waiting.get(key, set()).discard(lb)
                continue
            del state.forwards[key]
            state.touched_forwards.add(key)
            state.users[group].discard(key)
            if not state.users[group]:
                del state.users[group]
                self._leave(group)
            if (network, key) in kept:
                continue
            del state.owners[key]
            gone[network].add(key)
            for heir in sorted(state.waiting.pop(key, ())):
                for _, mine, its_group, forward in (x for x in self._wanted[heir].listeners if x[:2] == (network, key)):
                    self._add_listener(heir, state, mine, its_group, forward)
        return gone

    def _without_heirs(self, gone: Mapping[str, set[ListenerKey]]) -> dict[str, frozenset[ListenerKey]]:
        return {n: frozenset(k for k in keys if k not in self._networks[n].owners) for n, keys in gone.items()}

    def _members(self, group: GroupKey) -> frozenset[Member]:
        nodes = self._clusters.get((group.namespace, group.cluster), {})
        names = nodes.keys() if group.all_nodes else nodes.keys() & set(group.names)
        return frozenset(a for name in names for a in nodes[name] if a.version == group.family)

    def _enter(self, state: _Network, group: GroupKey) -> GroupId:
        """The id of a group that is now in use on a network; 0 while it has no member."""
        members = self._members(group)
        if not members:
            return REFUSE
        number = self._id(group)
        if state.groups.get(number) != Group(members):
            state.groups[number] = Group(members)
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
                        state.forwards[key] = replace(old, group=number)
                        state.touched_forwards.add(key)
                stale = self._ids.get(group)
                if number == REFUSE and stale is not None and state.groups.pop(stale, None) is not None:
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
