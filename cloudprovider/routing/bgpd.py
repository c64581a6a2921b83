"""The real :class:`~cloudprovider.routing.api.Speaker`: BGP-4 (RFC 4271) by FRR's bgpd.

bgpd runs alone, without zebra: it hears of no link and no route of the kernel's, and gives it none. What it needs of
these stands in its configuration: our addresses, as next hops and as sources of sessions. It does not listen: sessions
are begun by us, so that nothing of the network's comes to it, and nothing more is let into the namespace.

It is told by its vty socket what differs from what it says, so a session that does not change is not touched. Each time
that it is found or started it is read back first: an agent goes on with the bgpd of one that was killed.

Graceful restart (RFC 4724) is not asked for: routers would go on sending to a host that is dead, for as long as it has
to come back. Other hosts forward the same, so a path that goes is no loss.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloudprovider.core.bgp import Speech
from cloudprovider.core.bgpconfig import Config, commands, config, parse
from cloudprovider.core.bgpsessions import Seen, Session, Sessions
from cloudprovider.core.errors import DataPlaneError
from cloudprovider.frr.daemon import Connection, Daemon, DaemonError, Kind, OpenSocket
from cloudprovider.frr.vty import Vty

_logger: Final = logging.getLogger(__name__)

PROGRAM: Final = "/usr/lib/frr/bgpd"
DIRECTORY: Final = Path("/run/cloudprovider/bgp")
_BGPD: Final = Kind(name="bgpd", socket="bgpd.vty", arguments=("--no_zebra", "--bgp_port", "0"), group="frrvty")
_DROPPED: Final = "BFD: the router fell silent"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds. ``look``: between two times that bgpd has to say how sessions stand; ``deadline``: that it has for each
    answer; ``farewell``: that routers have to find other ways when it stops; ``retry``: until it is started again,
    doubled each time up to ``slowest``."""

    look: float = 1.0
    deadline: float = 5.0
    farewell: float = 2.0
    retry: float = 0.5
    slowest: float = 30.0


class _Family(msgspec.Struct, frozen=True, rename="camel"):
    sent_prefix_counter: int = 0


class _Neighbor(msgspec.Struct, frozen=True, rename="camel"):
    """What ``show bgp neighbors json`` says of one."""

    bgp_state: str = ""
    connections_dropped: int = 0
    last_reset_due_to: str = ""
    last_notification_reason: str = ""
    address_family_info: dict[str, _Family] = {}

    def seen(self, lost: str) -> Seen:
        """As the sessions take it. ``lost``: why we ended it."""
        reason = self.last_notification_reason
        due = self.last_reset_due_to
        begun = due not in {"", "No AFI/SAFI activated for peer"}
        return Seen(
            established=self.bgp_state == "Established",
            advertised=sum(family.sent_prefix_counter for family in self.address_family_info.values()),
            drops=self.connections_dropped,
            ended=lost or (reason if "Notification" in due and reason else due) if begun or lost else "",
            by_router=not lost and ("received" in due or "closed" in due),
        )


class BgpSpeaker:
    """See :class:`~cloudprovider.routing.api.Speaker`. ``open_socket``: opens sockets in its namespace."""

    def __init__(
        self,
        network: str,
        open_socket: OpenSocket,
        *,
        pace: Pace | None = None,
        directory: Path = DIRECTORY,
        program: str = PROGRAM,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._network = network or "management"
        self._pace = pace or Pace()
        self.daemon = Daemon(_BGPD, open_socket, directory=directory, program=program)
        self._clock = clock
        self._speech: Speech | None = None
        self._told = asyncio.Event()
        self._poked = asyncio.Event()
        self._lost: dict[str, str] = {}
        self._known = Sessions()
        self._trouble = ""
        self._callback: Callable[[], None] = lambda: None

    def speak(self, speech: Speech | None) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        if speech == self._speech and self._told.is_set():
            return
        self._speech = speech
        self._told.set()
        self._poked.set()

    def lost(self, name: str) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        self._lost[name] = _DROPPED
        self._poked.set()

    @property
    def sessions(self) -> Mapping[str, Session]:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        return self._known.now

    @property
    def trouble(self) -> str:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        return self._trouble

    def on_change(self, callback: Callable[[], None]) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        self._callback = callback

    async def run(self) -> None:
        """See :class:`~cloudprovider.routing.api.Speaker`."""
        await self._told.wait()
        wait = self._pace.retry
        while True:
            begin = time.monotonic()
            try:
                if self._speech is None:
                    await self._silence()
                    await self._until_told()
                    continue
                await self._converse()
                wait = self._pace.retry
            except (DaemonError, DataPlaneError) as error:
                if time.monotonic() - begin > self._pace.slowest:
                    wait = self._pace.retry
                _logger.warning(
                    "No BGP is spoken on a network: the engine failed.",
                    extra={"network": self._network, "error": str(error), "retry_seconds": wait},
                )
                self._forget(f"bgpd: {error}")
                await asyncio.sleep(wait)
                wait = min(wait * 2, self._pace.slowest)

    async def _silence(self) -> None:
        """End an engine of an agent before: there is nobody to speak to any more."""
        connection = await self.daemon.find()
        if connection is not None:
            await self.daemon.end(connection)
        self._forget("")

    async def _until_told(self) -> None:
        while self._speech is None:
            self._poked.clear()
            await self._poked.wait()

    async def _converse(self) -> None:
        """Until there is nobody to speak to any more, or it ends, which is an error."""
        connection = await self.daemon.connect()
        try:
            session = _Conversation(Vty(connection, deadline=self._pace.deadline))
            await session.begin()
            while (speech := self._speech) is not None:
                self._poked.clear()
                await session.say(speech)
                await self._end_lost(session, speech)
                self._hear(speech, await session.neighbors())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.look):
                        await self._poked.wait()
        except asyncio.CancelledError:
            await self._farewell(connection)
            self._forget("")
            raise
        except DaemonError:
            await self.daemon.end(connection, kill=True)  # it hangs, or is none that we understand
            raise
        await self._farewell(connection)

    async def _farewell(self, connection: Connection) -> None:
        """Tell routers that we stop, wait for them, and end it."""
        if any(session.state != "Connecting" for session in self._known.now.values()):
            with contextlib.suppress(DaemonError, DataPlaneError):
                # What was being said when we were cancelled may still be answered on the first one.
                other = await self.daemon.find()
                if other is not None:
                    await self._leave(other)
        await self.daemon.end(connection)

    async def _leave(self, connection: Connection) -> None:
        try:
            session = _Conversation(Vty(connection, deadline=self._pace.deadline))
            await session.begin()
            if await session.leave():
                await asyncio.sleep(self._pace.farewell)
        finally:
            connection.close()

    async def _end_lost(self, session: "_Conversation", speech: Speech) -> None:
        """End the sessions with routers that are known to be gone, unless they have ended already."""
        up = {name for name, known in self._known.now.items() if known.state == "Established"}
        for neighbor in speech.neighbors:
            if neighbor.name in self._lost and neighbor.name in up:
                await session.clear(str(neighbor.address))

    def _hear(self, speech: Speech, found: Mapping[str, _Neighbor]) -> None:
        there = {}
        for neighbor in speech.neighbors:
            said = found.get(str(neighbor.address), _Neighbor())
            if said.bgp_state == "Established":
                self._lost.pop(neighbor.name, None)
            there[neighbor.name] = neighbor, said.seen(self._lost.get(neighbor.name, ""))
        changed = self._known.hear(there, speech.asn, self._clock())
        if changed or self._trouble:
            self._trouble = ""
            self._callback()

    def _forget(self, trouble: str) -> None:
        if self._known.now or trouble != self._trouble:
            self._known = Sessions()
            self._trouble = trouble
            self._callback()


class _Conversation:
    """What is said on one connection."""

    def __init__(self, vty: Vty) -> None:
        self._vty = vty
        self._speech: Speech | None = None
        self._config: Config = {}

    async def begin(self) -> None:
        """Learn what it says now. Raises DaemonError."""
        await self._vty.say("enable")
        self._config = parse(await self._vty.say("show running-config"))

    async def say(self, speech: Speech) -> None:
        """Have it say this. Raises DaemonError."""
        if speech is self._speech:
            return
        wanted = config(speech)
        if said := commands(self._config, wanted):
            await self._vty.configure(said)
        self._config, self._speech = wanted, speech

    async def leave(self) -> bool:
        """Say that all is about to end; return whether anything is said. Raises DaemonError."""
        router = next((path[0] for path in self._config if path[0].startswith("router ")), None)
        said = any(line.startswith("network ") for lines in self._config.values() for line in lines)
        if router is None or not said:
            return False
        await self._vty.configure([router, "bgp graceful-shutdown", "exit"])
        return True

    async def clear(self, address: str) -> None:
        """End the session with a neighbor; it is begun anew. Raises DaemonError."""
        await self._vty.say(f"clear bgp {address}")

    async def neighbors(self) -> Mapping[str, _Neighbor]:
        """How it stands with all. Raises DaemonError."""
        text = await self._vty.say("show bgp neighbors json")
        try:
            return msgspec.json.decode(text or "{}", type=dict[str, _Neighbor])
        except msgspec.MsgspecError as error:
            raise DaemonError(f"what is said of neighbors is none: {error}") from error
