"""One segment's links, kept: what they lost while they were down is put back when they are up again."""

import asyncio
from collections.abc import Hashable, Sequence
from pathlib import Path

from cloudprovider.dataplane import links
from cloudprovider.dataplane.announcer import KernelAnnouncer
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.linkwatch import LinkKeeper, LinkMonitor
from cloudprovider.dataplane.naming import LINK, Names
from cloudprovider.dataplane.nodes import KernelNodes
from cloudprovider.dataplane.rtnetlink import Link, RouteSocket
from cloudprovider.dataplane.staticneighbours import KernelStaticNeighbours


class Upkeep:
    """The upkeep of one segment, from now until :meth:`close`. Meets :class:`~.linkwatch.Links`.

    ``inside`` is a socket in the segment's namespace, ``monitors`` are one there and one on the host: they are closed
    with this. Made in a running event loop. Raises DataPlaneError.
    """

    def __init__(
        self,
        names: Names,
        config: NetworkConfig,
        path: Path,
        *,
        inside: RouteSocket,
        monitors: Sequence[LinkMonitor],
        announcer: KernelAnnouncer,
        nodes: KernelNodes,
        static_neighbours: KernelStaticNeighbours,
    ) -> None:
        self._names = names
        self._config = config
        self._path = path
        self._inside = inside
        self._monitors = monitors
        self._announcer = announcer
        self._nodes = nodes
        self._static_neighbours = static_neighbours
        self._host = RouteSocket()
        keeper = self._keeper = LinkKeeper(config.name, self)
        for monitor in monitors:
            monitor.listen(keeper.changed)
        self._task = asyncio.create_task(keeper.run())

    @property
    def carries(self) -> bool:
        """Whether the links are up, and as they should be."""
        return self._keeper.is_up

    def look(self) -> Hashable | None:
        """See :class:`~cloudprovider.dataplane.linkwatch.Links`. A port that has lost its bridge is put back, too."""
        device = self._host.link(self._config.device)
        link = self._inside.link(LINK)
        if link is None:
            raise links.vanished()
        if device is None:
            return None
        port = self._port()
        if port is not None and port.master != device.index:
            links.join(self._names, self._config)
            port = self._port()
        chain = [link, device, *([port] if port is not None else [])]
        if not all(each.up for each in chain) or not link.running:
            return None
        return tuple((each.index, each.interruptions, each.master) for each in chain)

    async def restore(self) -> None:
        """See :class:`~cloudprovider.dataplane.linkwatch.Links`."""
        mark = self._names.mark(self._config.name)
        await asyncio.to_thread(links.configure, self._path, self._config, mark)
        await self._static_neighbours.repair()
        await self._announcer.resume()
        self._nodes.restart()

    def _port(self) -> Link | None:
        """The host's end of the pair; None for a macvlan."""
        return self._host.link(self._names.host_link(self._config.name))

    async def close(self) -> None:
        """Leave the links as they are."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for monitor in self._monitors:
            monitor.close()
        self._host.close()
