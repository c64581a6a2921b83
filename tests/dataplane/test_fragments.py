"""What has no ports in mode dsr: parts of a datagram, and ICMP errors, which go by the flow that they quote."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

import pytest

from cloudprovider.core.plan import Changes, Former, Forward, Group, IPAddress, ListenerKey
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.dsr import (
    ADDRESSES,
    DNS,
    DNS6,
    ONE,
    TO_ONE,
    TWO,
    VIP,
    VIP6,
    WEB,
    WEB6,
    Connection,
    group,
    nft,
    serving,
    started,
)
from tests.dataplane.lan import BRIDGE, LIMIT, Station, run

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("both_families")]

BOTH = pytest.mark.parametrize("vip", [VIP, VIP6])
ALL = dict.fromkeys((WEB, DNS, WEB6, DNS6), TO_ONE)


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    return await started(dataplane)


async def ask(client: Station, vip: IPAddress, size: int, *, port: int = 53, limit: float = LIMIT) -> str:
    """Send a datagram of that size and return the name in the answer."""
    made = client.socket(socket.SOCK_DGRAM, ipv6=vip.version == 6)
    try:
        made.connect((str(vip), port))
        async with asyncio.timeout(limit):
            await asyncio.get_running_loop().sock_sendall(made, b"?" * size)
            return (await asyncio.get_running_loop().sock_recv(made, 100)).decode()
    finally:
        made.close()


@BOTH
async def test_big_datagrams_arrive_whole_at_the_client_s_node(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
    async with serving(nodes):
        names = {await ask(client, vip, 4000) for _ in range(10)}
        assert len(names) == 1  # by the client's address alone
        assert len({await ask(client, vip, 40) for _ in range(40)}) == 3
        everybody = {DNS: replace(TO_ONE, by_client=True), DNS6: replace(TO_ONE, by_client=True)}
        await segment.engine.apply(Changes(forwards=everybody))
        assert {await ask(client, vip, 40)} == names
        # At once, while the group changes.
        others = [node for node in nodes if node.name not in names]
        await segment.engine.apply(Changes(groups={ONE: replace(group(others), former=group(nodes).members)}))
        assert await ask(client, vip, 4000) in {node.name for node in others}


@BOTH
async def test_the_first_fragment_is_held_against_source_ranges(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))

    async def may_enter(four: str, six: str) -> bool:
        ranges = frozenset({IPv4Network(four)}) if vip.version == 4 else frozenset({IPv6Network(six)})
        key = ListenerKey(vip, "UDP", 53)
        await segment.engine.apply(Changes(forwards={key: replace(TO_ONE, sources=ranges)}))
        with contextlib.suppress(TimeoutError):
            return bool(await ask(client, vip, 4000, limit=0.5))
        return False

    async with serving(nodes):
        for _ in range(20):
            await client.ask_tcp(vip, 80)  # all have found each other
        assert await may_enter("10.99.0.0/24", "fd99::/64")
        assert not await may_enter("10.99.0.51/32", "fd99::51/128")
        assert await may_enter("10.99.0.50/32", "fd99::50/128")


async def test_fragments_for_a_vip_of_several_groups_are_refused_and_counted(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    addresses = Group(frozenset(node.address for node in nodes))
    other = ListenerKey(VIP, "UDP", 54)
    await segment.engine.apply(
        Changes(
            groups={ONE: group(nodes), TWO: group(nodes[:1]), ADDRESSES: addresses},
            forwards={DNS: TO_ONE, other: replace(TO_ONE, group=TWO)},
        )
    )
    async with serving(nodes):
        assert await ask(client, VIP, 40)
        with pytest.raises(ConnectionRefusedError):
            await ask(client, VIP, 4000)
        assert "packets 3 " in nft("list counters netdev")
        # Those of a listener of mode nat beside it are put together and translated.
        await segment.engine.apply(Changes(forwards={other: Forward(group=ADDRESSES, backend_port=30053)}))
        assert await ask(client, VIP, 4000, port=54)
        await segment.engine.apply(Changes(forwards={other: None}))
        assert await ask(client, VIP, 4000)


@contextlib.contextmanager
def narrow_router(client: Station, nodes: list[Station]) -> Iterator[None]:
    """The client is behind a router whose link to it carries at most 1,280 bytes; the sandbox's own namespace is the
    nodes' gateway to it."""
    run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
    run(f"ip address add fd99::1/64 dev {BRIDGE} nodad")
    run("ip netns add far")
    try:
        run("ip link add v-far type veth peer name eth0 netns far")
        run("ip address add 192.0.2.1/24 dev v-far")
        run("ip address add 2001:db8::1/64 dev v-far nodad")
        run("ip link set v-far up mtu 1280")
        run("ip -n far address add 192.0.2.50/24 dev eth0")
        run("ip -n far address add 2001:db8::50/64 dev eth0 nodad")
        run("ip -n far link set lo up")
        run("ip -n far link set eth0 up")  # of 1,500 bytes: what it announces as its own limit is too much
        run("ip -n far route add default via 192.0.2.1")
        run("ip -n far route add default via 2001:db8::1")
        for node in nodes:
            run(f"ip -n {node.name} route replace default via fd99::1")
            # Nothing but an error tells the node.
            run(f"ip netns exec {node.name} sysctl -qw net.ipv4.tcp_mtu_probing=0")
        yield
    finally:
        run("ip link del v-far")
        run("ip netns del far")


@BOTH
@pytest.mark.parametrize("phase", ["steady", "affinity", "pinned", "moved"])
async def test_a_router_s_error_reaches_the_node_of_the_flow(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress, phase: str
) -> None:
    """Fragmentation needed, packet too big: without it what a node sends in big packets would never arrive."""
    key = ListenerKey(vip, "TCP", 80)
    forward = replace(TO_ONE, by_client=phase == "affinity")
    far = Station("far", client.address)
    await segment.engine.apply(Changes(groups={ONE: group(nodes), TWO: group(nodes[:1])}, forwards={key: forward}))
    with narrow_router(client, nodes):
        async with serving(nodes):
            flows = [await Connection.open(far, vip) for _ in range(6)]
            if phase == "pinned":
                two = group(nodes[:1])
                await segment.engine.apply(Changes(groups={ONE: replace(two, former=group(nodes).members)}))
            elif phase == "moved":
                moved = Forward(group=TWO, mode="dsr", former=Former("dsr", ONE))
                await segment.engine.apply(Changes(forwards={key: moved}))
            for flow in flows:
                assert await flow.alive()  # pinned, where something changes
                line = b"x" * 20_000 + b"\n"
                flow.writer.write(line)
                async with asyncio.timeout(LIMIT):
                    assert await flow.reader.readexactly(len(line)) == line
                flow.close()
