"""The real :class:`~cloudprovider.liveness.api.PeerWatch`: BFD (RFC 5880, 5881) by FRR's bfdd, a session a host.

A host is down when nothing was heard of it for three intervals of 100 ms. Of one that stops in order, its fellows are
told (administratively down): bfdd does not tell them by itself, neither when it ends nor when a session is deleted, so
each session is shut down first.

bfdd knows no authentication. Who sends frames on the network can forge packets (they must come from the network itself,
with a TTL of 255: RFC 5881 section 5, GTSM) and can so make a host that is up look down, or one that is dead look up.
Neither gives anybody an address: "down" only has a fellow ask for the address by ARP or NDP, which the host that is up
answers; "up" only has it wait until the Lease has expired. How many packets reach bfdd is limited by the namespace's
rules, as it runs before all else.
"""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import msgspec

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.frr.daemon import Connection, Daemon, DaemonError, Kind, OpenSocket
from cloudprovider.liveness import control
from cloudprovider.liveness.api import Liveness, PeerState, Rhythm
from cloudprovider.liveness.peers import Peers

_logger: Final = logging.getLogger(__name__)

PROGRAM: Final = "/usr/lib/frr/bfdd"
DIRECTORY: Final = Path("/run/cloudprovider/bfd")
_BFDD: Final = Kind(name="bfdd", socket="control", arguments=("--bfdctl", "control"), real_time=True)
"""Which itself opens its control socket to all. Its fellows see its death as the host's, until they have asked for an
address of it."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """``interval``: milliseconds between two packets; ``multiplier``: how many may be lost. Seconds: ``ask``, between
    two times that bfdd has to say how all stands, and that it has for it; ``retry``, until it is started again, doubled
    each time up to ``slowest``."""

    interval: int = 100
    multiplier: int = 3
    ask: float = 5.0
    retry: float = 0.5
    slowest: float = 30.0


class BfdWatch:
    """See :class:`~cloudprovider.liveness.api.PeerWatch`. ``own``: our addresses on the network, at most one a family;
    without any, nobody is watched. ``open_socket``: opens sockets in its namespace."""

    def __init__(
        self,
        network: str,
        own: Collection[IPAddress],
        open_socket: OpenSocket,
        *,
        pace: Pace | None = None,
        directory: Path = DIRECTORY,
        program: str = PROGRAM,
    ) -> None:
        self._network = network or "management"
        self._own = own
        self._pace = pace or Pace()
        self._peers = Peers(own, time.monotonic)
        self._daemon = Daemon(_BFDD, open_socket, directory=directory, program=program)
        self._session: _Session | None = None
        self._rhythms: dict[IPAddress, Rhythm] = {}

    def follow(self, peers: Mapping[str, IPAddress], rhythms: Mapping[str, Rhythm] = {}) -> None:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        added, removed = self._peers.follow(peers)
        before = dict(self._rhythms)
        self._rhythms.clear()
        self._rhythms |= {peers[name]: rhythm for name, rhythm in rhythms.items()}
        added += [a for a in self._peers.addresses if a not in added and before.get(a) != self._rhythms.get(a)]
        if self._session is not None:
            self._session.change(added, removed)

    def state(self, name: str) -> PeerState:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        return self._peers.state(name)

    def on_change(self, callback: Callable[[str], None]) -> None:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        self._peers.on_change(callback)

    async def run(self) -> None:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        if not self._own:
            _logger.info(
                "Hosts are not watched on a network: this one has no address of its own there.",
                extra={"network": self._network},
            )
            await asyncio.Event().wait()
        wait = self._pace.retry
        while True:
            begin = time.monotonic()
            try:
                await self._watch()
            except (DaemonError, DataPlaneError) as error:
                if time.monotonic() - begin > self._pace.slowest:
                    wait = self._pace.retry
                _logger.warning(
                    "Hosts are not watched on a network: the engine failed.",
                    extra={"network": self._network, "error": str(error), "retry_seconds": wait},
                )
            finally:
                self._peers.forget()
            await asyncio.sleep(wait)
            wait = min(wait * 2, self._pace.slowest)

    async def _watch(self) -> None:
        """Until it ends, which is an error."""
        connection = await self._daemon.connect()
        session = _Session(connection, self._peers, self._pace, self._rhythms)
        self._session = session
        try:
            await session.run()
        except asyncio.CancelledError:
            await session.farewell()
            await self._daemon.end(connection)
            raise
        except DaemonError:
            await self._daemon.end(connection, kill=True)  # it hangs, or is none that we understand
            raise
        finally:
            self._session = None


class _Session:
    """What is said on one connection.

    bfdd binds a session to our address when it is added, and does not try that again: the data plane has the address on
    the link before it hands out a segment.
    """

    def __init__(self, connection: Connection, peers: Peers, pace: Pace, rhythms: Mapping[IPAddress, Rhythm]) -> None:
        self._rhythms = rhythms
        self._connection = connection
        self._peers = peers
        self._pace = pace
        self._decoder = control.Decoder()
        self._numbers: Iterator[int] = itertools.cycle(range(1, 65536))
        self._asked = 0
        self._adding: dict[int, IPAddress] = {}
        self._refused: set[IPAddress] = set()
        self._ours: set[tuple[IPAddress, IPAddress]] = set()

    def change(self, added: Collection[IPAddress], removed: Collection[IPAddress]) -> None:
        """Have other sessions."""
        for peer in removed:
            self._remove(peer, self._peers.own(peer))
        for peer in added:
            self._add(peer, self._peers.own(peer))

    async def run(self) -> None:
        """Raises DaemonError."""
        self.change(list(self._peers.addresses), [])
        while True:
            self.change([peer for peer in self._refused if peer in self._peers.addresses], [])
            self._asked = self._say(control.subscribe(number := next(self._numbers)), number)
            try:
                async with asyncio.timeout(self._pace.ask):
                    while True:
                        await self._hear()
            except TimeoutError:
                if self._asked:
                    raise DaemonError(f"bfdd has not answered for {self._pace.ask} s") from None

    async def farewell(self) -> None:
        """Tell all hosts that we stop, and wait until bfdd has done so."""
        with contextlib.suppress(TimeoutError, DaemonError):
            async with asyncio.timeout(1.0):
                for peer in self._peers.addresses:
                    self._add(peer, self._peers.own(peer), shutdown=True)
                while self._adding:
                    await self._hear()

    async def _hear(self) -> None:
        try:
            received = await self._connection.reader.read(65536)
            if not received:
                raise DaemonError("bfdd has ended")
            for message in self._decoder.feed(received):
                if isinstance(message, control.Response):
                    self._answered(message)
                else:
                    self._told(message)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise DaemonError(f"can't hear what bfdd says: {error}") from error

    def _answered(self, response: control.Response) -> None:
        if response.number == self._asked:
            self._asked = 0
        peer = self._adding.pop(response.number, None)
        if peer is None or peer not in self._peers.addresses:
            return
        if response.error and peer not in self._refused:
            _logger.warning(
                "A host is not watched: bfdd refuses it.", extra={"address": str(peer), "error": response.error}
            )
        (self._refused.add if response.error else self._refused.discard)(peer)

    def _told(self, status: control.Status) -> None:
        peer = ip_address(status.peer_address)
        if status.op == "add":
            own = ip_address(status.local_address)
            if (peer, own) not in self._ours:
                self._remove(peer, own)  # one of an agent before, of whom we know nothing
        elif status.op == "status" and status.state == "up":
            self._peers.become(peer, Liveness.UP)
        elif status.op == "status" and status.diagnostics == control.DETECTION_EXPIRED:
            self._peers.become(peer, Liveness.DOWN, ago=status.downtime)
        elif status.op == "status":
            self._peers.become(peer, Liveness.UNKNOWN)

    def _add(self, peer: IPAddress, own: IPAddress, *, shutdown: bool = False) -> None:
        number = next(self._numbers)
        pace = self._rhythms.get(peer, self._pace)
        self._adding[number] = peer
        self._ours.add((peer, own))
        timing = {"interval": pace.interval, "multiplier": pace.multiplier}
        self._say(control.add(number, peer, own, **timing, shutdown=shutdown), number)

    def _remove(self, peer: IPAddress, own: IPAddress) -> None:
        self._add(peer, own, shutdown=True)
        number = next(self._numbers)
        self._say(control.delete(number, peer, own), number)

    def _say(self, request: bytes, number: int) -> int:
        self._connection.writer.write(request)
        return number
