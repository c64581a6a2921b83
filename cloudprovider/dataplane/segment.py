"""The kernel's :class:`~cloudprovider.dataplane.api.DataPlane`: a namespace for each network of this host."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Final, TypeVar

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import arp, namespace
from cloudprovider.dataplane.announcer import KernelAnnouncer, Timing
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.conntrack import Conntrack
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.naming import LINK, Names
from cloudprovider.dataplane.nftables import Nftables
from cloudprovider.dataplane.rtnetlink import Link, RouteSocket

T = TypeVar("T")

_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    # A node that calls a VIP of its own comes and goes by the same link: without this it is told a "better" way.
    "net/ipv4/conf/all/send_redirects": "0",
    f"net/ipv4/conf/{LINK}/send_redirects": "0",
    "net/ipv4/conf/all/accept_redirects": "0",
    # Clients come from anywhere; the one link is the right one for all of them.
    "net/ipv4/conf/all/rp_filter": "0",
    f"net/ipv4/conf/{LINK}/rp_filter": "0",
    # Answer ARP for what stands on the link, and never ask with a VIP as the sender's address.
    "net/ipv4/conf/all/arp_ignore": "1",
    "net/ipv4/conf/all/arp_announce": "2",
    # A packet out of its window is the two ends' business, not a reason to cut the flow.
    "net/netfilter/nf_conntrack_tcp_be_liberal": "1",
    # A day, as kube-proxy has it, not the kernel's five.
    "net/netfilter/nf_conntrack_tcp_timeout_established": "86400",
}
_SYSCTLS_IPV6: Final = {"net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1"}
"""Written where the kernel has IPv6: no address by autoconfiguration."""


class KernelSegment:
    """One network's namespace, opened. Meets :class:`~cloudprovider.dataplane.api.Segment`."""

    def __init__(
        self, engine: NftablesEngine, connections: Conntrack, announcer: KernelAnnouncer, forget: Callable[[], object]
    ) -> None:
        self.engine = engine
        self.connections = connections
        self.announcer = announcer
        self._forget = forget

    async def close(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        self._forget()
        await self.announcer.close()
        await self.connections.close()
        await self.engine.close()


class _Sockets:
    """Sockets inside a namespace (that of the thread that makes them): all of them, or none."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as made:
            self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            made.callback(self.packets.close)
            self.packets.settimeout(0)
            try:
                self.packets.bind((LINK, arp.ETHERTYPE))
            except OSError as error:
                raise DataPlaneError(
                    f"can't listen for ARP on {LINK}: {error.strerror}", errno=error.errno or 0
                ) from error
            self.nftables = Nftables()
            made.callback(self.nftables.close)
            self.conntrack = Conntrack()
            made.callback(self.conntrack.abandon)
            self.route = RouteSocket()
            made.callback(self.route.close)
            _write_sysctls()  # now that the kernel has loaded what some of them belong to
            made.pop_all()


class HostDataPlane:
    """All namespaces of one ``instance`` on this host. Raises ConfigurationError for an unusable instance."""

    def __init__(self, instance: str, *, timing: Timing | None = None) -> None:
        self._names = Names(instance)
        self._timing = timing or Timing()
        self._open: dict[str, KernelSegment] = {}

    async def open(self, config: NetworkConfig) -> KernelSegment:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        if config.name in self._open:
            raise DataPlaneError(f"network {config.name!r} is open already; close it first")
        own = _own_address(config)
        path = await asyncio.to_thread(self._establish, config, own)
        link = await asyncio.to_thread(namespace.call_in, path, _the_link)
        sockets = await asyncio.to_thread(namespace.call_in, path, _Sockets)

        def enter(function: Callable[[], None]) -> None:
            namespace.call_in(path, function)

        segment = KernelSegment(
            NftablesEngine(enter, sockets.nftables, own.ip),
            sockets.conntrack,
            KernelAnnouncer(link, own, route=sockets.route, packets=sockets.packets, timing=self._timing),
            lambda: self._open.pop(config.name, None),
        )
        self._open[config.name] = segment
        return segment

    async def networks(self) -> list[str]:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        return await asyncio.to_thread(self._networks)

    async def remove(self, network: str) -> None:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        segment = self._open.get(network)
        if segment is not None:
            await segment.close()
        await asyncio.to_thread(self._remove, network)

    async def close(self) -> None:
        """Let go of all that is open; everything stays in place."""
        for segment in list(self._open.values()):
            await segment.close()

    def _networks(self) -> list[str]:
        found: list[str] = []
        for name in namespace.names():
            if name.startswith(self._names.prefix):
                network = self._names.network(_mark_of(namespace.DIRECTORY / name))
                if network is not None and self._names.namespace(network) == name:
                    found.append(network)
        return found

    def _remove(self, network: str) -> None:
        path = namespace.DIRECTORY / self._names.namespace(network)
        if not namespace.is_namespace(path):
            return
        self._check_ours(path, network)
        namespace.call_in(path, _delete_link)  # at once, and the host's end with it: the rest the kernel does later
        namespace.remove(path.name)

    def _check_ours(self, path: Path, network: str) -> None:
        if self._names.network(_mark_of(path)) != network:
            raise DataPlaneError(
                f"network namespace {path} is not this agent's (instance {self._names.instance!r}, network "
                f"{network!r}); remove it, or give the agent another instance name"
            )

    def _establish(self, config: NetworkConfig, own: IPv4Interface) -> Path:
        """Bring namespace, links, address and route into being, or mend what is there; return the namespace."""
        host = RouteSocket()
        try:
            device = host.link(config.device)
            if device is None:
                raise DataPlaneError(
                    f"network {config.name!r}: there is no device {config.device} on this host; correct its "
                    "device in the networks file, or make the bridge"
                )
            path = namespace.DIRECTORY / self._names.namespace(config.name)
            if namespace.is_namespace(path):
                self._check_ours(path, config.name)
                self._mend(host, device, config, own, path)
            else:
                self._create(host, device, config, own, path.name)
            host_link = host.link(self._names.host_link(config.name))
            if host_link is not None:  # a pair, not a macvlan
                _write_if_there(f"net/ipv6/conf/{host_link.name}/disable_ipv6", "1")
                host.set_up(host_link, master=device.index)
            return path
        finally:
            host.close()

    def _create(self, host: RouteSocket, device: Link, config: NetworkConfig, own: IPv4Interface, name: str) -> None:
        try:
            namespace.create(name, lambda itself: self._mend(host, device, config, own, itself))
        except DataPlaneError:
            half = host.link(self._names.host_link(config.name))
            if half is not None:  # the kernel would take it away too, but in its own time
                host.delete_link(half)
            raise

    def _mend(self, host: RouteSocket, device: Link, config: NetworkConfig, own: IPv4Interface, path: Path) -> None:
        if namespace.call_in(path, _find_link) is None:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if device.kind == "bridge":
                    host.add_veth(self._names.host_link(config.name), LINK, handle, device.mtu)
                else:
                    host.add_macvlan(LINK, device.index, handle)
            finally:
                os.close(handle)
        mark = self._names.mark(config.name)
        namespace.call_in(path, lambda: _configure(own, config.gateway, mark))


def _own_address(config: NetworkConfig) -> IPv4Interface:
    if not isinstance(config.address, IPv4Interface):
        raise DataPlaneError(
            f"network {config.name!r} has no IPv4 address for this host; give it one (address: A.B.C.D/N) in the "
            "networks file: nodes see translated connections come from it"
        )
    return config.address


def _route(function: Callable[[RouteSocket], T]) -> T:
    route = RouteSocket()
    try:
        return function(route)
    finally:
        route.close()


def _find_link() -> Link | None:
    return _route(lambda route: route.link(LINK))


def _the_link() -> Link:
    link = _find_link()
    if link is None:
        raise DataPlaneError(f"link {LINK} has vanished from its namespace while it was being set up; try again")
    return link


def _delete_link() -> None:
    def delete(route: RouteSocket) -> None:
        link = route.link(LINK)
        if link is not None:
            route.delete_link(link)

    _route(delete)


def _mark_of(path: Path) -> str:
    def mark() -> str:
        loopback = _route(lambda route: route.link("lo"))
        return loopback.alias if loopback is not None else ""

    return namespace.call_in(path, mark)


def _configure(own: IPv4Interface, gateway: object, mark: str) -> None:
    """Inside the namespace: loopback with the mark, the link up with its own address, the default route."""

    def configure(route: RouteSocket) -> None:
        loopback = route.link("lo")
        if loopback is not None:
            route.set_alias(loopback, mark)
            route.set_up(loopback)
        link = _the_link()
        route.set_up(link)
        former = [a for a in route.addresses(link) if a.network.prefixlen < 32 and a != own]
        route.delete_addresses(link, former)
        route.add_addresses(link, [own])
        if isinstance(gateway, IPv4Address):
            route.set_default_route(link, gateway)
        else:
            route.delete_default_route(link)

    _route(configure)


def _write_sysctls() -> None:
    for name, value in _SYSCTLS.items():
        try:
            (Path("/proc/sys") / name).write_text(value, encoding="ascii")
        except OSError as error:
            raise DataPlaneError(
                f"can't set sysctl {name.replace('/', '.')} to {value}: {error.strerror}; "
                "the agent needs a writable /proc/sys",
                errno=error.errno or 0,
            ) from error
    for name, value in _SYSCTLS_IPV6.items():
        _write_if_there(name, value)


def _write_if_there(name: str, value: str) -> None:
    path = Path("/proc/sys") / name
    if path.exists():
        path.write_text(value, encoding="ascii")
