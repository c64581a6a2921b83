"""The DHCP client of one link: one socket, one timer heap, any number of leases. Meets ``api.DhcpClient``."""

import asyncio
import contextlib
import errno
import logging
import random
import socket
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from datetime import datetime
from ipaddress import IPv4Address
from typing import Final

from cloudprovider.core.errors import CloudProviderError, DataPlaneError, InvalidRequest, Violation
from cloudprovider.dhcp import link, packet
from cloudprovider.dhcp.api import Counts, Key, LeaseRequest, LeaseState
from cloudprovider.dhcp.effects import Change, Changed, Effect, Ignored, Probe, Send, Trouble
from cloudprovider.dhcp.identity import client_identity
from cloudprovider.dhcp.machine import Machine
from cloudprovider.dhcp.message import MalformedPacket, MessageType, Operation, Option
from cloudprovider.dhcp.problems import problem
from cloudprovider.dhcp.schedule import Pacer, Schedule
from cloudprovider.dhcp.terms import Terms
from cloudprovider.dhcp.timing import Timing
from cloudprovider.dhcp.wallclock import WallClock

_logger: Final = logging.getLogger(__name__)

_FRAMES_AT_ONCE: Final = 64
"""Frames read, and timers handled, until the event loop goes on with others."""
_TICK: Final = 0.005
"""Seconds: how often paced messages go out, a few at a time."""
_MOST_FAREWELLS: Final = 10_000
"""Releases that may wait to be sent; one that does not go out costs the server's range an address for a lease time."""


class _Held:
    """One wanted lease."""

    __slots__ = ("key", "machine", "owner", "probe", "ready", "state", "told")

    def __init__(self, request: LeaseRequest, machine: Machine) -> None:
        self.key = request.key
        self.owner = request.identity
        self.machine = machine
        self.state = LeaseState()
        self.told: Trouble | None = None
        """What the state's problem was made from."""
        self.ready = False
        """It waits for its turn to send."""
        self.probe: asyncio.Task[None] | None = None


class SocketDhcpClient:
    """The leases of one link. Made in a running event loop.

    ``packets`` from :func:`cloudprovider.dhcp.link.open_socket`; it stays the caller's to close, after ``run`` has
    ended. ``mac``: the link's. ``network``: its name, for messages. ``probe``: the MAC of somebody else who has an
    address, "" for nobody. ``now``: the wall clock. ``rng``: unpredictable, or strangers can answer in a server's name.
    """

    def __init__(
        self,
        packets: socket.socket,
        *,
        mac: str,
        network: str,
        probe: Callable[[IPv4Address], Awaitable[str]],
        now: Callable[[], datetime],
        rng: random.Random,
        timing: Timing = Timing(),  # noqa: B008 immutable
        rate: float = 500.0,
    ) -> None:
        """``rate``: messages a second at most that this client begins; answers to offers come with the offers."""
        self._loop = asyncio.get_running_loop()
        self._packets = packets
        self._mac = bytes.fromhex(mac.replace(":", ""))
        self._network = network
        self._probe = probe
        self._clock = WallClock(now, self._loop.time)
        self._rng = rng
        self._timing = timing
        self._held: dict[Key, _Held] = {}
        self._by_mac: dict[bytes, _Held] = {}
        self._schedule: Schedule[_Held] = Schedule()
        self._pacer = Pacer(rate)
        self._ready: deque[_Held] = deque()
        self._farewells: dict[bytes, Send] = {}
        """Releases that wait for their turn, by chaddr."""
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()
        self._unsent = ""
        self._answering: tuple[float, IPv4Address] | None = None
        """When which server last answered somebody on this link."""
        self._callback: Callable[[Key], None] | None = None
        self._wake = asyncio.Event()
        self._failure: BaseException | None = None

    def want(self, request: LeaseRequest) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        former = self._held.get(request.key)
        if former is not None and former.owner == request.identity:
            former.machine.hostname = request.hostname
            return
        identity = client_identity(request.identity)
        other = self._by_mac.get(identity.chaddr)
        if other is not None:
            message = f"{request.identity} is the owner of {'/'.join(other.key)} already; drop that lease first"
            raise InvalidRequest(Violation(field="metadata.uid", reason="IdentityInUse", message=message))
        if former is not None:
            self.drop(request.key, release=True)
        self._farewells.pop(identity.chaddr, None)  # or it would go out after the lease is confirmed
        machine = Machine(
            identity,
            hostname=request.hostname,
            remembered=self._clock.terms(request.remembered) if request.remembered is not None else None,
            now=self._loop.time(),
            rng=self._rng,
            timing=self._timing,
        )
        held = _Held(request, machine)
        self._held[request.key] = self._by_mac[identity.chaddr] = held
        held.state = self._state(held)
        self._arm(held)

    def drop(self, key: Key, *, release: bool) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        held = self._held.pop(key, None)
        if held is None:
            return
        chaddr = client_identity(held.owner).chaddr
        del self._by_mac[chaddr]
        self._schedule.forget(held)
        if held.probe is not None:
            held.probe.cancel()
        for effect in held.machine.release(self._loop.time()) if release else ():
            if isinstance(effect, Send):
                self._farewells[chaddr] = effect
        while len(self._farewells) > _MOST_FAREWELLS:
            del self._farewells[next(iter(self._farewells))]
            self._dropped["release-unsent"] += 1
        self._wake.set()

    def conflict(self, key: Key, mac: str) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        held = self._held.get(key)
        if held is not None:
            self._carry_out(held, held.machine.conflict(self._loop.time(), mac))

    def state(self, key: Key) -> LeaseState:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        held = self._held.get(key)
        return held.state if held is not None else LeaseState()

    def on_change(self, callback: Callable[[Key], None]) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        self._callback = callback

    def counts(self) -> Counts:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        return Counts(sent=dict(self._sent), received=dict(self._received), dropped=dict(self._dropped))

    async def run(self) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        self._loop.add_reader(self._packets, self._readable)
        try:
            while self._failure is None:
                self._wake.clear()
                delay = self._turn()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
            raise self._failure
        finally:
            self._loop.remove_reader(self._packets)
            probes = [held.probe for held in self._held.values() if held.probe is not None]
            for task in probes:
                task.cancel()
            await asyncio.gather(*probes, return_exceptions=True)
            for farewell in self._farewells.values():  # no time left for pacing
                self._send(farewell)
            self._farewells.clear()

    # Timers

    def _turn(self) -> float | None:
        """Do what is due; return the seconds until the next turn, None where nothing is to come."""
        now = self._loop.time()
        for held in self._schedule.due(now, most=_FRAMES_AT_ONCE):
            if now >= held.machine.expiry:  # is never late for the sake of pacing
                self._carry_out(held, held.machine.wake(now))
            else:
                held.ready = True
                self._ready.append(held)
                self._arm(held)
        while (self._ready or self._farewells) and self._pacer.take(now):
            if self._ready:
                held = self._ready.popleft()
                held.ready = False
                if self._held.get(held.key) is held:
                    self._carry_out(held, held.machine.wake(now))
            else:
                self._send(self._farewells.pop(next(iter(self._farewells))))
        if self._ready or self._farewells:
            return _TICK
        following = self._schedule.next()
        return max(following - self._loop.time(), 0) if following is not None else None

    def _arm(self, held: _Held) -> None:
        self._schedule.set(held, held.machine.expiry if held.ready else held.machine.deadline)
        self._wake.set()

    # Effects

    def _carry_out(self, held: _Held, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self._send(effect)
                case Probe():
                    held.probe = self._loop.create_task(self._ask(held, effect.address))
                case Changed():
                    self._log(held, effect)
                case Ignored():
                    self._dropped[effect.reason] += 1
        self._arm(held)
        state = self._state(held)
        if state != held.state:
            held.state = state
            if self._callback is not None:
                self._callback(held.key)

    async def _ask(self, held: _Held, address: IPv4Address) -> None:
        try:
            async with asyncio.timeout(self._timing.probe_limit):
                mac = await self._probe(address)
        except (CloudProviderError, OSError) as error:  # TimeoutError is an OSError
            effects = held.machine.probe_failed(self._loop.time(), str(error) or "no result in time")
        except Exception as error:  # noqa: BLE001 a fault in the caller's probe ends run(), which tells it
            self._fail(error)
            return
        else:
            effects = held.machine.probed(self._loop.time(), address, mac)
        if self._held.get(held.key) is held:
            held.probe = None
            self._carry_out(held, effects)

    def _send(self, send: Send) -> None:
        datagram = packet.Datagram(
            source_mac=self._mac if send.from_link else send.message.chaddr,
            # Unknown after a restart: every host takes a broadcast frame for its address.
            destination_mac=send.destination_mac or packet.BROADCAST_MAC,
            source=send.source,
            destination=send.destination,
            source_port=packet.CLIENT_PORT,
            destination_port=packet.SERVER_PORT,
            message=send.message,
        )
        try:
            self._packets.send(packet.encode(datagram))
        except OSError as error:  # to the server it is a lost frame, which retransmission is there for
            self._dropped["unsent"] += 1
            if error.errno not in {errno.EAGAIN, errno.ENOBUFS}:
                self._unsent = error.strerror or str(error)
            return
        self._unsent = ""
        self._sent[send.message.kind.name.lower()] += 1

    # Frames

    def _readable(self) -> None:
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = link.receive(self._packets)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # told once; the link may come up again
                    return
                text = f"DHCP can't read from the link of network {self._network!r}: {error.strerror}"
                self._fail(DataPlaneError(text, errno=error.errno or 0))
                return
            try:
                self._take(frame)
            except MalformedPacket as error:
                self._dropped[error.reason] += 1

    def _take(self, frame: link.Frame) -> None:
        datagram = packet.decode(frame.data, checksum_ready=frame.checksum_ready)
        message = datagram.message
        self._received[message.kind.name.lower()] += 1
        if message.operation is Operation.REPLY and message.kind in {MessageType.OFFER, MessageType.ACK}:
            server = message.address(Option.SERVER_IDENTIFIER)
            if server is not None:
                self._answering = (self._loop.time(), server)
        held = self._by_mac.get(message.chaddr)
        if held is None:
            self._dropped["unknown-client"] += 1
            return
        self._carry_out(held, held.machine.receive(self._loop.time(), message, datagram.source_mac))

    # State

    def _state(self, held: _Held) -> LeaseState:
        machine = held.machine
        lease = self._clock.lease(machine.held) if machine.held is not None else None
        if machine.trouble is held.told:  # nothing new: the sentence stays, whatever else has been heard since
            return LeaseState(lease=lease, problem=held.state.problem)
        held.told = machine.trouble
        if machine.trouble is None:
            return LeaseState(lease=lease)
        heard = self._answering is not None and self._answering[0] >= machine.trouble.since
        found = problem(
            machine.trouble,
            network=self._network,
            wall=self._clock.wall,
            answering=self._answering[1] if heard and self._answering is not None else None,
            unsent=self._unsent,
        )
        return LeaseState(lease=lease, problem=found)

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self._wake.set()

    def _log(self, held: _Held, changed: Changed) -> None:
        level = {Change.BOUND: logging.INFO, Change.RENEWED: logging.DEBUG, Change.LOST: logging.WARNING}
        terms: Terms = changed.terms
        values = {"network": self._network, "key": held.key, "address": str(terms.address), "server": str(terms.server)}
        if changed.change is Change.LOST and held.machine.trouble is not None:
            values["reason"] = held.machine.trouble.reason.value
        _logger.log(level[changed.change], "A DHCP lease is %s.", changed.change.value, extra=values)
