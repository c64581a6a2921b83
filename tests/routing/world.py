"""Hosts that speak to routers on one network: in memory, or in namespaces with FRR on both sides."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from pathlib import Path
from typing import Protocol, Self

from cloudprovider.core.bgp import Announcement, Attributes, Neighbor, Speech
from cloudprovider.core.bgpsessions import State
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.routing.api import Speaker
from cloudprovider.routing.bgpd import PROGRAM, BgpSpeaker, Pace
from cloudprovider.routing.fake import FakeFabric, FakeRouter, FakeSpeaker
from tests.dataplane.lan import Station, station, until
from tests.routing.router import Router as Frr

LIMIT = 25.0
"""Seconds until a session is up: a router that was not reached is tried again after five."""
PACE = Pace(look=0.2, farewell=1.0, retry=0.1)
ASN, ROUTER_ASN = 64512, 64513
HOST, HOST6 = "10.99.0.2", "fd99::2"


@contextlib.contextmanager
def tidy() -> Iterator[None]:
    """A bgpd that is killed leaves a directory under its process id: nothing of it stays."""
    there = Path("/var/tmp/frr")
    before = set(there.glob("bgpd.*"))
    yield
    for left in set(there.glob("bgpd.*")) - before:
        if not Path(f"/proc/{left.suffix[1:]}").exists():
            shutil.rmtree(left)


@dataclass(frozen=True)
class Said:
    """What a router has heard of an address from a host."""

    next_hop: str
    communities: frozenset[str] = frozenset()
    large_communities: frozenset[str] = frozenset()
    local_preference: int = 100
    graceful: bool = False


class Router(Protocol):
    @property
    def address(self) -> str: ...

    def know(self, host: str, asn: int, password: str = "") -> None: ...

    def paths(self) -> Mapping[str, Said]:
        """What it has heard of each address, where it is one host that says so."""
        ...

    def drop(self, host: str, name: str) -> None: ...

    def off(self) -> None: ...

    def on(self) -> None: ...


class World(Protocol):
    def router(self, address: str, asn: int) -> Router: ...

    def speaker(self) -> Speaker: ...


class Running:
    """Runs a speaker while the block lasts."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.changes = 0

    async def __aenter__(self) -> Self:
        self.speaker.on_change(self._changed)
        self._task = asyncio.create_task(self.speaker.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def until(self, name: str, state: State, limit: float = LIMIT) -> float:
        def so() -> bool:
            session = self.speaker.sessions.get(name)
            return session is not None and session.state == state

        return await until(so, f"{name} {state}", limit=limit)

    def _changed(self) -> None:
        self.changes += 1


def neighbor(name: str, address: str, asn: int = ROUTER_ASN, password: str = "") -> Neighbor:
    source = ip_address(HOST6 if ":" in address else HOST)
    return Neighbor(name=name, address=ip_address(address), asn=asn, source=source, password=password)


def speech(*neighbors: Neighbor, routes: Mapping[str, Mapping[str, Attributes]], graceful: bool = False) -> Speech:
    """``routes``: by address, what is said of it to whom."""
    said: dict[IPAddress, Announcement] = {ip_address(a): tuple(sorted(to.items())) for a, to in routes.items()}
    return Speech(
        asn=ASN,
        router_id=HOST,
        next_hops={4: ip_address(HOST), 6: ip_address(HOST6)},
        neighbors=neighbors,
        routes=said,
        graceful=graceful,
    )


class _FakeRouter:
    def __init__(self, fabric: FakeFabric, address: str, asn: int) -> None:
        self.address = address
        self._fabric = fabric
        self._router = FakeRouter(ip_address(address), asn)
        fabric.routers[ip_address(address)] = self._router

    def know(self, host: str, asn: int, password: str = "") -> None:
        self._router.hosts[ip_address(host)] = (asn, password)
        self._fabric.changed()

    def paths(self) -> Mapping[str, Said]:
        return {
            str(vip): Said(
                str(heard.next_hop),
                frozenset(heard.attributes.communities),
                frozenset(heard.attributes.large_communities),
                # Others than of its own AS are not told of a preference; that of a path which goes is 0.
                0 if heard.graceful else heard.attributes.local_preference if self._router.asn == ASN else 100,
                heard.graceful,
            )
            for said in self._router.heard.values()
            for vip, heard in said.items()
        }

    def drop(self, host: str, name: str) -> None:
        for speaker in self._fabric.speakers:
            if speaker.sessions[name].state == "Established" or speaker.sessions[name].state == "Flapping":
                speaker.drop(name, "Cease/Administrative Reset")

    def off(self) -> None:
        self._router.up = False
        self._router.heard.clear()
        self._fabric.changed()

    def on(self) -> None:
        self._router.up = True
        self._fabric.changed()


class FakeWorld:
    def __init__(self) -> None:
        self._fabric = FakeFabric(time.time)

    def router(self, address: str, asn: int) -> _FakeRouter:
        return _FakeRouter(self._fabric, address, asn)

    def speaker(self) -> FakeSpeaker:
        return FakeSpeaker(self._fabric)


class RealRouter:
    def __init__(self, there: Station, address: str, frr: Frr) -> None:
        self.station = there
        self.address = address
        self.frr = frr

    def know(self, host: str, asn: int, password: str = "") -> None:
        self.frr.know(host, asn, password)

    def paths(self) -> Mapping[str, Said]:
        found = {}
        for prefix in self.frr.prefixes():
            vip, _, _ = prefix.partition("/")
            for path in self.frr.paths(vip):
                communities = frozenset(path.get("community", {}).get("string", "").split())
                found[vip] = Said(
                    path["nexthops"][0]["ip"],
                    communities - {"graceful-shutdown"},
                    frozenset(path.get("largeCommunity", {}).get("string", "").split()),
                    path.get("locPrf", 100),
                    "graceful-shutdown" in communities,
                )
        return found

    def drop(self, host: str, _name: str) -> None:
        self.frr.drop(host)

    def off(self) -> None:
        self.frr.stop(signal.SIGKILL)

    def on(self) -> None:
        self.frr.start()


class RealWorld:
    """On the bridge of the test's own."""

    def __init__(self, stack: contextlib.ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self._routers = 0
        self.host = stack.enter_context(station("host", HOST))
        self.host.take(ip_address(HOST6))

    @property
    def directory(self) -> Path:
        return self._directory / "agent"

    @property
    def folder(self) -> Path:
        return self.directory / str(self.host.path.stat().st_ino)

    @property
    def pid(self) -> int:
        """That of the host's bgpd."""
        return int((self.folder / "pid").read_text())

    def router(self, address: str, asn: int, *, kernel: bool = False) -> RealRouter:
        self._routers += 1
        own = ip_address(address)
        first = address if isinstance(own, IPv4Address) else f"10.99.0.{200 + self._routers}"
        there = self._stack.enter_context(station(f"r{self._routers}", first))
        if own.version == 6:
            there.take(own)
        frr = Frr(there.name, self._directory / there.name, asn, kernel=kernel)
        self._stack.callback(frr.stop)
        frr.start()
        return RealRouter(there, address, frr)

    def speaker(self, pace: Pace = PACE, program: str = PROGRAM) -> BgpSpeaker:
        return self._speaker(self.host, pace, program)

    def another(self, address: str) -> BgpSpeaker:
        """The speaker of another host."""
        own = ip_address(address)
        there = self._stack.enter_context(station("other", address if own.version == 4 else "10.99.0.3"))
        if own.version == 6:
            there.take(own)
        return self._speaker(there, PACE, PROGRAM)

    def _speaker(self, there: Station, pace: Pace, program: str) -> BgpSpeaker:
        async def inside(make: Callable[[str], socket.socket]) -> socket.socket:
            return call_in(there.path, lambda: make("eth0"))

        return BgpSpeaker("", inside, pace=pace, directory=self.directory, program=program)


def alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")  # noqa: PTH110
