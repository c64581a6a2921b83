"""Mode dsr in its steady state: frames go on unchanged to a node, which answers the client itself."""

import asyncio
import collections
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network

import pytest

from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.dsr import (
    ADDRESSES,
    DNS,
    DNS6,
    FAST,
    ONE,
    TO_ONE,
    VIP,
    VIP6,
    WEB,
    WEB6,
    Connection,
    group,
    mac,
    nft,
    returning,
    serving,
    started,
)
from tests.dataplane.lan import BRIDGE, CONFIG, LIMIT, Station, run

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("both_families")]

BOTH = pytest.mark.parametrize("vip", [VIP, VIP6])


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    return await started(dataplane)


ALL = dict.fromkeys((WEB, DNS, WEB6, DNS6), TO_ONE)


@BOTH
async def test_connections_go_evenly_to_all_nodes_which_see_the_client(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
    async with serving(nodes) as came:
        names = [await client.ask_tcp(vip, 80) for _ in range(150)]
        seen = {source.removeprefix("::ffff:") for sources in came.values() for source in sources}
    assert seen == {"10.99.0.50" if vip == VIP else "fd99::50"}
    shares = collections.Counter(names)
    assert shares.keys() == {"n1", "n2", "n3"}
    assert min(shares.values()) > 20  # 50 each is expected; 20 is five standard deviations away
    listener = (await segment.engine.counters())[ListenerKey(vip, "TCP", 80)]
    assert listener.packets >= 450
    assert listener.bytes >= 150 * 120
    counters = await segment.engine.member_counters()
    for node in nodes:  # a SYN may have been sent again
        assert shares[node.name] <= counters[mac(node)].connections <= shares[node.name] + 10
    assert sum(counters[mac(node)].connections for node in nodes) == listener.connections
    assert sum(counters[mac(node)].packets for node in nodes) == listener.packets
    assert sum(counters[mac(node)].bytes for node in nodes) >= listener.bytes


@BOTH
async def test_udp_is_answered_from_the_address(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
    async with serving(nodes):
        names = {port: await client.ask_udp(vip, 53, source=port) for port in range(20000, 20040)}
        assert set(names.values()) == {"n1", "n2", "n3"}
        assert names == {port: await client.ask_udp(vip, 53, source=port) for port in names}


@BOTH
async def test_with_affinity_a_client_stays_with_one_node(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    sticky = replace(TO_ONE, by_client=True)
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={ListenerKey(vip, "TCP", 80): sticky}))
    async with serving(nodes):
        assert len({await client.ask_tcp(vip, 80) for _ in range(30)}) == 1


async def test_both_modes_on_one_address_and_what_is_for_no_listener(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    addresses = Group(frozenset(node.address for node in nodes))
    forwards = {
        WEB: TO_ONE,
        ListenerKey(VIP, "TCP", 81): Forward(group=ADDRESSES, backend_port=30080),
        ListenerKey(VIP, "TCP", 82): Forward(group=GroupId(0), backend_port=30080),
        DNS: Forward(group=ADDRESSES, backend_port=30053),
    }
    await segment.engine.apply(Changes(groups={ONE: group(nodes), ADDRESSES: addresses}, forwards=forwards))
    async with serving(nodes):
        for port in (80, 81):
            assert {await client.ask_tcp(VIP, port) for _ in range(40)} == {"n1", "n2", "n3"}
        assert {await client.ask_udp(VIP, 53) for _ in range(40)} == {"n1", "n2", "n3"}
        for port in (82, 83):
            with pytest.raises(ConnectionRefusedError):
                await client.ask_tcp(VIP, port)
        with pytest.raises(ConnectionRefusedError):
            await client.ask_udp(VIP, 54)
        for vip in (VIP, VIP6):
            assert " 0% packet loss" in run(f"ip netns exec {client.name} ping -c 2 -i 0.2 -W 2 {vip}")


async def test_source_ranges_let_in_exactly_their_clients(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))

    async def may_enter(*sources: str) -> bool:
        ranges = frozenset(map(IPv4Network, sources))
        limited = replace(TO_ONE, sources=ranges)
        await segment.engine.apply(Changes(forwards={WEB: limited, DNS: limited}))
        found = set()
        for ask, port in ((client.ask_udp, 53), (client.ask_tcp, 80)):
            try:
                async with asyncio.timeout(0.5):
                    await ask(VIP, port)
                found.add(True)
            except TimeoutError:
                found.add(False)
        assert len(found) == 1
        return found.pop()

    async with serving(nodes):
        assert await may_enter("10.99.0.50/32")
        assert await may_enter("10.99.0.0/24", "192.0.2.0/24")
        assert await may_enter("0.0.0.0/0")
        assert not await may_enter("10.99.0.51/32")
        assert not await may_enter("10.99.0.52/30", "10.98.0.0/16", "128.0.0.0/1")
        assert await may_enter()


async def test_a_node_that_does_not_accept_the_address_is_told_of(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """It routes the frame back; without the rule one SYN would circle until its time to live is over."""
    deaf = nodes[0]
    deaf.pass_on()
    await segment.engine.apply(Changes(groups={ONE: group([deaf])}, forwards=ALL))
    for vip, key in ((VIP, WEB), (VIP6, WEB6)):
        knocking = asyncio.create_task(client.connect(vip, 80, limit=1.5))
        assert (await returning(segment)).keys() == {(key, mac(deaf))}
        with pytest.raises(TimeoutError):
            await knocking
        returned = await segment.engine.returned()
        counters = await segment.engine.counters()
        assert 1 <= returned[key, mac(deaf)] <= 2  # one for each SYN
        assert counters[key].packets <= 2 * 2
        nft(f"flush set netdev cloudprovider returned{vip.version}")
    assert await segment.engine.returned() == {}


async def test_who_connects_before_a_node_knows_the_address_is_served_by_the_next_syn(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """The node's conntrack would send on back what it has begun to send back, also when kube-proxy has its rules."""
    slow = nodes[0]
    slow.pass_on()
    await segment.engine.apply(Changes(groups={ONE: group([slow])}, forwards=ALL))
    async with serving([slow], accept=False):
        for vip in (VIP, VIP6):
            slow.nft("add table inet guest", "add chain inet guest nat { type nat hook prerouting priority -100; }")
            slow.nft("add rule inet guest nat tcp dport 81 redirect to :30081")  # from now on there is conntrack
            knocking = asyncio.create_task(client.ask_tcp(vip, 80))
            await returning(segment)
            slow.nft("add rule inet guest nat tcp dport 80 redirect to :30080")
            assert await knocking == slow.name
            slow.nft("delete table inet guest")
            nft(f"flush set netdev cloudprovider returned{vip.version}")


async def test_a_node_that_is_a_client_of_another_group_is_served(segment: KernelSegment, nodes: list[Station]) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes[:2])}, forwards=ALL))
    async with serving(nodes[:2]):
        assert await nodes[2].ask_tcp(VIP, 80)


async def test_frames_for_another_host_are_left_alone(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """A bridge floods them; a second balancer would pass each on once more."""
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
    run(f"ip -n {client.name} neigh replace {VIP} lladdr 02:00:00:00:99:99 dev eth0")
    async with serving(nodes) as came:
        with pytest.raises(TimeoutError):
            await client.connect(VIP, 80, limit=0.5)
        assert not any(came.values())
        run(f"ip -n {client.name} neigh replace {VIP} lladdr {segment.mac} dev eth0")
        assert await client.ask_tcp(VIP, 80)


async def test_another_host_takes_over_without_a_cut(
    dataplane: HostDataPlane, segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    plan = Changes(groups={ONE: group(nodes)}, forwards=ALL)
    await segment.engine.apply(plan)
    rival = HostDataPlane("other", timing=FAST)
    try:
        other = await rival.open(replace(CONFIG, address=IPv4Interface("10.99.0.3/24")))
        await other.engine.start()
        await other.engine.apply(plan)
        async with serving(nodes):
            flows = [await Connection.open(client) for _ in range(20)]
            await segment.announcer.withdraw([VIP])
            await other.announcer.claim([VIP])
            assert all([await flow.alive() for flow in flows])
            assert client.knows(VIP) == other.mac
            for flow in flows:
                flow.close()
    finally:
        await rival.remove("")


async def test_flows_outlive_the_agent_and_its_successor_counts_on(
    dataplane: HostDataPlane, segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
    async with serving(nodes):
        flow = await Connection.open(client)
        before = (await segment.engine.counters())[WEB].packets
        await segment.close()
        assert await flow.alive()
        again = await started(dataplane)
        assert await flow.alive()
        await again.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
        assert await flow.alive()
        assert (await again.engine.counters())[WEB].packets > before > 0
        await again.engine.apply(Changes(groups={ONE: None}, forwards=dict.fromkeys(ALL)))
        assert not await flow.alive()  # refused by the stack
        flow.close()
    async with asyncio.timeout(LIMIT):
        with pytest.raises(ConnectionRefusedError):
            await client.ask_tcp(VIP, 80)


async def test_a_plain_device_works_by_macvlan(dataplane: HostDataPlane, client: Station, nodes: list[Station]) -> None:
    run("ip link add uplink type veth peer name port-up")
    try:
        run(f"ip link set port-up master {BRIDGE} up")
        run("ip link set uplink up")
        segment = await started(dataplane, replace(CONFIG, device="uplink"))
        await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
        async with serving(nodes):
            assert {await client.ask_tcp(VIP, 80) for _ in range(40)} == {"n1", "n2", "n3"}
            assert await client.ask_udp(VIP, 53)
        await dataplane.remove("")
    finally:
        run("ip link del uplink")


async def test_a_client_beyond_the_gateway_is_answered_by_the_node(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """The sandbox's own namespace is the gateway; the VIP's host is on the way there, not on the way back."""
    run("sysctl -qw net.ipv4.ip_forward=1")
    run(f"ip -n {client.name} address flush dev eth0")
    run(f"ip -n {client.name} address add 192.0.2.50/24 dev eth0")
    run(f"ip -n {client.name} route add default via 192.0.2.1")
    run(f"ip address add 192.0.2.1/24 dev {BRIDGE}")
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards=ALL))
    async with serving(nodes) as came:
        assert {await client.ask_tcp(VIP, 80) for _ in range(40)} == {"n1", "n2", "n3"}
        assert {source for sources in came.values() for source in sources} == {"::ffff:192.0.2.50"}
    with pytest.raises(ConnectionRefusedError):
        await client.ask_tcp(VIP, 81)
