"""Mode nat for IPv6, and what a network's configuration says of both families: masquerading, ping."""

import asyncio
import collections
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.dsr import FAST, ONE, VIP, VIP6, Connection, connections, started
from tests.dataplane.lan import CONFIG, HOST, LIMIT, OWN, Station, run

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("both_families")]

OWN6 = IPv6Interface("fd99::2/64")
CONFIG6 = replace(CONFIG, address6=OWN6)
WEB, DNS = ListenerKey(VIP6, "TCP", 80), ListenerKey(VIP6, "UDP", 53)
TO_ONE = Forward(group=ONE, backend_port=30080)
BOTH = pytest.mark.parametrize("vip", [VIP, VIP6])


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    return await started(dataplane, CONFIG6)


def group(nodes: list[Station]) -> Group:
    return Group(frozenset(IPv6Address(f"fd99::{10 + int(node.name[1:])}") for node in nodes))


@contextlib.asynccontextmanager
async def serving(nodes: list[Station]) -> AsyncIterator[dict[str, list[str]]]:
    async with contextlib.AsyncExitStack() as stack:
        came = {n.name: await stack.enter_async_context(n.serving_tcp(30080, ipv6=True)) for n in nodes}
        for node in nodes:
            await stack.enter_async_context(node.serving_udp(30080, IPv6Address("::")))
        yield came


async def test_connections_go_evenly_to_all_nodes(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: TO_ONE, DNS: TO_ONE}))
    async with serving(nodes) as came:
        shares = collections.Counter([await client.ask_tcp(VIP6, 80) for _ in range(150)])
        assert {source for sources in came.values() for source in sources} == {str(OWN6.ip)}
        assert {await client.ask_udp(VIP6, 53) for _ in range(40)} == {"n1", "n2", "n3"}
        for ask in (client.ask_tcp, client.ask_udp):
            with pytest.raises(ConnectionRefusedError):
                await ask(VIP6, 4444)
    assert min(shares[node.name] for node in nodes) > 20
    of_listeners = await segment.engine.counters()
    assert of_listeners[WEB].packets >= 450
    assert (of_listeners[WEB].connections, of_listeners[DNS].connections) == (150, 40)
    counters = await segment.engine.member_counters()
    assert sum(counter.connections for counter in counters.values()) == 150 + 40
    for node in nodes:
        counter = counters[next(iter(group([node]).members))]
        assert counter.connections >= shares[node.name]
        assert counter.packets >= 3 * shares[node.name]


async def test_affinity_source_ranges_and_no_nodes(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    sticky = replace(TO_ONE, by_client=True)
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={WEB: sticky}))
    async with serving(nodes):
        assert len({await client.ask_tcp(VIP6, 80) for _ in range(30)}) == 1
        for source, allowed in (("fd99::/64", True), ("fd99::50/128", True), ("fd99::51/128", False), ("::/0", True)):
            limited = replace(TO_ONE, sources=frozenset({IPv6Network(source)}))
            await segment.engine.apply(Changes(forwards={WEB: limited}))
            if allowed:
                assert await client.ask_tcp(VIP6, 80)
            else:
                with pytest.raises(TimeoutError):
                    await client.connect(VIP6, 80, limit=0.5)
        await segment.engine.apply(Changes(forwards={WEB: replace(TO_ONE, group=GroupId(0))}))
        with pytest.raises(ConnectionRefusedError):
            await client.ask_tcp(VIP6, 80)


async def test_established_connections_are_drained_and_forgotten(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    other = replace(WEB, port=81)
    await segment.engine.apply(
        Changes(groups={ONE: group(nodes[:1])}, forwards={WEB: TO_ONE, other: TO_ONE, DNS: TO_ONE})
    )
    async with serving(nodes), connections(client, 3, VIP6) as flows:
        kept = await Connection.open(client, VIP6, 81)
        await segment.engine.apply(Changes(groups={ONE: group(nodes[1:])}))
        assert all([await flow.alive() for flow in flows])
        assert await client.ask_tcp(VIP6, 80) != "n1"
        await client.ask_udp(VIP6, 53)
        (gone,) = group(nodes[:1]).members
        assert isinstance(gone, IPv6Address)
        found = await segment.connections.backends()
        assert found.keys() == {WEB, other, DNS}
        assert gone in found[WEB]
        assert set(found[other]) == {gone}
        assert await segment.connections.forget_backends({gone: [WEB]}) == 0  # UDP only
        assert await segment.connections.forget_backends({gone: []}, protocol="TCP") == 0
        assert await segment.connections.forget_backends({gone: [WEB]}, protocol="TCP") == 3
        assert not any([await flow.alive() for flow in flows])
        assert await kept.alive()
        assert await segment.connections.forget_listeners([other, DNS]) >= 2
        assert not await kept.alive()
        kept.close()


@BOTH
async def test_a_network_may_not_answer_ping(
    dataplane: HostDataPlane, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    async def pings() -> bool:
        ping = ["ip", "netns", "exec", client.name, "ping", "-c", "1", "-W", "1", str(vip)]
        process = await asyncio.create_subprocess_exec(*ping, stdout=asyncio.subprocess.DEVNULL)
        return await process.wait() == 0

    segment = await started(dataplane, CONFIG6)
    async with asyncio.timeout(LIMIT):
        while not await pings():
            pass
    await segment.close()
    segment = await started(dataplane, replace(CONFIG6, answer_ping=False))
    assert not await pings()
    with pytest.raises(ConnectionRefusedError):
        await client.ask_tcp(vip, 4444)  # all else as before, neighbours found


async def test_without_masquerading_nodes_see_the_client(
    dataplane: HostDataPlane, client: Station, nodes: list[Station]
) -> None:
    """Their way back is through the namespace. A node that is a client itself is masqueraded still."""
    segment = await started(dataplane, replace(CONFIG6, masquerade=False))
    v4, web4 = Group(frozenset(node.address for node in nodes)), ListenerKey(VIP, "TCP", 80)
    two = GroupId(2)
    await segment.engine.apply(
        Changes(groups={ONE: group(nodes), two: v4}, forwards={WEB: TO_ONE, web4: replace(TO_ONE, group=two)})
    )
    for node in nodes:
        run(f"ip -n {node.name} route add {client.address}/32 via {OWN.ip}")
        run(f"ip -n {node.name} route add fd99::50/128 via {VIP6}")
    async with serving(nodes) as came:
        for vip, seen in ((VIP, f"::ffff:{client.address}"), (VIP6, "fd99::50")):
            for sources in came.values():
                sources.clear()
            assert {await client.ask_tcp(vip, 80) for _ in range(40)} == {"n1", "n2", "n3"}
            assert {source for sources in came.values() for source in sources} == {seen}
            assert {await nodes[0].ask_tcp(vip, 80) for _ in range(40)} == {"n1", "n2", "n3"}


@BOTH
async def test_without_masquerading_another_host_goes_on_with_connections(
    dataplane: HostDataPlane, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    """It knows nothing of them: their next packet, whichever side sends it, goes by the same table to the same node."""
    open_to_all = replace(CONFIG6, masquerade=False)
    first = await started(dataplane, open_to_all)
    members = group(nodes) if vip == VIP6 else Group(frozenset(node.address for node in nodes))
    plan = Changes(groups={ONE: members}, forwards={ListenerKey(vip, "TCP", 80): TO_ONE})
    await first.engine.apply(plan)
    back = (f"{client.address}/32", OWN.ip, "10.99.0.3") if vip == VIP else ("fd99::50/128", OWN6.ip, "fd99::3")
    rival = HostDataPlane("other", timing=FAST)
    try:
        other = await rival.open(
            replace(open_to_all, address=IPv4Interface("10.99.0.3/24"), address6=IPv6Interface("fd99::3/64"))
        )
        await other.engine.start()
        await other.engine.apply(plan)
        for node in nodes:
            run(f"ip -n {node.name} route add {back[0]} via {back[1]}")
        async with serving(nodes), connections(client, 30, vip) as flows:
            assert {flow.node for flow in flows} == {"n1", "n2", "n3"}
            await first.announcer.withdraw([vip])
            await first.connections.forget_listeners(plan.forwards)
            await other.announcer.claim([vip])
            for node in nodes:
                run(f"ip -n {node.name} route replace {back[0]} via {back[2]}")
            assert all([await flow.alive() for flow in flows])
    finally:
        await rival.remove("")


async def test_members_of_the_other_family_are_refused(segment: KernelSegment) -> None:
    four = Group(frozenset({IPv4Address("10.99.0.11")}))
    with pytest.raises(DataPlaneError, match=r"fd99::100 TCP 80 .* it takes a group of IPv6 addresses"):
        await segment.engine.apply(Changes(groups={ONE: four}, forwards={WEB: TO_ONE}))
    assert OWN.ip != HOST
