"""Told by the kernel when links change, and what is done about it: what a link lost while it was down is put back.

A link that goes down takes its routes with it, and some addresses; a bridge that is deleted and made anew (as Harvester
does when a cluster network is changed) leaves the host's end of the pair in no bridge at all.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Hashable
from typing import Final, Protocol

from cloudprovider.core.errors import DataPlaneError

_logger: Final = logging.getLogger(__name__)

_RTMGRP_LINK: Final = 1
_SETTLE: Final = 0.05
"""Seconds that changes are gathered for: a link that comes up tells of several."""
_BETWEEN: Final = 1.0
"""Seconds between two times that things are put back at least, for a link that flaps; where that fails, until it is
tried again: doubled each time, to ``_SLOWEST``."""
_SLOWEST: Final = 30.0


class Links(Protocol):
    """The links of one network on this host."""

    def look(self) -> Hashable | None:
        """None while no frames can come and go; else something that is another after every interruption, also one that
        is over. Raises DataPlaneError, also where the link is gone for good."""
        ...

    async def restore(self) -> None:
        """Put back what they may have lost, and tell the network; safe to repeat. Raises DataPlaneError."""
        ...


class LinkMonitor:
    """A socket that tells of every change of a link in the namespace of the thread that makes it (rtnetlink(7)).
    Raises DataPlaneError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._loop: asyncio.AbstractEventLoop | None = None
        try:
            self._socket.settimeout(0)
            self._socket.bind((0, _RTMGRP_LINK))
        except OSError as error:
            self._socket.close()
            raise DataPlaneError(
                f"can't be told of changes of links: {error.strerror}", errno=error.errno or 0
            ) from error

    def listen(self, changed: Callable[[], None]) -> None:
        """From now on call back after changes, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket, self._read, changed)

    def close(self) -> None:
        """Close the socket."""
        if self._loop is not None:
            self._loop.remove_reader(self._socket)
        self._socket.close()

    def _read(self, changed: Callable[[], None]) -> None:
        # What has changed is looked up, so that nothing is lost where the kernel had more to tell than found room.
        try:
            while self._socket.recv(1 << 16):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            _logger.debug("Changes of links were lost, and are looked up.", extra={"error": error.strerror})
        changed()


class LinkKeeper:
    """Has the links put back what they lost whenever they are running again. ``changed`` is called whenever there may
    be something to look at; :meth:`run` works until it is cancelled."""

    def __init__(self, network: str, links: Links) -> None:
        self._network = network or "management"
        self._links = links
        self._changed = asyncio.Event()
        self._seen: Hashable | None = None
        with contextlib.suppress(DataPlaneError):
            self._seen = links.look()

    @property
    def is_up(self) -> bool:
        """Whether frames could come and go when it was looked last."""
        return self._seen is not None

    def changed(self) -> None:
        """Something about links has changed."""
        self._changed.set()

    async def run(self) -> None:
        """Work for ever. Starts from links that have just been made as they should be."""
        retry: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(retry):
                    await self._changed.wait()
            await asyncio.sleep(_SETTLE)
            self._changed.clear()
            try:
                busy = await self._look()
            except DataPlaneError as error:
                retry = min(2 * retry, _SLOWEST) if retry else _BETWEEN
                self._seen = None
                log = {"network": self._network, "error": str(error), "retry_in": retry}
                _logger.warning("The network's link is not as it should be.", extra=log)
                busy = True
            else:
                retry = None
            if busy:
                await asyncio.sleep(_BETWEEN)

    async def _look(self) -> bool:
        """Whether something was put back."""
        seen = self._links.look()
        if seen == self._seen:
            return False
        if seen is None:
            _logger.warning("The network's link is down.", extra={"network": self._network})
        else:
            await self._links.restore()
            _logger.info("The network's link is up again.", extra={"network": self._network})
        self._seen = seen
        return seen is not None
