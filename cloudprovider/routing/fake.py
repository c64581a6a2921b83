"""The shipped fake of the seam in :mod:`cloudprovider.routing.api`: routers in memory, that answer at once.

It is as strict as bgpd with a router behind it: a session needs the AS numbers and the password of both sides, and what
is said is what FRR's configuration says.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cloudprovider.core.bgp import Attributes, Neighbor, Speech
from cloudprovider.core.bgpconfig import commands, config, parse, text
from cloudprovider.core.bgpsessions import Seen, Session, Sessions
from cloudprovider.core.plan import IPAddress


@dataclass(frozen=True)
class Heard:
    """A path that a router has: what is said of the address, by which next hop, and whether it is about to go."""

    attributes: Attributes
    next_hop: IPAddress
    graceful: bool = False


@dataclass
class FakeRouter:
    """A router. ``hosts``: by address, the AS number and the password that it has for each."""

    address: IPAddress
    asn: int
    hosts: dict[IPAddress, tuple[int, str]] = field(default_factory=dict)
    up: bool = True
    heard: dict[IPAddress, dict[IPAddress, Heard]] = field(default_factory=dict)
    """By host and address."""


class FakeFabric:
    """What all share: routers by address. ``clock``: Unix time, seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.routers: dict[IPAddress, FakeRouter] = {}
        self.speakers: list[FakeSpeaker] = []

    def changed(self) -> None:
        """A router is another than before: everybody looks again."""
        for speaker in list(self.speakers):
            speaker.look()


@dataclass
class _Link:
    up: bool = False
    drops: int = 0
    ended: str = ""
    by_router: bool = False


class FakeSpeaker:
    """See :class:`~cloudprovider.routing.api.Speaker`."""

    def __init__(self, fabric: FakeFabric) -> None:
        self._fabric = fabric
        self._speech: Speech | None = None
        self._links: dict[str, _Link] = {}
        self._known = Sessions()
        self._callback: Callable[[], None] = lambda: None
        self.trouble = ""
        self.said: list[list[str]] = []
        """The commands that an engine would have been told, by call."""

    def speak(self, speech: Speech | None) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        before, after = config(self._speech), config(speech)
        if parse(text(after)) != after:
            raise AssertionError("a configuration that FRR would read as another one")
        self.said.append(commands(before, after))
        changed = {n.name for n in (self._speech.neighbors if self._speech else ())} - {
            n.name for n in (speech.neighbors if speech else ()) if self._speech and n in self._speech.neighbors
        }
        for name in changed:
            self._leave(name)
            self._links.pop(name, None)
        self._speech = speech
        if self in self._fabric.speakers:
            asyncio.get_running_loop().call_soon(self.look)

    def lost(self, name: str) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        link = self._links.get(name)
        if link is not None and link.up:
            self._end(name, link, "BFD: the router fell silent", by_router=False)
            self._tell()
            asyncio.get_running_loop().call_soon(self.look)

    def drop(self, name: str, why: str) -> None:
        """The router ends the session, and takes it up again."""
        self._end(name, self._links[name], why, by_router=True)
        self._tell()
        self.look()

    @property
    def sessions(self) -> Mapping[str, Session]:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        return self._known.now

    def on_change(self, callback: Callable[[], None]) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        self._callback = callback

    async def run(self) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        self._fabric.speakers.append(self)
        self.look()
        try:
            await asyncio.Event().wait()
        finally:
            self._fabric.speakers.remove(self)
            for name in list(self._links):
                self._leave(name)
            self._links.clear()
            self._known = Sessions()
            self._callback()

    def look(self) -> None:
        """See how it stands with all routers, and say to them what is to be said."""
        if self not in self._fabric.speakers:
            return
        for neighbor in self._speech.neighbors if self._speech is not None else ():
            self._look_at(neighbor, self._links.setdefault(neighbor.name, _Link()))
        self._tell()

    def _look_at(self, neighbor: Neighbor, link: _Link) -> None:
        router = self._fabric.routers.get(neighbor.address)
        known = router.hosts.get(neighbor.source) if router is not None and router.up else None
        if router is None or known is None or self._speech is None or known[1] != neighbor.password:
            if link.up:
                self._end(neighbor.name, link, "Hold Timer Expired", by_router=False)
            return
        if router.asn != neighbor.asn or known[0] != self._speech.asn:
            if link.up:
                self._end(neighbor.name, link, "", by_router=False)
            link.ended, link.by_router = "OPEN Message Error/Bad Peer AS", router.asn == neighbor.asn
            return
        link.up = True
        router.heard[neighbor.source] = self._paths(neighbor, self._speech)

    def _paths(self, neighbor: Neighbor, speech: Speech) -> dict[IPAddress, Heard]:
        found = {}
        for vip, announcement in speech.routes.items():
            attributes = dict(announcement).get(neighbor.name)
            if attributes is not None and vip.version == neighbor.address.version:
                found[vip] = Heard(attributes, speech.next_hops[vip.version], speech.graceful)
        return found

    def _end(self, name: str, link: _Link, why: str, *, by_router: bool) -> None:
        link.up, link.drops, link.ended, link.by_router = False, link.drops + 1, why, by_router
        self._leave(name)

    def _leave(self, name: str) -> None:
        for neighbor in self._speech.neighbors if self._speech is not None else ():
            router = self._fabric.routers.get(neighbor.address)
            if neighbor.name == name and router is not None:
                router.heard.pop(neighbor.source, None)

    def _tell(self) -> None:
        speech = self._speech
        there = {}
        for neighbor in speech.neighbors if speech is not None else ():
            link = self._links.get(neighbor.name, _Link())
            count = len(self._paths(neighbor, speech)) if speech is not None and link.up else 0
            seen = Seen(
                established=link.up, advertised=count, drops=link.drops, ended=link.ended, by_router=link.by_router
            )
            there[neighbor.name] = neighbor, seen
        if self._known.hear(there, speech.asn if speech is not None else 0, self._fabric.clock()):
            self._callback()
