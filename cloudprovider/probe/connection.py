"""One probe's connection, in the event loop and without a task."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import Final

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.probe.exchange import Exchange, bad

_UNREACHED: Final = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})
"""Errors of a connection whose other end has not spoken (tcp(7); ARP that stays unanswered, ICMP)."""
_LATE: Final = 0.1
"""Seconds that a timer may be late before the answer is given more time: it was this process that was slow."""
_AT_ONCE: Final = 4096
_MOST: Final = 128 * 1024
"""Octets that are read of one answer: more than any chain of certificates and what is said after it."""


class Connection:
    """One that is under way: connecting (writable comes next), then talking. ``exchange`` None: it is all that is
    asked for that the connection comes about."""

    __slots__ = ("_connected", "_done", "_exchange", "_forget", "_loop", "_out", "_read", "_socket", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connecting: socket.socket,
        exchange: Exchange | None,
        *,
        timeout: float,
        done: Callable[[Answer], None],
        forget: Callable[["Connection"], None],
    ) -> None:
        self._loop = loop
        self._socket = connecting
        self._exchange = exchange
        self._done = done
        self._forget = forget
        self._connected = False
        self._out = b""
        self._read = 0
        loop.add_writer(connecting, self._writable)
        self._timer = loop.call_later(timeout, self._expired, timeout, loop.time() + timeout)

    def abandon(self) -> None:
        """End it without an answer."""
        self._timer.cancel()
        self._loop.remove_writer(self._socket)
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._forget(self)

    def _end(self, answer: Answer) -> None:
        self.abandon()
        self._done(answer)

    def _writable(self) -> None:
        if not self._connected:
            error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self._end(failed(error))
                return
            if self._exchange is None:
                self._end(Answer(Outcome.GOOD))
                return
            self._connected = True
            self._loop.add_reader(self._socket, self._readable, self._exchange)
            self._out = self._exchange.begin()
        self._send()

    def _send(self) -> None:
        try:
            sent = self._socket.send(self._out) if self._out else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(failed(error.errno or errno.EIO))
            return
        self._out = self._out[sent:]
        if self._out:
            self._loop.add_writer(self._socket, self._writable)
        else:
            self._loop.remove_writer(self._socket)

    def _readable(self, exchange: Exchange) -> None:
        try:
            data = self._socket.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(failed(error.errno or errno.EIO))
            return
        self._read += len(data)
        answer = exchange.receive(data, ended=not data)
        if answer is None and (not data or self._read > _MOST):
            answer = bad("the connection was closed before the answer's end" if not data else "the answer has no end")
        if answer is not None:
            self._end(answer)
            return
        out = exchange.take()
        if out:
            self._out += out
            self._send()

    def _expired(self, timeout: float, due: float) -> None:
        """The time is over. Where the loop was late the probe may have been waiting for the loop, and gets as much
        again, once. (An answer that has come meanwhile is read before its timer is looked at.)"""
        now = self._loop.time()
        if due and now - due > _LATE:
            self._timer = self._loop.call_later(timeout, self._expired, timeout, 0.0)
            return
        within = f"within {timeout:g} s"
        self._end(bad(f"no answer {within}") if self._connected else Answer(Outcome.SILENT, f"no connection {within}"))


def failed(error: int) -> Answer:
    """What an error of a connection says."""
    said = os.strerror(error).lower()
    return Answer(Outcome.SILENT if error in _UNREACHED else Outcome.BAD, said)
