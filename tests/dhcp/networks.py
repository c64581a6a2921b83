"""One network to test clients on, in two makes: the real client on a wire, and the shipped fake."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Protocol

from cloudprovider.dhcp.api import DhcpClient, Key, LeaseRequest
from cloudprovider.dhcp.client import SocketDhcpClient
from cloudprovider.dhcp.fake import FakeDhcpClient, FakeDhcpServer
from cloudprovider.dhcp.timing import Timing
from tests.dhcp.waiting import LIMIT, until
from tests.dhcp.wire import WireServer, owner, wire

NETWORK = "default/lan"
LINK = "02:00:00:00:00:99"
QUICK = Timing(
    first=0.05, longest=0.1, jitter=0.01, decline_wait=0.05, better_offer=0.05, foreign_nak=0.05, probe_limit=0.5
)


def model(count: int = 10) -> FakeDhcpServer:
    """A server with some addresses."""
    return FakeDhcpServer(
        addresses=[IPv4Address("10.0.0.10") + i for i in range(count)],
        gateway=IPv4Address("10.0.0.254"),
        server=IPv4Address("10.0.0.1"),
    )


class Network(Protocol):
    """What the contract's tests need."""

    server: FakeDhcpServer
    strangers: dict[IPv4Address, str]
    """Who else has which address: answers to probes."""
    probe: Callable[[IPv4Address], Awaitable[str]]
    """How hosts that are yet to come probe."""

    def host(self) -> DhcpClient:
        """Another host's client, running; told of every owner by ``ask``."""
        ...

    def leave(self, client: DhcpClient) -> None:
        """End a host's client."""
        ...

    def now(self) -> datetime: ...

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        """Let time pass until something is so."""
        ...

    async def close(self) -> None: ...


class _Network:
    def __init__(self, server: FakeDhcpServer) -> None:
        self.server = server
        self.strangers: dict[IPv4Address, str] = {}
        self.probe: Callable[[IPv4Address], Awaitable[str]] = self._find_stranger
        self._running: dict[DhcpClient, asyncio.Task[None]] = {}
        self._stack = contextlib.ExitStack()

    async def _find_stranger(self, address: IPv4Address) -> str:
        await asyncio.sleep(0)
        return self.strangers.get(address, "")

    def leave(self, client: DhcpClient) -> None:
        self._running.pop(client).cancel()

    def running(self) -> "list[asyncio.Task[None]]":
        return list(self._running.values())

    def started(self, client: DhcpClient) -> DhcpClient:
        self._running[client] = asyncio.get_running_loop().create_task(client.run())
        return client

    async def close(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._stack.close()


class WireNetwork(_Network):
    """The real client; servers and clients are joined by socket pairs, all servers with one model."""

    def __init__(self, server: FakeDhcpServer) -> None:
        super().__init__(server)
        self.wires: list[WireServer] = []

    def host(self) -> DhcpClient:
        server, end = self._stack.enter_context(wire(self.server))
        self.wires.append(server)
        client = SocketDhcpClient(
            end,
            mac=LINK,
            network=NETWORK,
            probe=self.probe,
            now=self.now,
            rng=random.Random(1),
            timing=QUICK,
        )
        return self.started(client)

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        await until(what, condition)


class FakeNetwork(_Network):
    """The fake; time passes a second at a time."""

    def __init__(self, server: FakeDhcpServer) -> None:
        super().__init__(server)
        self._now = datetime(2026, 1, 1, tzinfo=UTC)

    def host(self) -> DhcpClient:
        return self.started(FakeDhcpClient(self.server, network=NETWORK, now=self.now, probe=self.probe))

    def now(self) -> datetime:
        return self._now

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        for _ in range(int(LIMIT) * 4):
            for client in self._running:
                assert isinstance(client, FakeDhcpClient)
                await client.settle()
            if condition():
                return
            self._now += timedelta(seconds=0.5)
            await asyncio.sleep(0)
        raise AssertionError(what)


def request(number: int = 0) -> LeaseRequest:
    """One owner's request."""
    return LeaseRequest(key=key(number), identity=owner(number))


def key(number: int = 0) -> Key:
    return ("tenant", f"lb-{number}")
