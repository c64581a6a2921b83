"""TCP sockets of a network's namespace, some at a time: each way in costs a thread, 16 sockets as much as one."""

import contextlib
import socket
import struct
from typing import Final

from cloudprovider.probe.api import OpenSocket

_AT_ONCE: Final = 16
_RESET: Final = struct.pack("ii", 1, 0)
"""struct linger: close by RST. A probe then leaves no TIME_WAIT here, and none with the server that has said FIN."""


class SocketStock:
    """Unconnected sockets, ready for use. They keep the namespace alive: close the stock before that is removed."""

    def __init__(self, open_socket: OpenSocket) -> None:
        self._open = open_socket
        self._ready: dict[socket.AddressFamily, list[socket.socket]] = {}

    async def take(self, family: socket.AddressFamily) -> socket.socket:
        """A non-blocking socket, now the caller's to close. Raises DataPlaneError, OSError."""
        ready = self._ready.setdefault(family, [])
        if ready:
            return ready.pop()

        def make(_link: str) -> socket.socket:
            first = _tcp(family)
            with contextlib.suppress(OSError):  # there is one, which is what was asked for
                while len(ready) < _AT_ONCE - 1:
                    ready.append(_tcp(family))
            return first

        return await self._open(make)

    def close(self) -> None:
        """Close those that nobody has taken."""
        for ready in self._ready.values():
            while ready:
                ready.pop().close()


def _tcp(family: socket.AddressFamily) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return made
