"""A small network in namespaces: a bridge, and hosts on it whose sockets are used from the test's event loop."""

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address
from pathlib import Path

import pytest

from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.namespace import call_in

BRIDGE = "br0"
OWN = IPv4Interface("10.99.0.2/24")
HOST = IPv4Address("10.99.0.1")
"""The host's own address on the bridge, which is the gateway too."""
CONFIG = NetworkConfig(name="", device=BRIDGE, address=OWN, gateway=HOST)
INSIDE = "lb-test-mgmt"
"""The namespace that the data plane makes of CONFIG."""
LIMIT = 5.0
"""Seconds that anything on this network may take."""


def run(command: str) -> str:
    """Run a command and return its output."""
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


def ip(station: str, *lines: str) -> None:
    """Run ip(8) once with many commands, in a station's namespace or ("") the host's."""
    command = ["ip", *(["-n", station] if station else []), "-batch", "-"]
    subprocess.run(command, input="".join(f"{line}\n" for line in lines), check=True, capture_output=True, text=True)


async def until(true: Callable[[], bool], what: str, limit: float = LIMIT) -> float:
    """Wait for something to become true; return the seconds that it took."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() > begin + limit:
            pytest.fail(f"{what}: not within {limit} s")
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


def pings(station: "Station", address: IPAddress) -> bool:
    """Whether an address answers an echo request of the station within a second."""
    ping = ["ip", "netns", "exec", station.name, "ping", "-c", "1", "-W", "1", str(address)]
    return subprocess.run(ping, check=False, capture_output=True).returncode == 0


@dataclass(frozen=True)
class Station:
    """A host on the bridge, in a namespace of its own."""

    name: str
    address: IPv4Address

    @property
    def path(self) -> Path:
        return Path("/run/netns") / self.name

    @property
    def mac(self) -> str:
        return run(f"ip -n {self.name} -br link show eth0").split()[2]

    def socket(
        self, kind: socket.SocketKind, port: int = 0, address: IPAddress | None = None, *, ipv6: bool = False
    ) -> socket.socket:
        """A socket in this host, bound to a port and an address (else to any)."""

        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET, kind)
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((str(address or ""), port))
            return made

        return call_in(self.path, make)

    def take(self, address: IPAddress) -> None:
        """Have one more address from now on; an IPv6 one brings its /64 with it."""
        prefix = "32" if isinstance(address, IPv4Address) else "64 nodad"
        run(f"ip -n {self.name} address add {address}/{prefix} dev eth0")

    def announce(self, address: IPAddress) -> None:
        """Have one more address, and tell everybody, as after its own search for duplicates."""
        if isinstance(address, IPv4Address):
            self.take(address)
            run(f"ip netns exec {self.name} arping -c 1 -w 1 -U -I eth0 {address}")
        else:
            for setting in ("ndisc_notify=1", "accept_dad=0"):
                run(f"ip netns exec {self.name} sysctl -qw net.ipv6.conf.eth0.{setting}")
            run(f"ip -n {self.name} address add {address}/64 dev eth0")

    def take_all(self, addresses: Sequence[IPAddress]) -> None:
        """Have many more addresses from now on, without a network."""
        ip(self.name, *(f"address add {a}/{a.max_prefixlen} dev eth0 {'nodad' * (a.version == 6)}" for a in addresses))

    def accept(self, vip: IPAddress) -> None:
        """Take what is sent to the VIP by this host's MAC, and never answer for it: as a node in mode dsr."""
        if isinstance(vip, IPv4Address):
            for name, value in (("arp_ignore", 1), ("arp_announce", 2)):
                run(f"ip netns exec {self.name} sysctl -qw net.ipv4.conf.all.{name}={value}")
            run(f"ip -n {self.name} address add {vip}/32 dev lo")
        else:
            run(f"ip -n {self.name} address add {vip}/128 dev lo nodad")

    def pass_on(self) -> None:
        """Route what is not for this host, as every node does; its pods' sockets are not in its own namespace."""
        run(f"ip netns exec {self.name} sysctl -qw net.ipv4.tcp_early_demux=0")
        run(f"ip netns exec {self.name} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        run(f"ip netns exec {self.name} sysctl -qw net.ipv4.conf.all.send_redirects=0")
        run(f"ip netns exec {self.name} sysctl -qw net.ipv4.conf.eth0.send_redirects=0")

    def nft(self, *commands: str) -> None:
        """Have rules of its own."""
        for command in commands:
            run(f"ip netns exec {self.name} nft {command}")

    def knows(self, address: IPAddress) -> str:
        """The MAC that this host believes ``address`` to have, "" for none."""
        found = run(f"ip -n {self.name} neigh show {address} dev eth0").split()
        return found[found.index("lladdr") + 1] if "lladdr" in found else ""

    async def ask_tcp(self, vip: IPAddress, port: int, *, source: int = 0) -> str:
        """Connect, and return the name that the server says. Raises ConnectionRefusedError, TimeoutError."""
        reader, writer = await self.connect(vip, port, source=source)
        async with asyncio.timeout(LIMIT):
            name = (await reader.readline()).decode().strip()
        writer.transport.abort()
        return name

    async def connect(
        self, vip: IPAddress, port: int, *, source: int = 0, limit: float = LIMIT
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect and keep the connection."""
        made = self.socket(socket.SOCK_STREAM, source, ipv6=isinstance(vip, IPv6Address))
        try:
            async with asyncio.timeout(limit):
                await asyncio.get_running_loop().sock_connect(made, (str(vip), port))
            return await asyncio.open_connection(sock=made)
        except BaseException:
            made.close()
            raise

    async def ask_udp(self, vip: IPAddress, port: int, *, source: int = 0, limit: float = LIMIT) -> str:
        """Send a datagram and return the name in the answer. Raises ConnectionRefusedError (ICMP), TimeoutError."""
        made = self.socket(socket.SOCK_DGRAM, source, ipv6=isinstance(vip, IPv6Address))
        try:
            loop = asyncio.get_running_loop()
            made.connect((str(vip), port))
            async with asyncio.timeout(limit):
                await loop.sock_sendall(made, b"?")
                return (await loop.sock_recv(made, 100)).decode()
        finally:
            made.close()

    @contextlib.asynccontextmanager
    async def serving_tcp(self, port: int, *, ipv6: bool = False) -> AsyncIterator[list[str]]:
        """Say this host's name to everybody who connects, then echo; yields the list of who came."""
        came: list[str] = []
        open_now: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.append(writer.get_extra_info("peername")[0])
            open_now[writer] = asyncio.current_task()
            with contextlib.suppress(ConnectionError):
                writer.write(self.name.encode() + b"\n")
                while line := await reader.readline():
                    writer.write(line)
            writer.transport.abort()
            del open_now[writer]

        made = self.socket(socket.SOCK_STREAM, port, ipv6=ipv6)
        made.listen(1000)
        server = await asyncio.start_server(serve, sock=made)
        try:
            yield came
        finally:
            server.close()
            tasks = [task for task in open_now.values() if task is not None]
            for writer in list(open_now):
                writer.transport.abort()
            await asyncio.gather(*tasks)

    @contextlib.asynccontextmanager
    async def serving_udp(self, port: int, address: IPAddress | None = None) -> AsyncIterator[None]:
        """Answer each datagram with this host's name."""
        made = self.socket(socket.SOCK_DGRAM, port, address, ipv6=isinstance(address, IPv6Address))

        def answer() -> None:
            with contextlib.suppress(OSError):
                _, asker = made.recvfrom(65536)
                made.sendto(self.name.encode(), asker)

        loop = asyncio.get_running_loop()
        loop.add_reader(made, answer)
        try:
            yield
        finally:
            loop.remove_reader(made)
            made.close()


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """The host's bridge, for as long as the block lasts."""
    ip("", f"link add {BRIDGE} type bridge")
    try:
        ip("", f"address add {HOST}/24 dev {BRIDGE}", f"link set {BRIDGE} up")
        run("sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")
        yield
    finally:
        run(f"ip link del {BRIDGE}")


@contextlib.contextmanager
def station(name: str, address: str) -> Iterator[Station]:
    """A host on the bridge, for as long as the block lasts."""
    run(f"ip netns add {name}")
    try:
        ip("", f"link add v-{name} type veth peer name eth0 netns {name}", f"link set v-{name} master {BRIDGE} up")
        up = "link set eth0 up", "link set lo up", f"address add {address}/24 dev eth0"
        ip(name, *up, f"route add default via {HOST}")
        yield Station(name, IPv4Address(address))
    finally:
        run(f"ip link del v-{name}")
        run(f"ip netns del {name}")
