"""The seam to probes, met by the real prober (:mod:`cloudprovider.probe.prober`) and by the shipped fake
(:mod:`cloudprovider.probe.fake`)."""

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from cloudprovider.core.health import Answer
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.questions import Question, TcpConnect

OpenSocket: TypeAlias = Callable[[Callable[[str], socket.socket]], Awaitable[socket.socket]]
"""Opens a socket inside a network's namespace by a function that is given the link's name; the data plane's
``Segment.packets`` is one. Raises DataPlaneError, and what the function raises."""


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint, and what it is asked."""

    address: IPAddress
    port: int
    question: Question = field(default_factory=TcpConnect)

    def __post_init__(self) -> None:
        """Raises ValueError for what is no port."""
        if not 0 < self.port < 65536:
            raise ValueError(f"port {self.port} is none; use 1 to 65535")

    @property
    def authority(self) -> str:
        """Address and port as a URI has them (RFC 3986 section 3.2)."""
        return f"[{self.address}]:{self.port}" if self.address.version == 6 else f"{self.address}:{self.port}"


class Prober(Protocol):
    """Asks targets, many beside each other, each on a connection of its own."""

    async def begin(self, target: Target, timeout: float, done: Callable[[Answer], None]) -> None:
        """Begin one probe, which has an answer within ``timeout`` seconds (once more as long where the loop itself
        was late). Returns at once: ``done`` is called later by the event loop, once, and not after ``close``.
        Whatever goes wrong is an answer; only a closed prober raises RuntimeError, and a timeout that is not above 0
        ValueError."""
        ...

    def close(self) -> None:
        """Let go of all that is under way."""
        ...
