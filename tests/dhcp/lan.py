"""A LAN in namespaces, with room for hundreds of leases; stations on it, and the client of one of them."""

import asyncio
import contextlib
import random
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network

from cloudprovider.dataplane import arp
from cloudprovider.dhcp.api import Key, Lease, LeaseRequest, LeaseState
from cloudprovider.dhcp.client import SocketDhcpClient
from cloudprovider.dhcp.effects import Reason
from cloudprovider.dhcp.link import open_socket
from cloudprovider.dhcp.timing import Timing
from tests.dhcp.networks import key, request
from tests.dhcp.waiting import until
from tests.lab.netns import call

BRIDGE = "dhcp-br"
SUBNET = IPv4Network("10.98.0.0/22")
ROUTER = SUBNET[1]
NETWORK = "default/lan"


def run(command: str) -> str:
    """Run a command and return its output."""
    return subprocess.run(command.split(), check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Station:
    """A host on the LAN, in a namespace of its own."""

    name: str

    @property
    def mac(self) -> str:
        return run(f"ip -n {self.name} -br link show eth0").split()[2]

    def add(self, address: IPv4Address, length: int = 32) -> None:
        run(f"ip -n {self.name} address replace {address}/{length} dev eth0")

    def set(self, state: str) -> None:
        run(f"ip -n {self.name} link set eth0 {state}")


@contextlib.contextmanager
def bridge() -> Iterator[None]:
    """The LAN's switch."""
    run(f"ip link add {BRIDGE} type bridge")
    try:
        run(f"ip link set {BRIDGE} up")
        yield
    finally:
        run(f"ip link del {BRIDGE}")


@contextlib.contextmanager
def station(name: str, address: IPv4Address | None = None, *, kind: str = "veth") -> Iterator[Station]:
    """A host on the LAN; ``kind`` macvlan: its link hangs on the bridge like on a plain device."""
    name = f"dhcp-{name}"
    run(f"ip netns add {name}")
    try:
        if kind == "veth":
            run(f"ip link add v-{name} type veth peer name eth0 netns {name}")
            run(f"ip link set v-{name} master {BRIDGE} up")
        else:
            run(f"ip link add link {BRIDGE} name eth0 netns {name} type macvlan mode bridge")
        run(f"ip -n {name} link set eth0 up")
        run(f"ip -n {name} link set lo up")
        made = Station(name)
        if address is not None:
            made.add(address, SUBNET.prefixlen)
        yield made
    finally:
        if kind == "veth":
            run(f"ip link del v-{name}")
        run(f"ip netns del {name}")


class Prober:
    """RFC 5227's question on a station's link, as the agent asks it: three times within 100 ms, 100 ms to listen."""

    def __init__(self, link: Station) -> None:
        self._mac = bytes.fromhex(link.mac.replace(":", ""))
        self._asked: dict[IPv4Address, str] = {}
        self._packets = call(link.name, self._open)
        asyncio.get_running_loop().add_reader(self._packets, self._listen)

    async def probe(self, address: IPv4Address) -> str:
        self._asked[address] = ""
        for wait in (0.05, 0.05, 0.1):
            self._packets.send(arp.probe(self._mac, address))
            await asyncio.sleep(wait)
        return self._asked.pop(address)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._packets)
        self._packets.close()

    @staticmethod
    def _open() -> socket.socket:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        packets.settimeout(0)
        packets.bind(("eth0", arp.ETHERTYPE))
        return packets

    def _listen(self) -> None:
        heard = arp.parse(self._packets.recv(128))
        if heard is not None and isinstance(heard.sender, IPv4Address) and heard.sender in self._asked:
            self._asked[heard.sender] = heard.mac


@dataclass
class Host:
    """A station's client, and what it has told."""

    link: Station
    client: SocketDhcpClient
    task: "asyncio.Task[None]"
    up: bool
    """Whether leased addresses are put on the link, as servers expect before they answer by unicast."""
    told: list[tuple[Key, LeaseState]] = field(default_factory=list)

    def changed(self, changed: Key) -> None:
        state = self.client.state(changed)
        self.told.append((changed, state))
        if self.up and state.lease is not None:
            self.link.add(state.lease.address)

    def leases(self, count: int) -> list[Lease]:
        found = [self.client.state(key(number)).lease for number in range(count)]
        return [lease for lease in found if lease is not None]

    def reasons(self, number: int = 0) -> list[Reason]:
        """The problems that one lease has had, without repetition."""
        found = [s.problem.reason for changed, s in self.told if changed == key(number) and s.problem is not None]
        return [r for at, r in enumerate(found) if not at or found[at - 1] is not r]

    def want(self, *numbers: int, remembered: dict[int, Lease] | None = None) -> None:
        for number in numbers:
            asked = request(number)
            lease = (remembered or {}).get(number)
            self.client.want(LeaseRequest(key=asked.key, identity=asked.identity, remembered=lease))

    async def leased(self, *numbers: int, limit: float = 20.0) -> list[Lease]:
        """Wait until these have a lease and no problem."""

        def all_in_order() -> bool:
            states = [self.client.state(key(number)) for number in numbers]
            return all(state.lease is not None and state.problem is None for state in states)

        await until("the leases", all_in_order, limit=limit)
        return [lease for number in numbers if (lease := self.client.state(key(number)).lease) is not None]

    async def renewed(self, number: int = 0, *, limit: float = 20.0) -> Lease:
        """Wait until a lease is another one than now."""
        before = self.client.state(key(number)).lease

        def is_new() -> bool:
            state = self.client.state(key(number))
            return state.lease is not None and state.lease != before and state.problem is None

        await until("a renewal", is_new, limit=limit)
        after = self.client.state(key(number)).lease
        assert after is not None
        return after

    async def told_of(self, reason: Reason, number: int = 0, *, limit: float = 20.0) -> str:
        """Wait until a problem is told; the sentence."""
        await until(f"the problem {reason}", lambda: reason in self.reasons(number), limit=limit)
        problems = [state.problem for changed, state in self.told if changed == key(number)]
        return next(p.message for p in problems if p is not None and p.reason is reason)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@contextlib.asynccontextmanager
async def host(
    link: Station,
    *,
    up: bool = True,
    timing: Timing | None = None,
    probe: Callable[[IPv4Address], Awaitable[str]] | None = None,
) -> AsyncIterator[Host]:
    """A client on a station's link, running."""
    packets = call(link.name, lambda: open_socket("eth0"))
    prober = Prober(link)
    client = SocketDhcpClient(
        packets,
        mac=link.mac,
        network=NETWORK,
        probe=probe or prober.probe,
        now=lambda: datetime.now(UTC),
        rng=random.SystemRandom(),
        timing=timing or Timing(),
    )
    made = Host(link, client, asyncio.get_running_loop().create_task(client.run()), up)
    client.on_change(made.changed)
    try:
        yield made
        if made.task.done() and not made.task.cancelled():
            made.task.result()  # it does not end by itself but with an error
    finally:
        await made.stop()
        prober.close()
        packets.close()
