"""The seams to the kernel, each met by the real thing and by the shipped fake (:mod:`cloudprovider.dataplane.fake`).

All calls work on one network namespace, are safe to repeat, and raise
:class:`~cloudprovider.core.errors.DataPlaneError` when the kernel refuses; a refused call changed nothing.
"""

import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Final, Protocol

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, IPAddress, L4Protocol, ListenerKey, Member, Plan

STACK: Final = MACAddress("00:00:00:00:00:00")
"""Where :meth:`Engine.pins` tells of a flow that goes on by mode ``nat``: it is pinned to no node, but to the
namespace's own stack, where conntrack knows its node."""


class Engine(Protocol):
    """The packet rules of one namespace: groups and forwards (``Plan.vips`` is the Announcer's)."""

    async def start(self) -> None:
        """Bring the static chains in place; adopt what a predecessor left, without cutting a flow."""
        ...

    async def apply(self, changes: Changes) -> None:
        """Apply one delta in one kernel transaction.

        Refused, whole and with a sentence that says what to do (see :mod:`cloudprovider.dataplane.ledger`): a forward
        to, or from (``former``), a group that neither exists nor comes with the same delta; the removal of a group
        that a forward still uses; members of several kinds; a group that does not fit the forward's mode and family;
        ``former`` and ``pinned`` at once (``former`` keeps what is pinned anyhow); mode ``nat`` in a family that the
        network has no own address of; a ``predecessor`` that can't be, or that this kernel can't send to.

        TCP flows that are under way go on as :attr:`Group.former` and :attr:`Forward.former` say; UDP has none that
        could be told: where a *listener* has come to another group, mode or affinity, its datagrams follow at once.
        When neither a listener nor its group is changing or pinned any more, its pins are forgotten.
        """
        ...

    async def observe(self) -> Plan:
        """Read back what the kernel really does now (``vips`` left empty). Elements that somebody else broke show
        as a difference to what was applied, so that :func:`cloudprovider.core.plan.diff` repairs them."""
        ...

    async def intact(self) -> bool:
        """Whether table and static chains are as ``start`` made them; False: ``start`` and a full ``apply`` mend it."""
        ...

    async def undisturbed(self) -> bool:
        """Whether nobody but this engine has changed the namespace's rules since they were last observed. The
        cheapest question there is; when False, ask ``intact``, and observe."""
        ...

    async def pins(self) -> Mapping[tuple[ListenerKey, MACAddress], int]:
        """How many flows are pinned, by listener and node (``STACK``: to mode ``nat``). At most 65,536 of each family
        and protocol are; each is forgotten an hour after its last packet, a minute after a SYN that nothing follows."""
        ...

    async def unpin(self, gone: Mapping[MACAddress, Collection[ListenerKey]]) -> int:
        """Forget the pins of these listeners' flows to these nodes, as their time to drain is over; return how many.
        What still comes of such a flow goes where the listener now says, whose node resets it (TCP)."""
        ...

    async def returned(self) -> Mapping[tuple[ListenerKey, MACAddress], int]:
        """Frames that a listener's own node sent back, by listener and node: it does not accept the address (not
        yet, or no more). They are dropped and counted. One that has sent none for ten seconds is not told of."""
        ...

    async def counters(self) -> "Mapping[ListenerKey, Counter]":
        """What clients sent to each listener since it was applied, and how many connections they began that were sent
        on. In mode ``dsr`` only a beginning can be told: a SYN is one, UDP has none."""
        ...

    async def member_counters(self) -> "Mapping[Member, Counter]":
        """What was sent on to each node since a group has it, in all groups together, by what the groups know it by.
        Connections are told as in ``counters``."""
        ...

    async def close(self) -> None:
        """Let go of sockets. Rules stay."""
        ...


@dataclass(frozen=True)
class Counter:
    """What went through a listener, or to a node."""

    packets: int
    bytes: int
    connections: int = 0


class Connections(Protocol):
    """The namespace's conntrack table."""

    async def forget_listeners(self, listeners: Iterable[ListenerKey]) -> int:
        """Delete the entries of these listeners (the Service is gone); return how many."""
        ...

    async def forget_backends(
        self, gone: Mapping[IPAddress, Collection[ListenerKey]], *, protocol: L4Protocol = "UDP"
    ) -> int:
        """Delete the entries of these listeners that go to these nodes (UDP would stay with a dead node for ever);
        return how many. Only listeners of ``protocol`` count."""
        ...

    async def backends(self) -> Mapping[ListenerKey, Collection[IPAddress]]:
        """The nodes that there are entries to, by listener: of what mode ``nat`` has sent on, and of nothing else."""
        ...


@dataclass(frozen=True)
class Claim:
    """The outcome of asking for an address. ``conflict`` is the MAC of somebody else who has it, "" when nobody has,
    or when it is held here."""

    address: IPAddress
    conflict: str = ""


class Announcer(Protocol):
    """The VIPs of one namespace: on the link, answered by ARP (NDP), announced on arrival.

    Both families may come in one call, which takes no longer for it. An IPv6 address that is link-local, multicast,
    loopback or unspecified is refused, and every IPv6 address where the host or the network's device lacks IPv6.
    As long as nothing is forwarded for IPv6, such a VIP answers ping from its own /64 and refuses all else.
    """

    async def probe(self, addresses: Sequence[IPAddress]) -> list[Claim]:
        """Ask whether somebody else has the addresses, all at once, and bring nothing up: nobody's tables change by
        it (ARP probes, RFC 5227 section 2.1.1; Neighbor Solicitations from nobody, RFC 4862 section 5.4). One that is
        held here is ours without being asked for. The answer is in the order of ``addresses``. It takes 0.2 s, and
        as many probes as like may go on beside each other, of the same address too."""
        ...

    async def claim(self, addresses: Sequence[IPAddress], *, hurried: bool = False) -> list[Claim]:
        """Probe, then bring up and announce those that are free (gratuitous ARP; unsolicited Neighbor Advertisements,
        RFC 4861 section 7.2.6). An address that is already ours is left as it is and not probed. ``hurried``: clients
        are waiting, as who had them is known to be silent: the answers are waited for during 0.03 s."""
        ...

    async def take(self, addresses: Sequence[IPAddress]) -> None:
        """Bring up and announce without asking: they are taken from a host that knows. Raises DataPlaneError."""
        ...

    async def withdraw(self, addresses: Iterable[IPAddress]) -> None:
        """Take addresses away; unknown ones are ignored."""
        ...

    async def held(self) -> frozenset[IPAddress]:
        """The VIPs that are on the link now."""
        ...

    def on_conflict(self, callback: Callable[[IPAddress, str], None]) -> None:
        """Call back with address and MAC when somebody else claims an address that is held here. It is defended,
        never given up; the callback comes at most once in ten seconds for each address."""
        ...

    def yield_to(self, may_have: Callable[[IPAddress, str], bool | None]) -> None:
        """Ask this before an address is defended. Where it says that this MAC may have it, the address is off the link
        at once, and nobody is called back. None: that is not known yet; it is asked again after a second, and then
        anything but True means no."""
        ...


@dataclass(frozen=True)
class NetworkConfig:
    """How a host stands on one network.

    ``name`` is "namespace/name" or "" (management); ``device`` the host's bridge (or plain device: macvlan);
    ``address`` and ``address6`` the namespace's own addresses there (probes, masquerade), ``gateway`` and ``gateway6``
    its default routes (an IPv6 one may be link-local). A family without an address is served by mode ``dsr`` only.
    ``vlan``: the VLAN of the bridge that the namespace joins, 0 for the bridge's own untagged one.
    ``answer_ping``: whether VIPs answer ICMP echo requests. ``masquerade``: in mode ``nat``, whether nodes see the
    namespace's own address instead of the client's; without it, their answers must find back through this host.
    """

    name: str
    device: str
    address: IPv4Interface | None = None
    gateway: IPv4Address | None = None
    address6: IPv6Interface | None = None
    gateway6: IPv6Address | None = None
    answer_ping: bool = True
    masquerade: bool = True
    vlan: int = 0


class Nodes(Protocol):
    """Which nodes stand on the network themselves, and by which MAC: they are asked, by ARP and NDP, for as long as
    they are followed. The kernel's own neighbour table is no part of it."""

    def follow(self, addresses: Collection[IPAddress]) -> None:
        """Keep asking for these addresses, the whole set each time: what is missing in it is not followed any more.
        Any number; costs nothing where it is the same as before."""
        ...

    @property
    def known(self) -> Mapping[IPAddress, MACAddress]:
        """Who of those that are followed answers now. Who has fallen silent is not in it."""
        ...

    def settled(self, address: IPAddress) -> bool:
        """Whether it is known by now if this address answers: it does, or it was asked for long enough (about 1 s).
        False for one that is not followed."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back, in the event loop but never from within ``follow``, when ``known`` has changed (another MAC is
        a change) or an address has become settled. One callback: the last one given."""
        ...


class StaticNeighbours(Protocol):
    """Who has an address by what we know ourselves: permanent entries of the namespace's neighbour table, of both
    families. Whatever anybody answers for such an address by ARP or NDP, frames for it go to this MAC alone.

    Refused, whole: addresses that no one machine can have (loopback, multicast, unspecified, link-local), MACs that do
    not stand for one machine, and IPv6 where the link has none.
    """

    async def set(self, wanted: Mapping[IPAddress, MACAddress]) -> None:
        """Have these and no others: those of an agent before go, those that somebody changed are put right."""
        ...

    async def change(self, changes: Mapping[IPAddress, MACAddress | None]) -> None:
        """Have some more, or another MAC for them, or (None) none of them any more."""
        ...

    async def observe(self) -> Mapping[IPAddress, MACAddress]:
        """Read back the entries that are there now, whoever made them."""
        ...

    async def repair(self) -> int:
        """Put right what somebody else has changed since ``set`` and ``change``; return how many entries. (What the
        link loses while it is down comes back by itself when it is up again.)"""
        ...


class Segment(Protocol):
    """One network's namespace, whole: its links, and the seams above."""

    @property
    def mac(self) -> str:
        """The link's own Ethernet address, as in "02:00:00:00:00:01": VIPs are announced with it."""
        ...

    @property
    def engine(self) -> Engine:
        """The packet rules."""
        ...

    @property
    def connections(self) -> Connections:
        """The conntrack table."""
        ...

    @property
    def announcer(self) -> Announcer:
        """The VIPs."""
        ...

    @property
    def nodes(self) -> Nodes:
        """The nodes' MACs."""
        ...

    @property
    def static_neighbours(self) -> StaticNeighbours:
        """The MACs that are known without asking."""
        ...

    @property
    def carries(self) -> bool:
        """Whether frames can come and go on its link now, as far as this host can see: up, with a carrier."""
        ...

    @property
    def dsr_obstacle(self) -> str:
        """Why frames that are passed on in mode ``dsr`` would not arrive, or not be answered, on this host, in a
        sentence that says what to do; "" where nothing stands in the way."""
        ...

    @property
    def handover_obstacle(self) -> str:
        """Why connections of mode ``nat`` can't go on by the host that had their address before, in a sentence; ""
        where they can (see :attr:`~cloudprovider.core.plan.Forward.predecessor`)."""
        ...

    @property
    def host_obstacle(self) -> str:
        """Why this host itself can't reach the VIPs, which others can, in a sentence; "" where it can."""
        ...

    async def packets(self, make: Callable[[str], socket.socket]) -> socket.socket:
        """Whatever socket ``make`` opens on the link, whose name it is given, inside the namespace. The caller closes
        it. Raises DataPlaneError, and what ``make`` raises."""
        ...

    async def close(self) -> None:
        """Let go of sockets; namespace, addresses and rules stay for the next agent."""
        ...


class DataPlane(Protocol):
    """All namespaces of one instance on this host."""

    async def open(self, config: NetworkConfig) -> Segment:
        """Make the network's namespace, or adopt the one that is there. Raises DataPlaneError."""
        ...

    async def networks(self) -> list[str]:
        """The names of the networks whose namespaces of this instance are on the host."""
        ...

    async def remove(self, network: str) -> None:
        """Remove the network's namespace with all in it; only what this instance made. Unknown names are ignored."""
        ...
