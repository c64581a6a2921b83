"""Probes from a network's namespace, in the event loop and without a task each. Meets
:class:`~cloudprovider.probe.api.Prober`."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.questions import GrpcHealth, HttpGet, TcpConnect
from cloudprovider.probe.api import OpenSocket, Target
from cloudprovider.probe.connection import Connection, failed
from cloudprovider.probe.exchange import Exchange, bad
from cloudprovider.probe.grpc import GrpcExchange
from cloudprovider.probe.http import HttpExchange
from cloudprovider.probe.sockets import SocketStock
from cloudprovider.probe.tls import TlsExchange, context_of

_logger: Final = logging.getLogger(__name__)

_TELL_AGAIN: Final = 60.0
"""Seconds between two lines in the log about the same family's probes that don't leave this host."""


class SocketProber:
    """Probes from one network's namespace. Made in a running event loop."""

    def __init__(self, open_socket: OpenSocket, *, network: str = "") -> None:
        """``network``: its name, for the log."""
        self._stock = SocketStock(open_socket)
        self._network = network
        self._loop = asyncio.get_running_loop()
        self._running: set[Connection] = set()
        self._closed = False
        self._told: dict[int, float] = {}

    async def begin(self, target: Target, timeout: float, done: Callable[[Answer], None]) -> None:
        """See :class:`~cloudprovider.probe.api.Prober`."""
        if timeout <= 0:
            raise ValueError(f"a probe needs a timeout above 0 s: {timeout}")
        self._check_open()
        address = target.address
        try:
            exchange = exchange_of(target)
        except ValueError as error:  # of what was asked for: no trouble of this host
            self._later(done, bad(str(error)))
            return
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
            probe = Connection(self._loop, taken, exchange, timeout=timeout, done=done, forget=self._running.discard)
            self._running.add(probe)
            return
        taken.close()
        if result == errno.ECONNREFUSED:
            self._later(done, failed(result))
        else:
            self._unasked(address, os.strerror(result).lower(), done)

    def close(self) -> None:
        """See :class:`~cloudprovider.probe.api.Prober`."""
        self._closed = True
        for probe in list(self._running):
            probe.abandon()
        self._stock.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the prober is closed")

    def _unasked(self, address: IPAddress, reason: str, done: Callable[[Answer], None]) -> None:
        now = self._loop.time()
        if now - self._told.get(address.version, -_TELL_AGAIN) >= _TELL_AGAIN:
            self._told[address.version] = now
            values = {"network": self._network, "address": str(address), "error": reason}
            _logger.warning("This host can't probe; what is probed counts as it did.", extra=values)
        self._later(done, Answer(Outcome.UNASKED, reason))

    def _later(self, done: Callable[[Answer], None], answer: Answer) -> None:
        self._loop.call_soon(lambda: None if self._closed else done(answer))


def exchange_of(target: Target) -> Exchange | None:
    """What to say to a target once connected; None: nothing. Raises ValueError where TLS is asked for and its
    authority is no certificate."""
    question = target.question
    match question:
        case TcpConnect():
            return None
        case HttpGet():
            inner: Exchange = HttpExchange(target, question)
            protocols: tuple[str, ...] = ()
        case GrpcHealth():
            inner, protocols = GrpcExchange(target, question), ("h2",)
    if question.tls is None:
        return inner
    return TlsExchange(inner, context_of(question.tls, *protocols), question.host or str(target.address))
