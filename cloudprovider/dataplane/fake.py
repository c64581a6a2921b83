"""The data plane in memory, as strict as the kernel: meets every seam of :mod:`cloudprovider.dataplane.api`.

A :class:`FakeDataPlane` stands for the host: what was programmed outlives the segments that are opened on it, as the
kernel outlives an agent. Attributes of :class:`FakeNetwork` are for tests to look at, and to break things with.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Forward, IPAddress, L4Protocol, ListenerKey, Member, Plan
from cloudprovider.dataplane.api import Claim, Counter, NetworkConfig
from cloudprovider.dataplane.ledger import Ledger
from cloudprovider.dataplane.naming import Names
from cloudprovider.dataplane.neighbours import check_announceable
from cloudprovider.dataplane.standing import Standing
from cloudprovider.dataplane.staticneighbours import check_static


@dataclass(frozen=True)
class FakeFlow:
    """An entry of the conntrack table."""

    listener: ListenerKey
    backend: IPAddress


@dataclass
class FakeNetwork:
    """One namespace and the network around it, as the kernel has them."""

    ledger: Ledger = field(default_factory=Ledger)
    vips: set[IPAddress] = field(default_factory=set)
    own: frozenset[IPAddress] = frozenset()
    """The namespace's own addresses."""
    flows: set[FakeFlow] = field(default_factory=set)
    neighbours: dict[IPAddress, str] = field(default_factory=dict)
    """Addresses that somebody else on the network has, with the MAC."""
    announced: list[IPAddress] = field(default_factory=list)
    hurried: list[IPAddress] = field(default_factory=list)
    """Those that were claimed in a hurry."""
    probed: list[IPAddress] = field(default_factory=list)
    """Every address that was asked for, in order; one that is held is not."""
    ipv6: bool = True
    """Whether host and device have IPv6."""
    packets: list[socket.socket] = field(default_factory=list)
    """The network's ends of the packet sockets that were opened (see :meth:`FakeSegment.packets`)."""
    applied: list[Changes] = field(default_factory=list)
    """Every delta, in order: one entry is one kernel transaction."""
    link_gone: bool = False
    """Whether somebody deleted the link, with the addresses on it; opening the network makes another."""
    link_down: bool = False
    """Whether no frames come and go on the link."""
    static: bool = False
    """Whether the static chains are in place."""
    foreign: int = 0
    """How often somebody else changed the rules."""
    refusals: list[DataPlaneError] = field(default_factory=list)
    """Errors to be raised, one by each of the next applies."""
    pins: dict[tuple[ListenerKey, MACAddress], int] = field(default_factory=dict)
    """How many flows are pinned; they go as the kernel's go when nothing is changing or pinned any more."""
    returned: dict[tuple[ListenerKey, MACAddress], int] = field(default_factory=dict)
    """Frames that nodes sent back in the last ten seconds."""
    stations: dict[IPAddress, MACAddress] = field(default_factory=dict)
    """Who answers on the network when it is asked for: see :meth:`station`."""
    unsettled: set[IPAddress] = field(default_factory=set)
    """Addresses that were not asked for long enough yet: see :meth:`settle`."""
    dsr_obstacle: str = ""
    """Why passed-on frames would not arrive."""
    handover_obstacle: str = ""
    """Why connections can't go on by another host."""
    host_obstacle: str = ""
    """Why the host itself can't reach the VIPs."""
    static_neighbours: dict[IPAddress, MACAddress] = field(default_factory=dict)
    """The permanent entries of the neighbour table."""
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Who is told when ``stations`` or ``unsettled`` change."""
    elsewhere: Callable[[IPAddress], str] = lambda _address: ""
    """The MAC of another host of the network that has an address up, "" for none: see :class:`FakeLan`."""
    tell: Callable[[IPAddress], None] = lambda _address: None
    """Called with each address that is announced."""

    def tamper(self, key: ListenerKey, forward: Forward | None) -> None:
        """Change a forward behind the engine's back."""
        self.ledger.commit(Changes(forwards={key: forward}))
        self.foreign += 1

    def station(self, address: IPAddress, mac: MACAddress | None) -> None:
        """Have a machine answer for an address from now on, or (None) nobody."""
        if mac is None:
            self.stations.pop(address, None)
        else:
            self.stations[address] = mac
        self._tell()

    def settle(self, address: IPAddress) -> None:
        """Have an address asked for long enough."""
        self.unsettled.discard(address)
        self._tell()

    def _tell(self) -> None:
        for watcher in self.watchers:
            watcher()

    def hang_up(self) -> None:
        """Close the network's ends of all packet sockets."""
        while self.packets:
            self.packets.pop().close()

    def flush(self) -> None:
        """Lose all rules, as ``nft flush ruleset`` does."""
        self.ledger = Ledger()
        self.pins, self.returned = {}, {}
        self.static = False
        self.foreign += 1


class FakeEngine:
    """See :class:`~cloudprovider.dataplane.api.Engine`."""

    def __init__(self, network: FakeNetwork, standing: Standing) -> None:
        self._network = network
        self._standing = standing
        self._seen = 0

    async def start(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        self._network.static = True
        self._seen = self._network.foreign

    async def apply(self, changes: Changes) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        if not self._network.static:
            raise DataPlaneError("the static rules are not in place; start the engine", errno=errno.ENOENT)
        self._network.ledger.check(changes, self._standing)
        if self._network.refusals:
            raise self._network.refusals.pop(0)
        self._network.ledger.commit(changes)
        self._network.applied.append(changes)
        self._network.pins = {pin: n for pin, n in self._network.pins.items() if self._network.ledger.tracked(pin[0])}

    async def observe(self) -> Plan:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        self._seen = self._network.foreign
        return self._network.ledger.plan()

    async def intact(self) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return self._network.static

    async def undisturbed(self) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return self._seen == self._network.foreign

    async def pins(self) -> Mapping[tuple[ListenerKey, MACAddress], int]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return dict(self._network.pins)

    async def unpin(self, gone: Mapping[MACAddress, Collection[ListenerKey]]) -> int:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        doomed = {(key, mac): n for (key, mac), n in self._network.pins.items() if key in gone.get(mac, ())}
        for pin in doomed:
            del self._network.pins[pin]
        return sum(doomed.values())

    async def returned(self) -> Mapping[tuple[ListenerKey, MACAddress], int]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return dict(self._network.returned)

    async def counters(self) -> Mapping[ListenerKey, Counter]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        return {key: Counter(packets=0, bytes=0) for key in self._network.ledger.forwards}

    async def member_counters(self) -> Mapping[Member, Counter]:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""
        groups = self._network.ledger.groups.values()
        return {m: Counter(packets=0, bytes=0) for group in groups for m in group.members | group.former}

    async def close(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Engine`."""


class FakeConnections:
    """See :class:`~cloudprovider.dataplane.api.Connections`."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network

    async def forget_listeners(self, listeners: Iterable[ListenerKey]) -> int:
        """See :class:`~cloudprovider.dataplane.api.Connections`."""
        wanted = frozenset(listeners)
        return self._forget({flow for flow in self._network.flows if flow.listener in wanted})

    async def forget_backends(
        self, gone: Mapping[IPAddress, Collection[ListenerKey]], *, protocol: L4Protocol = "UDP"
    ) -> int:
        """See :class:`~cloudprovider.dataplane.api.Connections`."""
        flows = {f for f in self._network.flows if f.listener.protocol == protocol}
        return self._forget({f for f in flows if f.listener in gone.get(f.backend, ())})

    async def backends(self) -> Mapping[ListenerKey, Collection[IPAddress]]:
        """See :class:`~cloudprovider.dataplane.api.Connections`."""
        found: dict[ListenerKey, set[IPAddress]] = {}
        for flow in self._network.flows:
            found.setdefault(flow.listener, set()).add(flow.backend)
        return found

    def _forget(self, flows: set[FakeFlow]) -> int:
        self._network.flows -= flows
        return len(flows)


class FakeAnnouncer:
    """See :class:`~cloudprovider.dataplane.api.Announcer`."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self._callback: Callable[[IPAddress, str], None] | None = None
        self._may_have: Callable[[IPAddress, str], bool | None] = lambda _address, _mac: False

    async def probe(self, addresses: Sequence[IPAddress]) -> list[Claim]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        check_announceable(addresses, ipv6=self._network.ipv6)
        fresh = [address for address in dict.fromkeys(addresses) if address not in self._network.vips]
        self._network.probed += fresh
        network = self._network
        found = {address: network.neighbours.get(address, "") or network.elsewhere(address) for address in fresh}
        return [Claim(address=address, conflict=found.get(address, "")) for address in addresses]

    async def claim(self, addresses: Sequence[IPAddress], *, hurried: bool = False) -> list[Claim]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        self._network.hurried += addresses if hurried else ()
        claims = await self.probe(addresses)
        for claim in claims:
            if not claim.conflict:
                self._bring_up(claim.address)
        return claims

    async def take(self, addresses: Sequence[IPAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        check_announceable(addresses, ipv6=self._network.ipv6)
        for address in addresses:
            self._bring_up(address)

    async def withdraw(self, addresses: Iterable[IPAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        self._network.vips.difference_update(addresses)

    async def held(self) -> frozenset[IPAddress]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        if self._network.link_gone:
            raise DataPlaneError("the link is gone; open the network again", errno=errno.ENODEV)
        return frozenset(self._network.vips)

    def on_conflict(self, callback: Callable[[IPAddress, str], None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        self._callback = callback

    def yield_to(self, may_have: Callable[[IPAddress, str], bool | None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        self._may_have = may_have

    def _bring_up(self, address: IPAddress) -> None:
        if address not in self._network.vips:
            self._network.vips.add(address)
            self._network.announced.append(address)
            self._network.tell(address)

    def hear(self, address: IPAddress, mac: str) -> None:
        """Stand for a foreign ARP frame or Neighbor Advertisement."""
        self._judge(address, mac, wait=True)

    def _judge(self, address: IPAddress, mac: str, *, wait: bool = False) -> None:
        if address not in self._network.vips:
            return
        may_have = self._may_have(address, mac)
        if may_have:
            self._network.vips.discard(address)
        elif may_have is None and wait:
            asyncio.get_running_loop().call_later(1.0, self._judge, address, mac)
        elif self._callback is not None:
            self._callback(address, mac)


class FakeNodes:
    """See :class:`~cloudprovider.dataplane.api.Nodes`. What is followed is known, and settled, at once, but for
    ``FakeNetwork.unsettled``."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self._followed: frozenset[IPAddress] = frozenset()
        self._callback: Callable[[], None] | None = None
        network.watchers.append(self._changed)

    def follow(self, addresses: Collection[IPAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        wanted = frozenset(addresses)
        if wanted != self._followed:
            self._followed = wanted
            asyncio.get_running_loop().call_soon(self._changed)

    @property
    def known(self) -> Mapping[IPAddress, MACAddress]:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        here = self._followed & self._network.stations.keys() - self._network.unsettled
        return {address: self._network.stations[address] for address in here}

    def settled(self, address: IPAddress) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        return address in self._followed and address not in self._network.unsettled

    def on_change(self, callback: Callable[[], None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        self._callback = callback

    def close(self) -> None:
        """Follow nobody any more."""
        self._callback = None
        if self._changed in self._network.watchers:
            self._network.watchers.remove(self._changed)

    def _changed(self) -> None:
        if self._callback is not None:
            self._callback()


class FakeStaticNeighbours:
    """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self._wanted: dict[IPAddress, MACAddress] = {}

    async def set(self, wanted: Mapping[IPAddress, MACAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        check_static(wanted, ipv6=self._network.ipv6)
        self._wanted = dict(wanted)
        await self.repair()

    async def change(self, changes: Mapping[IPAddress, MACAddress | None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        check_static(changes, ipv6=self._network.ipv6)
        for entries in (self._wanted, self._network.static_neighbours):
            for address, mac in changes.items():
                if mac is None:
                    entries.pop(address, None)
                else:
                    entries[address] = mac

    async def observe(self) -> Mapping[IPAddress, MACAddress]:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        return dict(self._network.static_neighbours)

    async def repair(self) -> int:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        there = self._network.static_neighbours
        wrong = {a for a in there.keys() | self._wanted.keys() if there.get(a) != self._wanted.get(a)}
        there.clear()
        there.update(self._wanted)
        return len(wrong)


class FakeSegment:
    """See :class:`~cloudprovider.dataplane.api.Segment`."""

    def __init__(self, network: FakeNetwork, config: NetworkConfig, mac: str, forget: Callable[[], object]) -> None:
        self._network = network
        self.mac = mac
        self.engine = FakeEngine(network, Standing.of(config, self.mac, ipv6=network.ipv6))
        self.connections = FakeConnections(network)
        self.announcer = FakeAnnouncer(network)
        self.nodes = FakeNodes(network)
        self.static_neighbours = FakeStaticNeighbours(network)
        self._forget = forget

    @property
    def carries(self) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        return not self._network.link_down

    @property
    def dsr_obstacle(self) -> str:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        return self._network.dsr_obstacle

    @property
    def handover_obstacle(self) -> str:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        return self._network.handover_obstacle

    @property
    def host_obstacle(self) -> str:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        return self._network.host_obstacle

    async def packets(self, make: Callable[[str], socket.socket]) -> socket.socket:
        """See :class:`~cloudprovider.dataplane.api.Segment`. There is no link to open one on: the other end is the
        last of ``FakeNetwork.packets``; what is sent there is received here, frame by frame. The segment closes it."""
        ours, networks = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (ours, networks):
            end.settimeout(0)
        self._network.packets.append(networks)
        return ours

    async def close(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        self._forget()
        self.nodes.close()
        self._network.hang_up()


class FakeDataPlane:
    """See :class:`~cloudprovider.dataplane.api.DataPlane`. ``devices`` are those that the host has."""

    def __init__(
        self, instance: str = "fake", *, devices: Iterable[str] = ("mgmt-br",), mac: str = "02:00:00:00:00:fa"
    ) -> None:
        Names(instance)  # as strict about it as the kernel's
        self.mac = mac
        self.devices = set(devices)
        self.namespaces: dict[str, FakeNetwork] = {}
        self.segments: dict[str, FakeSegment] = {}
        self.lan: FakeLan | None = None

    async def open(self, config: NetworkConfig) -> FakeSegment:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        if config.name in self.segments:
            raise DataPlaneError(f"network {config.name!r} is open already; close it first")
        if config.device not in self.devices:
            raise DataPlaneError(f"network {config.name!r}: there is no device {config.device} on this host")
        network = self.namespaces.setdefault(config.name, FakeNetwork())
        network.own = frozenset(i.ip for i in (config.address, config.address6) if i is not None)
        if self.lan is not None:
            self.lan.join(self, config.name, network)
        if network.link_gone:
            network.link_gone = False
            network.vips.clear()
            network.static_neighbours.clear()
        segment = FakeSegment(network, config, self.mac, lambda: self.segments.pop(config.name, None))
        self.segments[config.name] = segment
        return segment

    async def networks(self) -> list[str]:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        return sorted(self.namespaces)

    async def remove(self, network: str) -> None:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        self.segments.pop(network, None)
        if network in self.namespaces:
            self.namespaces.pop(network).hang_up()


class FakeLan:
    """The networks that several hosts stand on: who has what, and who hears whom. ``cut``: hosts that nobody reaches,
    and that reach nobody."""

    def __init__(self, *hosts: FakeDataPlane) -> None:
        self._hosts = hosts
        self.cut: set[str] = set()
        self.announced: list[tuple[str, IPAddress]] = []
        """The MAC and the address of every announcement, in order."""
        for host in hosts:
            host.lan = self

    def join(self, host: FakeDataPlane, name: str, network: FakeNetwork) -> None:
        """A host opens one of its networks."""

        def elsewhere(address: IPAddress) -> str:
            there = ((h.mac, h.namespaces[name]) for h in self._others(host) if name in h.namespaces)
            return next((mac for mac, its in there if address in its.vips or address in its.own), "")

        def tell(address: IPAddress) -> None:
            self.announced.append((host.mac, address))
            for other in self._others(host):
                if (segment := other.segments.get(name)) is not None:
                    asyncio.get_running_loop().call_soon(segment.announcer.hear, address, host.mac)

        network.elsewhere, network.tell = elsewhere, tell

    def _others(self, host: FakeDataPlane) -> list[FakeDataPlane]:
        if host.mac in self.cut:
            return []
        return [other for other in self._hosts if other is not host and other.mac not in self.cut]
