"""Hosts that watch each other on one network: in memory, or in namespaces with bfdd."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Protocol, Self

from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.liveness.api import Liveness, PeerWatch
from cloudprovider.liveness.bfd import BfdWatch, Pace
from cloudprovider.liveness.fake import FakeLan, FakePeerWatch
from tests.dataplane.lan import Station, run, station, until

LIMIT = 15.0
"""Seconds until hosts have found each other: a session that is not up sends one packet a second (RFC 5880 section
6.8.3)."""
PACE = Pace(ask=1.0, retry=0.1)


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """A bfdd that is killed leaves a directory under its process id: nothing of it stays."""
    there = Path("/var/tmp/frr")
    before = set(there.glob("bfdd.*"))
    yield
    for left in set(there.glob("bfdd.*")) - before:
        shutil.rmtree(left)


class Host(Protocol):
    """A host on the network, with its watch."""

    @property
    def watch(self) -> PeerWatch: ...

    @property
    def address(self) -> IPAddress: ...

    def cut(self) -> None:
        """Its link is cut, as it is for the others when a host dies."""
        ...

    def mend(self) -> None: ...

    def fail(self) -> None:
        """Its engine dies without a word."""
        ...


class Hosts(Protocol):
    """The network."""

    def host(self, *addresses: str) -> Host:
        """One more, which does not run yet."""
        ...


class Running:
    """Runs a watch while the block lasts."""

    def __init__(self, watch: PeerWatch) -> None:
        self.watch = watch
        self.changes: list[tuple[str, Liveness]] = []

    async def __aenter__(self) -> Self:
        self.watch.on_change(lambda name: self.changes.append((name, self.watch.state(name).liveness)))
        self._task = asyncio.create_task(self.watch.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def until(self, name: str, liveness: Liveness, limit: float = LIMIT) -> float:
        """Wait until a host is seen so; return the seconds that it took."""
        return await until(lambda: self.watch.state(name).liveness is liveness, f"{name} {liveness.value}", limit=limit)


class FakeHost:
    def __init__(self, lan: FakeLan, addresses: Collection[IPAddress]) -> None:
        self.watch = FakePeerWatch(lan, addresses)
        self.address = next(iter(addresses), IPv4Address("10.99.0.200"))
        self._lan = lan

    def cut(self) -> None:
        self._lan.cut(self.watch)

    def mend(self) -> None:
        self._lan.mend(self.watch)

    def fail(self) -> None:
        self._lan.fail(self.watch)


class FakeHosts:
    def __init__(self) -> None:
        self._lan = FakeLan(time.monotonic)

    def host(self, *addresses: str) -> FakeHost:
        return FakeHost(self._lan, [ip_address(a) for a in addresses])


class RealHost:
    def __init__(self, there: Station, own: Collection[IPAddress], directory: Path) -> None:
        self.station = there
        self.directory = directory
        self.own = own
        self.watch = self.another()
        self.address = next(iter(own), there.address)

    def another(self, pace: Pace = PACE, program: str = "/usr/lib/frr/bfdd") -> BfdWatch:
        """A watch as that of the next agent."""
        return BfdWatch(self.station.name, self.own, self._open, pace=pace, directory=self.directory, program=program)

    async def _open(self, make: Callable[[str], socket.socket]) -> socket.socket:
        return call_in(self.station.path, lambda: make("eth0"))

    def cut(self) -> None:
        run(f"ip link set v-{self.station.name} down")

    def mend(self) -> None:
        run(f"ip link set v-{self.station.name} up")

    def fail(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    @property
    def folder(self) -> Path:
        return self.directory / str(self.station.path.stat().st_ino)

    @property
    def pid(self) -> int:
        """That of its bfdd."""
        return int((self.folder / "pid").read_text())


class RealHosts:
    """On the bridge of the test's own."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self._count = 0

    def host(self, *addresses: str) -> RealHost:
        self._count += 1
        own = [ip_address(a) for a in addresses]
        first = next((a for a in own if isinstance(a, IPv4Address)), IPv4Address(f"10.99.0.{200 + self._count}"))
        made = self._stack.enter_context(station(f"h{self._count}", str(first)))
        for address in own:
            if address.version == 6:
                made.take(address)
        return RealHost(made, own, self._directory)
