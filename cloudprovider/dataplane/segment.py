"""The kernel's :class:`~cloudprovider.dataplane.api.DataPlane`: a namespace for each network of this host."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import TypeVar

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import namespace, sysctls
from cloudprovider.dataplane.announcer import KernelAnnouncer, Timing
from cloudprovider.dataplane.api import NetworkConfig, Nodes
from cloudprovider.dataplane.conntrack import Conntrack
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.naming import LINK, Names
from cloudprovider.dataplane.neighbours import Neighbours
from cloudprovider.dataplane.nftables import Nftables
from cloudprovider.dataplane.rtnetlink import Link, RouteSocket, strays
from cloudprovider.dataplane.standing import Standing

T = TypeVar("T")


class KernelSegment:
    """One network's namespace, opened. Meets :class:`~cloudprovider.dataplane.api.Segment`."""

    def __init__(
        self,
        path: Path,
        mac: str,
        *,
        engine: NftablesEngine,
        connections: Conntrack,
        announcer: KernelAnnouncer,
        forget: Callable[[], object],
    ) -> None:
        self.engine = engine
        self.connections = connections
        self.announcer = announcer
        self.mac = mac
        self._path = path
        self._forget = forget

    @property
    def nodes(self) -> Nodes:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        raise NotImplementedError

    @property
    def dsr_obstacle(self) -> str:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        raise NotImplementedError

    async def packets(self, make: Callable[[str], socket.socket]) -> socket.socket:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        # In one go: it takes well below a millisecond, and a caller that is cancelled in between would lose the socket.
        return namespace.call_in(self._path, lambda: make(LINK))

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
            self.link = _the_link()
            self.neighbours = Neighbours(self.link, ipv6=sysctls.has_ipv6(LINK))
            made.callback(self.neighbours.close)
            self.nftables = Nftables()
            made.callback(self.nftables.close)
            self.conntrack = Conntrack()
            made.callback(self.conntrack.abandon)
            self.route = RouteSocket()
            made.callback(self.route.close)
            sysctls.write(sysctls.IPV4)  # now that the kernel has loaded what some of them belong to
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
        sockets = await asyncio.to_thread(namespace.call_in, path, _Sockets)

        def enter(function: Callable[[], None]) -> None:
            namespace.call_in(path, function)

        neighbours = sockets.neighbours
        segment = KernelSegment(
            path,
            sockets.link.mac,
            engine=NftablesEngine(enter, sockets.nftables, Standing.of(config, sockets.link.mac, ipv6=neighbours.ipv6)),
            connections=sockets.conntrack,
            announcer=KernelAnnouncer(
                sockets.link, own, route=sockets.route, neighbours=neighbours, timing=self._timing
            ),
            forget=lambda: self._open.pop(config.name, None),
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
                sysctls.silence_ipv6(host_link.name)
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
        if sysctls.has_ipv6(LINK):
            sysctls.write(sysctls.IPV6)
        route.set_up(link)
        route.delete_addresses(link, strays(route.addresses(link), own))
        route.add_addresses(link, [own])
        if isinstance(gateway, IPv4Address):
            route.set_default_route(link, gateway)
        else:
            route.delete_default_route(link)

    _route(configure)
