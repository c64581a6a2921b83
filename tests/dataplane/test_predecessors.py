"""An address of mode nat that moves between two hosts: what is open goes on by the first, what is new by the second."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, ip_address

import pytest

from cloudprovider.core.checksum import internet_checksum, transport_checksum
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.dsr import VIP, VIP6, Connection, connections
from tests.dataplane.lan import CONFIG, LIMIT, OWN, Station, run, until
from tests.dataplane.test_nat6 import serving

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("both_families")]

OWN6 = IPv6Interface("fd99::2/64")
FIRST = replace(CONFIG, address6=OWN6)
SECOND = replace(CONFIG, address=IPv4Interface("10.99.0.3/24"), address6=IPv6Interface("fd99::3/64"))
GROUPS = {VIP: GroupId(1), VIP6: GroupId(2)}
BOTH = pytest.mark.parametrize("vip", [VIP, VIP6])


def listener(vip: IPAddress) -> ListenerKey:
    return ListenerKey(vip, "TCP", 80)


def to_nodes(vip: IPAddress, predecessor: IPAddress | None = None) -> Forward:
    return Forward(group=GROUPS[vip], backend_port=30080, predecessor=predecessor)


def own(vip: IPAddress) -> IPAddress:
    """What the first host has."""
    return OWN.ip if vip.version == 4 else OWN6.ip


def group(nodes: list[Station], vip: IPAddress) -> Group:
    numbers = [10 + int(node.name[1:]) for node in nodes]
    return Group(frozenset(ip_address(f"10.99.0.{n}" if vip.version == 4 else f"fd99::{n}") for n in numbers))


@dataclass
class Pair:
    """Two hosts on one bridge, which both forward."""

    first: KernelSegment
    second: KernelSegment

    async def move(self, vip: IPAddress) -> None:
        """From the first to the second, which knows of it."""
        forward = to_nodes(vip, predecessor=own(vip))
        await self.second.engine.apply(Changes(forwards={listener(vip): forward}))
        assert (await self.second.engine.observe()).forwards[listener(vip)] == forward
        await self.second.announcer.take([vip])
        await self.first.announcer.withdraw([vip])


@pytest.fixture
async def pair(dataplane: HostDataPlane, nodes: list[Station]) -> AsyncIterator[Pair]:
    """The first has the addresses."""
    other = HostDataPlane("test-2", timing=Timing(between=0.005, listen=0.02))
    made = Pair(await dataplane.open(FIRST), await other.open(SECOND))
    try:
        for segment, name, config in ((made.first, "test", FIRST), (made.second, "test-2", SECOND)):
            await segment.engine.start()
            run(f"ip -n lb-{name}-mgmt -6 address replace {config.address6} dev lan0 nodad")
            for vip in (VIP, VIP6):
                groups = {GROUPS[vip]: group(nodes, vip)}
                await segment.engine.apply(Changes(groups=groups, forwards={listener(vip): to_nodes(vip)}))
        await made.first.announcer.claim([VIP, VIP6])
        yield made
    finally:
        await other.close()
        await other.remove("")


@BOTH
async def test_what_is_open_goes_on_and_what_is_new_comes_here(
    pair: Pair, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    async with serving(nodes) as came, connections(client, 12, vip) as flows:
        await pair.move(vip)
        assert all([await flow.alive() for flow in flows])
        new = await Connection.open(client, vip)
        assert client.knows(vip) == pair.second.mac
        second = {str(SECOND.address.ip), str(SECOND.address6.ip)}  # type: ignore[union-attr]
        assert len([peer for peers in came.values() for peer in peers if peer.removeprefix("::ffff:") in second]) == 1
        assert all([await flow.alive() for flow in (*flows, new)])
        new.close()


@BOTH
async def test_what_ends_is_told_to_the_node(pair: Pair, client: Station, nodes: list[Station], vip: IPAddress) -> None:
    """Also where nothing was said since the address moved: a FIN is no beginning of anything to conntrack."""
    async with serving(nodes), connections(client, 6, vip) as flows:
        await pair.move(vip)
        assert _open_connections(nodes) == 6
        for flow in flows:
            flow.writer.close()
        await until(lambda: not _open_connections(nodes), "the nodes to know")


@BOTH
async def test_an_error_about_what_is_open_finds_its_node(
    pair: Pair, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    """A router on the way to a client says that a packet was too big."""
    async with serving(nodes), connections(client, 1, vip) as flows:
        node = next(node for node in nodes if node.name == flows[0].node)
        await pair.move(vip)
        _complain(client, vip, flows[0].source)
        await until(lambda: _errors(node, vip) == 1, "the node to hear of it")
        assert await flows[0].alive()


@BOTH
async def test_a_predecessor_that_is_gone_again(
    pair: Pair, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    """The host before died: what was open there is reset at once, and nothing is silent."""
    async with serving(nodes), connections(client, 3, vip) as flows:
        await pair.move(vip)
        assert all([await flow.alive() for flow in flows])
        await pair.second.engine.apply(Changes(forwards={listener(vip): to_nodes(vip)}))
        assert not any([await flow.alive() for flow in flows])


@BOTH
async def test_without_one_what_is_open_ends_with_a_reset(
    pair: Pair, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    async with serving(nodes), connections(client, 3, vip) as flows:
        await pair.second.announcer.take([vip])
        await pair.first.announcer.withdraw([vip])
        assert not any([await flow.alive() for flow in flows])


@BOTH
async def test_two_that_name_each_other_end_it(pair: Pair, client: Station, vip: IPAddress) -> None:
    """As where an agent hangs whose address another host has taken, and which has taken it from there before."""
    other = ip_address(str(SECOND.address.ip if vip.version == 4 else SECOND.address6.ip))  # type: ignore[union-attr]
    await pair.move(vip)
    await pair.first.engine.apply(Changes(forwards={listener(vip): to_nodes(vip, predecessor=other)}))
    _stray(client, vip)

    async def passed() -> int:
        counted = [await segment.engine.counters() for segment in (pair.first, pair.second)]
        return sum(counters[listener(vip)].packets for counters in counted)

    async with asyncio.timeout(LIMIT):
        before, after = -1, await passed()
        while before != after or not after:
            await asyncio.sleep(0.2)
            before, after = after, await passed()
    assert 2 < after <= 64


def _open_connections(nodes: list[Station]) -> int:
    listed = (run(f"ip netns exec {node.name} ss -Htn state established sport = :30080") for node in nodes)
    return sum(len(lines.splitlines()) for lines in listed)


def _complain(client: Station, vip: IPAddress, port: int) -> None:
    """Say to a VIP that what it sent to a port of this station was too big (RFC 1191, RFC 4443 section 3.2)."""
    mine = client.address if vip.version == 4 else IPv6Address("fd99::50")
    ports = struct.pack("!HHLL", 80, port, 1, 1)
    if vip.version == 4:
        quoted = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 1500, 0, 0x4000, 64, 6, 0, vip.packed, mine.packed) + ports
        message = struct.pack("!BBHHH", 3, 4, 0, 0, 1400) + quoted
        message = message[:2] + struct.pack("!H", internet_checksum(message)) + message[4:]
        kind, protocol = socket.AF_INET, socket.IPPROTO_ICMP
    else:
        quoted = struct.pack("!IHBB16s16s", 6 << 28, 1460, 6, 64, vip.packed, mine.packed) + ports
        message = struct.pack("!BBHI", 2, 0, 0, 1400) + quoted
        total = transport_checksum(mine.packed, vip.packed, 58, message)
        message = message[:2] + struct.pack("!H", total) + message[4:]
        kind, protocol = socket.AF_INET6, socket.IPPROTO_ICMPV6
    with call_in(client.path, lambda: socket.socket(kind, socket.SOCK_RAW, protocol)) as raw:
        raw.sendto(message, (str(vip), 0))


def _errors(node: Station, vip: IPAddress) -> int:
    name = "IcmpInDestUnreachs" if vip.version == 4 else "Icmp6InPktTooBigs"
    return int(run(f"ip netns exec {node.name} nstat -asz {name}").split()[-2])


def _stray(client: Station, vip: IPAddress) -> None:
    """Send an ACK of a connection that nobody knows."""
    mine = client.address if vip.version == 4 else IPv6Address("fd99::50")
    segment = struct.pack("!HHLLBBHHH", 40000, 80, 1, 1, 5 << 4, 0x10, 1000, 0, 0)
    total = transport_checksum(mine.packed, vip.packed, socket.IPPROTO_TCP, segment)
    segment = segment[:16] + struct.pack("!H", total) + segment[18:]
    family = socket.AF_INET if vip.version == 4 else socket.AF_INET6
    with call_in(client.path, lambda: socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP)) as raw:
        raw.sendto(segment, (str(vip), 0))
