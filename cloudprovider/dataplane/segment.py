"""The kernel's :class:`~cloudprovider.dataplane.api.DataPlane`: a namespace for each network of this host."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import frames, links, namespace, sysctls
from cloudprovider.dataplane.announcer import KernelAnnouncer, Timing
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.conntrack import Conntrack
from cloudprovider.dataplane.engine import NftablesEngine
from cloudprovider.dataplane.features import Features
from cloudprovider.dataplane.features import find as find_features
from cloudprovider.dataplane.linkwatch import LinkMonitor
from cloudprovider.dataplane.naming import LINK, Names
from cloudprovider.dataplane.neighbours import Neighbours
from cloudprovider.dataplane.netlink import NetlinkSocket
from cloudprovider.dataplane.nftables import Nftables
from cloudprovider.dataplane.nodes import KernelNodes
from cloudprovider.dataplane.nodewatch import Pace
from cloudprovider.dataplane.returnedsyns import ReturnedSyns
from cloudprovider.dataplane.rtnetlink import RouteSocket
from cloudprovider.dataplane.standing import Standing
from cloudprovider.dataplane.staticneighbours import KernelStaticNeighbours
from cloudprovider.dataplane.upkeep import Upkeep

_logger: Final = logging.getLogger(__name__)


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
        nodes: KernelNodes,
        static_neighbours: KernelStaticNeighbours,
        upkeep: Upkeep,
        returned_syns: ReturnedSyns,
        dsr_obstacle: str,
        handover_obstacle: str,
        host_obstacle: str,
        forget: Callable[[], object],
    ) -> None:
        self.engine = engine
        self.connections = connections
        self.announcer = announcer
        self.nodes = nodes
        self.static_neighbours = static_neighbours
        self.dsr_obstacle = dsr_obstacle
        self.handover_obstacle = handover_obstacle
        self.host_obstacle = host_obstacle
        self.mac = mac
        self._upkeep = upkeep
        self._returned_syns = returned_syns
        self._path = path
        self._forget = forget

    @property
    def carries(self) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        return self._upkeep.carries

    async def packets(self, make: Callable[[str], socket.socket]) -> socket.socket:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        # In one go: it takes well below a millisecond, and a caller that is cancelled in between would lose the socket.
        return namespace.call_in(self._path, lambda: make(LINK))

    async def close(self) -> None:
        """See :class:`~cloudprovider.dataplane.api.Segment`."""
        self._forget()
        await self._returned_syns.close()
        await self._upkeep.close()
        self.nodes.close()
        self.static_neighbours.close()
        await self.announcer.close()
        await self.connections.close()
        await self.engine.close()


class _Sockets:
    """Sockets inside a namespace (that of the thread that makes them): all of them, or none."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as made:
            self.link = links.the_link()
            self.neighbours = Neighbours(self.link, ipv6=sysctls.has_ipv6(LINK))
            made.callback(self.neighbours.close)
            self.nftables = Nftables()
            made.callback(self.nftables.close)
            self.conntrack = Conntrack()
            made.callback(self.conntrack.abandon)
            self.route = RouteSocket()
            made.callback(self.route.close)
            self.entries = NetlinkSocket(socket.NETLINK_ROUTE)
            made.callback(self.entries.close)
            self.frames = frames.open_socket(LINK, 0)
            made.callback(self.frames.close)
            self.monitor = LinkMonitor()
            made.callback(self.monitor.close)
            sysctls.write(sysctls.IPV4)  # now that the kernel has loaded what some of them belong to
            self._made = made.pop_all()

    def close(self) -> None:
        """Close them all, unused."""
        self._made.close()


class HostDataPlane:
    """All namespaces of one ``instance`` on this host. Raises ConfigurationError for an unusable instance."""

    def __init__(
        self,
        instance: str,
        *,
        timing: Timing | None = None,
        pace: Pace | None = None,
        features: Callable[[], Features] = find_features,
    ) -> None:
        self._names = Names(instance)
        self._timing = timing or Timing()
        self._pace = pace or Pace()
        self._features = features
        self._open: dict[str, KernelSegment] = {}

    async def open(self, config: NetworkConfig) -> KernelSegment:
        """See :class:`~cloudprovider.dataplane.api.DataPlane`."""
        if config.name in self._open:
            raise DataPlaneError(f"network {config.name!r} is open already; close it first")
        joined = await asyncio.to_thread(links.establish, self._names, config)
        path, own = joined.path, links.own_addresses(config)
        sockets = await asyncio.to_thread(namespace.call_in, path, _Sockets)

        def enter(function: Callable[[], None]) -> None:
            namespace.call_in(path, function)

        features = await asyncio.to_thread(namespace.call_in, path, self._features)
        if features.nat:
            sockets.close()
            raise DataPlaneError(f"network {config.name or 'management'}: {features.nat}")
        neighbours = sockets.neighbours
        announcer = KernelAnnouncer(
            sockets.link, own, joined.hosts, route=sockets.route, neighbours=neighbours, timing=self._timing
        )
        nodes = KernelNodes(neighbours, config.address, pace=self._pace)
        static = KernelStaticNeighbours(sockets.link, sockets.entries, ipv6=neighbours.ipv6)
        standing = Standing.of(
            config, sockets.link.mac, ipv6=neighbours.ipv6, dsr=not features.dsr, hands_over=not features.handover
        )
        engine = NftablesEngine(enter, sockets.nftables, standing)
        segment = KernelSegment(
            path,
            sockets.link.mac,
            engine=engine,
            connections=sockets.conntrack,
            announcer=announcer,
            nodes=nodes,
            static_neighbours=static,
            upkeep=Upkeep(
                self._names,
                config,
                path,
                inside=sockets.route,
                monitors=[sockets.monitor, LinkMonitor()],
                announcer=announcer,
                nodes=nodes,
                static_neighbours=static,
            ),
            returned_syns=ReturnedSyns(engine, sockets.frames, sockets.link.mac),
            dsr_obstacle=features.dsr or joined.dsr_obstacle,
            handover_obstacle=features.handover,
            host_obstacle=joined.host_obstacle,
            forget=lambda: self._open.pop(config.name, None),
        )
        self._open[config.name] = segment
        for obstacle in filter(None, (segment.dsr_obstacle, segment.handover_obstacle, segment.host_obstacle)):
            _logger.warning(
                "A network is served with a limit.", extra={"network": config.name or "management", "limit": obstacle}
            )
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
                network = self._names.network(links.mark_of(namespace.DIRECTORY / name))
                if network is not None and self._names.namespace(network) == name:
                    found.append(network)
        return found

    def _remove(self, network: str) -> None:
        path = namespace.DIRECTORY / self._names.namespace(network)
        if not namespace.is_namespace(path):
            return
        links.check_ours(self._names, path, network)
        namespace.call_in(
            path, links.delete_link
        )  # at once, and the host's end with it: the rest the kernel does later
        namespace.remove(path.name)
