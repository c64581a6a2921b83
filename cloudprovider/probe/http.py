"""Probes over HTTP/1.1, in the event loop and without a task each. Meets :class:`~cloudprovider.probe.api.Prober`.

Of an answer only the status line is read, and of that the first 13 octets: what follows may be endless. The status
says all (200, 503), a redirect is not followed, and an interim answer (1xx) is none: nobody has asked for one.
"""

import asyncio
import errno
import logging
import re
import socket
from collections.abc import Callable
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.health import Outcome
from cloudprovider.core.plan import IPAddress
from cloudprovider.probe.api import OpenSocket, Target
from cloudprovider.probe.sockets import SocketStock

_logger: Final = logging.getLogger(__name__)

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")
_ENOUGH: Final = len(b"HTTP/1.1 200 ")
_UNREACHED: Final = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})
"""Errors of a connection whose other end has not spoken (tcp(7); ARP that stays unanswered, ICMP)."""
_LATE: Final = 0.1
"""Seconds that a timer may be late before the answer is given more time: it was this process that was slow."""
_TELL_AGAIN: Final = 60.0
"""Seconds between two lines in the log about the same family's probes that don't leave this host."""


class HttpProber:
    """Probes from one network's namespace. Made in a running event loop."""

    def __init__(self, open_socket: OpenSocket, *, network: str = "") -> None:
        """``network``: its name, for the log."""
        self._stock = SocketStock(open_socket)
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._running: set[_Probe] = set()
        self._closed = False
        self._told: dict[int, float] = {}

    async def begin(self, target: Target, timeout: float, done: Callable[[Outcome], None]) -> None:
        """See :class:`~cloudprovider.probe.api.Prober`."""
        if timeout <= 0:
            raise ValueError(f"a probe needs a timeout above 0 s: {timeout}")
        self._check_open()
        address = target.address
        try:
            taken = await self._stock.take(socket.AF_INET if address.version == 4 else socket.AF_INET6)
        except (DataPlaneError, OSError) as error:
            self._unasked(address, str(error), done)
            return
        if self._closed:
            taken.close()
            self._stock.close()
            self._check_open()
        try:
            result = taken.connect_ex((str(address), target.port))
        except OSError as error:
            result = error.errno or errno.EINVAL
        if result in {0, errno.EINPROGRESS}:
            probe = _Probe(self._loop, taken, request(target), timeout=timeout, done=done, forget=self._running.discard)
            self._running.add(probe)
            return
        taken.close()
        if result == errno.ECONNREFUSED:
            self._later(done, Outcome.BAD)
        else:
            self._unasked(address, errno.errorcode.get(result, str(result)), done)

    def close(self) -> None:
        """See :class:`~cloudprovider.probe.api.Prober`."""
        self._closed = True
        for probe in list(self._running):
            probe.abandon()
        self._stock.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the prober is closed")

    def _unasked(self, address: IPAddress, reason: str, done: Callable[[Outcome], None]) -> None:
        now = self._loop.time()
        if now - self._told.get(address.version, -_TELL_AGAIN) >= _TELL_AGAIN:
            self._told[address.version] = now
            values = {"network": self._network, "address": str(address), "error": reason}
            _logger.warning("This host can't probe; the node counts as it did.", extra=values)
        self._later(done, Outcome.UNASKED)

    def _later(self, done: Callable[[Outcome], None], outcome: Outcome) -> None:
        self._loop.call_soon(lambda: None if self._closed else done(outcome))


def request(target: Target) -> bytes:
    """The request (RFC 9112 section 3)."""
    host = str(target.address) if target.address.version == 4 else f"[{target.address}]"
    lines = (f"GET {target.path} HTTP/1.1", f"Host: {host}:{target.port}", "User-Agent: cloudprovider")
    return "\r\n".join((*lines, "Connection: close", "", "")).encode("ascii")


def judge(answer: bytes, *, ended: bool) -> Outcome | None:
    """What the beginning of an answer says; None as long as more is needed. ``ended``: nothing more will come."""
    if len(answer) < _ENOUGH and not ended and b"\n" not in answer:
        return None
    found = _STATUS_LINE.match(answer)
    if found is None:
        return Outcome.BAD
    return {b"200": Outcome.GOOD, b"503": Outcome.DRAINING}.get(found[1], Outcome.BAD)


class _Probe:
    """One that is under way: connecting (writable comes next), then waiting for the answer."""

    __slots__ = ("_answer", "_connected", "_done", "_forget", "_loop", "_request", "_socket", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connecting: socket.socket,
        request: bytes,
        *,
        timeout: float,
        done: Callable[[Outcome], None],
        forget: Callable[["_Probe"], None],
    ) -> None:
        self._loop = loop
        self._socket = connecting
        self._request = request
        self._done = done
        self._forget = forget
        self._answer = b""
        self._connected = False
        loop.add_writer(connecting, self._writable)
        self._timer = loop.call_later(timeout, self._expired, timeout, loop.time() + timeout)

    def abandon(self) -> None:
        """End it without an outcome."""
        self._timer.cancel()
        self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._forget(self)

    def _end(self, outcome: Outcome) -> None:
        self.abandon()
        self._done(outcome)

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._request)  # tells too why there is no connection
        except BlockingIOError:
            return
        except OSError as error:
            self._end(Outcome.SILENT if error.errno in _UNREACHED else Outcome.BAD)
            return
        if sent < len(self._request):  # an empty buffer takes it whole
            self._end(Outcome.BAD)
            return
        self._connected = True
        self._loop.add_reader(self._socket, self._readable)
        self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_ENOUGH)
        except BlockingIOError:
            return
        except OSError:
            self._end(Outcome.BAD)
            return
        self._answer += data
        outcome = judge(self._answer, ended=not data)
        if outcome is not None:
            self._end(outcome)

    def _expired(self, timeout: float, due: float) -> None:
        """The time is over. Where the loop was late the probe may have been waiting for the loop, and gets as much
        again, once. (An answer that has come meanwhile is read before its timer is looked at.)"""
        now = self._loop.time()
        if due and now - due > _LATE:
            self._timer = self._loop.call_later(timeout, self._expired, timeout, 0.0)
            return
        self._end(Outcome.BAD if self._connected else Outcome.SILENT)
