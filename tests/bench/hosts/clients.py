"""Clients that see what is lost, and for how long."""

import contextlib
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from tests.lab.process import LabError
from tests.lab.traffic import Client, Datagrams

KNOCK_SECONDS: Final = 0.01
"""Between two attempts to connect: no figure is finer."""
STREAM_SECONDS: Final = 0.005
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n"


def first_answer(client: Client, address: str, port: int, *, limit: float) -> float:
    """Begin a connection every 10 ms until one is answered; return when, on the monotonic clock. Nobody waits for the
    one before, whose first packet was lost and is sent again after a second. Raises LabError."""
    end = time.monotonic() + limit
    waiting: deque[socket.socket] = deque()
    with selectors.DefaultSelector() as selector:
        try:
            while time.monotonic() < end:
                begun = time.monotonic()
                waiting.append(_begin(client, address, port))
                selector.register(waiting[-1], selectors.EVENT_WRITE)
                while (left := begun + KNOCK_SECONDS - time.monotonic()) > 0:
                    for key, events in selector.select(left):
                        link = key.fileobj
                        assert isinstance(link, socket.socket)
                        if _is_answered(selector, link, events):
                            return time.monotonic()
        finally:
            for link in waiting:
                link.close()
    raise LabError(f"{address} did not answer again within {limit:g} s")


def _begin(client: Client, address: str, port: int) -> socket.socket:
    link = client.namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    link.setblocking(False)
    link.connect_ex((address, port))
    return link


def _is_answered(selector: selectors.BaseSelector, link: socket.socket, events: int) -> bool:
    try:
        if events & selectors.EVENT_READ:
            if link.recv(1):
                return True
            raise ConnectionResetError
        if error := link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, "refused")
        link.send(_REQUEST)
        selector.modify(link, selectors.EVENT_READ)
    except OSError:  # a host that has no rules yet refuses: the next one tells
        selector.unregister(link)
    return False


@dataclass
class Stream:
    """Questions of one UDP flow, one every 5 ms, each answered or not."""

    answered: list[float] = field(default_factory=list)
    """When, on the monotonic clock."""

    def gap(self, begin: float) -> tuple[float, float]:
        """The longest time without an answer that ended after ``begin``: from, to."""
        pairs = [(a, b) for a, b in zip(self.answered, self.answered[1:], strict=False) if b >= begin]
        if not pairs:
            raise LabError("a stream was not answered again")
        return max(pairs, key=lambda pair: pair[1] - pair[0])


@contextlib.contextmanager
def streaming(client: Client, address: str, port: int) -> Iterator[Stream]:
    """A stream for as long as the block lasts."""
    stream = Stream()
    ended = threading.Event()
    with client.datagrams(address, port, timeout=STREAM_SECONDS) as link:
        flow = threading.Thread(target=_ask, args=(link, stream, ended))
        flow.start()
        try:
            yield stream
        finally:
            ended.set()
            flow.join()


def _ask(link: Datagrams, stream: Stream, ended: threading.Event) -> None:
    while not ended.is_set():
        begun = time.monotonic()
        with contextlib.suppress(OSError):
            link.ask()
            stream.answered.append(time.monotonic())
        time.sleep(max(0.0, begun + STREAM_SECONDS - time.monotonic()))  # its pace


class Held:
    """Connections that were open before, and are asked again."""

    def __init__(self, client: Client, address: str, port: int, count: int) -> None:
        self._links = [client.connect(address, port, timeout=20.0) for _ in range(count)]
        if lost := self.lost():
            raise LabError(f"{len(lost)} of {count} connections are not answered: {lost[0]}")

    def lost(self) -> list[str]:
        """Ask on each; return for each on which nobody answered how that ended."""
        lost = []
        for link in self._links:
            try:
                link.get()
            except OSError as error:
                lost.append(repr(error))
        return lost

    def close(self) -> None:
        for link in self._links:
            link.close()


@dataclass(frozen=True)
class Knocked:
    """Connections that were begun one after the other."""

    connections: int
    failed: Sequence[str]
    seconds: float


def knock(
    client: Client, addresses: Sequence[str], port: int, count: int, *, at: int, then: Callable[[], None]
) -> Knocked:
    """``count`` connections, 8 at a time, to the addresses in turn; when ``at`` are through, ``then`` is called."""
    begun = time.monotonic()
    failed: list[str] = []

    def one(number: int) -> None:
        address = addresses[number % len(addresses)]
        try:
            client.get(address, port)
        except OSError as error:
            failed.append(f"{address}: {error!r}")

    with ThreadPoolExecutor(max_workers=8) as workers:
        list(workers.map(one, range(at)))
        then()
        list(workers.map(one, range(at, count)))
    return Knocked(count, failed, time.monotonic() - begun)
