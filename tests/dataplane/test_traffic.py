"""What packets really do: clients, nodes and the namespace between them."""

import asyncio
import collections
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.lan import BRIDGE, CONFIG, HOST, LIMIT, OWN, Station, run, station

pytestmark = pytest.mark.kernel

VIP = IPv4Address("10.99.0.100")
WEB = ListenerKey(VIP, "TCP", 80)
DNS = ListenerKey(VIP, "UDP", 53)
ONE = GroupId(1)
TO_ONE = Forward(group=ONE, backend_port=30080)
FAST = Timing(between=0.005, listen=0.02)


def group(nodes: list[Station]) -> Group:
    return Group(frozenset(node.address for node in nodes))


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    return await started(dataplane)


async def started(dataplane: HostDataPlane) -> KernelSegment:
    opened = await dataplane.open(CONFIG)
    await opened.engine.start()
    await opened.announcer.claim([VIP])
    return opened


@contextlib.asynccontextmanager
async def serving(nodes: list[Station], port: int = 30080) -> AsyncIterator[dict[str, list[str]]]:
    """All nodes serve TCP and UDP on a port; yields who came to each (TCP)."""
    async with contextlib.AsyncExitStack() as stack:
        came = {node.name: await stack.enter_async_context(node.serving_tcp(port)) for node in nodes}
        for node in nodes:
            await stack.enter_async_context(node.serving_udp(port))
        yield came


async def test_connections_go_evenly_to_all_nodes(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE}))
    async with serving(nodes) as came:
        names = [await client.ask_tcp(VIP, 80) for _ in range(300)]
        assert {source for sources in came.values() for source in sources} == {str(OWN.ip)}
    shares = collections.Counter(names)
    assert shares.keys() == {"n1", "n2", "n3"}
    assert min(shares.values()) > 60  # 100 each is expected; 60 is five standard deviations away
    counter = (await segment.engine.counters())[WEB]
    assert counter.connections == 300
    assert counter.packets >= 900
    assert counter.bytes >= 300 * 120


async def test_udp_is_forwarded_and_answered_from_the_address(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={DNS: TO_ONE}))
    async with serving(nodes):
        for _ in range(2):
            names = {await client.ask_udp(VIP, 53, source=20000 + i) for i in range(60)}
            assert names == {"n1", "n2", "n3"}
    assert (await segment.engine.counters())[DNS].connections == 60


async def test_a_flow_goes_where_its_port_says_and_by_client_where_its_address_says(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    sticky = ListenerKey(VIP, "TCP", 81)
    await segment.engine.apply(
        Changes(
            groups={ONE: group(nodes)}, forwards={WEB: TO_ONE, sticky: replace(TO_ONE, by_client=True), DNS: TO_ONE}
        )
    )
    async with serving(nodes):
        assert len({await client.ask_tcp(VIP, 81) for _ in range(50)}) == 1
        by_port = {port: await client.ask_tcp(VIP, 80, source=port) for port in range(20000, 20030)}
        assert len(set(by_port.values())) == 3
        # UDP has its own conntrack entries: the same hash, not the same entry, decides
        assert by_port == {port: await client.ask_udp(VIP, 53, source=port) for port in by_port}


async def test_a_hundred_and_one_nodes(segment: KernelSegment, client: Station, nodes: list[Station]) -> None:
    many = Group(group(nodes).members | {IPv4Address("10.99.0.150") + i for i in range(98)})
    await segment.engine.apply(Changes(groups={ONE: many}, forwards={WEB: TO_ONE}))
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}))
    async with serving(nodes):
        assert {await client.ask_tcp(VIP, 80) for _ in range(60)} == {"n1", "n2", "n3"}


async def test_without_nodes_clients_are_refused_at_once(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    nobody = Forward(group=GroupId(0), backend_port=30080)
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: nobody, DNS: nobody}))
    async with serving(nodes):
        for port in (80, 4444):  # a listener without nodes, and a port that is no listener
            with pytest.raises(ConnectionRefusedError):
                await client.ask_tcp(VIP, port)
        for port in (53, 4444):
            with pytest.raises(ConnectionRefusedError):
                await client.ask_udp(VIP, port)
        await segment.engine.apply(Changes(forwards={WEB: TO_ONE}))
        assert await client.ask_tcp(VIP, 80)


async def test_an_address_that_another_host_has_is_served_and_refused_alike(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """Routers send to all hosts that say so by BGP, whichever has the address on its link."""
    routed = IPv4Address("10.60.0.1")
    web, dns = replace(WEB, vip=routed), replace(DNS, vip=routed)
    run(f"ip -n {client.name} route add {routed} via {OWN.ip}")
    nobody = Forward(group=GroupId(0), backend_port=30080)
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={web: nobody, dns: nobody}))
    async with serving(nodes):
        with pytest.raises(ConnectionRefusedError):
            await client.ask_tcp(routed, 80)
        with pytest.raises(ConnectionRefusedError):
            await client.ask_udp(routed, 53)
        await segment.engine.apply(Changes(forwards={web: TO_ONE, dns: TO_ONE}))
        assert await client.ask_tcp(routed, 80)
        assert await client.ask_udp(routed, 53)


async def test_the_address_answers_ping(segment: KernelSegment, client: Station) -> None:
    assert " 0% packet loss" in run(f"ip netns exec {client.name} ping -c 2 -i 0.2 -W 2 {VIP}")


async def test_no_socket_of_host_or_namespace_is_reached(segment: KernelSegment, client: Station) -> None:
    """Listening on every address, on the host and in the namespace, gets nobody."""
    with contextlib.ExitStack() as stack:
        inside = Station("lb-test-mgmt", VIP)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            made = stack.enter_context(inside.socket(kind, 8080))
            host = stack.enter_context(socket.socket(socket.AF_INET, kind))
            host.bind(("", 8080))
            if kind == socket.SOCK_STREAM:
                made.listen()
                host.listen()
        for address in (VIP, OWN.ip):
            with pytest.raises(ConnectionRefusedError):
                await client.ask_tcp(address, 8080)
            with pytest.raises(ConnectionRefusedError):
                await client.ask_udp(address, 8080)
        reader, writer = await client.connect(HOST, 8080)  # the host's own address is the host's own matter
        writer.transport.abort()
        del reader


async def test_only_what_is_translated_is_forwarded(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """A client that uses the namespace as a router gets nowhere."""
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE}))
    run(f"ip -n {client.name} route add {nodes[0].address}/32 via {OWN.ip}")
    async with nodes[0].serving_tcp(30080) as came:
        with pytest.raises(TimeoutError):
            await client.connect(nodes[0].address, 30080, limit=0.5)
        assert came == []


async def test_source_ranges_let_in_exactly_their_clients(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE}))

    async def may_enter(*sources: str) -> bool:
        ranges = frozenset(map(IPv4Network, sources))
        await segment.engine.apply(Changes(forwards={WEB: replace(TO_ONE, sources=ranges)}))
        try:
            _, writer = await client.connect(VIP, 80, limit=0.5)
        except TimeoutError:
            return False
        writer.transport.abort()
        return True

    async with serving(nodes):
        assert await may_enter("10.99.0.50/32")
        assert await may_enter("10.99.0.0/24", "192.0.2.0/24")
        assert await may_enter("10.99.0.48/30", "10.99.0.51/32")
        assert await may_enter("0.0.0.0/0")
        assert not await may_enter("10.99.0.51/32")
        assert not await may_enter("10.99.0.52/30", "10.98.0.0/16", "128.0.0.0/1")
        assert await may_enter()


async def test_a_node_reaches_itself_through_the_address(segment: KernelSegment, nodes: list[Station]) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes[:1])}, forwards={WEB: TO_ONE}))
    async with serving(nodes):
        assert await nodes[0].ask_tcp(VIP, 80) == "n1"


async def test_established_connections_outlive_agent_and_changes(
    dataplane: HostDataPlane, client: Station, nodes: list[Station]
) -> None:
    segment = await started(dataplane)
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE}))
    async with serving(nodes):
        reader, writer = await client.connect(VIP, 80)
        name = (await reader.readline()).decode().strip()

        async def alive() -> None:
            writer.write(b"still there?\n")
            async with asyncio.timeout(LIMIT):
                assert await reader.readline() == b"still there?\n"

        await segment.close()
        await alive()
        again = await started(dataplane)
        await alive()
        others = [node for node in nodes if node.name != name]
        await again.engine.apply(Changes(groups={ONE: group(others)}))  # drained, not cut
        await alive()
        assert {await client.ask_tcp(VIP, 80) for _ in range(20)} <= {node.name for node in others}
        await again.engine.apply(Changes(groups={ONE: None}, forwards={WEB: None}))
        await alive()
        assert await again.connections.forget_listeners([WEB]) >= 1
        writer.write(b"still there?\n")
        async with asyncio.timeout(LIMIT):
            with pytest.raises(ConnectionResetError):
                await reader.readline()
        writer.transport.abort()


async def test_changes_under_load_lose_nothing(segment: KernelSegment, client: Station, nodes: list[Station]) -> None:
    """Every element of a listener and many slots are rewritten all the time, while connections are made."""
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE}))
    ended = False

    async def rewrite() -> int:
        turns = 0
        while not ended:
            by_client = turns % 2 == 0
            await segment.engine.apply(
                Changes(
                    groups={ONE: group(nodes[: 2 + turns % 2])},
                    forwards={WEB: Forward(group=ONE, backend_port=30080 + turns % 2, by_client=by_client)},
                )
            )
            turns += 1
            await asyncio.sleep(0.001)
        return turns

    async with serving(nodes), serving(nodes, 30081):
        rewriting = asyncio.create_task(rewrite())
        for _ in range(50):
            assert all(await asyncio.gather(*(client.ask_tcp(VIP, 80) for _ in range(20))))
        ended = True
        assert await rewriting > 50


async def test_udp_flows_to_a_node_that_left_are_flushed(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={DNS: TO_ONE, WEB: TO_ONE}))
    async with serving(nodes):
        before = {port: await client.ask_udp(VIP, 53, source=port) for port in range(20000, 20060)}
        reader, writer = await client.connect(VIP, 80)
        gone = nodes[0]
        serves = (await reader.readline()).decode().strip()
        assert await segment.connections.backends() == {
            DNS: {node.address for node in nodes},
            WEB: {node.address for node in nodes if node.name == serves},
        }
        await segment.engine.apply(Changes(groups={ONE: group(nodes[1:])}))
        assert {port: await client.ask_udp(VIP, 53, source=port) for port in before} == before
        stuck = sum(name == gone.name for name in before.values())
        assert await segment.connections.forget_backends({gone.address: [DNS]}) == stuck > 0
        after = {port: await client.ask_udp(VIP, 53, source=port) for port in before}
        assert gone.name not in after.values()
        moved = {port for port in before if before[port] != after[port]}
        assert len(moved) < stuck + 15  # the others stay: Maglev moves few, and their entries are still there
        writer.write(b"tcp stays\n")
        async with asyncio.timeout(LIMIT):
            assert await reader.readline() == b"tcp stays\n"
        writer.transport.abort()


async def test_many_listeners_are_forgotten_in_one_search(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    vips = [VIP + i for i in range(1, 21)]
    keys = [ListenerKey(vip, "UDP", 53) for vip in vips]
    await segment.announcer.claim(vips)
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=dict.fromkeys([*keys, DNS], TO_ONE)))
    async with serving(nodes):
        for vip in [VIP, *vips]:
            await client.ask_udp(vip, 53)
    assert await segment.connections.forget_listeners(keys) == 20
    assert await segment.connections.forget_listeners([*keys, DNS]) == 1


async def test_clients_follow_a_gratuitous_arp(dataplane: HostDataPlane, client: Station, nodes: list[Station]) -> None:
    """The address moves from one machine to the namespace: a client that knew the old MAC follows at once."""
    segment = await dataplane.open(CONFIG)
    await segment.engine.start()
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={DNS: TO_ONE}))
    run(f"ip -n {nodes[0].name} address add {VIP}/32 dev eth0")
    async with nodes[0].serving_udp(53, VIP), serving(nodes):
        assert await client.ask_udp(VIP, 53) == "n1"
        run(f"ip -n {nodes[0].name} address del {VIP}/32 dev eth0")
        assert nodes[0].mac in run(f"ip -n {client.name} neigh show {VIP}")
        (claim,) = await segment.announcer.claim([VIP])
        assert claim.conflict == ""
        assert nodes[0].mac not in run(f"ip -n {client.name} neigh show {VIP}")
        assert await client.ask_udp(VIP, 53)


async def test_a_foreign_claim_to_a_held_address_is_reported_and_defended(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    heard: asyncio.Queue[tuple[IPAddress, str]] = asyncio.Queue()
    segment.announcer.on_conflict(lambda address, mac: heard.put_nowait((address, mac)))
    run(f"ip -n {nodes[0].name} address add {VIP}/32 dev eth0")
    run(f"ip netns exec {nodes[0].name} arping -c 1 -w 1 -U -I eth0 {VIP}")
    async with asyncio.timeout(LIMIT):
        assert await heard.get() == (VIP, nodes[0].mac)
    assert await segment.announcer.held() == {VIP}


async def test_a_client_beyond_the_gateway(segment: KernelSegment, client: Station, nodes: list[Station]) -> None:
    """The sandbox's own namespace is the gateway; a client behind it has an address of another network."""
    run("sysctl -qw net.ipv4.ip_forward=1")
    run(f"ip -n {client.name} address flush dev eth0")
    run(f"ip -n {client.name} address add 192.0.2.50/24 dev eth0")
    run(f"ip -n {client.name} route add default via 192.0.2.1")
    run(f"ip address add 192.0.2.1/24 dev {BRIDGE}")
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE}))
    async with serving(nodes):
        assert await client.ask_tcp(VIP, 80)
    with pytest.raises(ConnectionRefusedError):
        await client.ask_tcp(VIP, 81)


async def test_a_plain_device_works_by_macvlan(dataplane: HostDataPlane, client: Station, nodes: list[Station]) -> None:
    run("ip link add uplink type veth peer name port-up")
    try:
        run(f"ip link set port-up master {BRIDGE} up")
        run("ip link set uplink up")
        opened = await dataplane.open(replace(CONFIG, device="uplink"))
        await opened.engine.start()
        await opened.announcer.claim([VIP])
        await opened.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE}))
        async with serving(nodes):
            assert await client.ask_tcp(VIP, 80)
        await dataplane.remove("")
        assert "macvlan" not in run("ip -d link show")
    finally:
        run("ip link del uplink")


async def test_a_new_station_is_no_conflict_for_others(segment: KernelSegment) -> None:
    """ARP of machines that mind their own addresses is nobody's business here."""
    heard: list[IPAddress] = []
    segment.announcer.on_conflict(lambda address, _mac: heard.append(address))
    with station("quiet", "10.99.0.60") as quiet:
        run(f"ip netns exec {quiet.name} ping -c 1 -W 2 {VIP}")
    assert heard == []
