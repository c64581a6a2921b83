"""What the kernel of one network's namespace is to forward: plain data, compared and diffed, never executed here.

A *forward* is one port of one address: (VIP, protocol, port) to a group of nodes. In mode ``nat`` a packet goes to a
node's address and the forward's port there (a NodePort, or a machine's port: the same on every node); in mode ``dsr``
the frame goes on unchanged to a node's MAC. So a forward costs the same with 1 or 1,000 nodes, and a node that comes
or goes changes its group once and no forward at all. A *group* is a set of nodes, shared by every Service of a cluster
that goes to the same nodes in the same mode.

In mode ``nat`` the kernel remembers each flow's node (conntrack). In mode ``dsr`` nothing is remembered, which is what
lets any host take over; so a change there carries what it takes to let established flows go on: see
:attr:`Group.former` and :attr:`Forward.former`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from typing import Literal, NewType

from cloudprovider.core.mac import MACAddress

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
Member = IPv4Address | IPv6Address | MACAddress
"""A node as a group knows it: by its address in mode ``nat``, by its MAC in mode ``dsr``."""
L4Protocol = Literal["TCP", "UDP"]
ForwardMode = Literal["nat", "dsr"]

GroupId = NewType("GroupId", int)
"""1 to 2**24 - 1; the same for the same nodes on every host. 0 stands for "no node" and refuses."""


@dataclass(frozen=True, order=True, slots=True)
class ListenerKey:
    """One port of one address: what a packet is matched by."""

    vip: IPAddress
    protocol: L4Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Group:
    """A set of nodes: not empty, and all IPv4 addresses, all IPv6 addresses, or all MACs.

    While ``former`` is set (MACs only), a flow that begins takes its node from ``members`` and one that is under way
    from ``former``; both are *pinned*: the kernel remembers their node. ``pinned``: what was pinned goes on to its
    node, nothing more is pinned. (A flow of UDP shows no beginning: it takes its node from ``former`` only where
    nobody has left, else from ``members``.)
    """

    members: frozenset[Member]
    former: frozenset[Member] = frozenset()
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Former:
    """Where a listener's flows went before it changed; mode ``nat``: group 0."""

    mode: ForwardMode
    group: GroupId = GroupId(0)
    by_client: bool = False


@dataclass(frozen=True, slots=True)
class Forward:
    """Where packets of a listener go.

    ``group`` 0 refuses (RST, ICMP) and is of mode ``nat``; ``backend_port``: in mode ``nat`` the port on each node,
    in mode ``dsr`` 0. ``by_client``: the node is chosen by the client's address alone (session affinity). ``sources``:
    who may connect; empty means everybody. ``former``, ``pinned``: as in :class:`Group`, for a listener that has come
    to another group, mode or affinity; at least one of the two modes is ``dsr``.

    ``predecessor`` (mode ``nat`` and TCP alone): the host that had the address before this one, by its own address on
    the network. What comes of a TCP connection that nobody here knows, and does not begin one, is passed on to it,
    whose conntrack may know it.
    """

    group: GroupId
    backend_port: int = 0
    by_client: bool = False
    sources: frozenset[IPNetwork] = frozenset()
    mode: ForwardMode = "nat"
    former: Former | None = None
    pinned: bool = False
    predecessor: IPAddress | None = None


@dataclass(frozen=True)
class Plan:
    """The whole of one namespace. ``vips`` are the addresses to answer for; a forward's VIP may be not yet among
    them (rules are in place before the address is announced)."""

    vips: frozenset[IPAddress] = frozenset()
    groups: Mapping[GroupId, Group] = field(default_factory=dict)
    forwards: Mapping[ListenerKey, Forward] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """A delta, applied whole or not at all. None in a mapping means: remove."""

    groups: Mapping[GroupId, Group | None] = field(default_factory=dict)
    forwards: Mapping[ListenerKey, Forward | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.groups or self.forwards)


def diff(have: Plan, want: Plan) -> Changes:
    """The smallest change of groups and forwards that turns ``have`` into ``want`` (addresses are the links')."""
    groups: dict[GroupId, Group | None] = {g: group for g, group in want.groups.items() if have.groups.get(g) != group}
    groups.update(dict.fromkeys(have.groups.keys() - want.groups.keys()))
    forwards: dict[ListenerKey, Forward | None] = {k: f for k, f in want.forwards.items() if have.forwards.get(k) != f}
    forwards.update(dict.fromkeys(have.forwards.keys() - want.forwards.keys()))
    return Changes(groups=groups, forwards=forwards)


def chunks(changes: Changes, size: int, *, groups: int = 1) -> Iterator[Changes]:
    """Cut a big delta into deltas of at most ``size`` forwards or so many ``groups``, each applicable after the ones
    before it: groups first, then forwards, and last the groups that go. A new group is best alone: its table is up to
    ten thousand elements and more, the work of thousands of forwards. Between chunks others see a part of the whole.
    """
    if size < 1 or groups < 1:
        msg = f"a chunk of {min(size, groups)} changes nothing; use at least 1"
        raise ValueError(msg)
    stay = iter((number, group) for number, group in changes.groups.items() if group is not None)
    while some := dict(islice(stay, groups)):
        yield Changes(groups=some)
    forwards = iter(changes.forwards.items())
    while part := dict(islice(forwards, size)):
        yield Changes(forwards=part)
    gone = iter(number for number, group in changes.groups.items() if group is None)
    while removed := list(islice(gone, groups)):
        yield Changes(groups=dict.fromkeys(removed))
