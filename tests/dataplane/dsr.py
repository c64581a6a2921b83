"""What tests of mode dsr have in common: nodes that accept a VIP and serve on it, and a segment that has it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Forward, Group, GroupId, IPAddress, ListenerKey
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.lan import CONFIG, LIMIT, Station, run

VIP = IPv4Address("10.99.0.100")
VIP6 = IPv6Address("fd99::100")
WEB = ListenerKey(VIP, "TCP", 80)
DNS = ListenerKey(VIP, "UDP", 53)
WEB6 = ListenerKey(VIP6, "TCP", 80)
DNS6 = ListenerKey(VIP6, "UDP", 53)
ONE, TWO, ADDRESSES = GroupId(1), GroupId(2), GroupId(9)
TO_ONE = Forward(group=ONE, mode="dsr")
FAST = Timing(between=0.005, listen=0.02)


def mac(node: Station) -> MACAddress:
    return MACAddress.parse(node.mac)


def macs(nodes: Iterable[Station]) -> frozenset[MACAddress]:
    return frozenset(mac(node) for node in nodes)


def group(nodes: Iterable[Station]) -> Group:
    return Group(macs(nodes))


async def started(dataplane: HostDataPlane, config: NetworkConfig = CONFIG) -> KernelSegment:
    opened = await dataplane.open(config)
    await opened.engine.start()
    if config.address6 is not None:
        run(f"ip -n lb-test-mgmt -6 address replace {config.address6} dev lan0 nodad")
    await opened.announcer.claim([VIP, VIP6])
    return opened


@contextlib.asynccontextmanager
async def serving(nodes: list[Station], *, accept: bool = True) -> AsyncIterator[dict[str, list[str]]]:
    """All nodes accept both VIPs and serve on them, TCP 80 and UDP 53, also for the nat port 30080 and 30053; yields
    who came to each by TCP 80."""
    async with contextlib.AsyncExitStack() as stack:
        came: dict[str, list[str]] = {}
        for node in nodes:
            if accept:
                node.accept(VIP)
                node.accept(VIP6)
            came[node.name] = await stack.enter_async_context(node.serving_tcp(80, ipv6=True))
            await stack.enter_async_context(node.serving_tcp(30080, ipv6=True))
            await stack.enter_async_context(node.serving_udp(30053))
            if accept:
                for vip in (VIP, VIP6):
                    await stack.enter_async_context(node.serving_udp(53, vip))
        yield came


@dataclass
class Connection:
    """A TCP connection to a VIP, and the name of the node that serves it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    node: str
    source: int

    @classmethod
    async def open(cls, client: Station, vip: IPAddress = VIP, port: int = 80) -> "Connection":
        reader, writer = await client.connect(vip, port)
        async with asyncio.timeout(LIMIT):
            name = (await reader.readline()).decode().strip()
        return cls(reader, writer, name, writer.get_extra_info("sockname")[1])

    async def alive(self) -> bool:
        """Whether the other end still answers; False when it resets."""
        self.writer.write(b"still there?\n")
        try:
            async with asyncio.timeout(LIMIT):
                return await self.reader.readline() == b"still there?\n"
        except ConnectionError:
            return False

    def close(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def connections(client: Station, count: int, vip: IPAddress = VIP) -> AsyncIterator[list[Connection]]:
    made: list[Connection] = []
    try:
        for _ in range(count):
            made.append(await Connection.open(client, vip))  # noqa: PERF401 (those that were made are closed)
        yield made
    finally:
        for connection in made:
            connection.close()


async def returning(segment: KernelSegment, more: int = 0) -> Mapping[tuple[ListenerKey, MACAddress], int]:
    """Wait until more than so many frames have come back."""
    async with asyncio.timeout(LIMIT):
        while sum((found := await segment.engine.returned()).values()) <= more:  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.01)
    return found


def nft(command: str) -> str:
    return run(f"ip netns exec lb-test-mgmt nft {command}")
