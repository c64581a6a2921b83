"""What the kernel of one network's namespace is to forward: plain data, compared and diffed, never executed here.

A *forward* is one port of one address: (VIP, protocol, port) to a group of nodes and the port to use there. The
port is the same on every node (a NodePort, or a machine's port), so a forward costs the same with 1 or 1,000 nodes,
and a node that comes or goes changes its group once and no forward at all. A *group* is a set of node addresses,
shared by every Service of a cluster that goes to the same nodes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from typing import Literal, NewType

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
L4Protocol = Literal["TCP", "UDP"]

GroupId = NewType("GroupId", int)
"""1 to 2**24 - 1; the same for the same nodes on every host. 0 stands for "no node" and refuses."""


@dataclass(frozen=True, order=True, slots=True)
class ListenerKey:
    """One port of one address: what a packet is matched by."""

    vip: IPAddress
    protocol: L4Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Forward:
    """Where packets of a listener go.

    ``group`` 0: refused (RST, ICMP). ``by_client``: chosen by the client's address alone (session affinity).
    ``sources``: who may connect; empty means everybody.
    """

    group: GroupId
    backend_port: int
    by_client: bool = False
    sources: frozenset[IPNetwork] = frozenset()


@dataclass(frozen=True)
class Plan:
    """The whole of one namespace. ``vips`` are the addresses to answer for; a forward's VIP may be not yet among
    them (rules are in place before the address is announced)."""

    vips: frozenset[IPAddress] = frozenset()
    groups: Mapping[GroupId, frozenset[IPAddress]] = field(default_factory=dict)
    forwards: Mapping[ListenerKey, Forward] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """A delta, applied whole or not at all. None in a mapping means: remove."""

    groups: Mapping[GroupId, frozenset[IPAddress] | None] = field(default_factory=dict)
    forwards: Mapping[ListenerKey, Forward | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.groups or self.forwards)


def diff(have: Plan, want: Plan) -> Changes:
    """The smallest change of groups and forwards that turns ``have`` into ``want`` (addresses are the links')."""
    groups: dict[GroupId, frozenset[IPAddress] | None] = {
        g: nodes for g, nodes in want.groups.items() if have.groups.get(g) != nodes
    }
    groups.update(dict.fromkeys(have.groups.keys() - want.groups.keys()))
    forwards: dict[ListenerKey, Forward | None] = {k: f for k, f in want.forwards.items() if have.forwards.get(k) != f}
    forwards.update(dict.fromkeys(have.forwards.keys() - want.forwards.keys()))
    return Changes(groups=groups, forwards=forwards)


def chunks(changes: Changes, size: int) -> Iterator[Changes]:
    """Cut a big delta into deltas of at most ``size`` forwards, each applicable after the ones before it: groups
    first, then forwards, and last the groups that go. Each group comes alone: its table is ten thousand elements and
    more, the work of thousands of forwards. Only for start-up: between chunks others may see a part of the whole.
    """
    if size < 1:
        msg = f"a chunk of {size} changes nothing; use at least 1"
        raise ValueError(msg)
    for group, nodes in changes.groups.items():
        if nodes is not None:
            yield Changes(groups={group: nodes})
    forwards = iter(changes.forwards.items())
    while part := dict(islice(forwards, size)):
        yield Changes(forwards=part)
    for group, nodes in changes.groups.items():
        if nodes is None:
            yield Changes(groups={group: None})
