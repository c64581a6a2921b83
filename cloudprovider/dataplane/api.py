"""The seams to the kernel, each met by the real thing and by the shipped fake (:mod:`cloudprovider.dataplane.fake`).

All calls work on one network namespace, are safe to repeat, and raise
:class:`~cloudprovider.core.errors.DataPlaneError` when the kernel refuses; a refused call changed nothing.
"""

import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Protocol

from cloudprovider.core.plan import Changes, IPAddress, L4Protocol, ListenerKey, Plan


class Engine(Protocol):
    """The packet rules of one namespace: groups and forwards (``Plan.vips`` is the Announcer's)."""

    async def start(self) -> None:
        """Bring the static chains in place; adopt what a predecessor left, without cutting a flow."""
        ...

    async def apply(self, changes: Changes) -> None:
        """Apply one delta in one kernel transaction. A forward to a group that neither exists nor comes with the
        same delta, and the removal of a group that a forward still uses, are refused."""
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

    async def counters(self) -> "dict[ListenerKey, Counter]":
        """Packets and bytes per listener since it was applied."""
        ...

    async def close(self) -> None:
        """Let go of sockets. Rules stay."""
        ...


@dataclass(frozen=True)
class Counter:
    """What went through a listener."""

    packets: int
    bytes: int


class Connections(Protocol):
    """The namespace's conntrack table."""

    async def forget_listeners(self, listeners: Iterable[ListenerKey]) -> int:
        """Delete the entries of these listeners (the Service is gone); return how many."""
        ...

    async def forget_backends(self, backends: Iterable[IPAddress], *, protocol: L4Protocol = "UDP") -> int:
        """Delete the entries that go to these nodes (UDP would stay with a dead node for ever); return how many."""
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

    async def claim(self, addresses: Sequence[IPAddress]) -> list[Claim]:
        """Probe, then bring up and announce those that are free (gratuitous ARP; unsolicited Neighbor Advertisements,
        RFC 4861 section 7.2.6). An address that is already ours is left as it is and not probed."""
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


@dataclass(frozen=True)
class NetworkConfig:
    """How a host stands on one network.

    ``name`` is "namespace/name" or "" (management); ``device`` the host's bridge (or plain device: macvlan);
    ``address`` the namespace's own address there (probes, masquerade), ``gateway`` its default route.
    """

    name: str
    device: str
    address: IPv4Interface | IPv6Interface | None = None
    gateway: IPAddress | None = None


class Segment(Protocol):
    """One network's namespace, whole: its links, and the three seams above."""

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
