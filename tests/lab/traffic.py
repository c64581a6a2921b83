"""Asking servers from a station's point of view, and telling refusal from silence."""

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Self

from tests.lab import netns
from tests.lab.network import Namespace
from tests.lab.process import LabError

ANSWER_LIMIT_SECONDS = 2.0
DATAGRAM_LIMIT_BYTES = 65535


@dataclass(frozen=True)
class Answer:
    """What the server says: who it is, and whom it saw."""

    pod: str
    client: str
    client_port: int
    port: int


class Connection:
    """A TCP connection that stays open over several requests."""

    def __init__(self, link: socket.socket, address: str) -> None:
        self._http = http.client.HTTPConnection(address)
        self._http.sock = link

    def get(self, path: str = "/", *, body: bytes | None = None) -> Answer:
        """Raises OSError when the connection is broken or the server silent."""
        try:
            self._http.request("GET", path, body)
            return Answer(**json.loads(self._http.getresponse().read()))
        except http.client.HTTPException as error:
            raise ConnectionError(f"no proper answer: {error!r}") from error

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Datagrams:
    """One UDP socket, so one source port, over several questions."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link

    def ask(self, *, size: int = 4) -> Answer:
        """One datagram of ``size`` bytes and its answer. Raises ConnectionRefusedError, TimeoutError."""
        self._link.send(b"?".ljust(size))
        return Answer(**json.loads(self._link.recv(DATAGRAM_LIMIT_BYTES)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()


class Client:
    """A station that asks servers. ConnectionRefusedError is a refusal, TimeoutError silence; nothing is retried."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace

    def connect(self, address: str, port: int, *, timeout: float = ANSWER_LIMIT_SECONDS) -> Connection:
        link = self._socket(address, socket.SOCK_STREAM, timeout)
        try:
            link.connect((address, port))
        except BaseException:
            link.close()
            raise
        return Connection(link, address)

    def get(self, address: str, port: int, path: str = "/", *, timeout: float = ANSWER_LIMIT_SECONDS) -> Answer:
        """One HTTP request on a connection of its own."""
        with self.connect(address, port, timeout=timeout) as connection:
            return connection.get(path)

    def ask(self, address: str, port: int, *, timeout: float = ANSWER_LIMIT_SECONDS, size: int = 4) -> Answer:
        """One datagram and its answer; an ICMP error shows as ConnectionRefusedError."""
        with self.datagrams(address, port, timeout=timeout) as link:
            return link.ask(size=size)

    def datagrams(self, address: str, port: int, *, timeout: float = ANSWER_LIMIT_SECONDS) -> Datagrams:
        link = self._socket(address, socket.SOCK_DGRAM, timeout)
        link.connect((address, port))
        return Datagrams(link)

    def ping(self, address: str) -> bool:
        """Whether an address answers one ICMP echo request within a second."""
        try:
            self.namespace.run("ping", "-c", "1", "-W", "1", address)
        except LabError:
            return False
        return True

    def request(self, protocol: str, address: str, port: int, *, timeout: float = ANSWER_LIMIT_SECONDS) -> Answer:
        """:meth:`get` for "TCP", :meth:`ask` for "UDP"."""
        return (self.get if protocol == "TCP" else self.ask)(address, port, timeout=timeout)

    def own_address(self, address: str) -> str:
        """The address that the station itself has towards another."""
        with self._socket(address, socket.SOCK_DGRAM, ANSWER_LIMIT_SECONDS) as link:
            link.connect((address, 9))  # nothing is sent
            return str(link.getsockname()[0])

    def forget_neighbours(self) -> None:
        """Drop what ARP and NDP have told: an old entry makes a dead balancer look alive."""
        self.namespace.ip("neighbour flush all")

    def _socket(self, address: str, kind: socket.SocketKind, timeout: float) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        link = netns.make_socket(self.namespace.name, family, kind)
        link.settimeout(timeout)
        return link
