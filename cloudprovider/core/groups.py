"""Groups of nodes: which they are, who is in them, and their numbers. Pure."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import ForwardMode, GroupId, IPAddress, Member

_BITS: Final = 24


@dataclass(frozen=True)
class GroupKey:
    """A set of nodes of one cluster, as one family and mode sees them: all that take traffic (``names`` None) or those
    of ``names``, but for ``without``."""

    namespace: str
    cluster: str
    family: int
    mode: ForwardMode
    names: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A node of a guest cluster, or (``is_machine``) a virtual machine that a load balancer sends to by itself.

    ``interfaces``: (network, MAC) of the machine that it is, as far as the host knows it; none: it does not. Those of
    ``is_machine`` count on whichever network the load balancer has its address.
    """

    addresses: tuple[IPAddress, ...]
    interfaces: tuple[tuple[str, MACAddress], ...] = ()
    is_machine: bool = False

    def trusted(self, network: str, heard: MACAddress | None) -> MACAddress | None:
        """The machine's own MAC on a network; ``heard``: who answers there for its address, which is believed only
        where it is one of several of the machine's own. (One network may have several names: a machine without an
        interface on this one may be on it by another.)"""
        here = self._macs(network)
        if len(here) == 1:
            return here[0]
        return heard if heard in (here or [mac for _, mac in self.interfaces]) else None

    def is_unsure(self, network: str) -> bool:
        """Whether it takes what is heard to tell which of its MACs it has on a network."""
        return bool(self.interfaces) and len(self._macs(network)) != 1

    def _macs(self, network: str) -> list[MACAddress]:
        return [mac for on, mac in self.interfaces if on == network or self.is_machine]


@dataclass(frozen=True)
class Sightings:
    """Which nodes answer on a network. ``awaited``: those of whom it can't be told yet whether they do."""

    macs: Mapping[IPAddress, MACAddress] = field(default_factory=dict)
    awaited: frozenset[IPAddress] = frozenset()


def members(
    group: GroupKey,
    nodes: Mapping[str, Node],
    *,
    failing: frozenset[IPAddress],
    reach: Callable[[Node, IPAddress], Member | None],
) -> frozenset[Member]:
    """Return who is in a group. ``nodes``: the cluster's, by name; ``reach``: how one is reached at an address;
    ``failing``: addresses of guests' nodes that probes have found unfit (with all their addresses: kube-proxy is one
    for both families), which are left out as long as that leaves anybody: where all fail, it is rather the probe that
    does."""
    names = (nodes.keys() if group.names is None else nodes.keys() & set(group.names)) - set(group.without)
    found: dict[str, set[Member]] = {}
    for name in names:
        node = nodes[name]
        reached = (reach(node, address) for address in node.addresses if address.version == group.family)
        found[name] = {member for member in reached if member is not None}
    well = [name for name in names if found[name] and not _fails(nodes[name], failing)]
    return frozenset[Member]().union(*(found[name] for name in well or names))


def _fails(node: Node, failing: frozenset[IPAddress]) -> bool:
    return not node.is_machine and not failing.isdisjoint(node.addresses)


class GroupIds:
    """Stable numbers: the hash of the group's name, the next free one where two names meet."""

    def __init__(self) -> None:
        self._ids: dict[GroupKey, GroupId] = {}
        self._taken: dict[GroupId, GroupKey] = {}

    def find(self, group: GroupKey) -> GroupId | None:
        """The number that a group has; None for one that has none."""
        return self._ids.get(group)

    def give(self, group: GroupKey) -> GroupId:
        """The number of a group, now or from now on."""
        if group in self._ids:
            return self._ids[group]
        digest = int.from_bytes(hashlib.blake2s(_name(group).encode(), digest_size=3).digest(), "big")
        for step in range(1 << _BITS):
            number = GroupId((digest + step) % ((1 << _BITS) - 1) + 1)
            if number not in self._taken:
                self._ids[group] = number
                self._taken[number] = group
                return number
        raise AssertionError("more groups than ids")  # 16 million groups do not fit into a host's memory

    def take_back(self, group: GroupKey) -> None:
        """The group is in use nowhere."""
        number = self._ids.pop(group, None)
        if number is not None:
            del self._taken[number]


def _name(group: GroupKey) -> str:
    names = "*" if group.names is None else "\0".join(group.names)
    parts = (group.namespace, group.cluster, str(group.family), group.mode, names, "-", *group.without)
    return "\0".join(parts)
