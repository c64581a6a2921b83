"""The seam to probes, met by the real prober (:mod:`cloudprovider.probe.http`) and by the shipped fake
(:mod:`cloudprovider.probe.fake`)."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from cloudprovider.core.health import Outcome
from cloudprovider.core.plan import IPAddress

OpenSocket: TypeAlias = Callable[[Callable[[str], socket.socket]], Awaitable[socket.socket]]
"""Opens a socket inside a network's namespace by a function that is given the link's name; the data plane's
``Segment.packets`` is one. Raises DataPlaneError, and what the function raises."""


@dataclass(frozen=True, slots=True)
class Target:
    """An HTTP endpoint."""

    address: IPAddress
    port: int
    path: str = "/"

    def __post_init__(self) -> None:
        """Raises ValueError for what no request can be made of."""
        if not 0 < self.port < 65536:
            raise ValueError(f"port {self.port} is none; use 1 to 65535")
        if not self.path.startswith("/") or not self.path.isascii() or any(c <= " " or c == "\x7f" for c in self.path):
            raise ValueError(f"path {self.path!r} is none; use ASCII without spaces that begins with /")


class Prober(Protocol):
    """Asks targets, many beside each other, each on a connection of its own."""

    async def begin(self, target: Target, timeout: float, done: Callable[[Outcome], None]) -> None:
        """Begin one probe, which has an outcome within ``timeout`` seconds (once more as long where the loop itself
        was late). Returns at once: ``done`` is called later by the event loop, once, and not after ``close``.
        Whatever goes wrong is an outcome; only a closed prober raises RuntimeError, and a timeout that is not above 0
        ValueError."""
        ...

    def close(self) -> None:
        """Let go of all that is under way."""
        ...
