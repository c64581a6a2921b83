"""IPv6 addresses on a real network: found free, brought up, answered for, announced, defended, and nothing else."""

import asyncio
import contextlib
import socket
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import frames, ndp
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.api import Claim
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.lan import BRIDGE, CONFIG, LIMIT, Station, pings, run, until

pytestmark = pytest.mark.kernel

FOUR = IPv4Address("10.99.0.100")
VIP = IPv6Address("fd99::100")
INSIDE = "lb-test-mgmt"
AT_ONCE = 1.0
"""Seconds in which what is sent once has come; it is repeated after two."""


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    opened = await dataplane.open(CONFIG)
    await opened.engine.start()
    return opened


@pytest.fixture
def client6(client: Station) -> Station:
    client.take(IPv6Address("fd99::50"))
    return client


async def test_a_free_address_comes_up_and_is_answered_for(segment: KernelSegment, client6: Station) -> None:
    assert not pings(client6, VIP)
    assert await segment.announcer.claim([VIP]) == [Claim(address=VIP)]
    assert pings(client6, VIP)
    assert client6.knows(VIP) == segment.mac
    listed = run(f"ip -n {INSIDE} -6 -oneline address show dev lan0 to {VIP}")
    assert f"{VIP}/128" in listed
    assert "deprecated" in listed  # never the source of what the namespace itself has to say
    assert "tentative" not in listed
    assert str(VIP) not in run(f"ip -n {INSIDE} -6 route show")


async def test_what_is_withdrawn_is_silent(segment: KernelSegment, client6: Station) -> None:
    await segment.announcer.claim([VIP, VIP + 1])
    assert pings(client6, VIP)
    await segment.announcer.withdraw([VIP])
    run(f"ip -n {client6.name} neigh flush dev eth0")
    assert not pings(client6, VIP)
    assert client6.knows(VIP) == ""
    assert pings(client6, VIP + 1)


async def test_clients_follow_an_unsolicited_advertisement(
    segment: KernelSegment, client6: Station, nodes: list[Station]
) -> None:
    """The address moves from one machine to the namespace: a client that knew the old MAC follows at once."""
    nodes[0].take(VIP)
    assert pings(client6, VIP)
    assert client6.knows(VIP) == nodes[0].mac
    run(f"ip -n {nodes[0].name} address del {VIP}/64 dev eth0")
    await segment.announcer.claim([VIP])
    await until(lambda: client6.knows(VIP) == segment.mac, "the client follows", AT_ONCE)


async def test_an_announcement_is_repeated(segment: KernelSegment, client: Station) -> None:
    """For those that lost the first; not for an address that is gone by then."""
    own = bytes.fromhex(segment.mac.replace(":", ""))
    vips = [VIP, VIP + 1]
    with call_in(client.path, lambda: frames.open_socket("eth0", ndp.ETHERTYPE, program=ndp.FILTER)) as wire:
        await segment.announcer.claim([VIP + 1, VIP])
        await segment.announcer.withdraw([VIP + 1])
        came: list[bytes] = []
        async with asyncio.timeout(LIMIT):
            while came.count(ndp.announcement(own, VIP)) < 2:
                came.append(await asyncio.get_running_loop().sock_recv(wire, 2048))
    assert [came.count(ndp.announcement(own, vip)) for vip in vips] == [2, 1]


async def test_a_foreign_claim_to_a_held_address_is_reported_and_defended(
    segment: KernelSegment, client6: Station, nodes: list[Station]
) -> None:
    heard: asyncio.Queue[tuple[IPAddress, str]] = asyncio.Queue()
    segment.announcer.on_conflict(lambda address, mac: heard.put_nowait((address, mac)))
    await segment.announcer.claim([VIP, VIP + 1])
    assert pings(client6, VIP)
    thief = nodes[0]
    async with asyncio.timeout(LIMIT):
        thief.announce(VIP)
        assert await heard.get() == (VIP, thief.mac)
        await until(lambda: client6.knows(VIP) == segment.mac, "the client follows", AT_ONCE)
        run(f"ip -n {thief.name} address del {VIP}/64 dev eth0")
        thief.announce(VIP)  # within ten seconds: neither reported nor fought over
        thief.announce(VIP + 1)
        assert await heard.get() == (VIP + 1, thief.mac)
    assert await segment.announcer.held() == {VIP, VIP + 1}


async def test_a_machine_that_speaks_from_a_held_address_is_reported(
    segment: KernelSegment, client6: Station, nodes: list[Station]
) -> None:
    heard: asyncio.Queue[tuple[IPAddress, str]] = asyncio.Queue()
    segment.announcer.on_conflict(lambda address, mac: heard.put_nowait((address, mac)))
    await segment.announcer.claim([VIP])
    nodes[0].take(VIP)
    pings(nodes[0], IPv6Address("fd99::50"))  # it has to ask for its neighbour, and says who asks
    async with asyncio.timeout(LIMIT):
        assert await heard.get() == (VIP, nodes[0].mac)


async def test_neighbours_that_mind_their_own_addresses_are_no_conflict(
    segment: KernelSegment, client6: Station, nodes: list[Station]
) -> None:
    heard: list[IPAddress] = []
    segment.announcer.on_conflict(lambda address, _mac: heard.append(address))
    await segment.announcer.claim([VIP])
    nodes[0].take(IPv6Address("fd99::11"))
    assert pings(nodes[0], VIP)
    assert pings(client6, VIP)
    assert pings(client6, IPv6Address("fd99::11"))
    assert heard == []


@pytest.mark.parametrize("device", [BRIDGE, "uplink"])
async def test_two_that_look_for_the_same_address_at_once_see_each_other(
    dataplane: HostDataPlane, nodes: list[Station], device: str
) -> None:
    """A probe goes to a group that nobody here has joined; a macvlan would keep it from us. One's own that comes back
    by a loop in the network says nothing."""
    run("ip link add uplink type veth peer name port-up")
    run(f"ip link set port-up master {BRIDGE} up")
    run("ip link set uplink up")
    slow = HostDataPlane("test", timing=Timing(probes=1, listen=0.5))
    segment = await slow.open(replace(CONFIG, device=device))
    rival = nodes[0]
    mac = bytes.fromhex(rival.mac.replace(":", ""))
    try:
        with call_in(rival.path, lambda: frames.open_socket("eth0", ndp.ETHERTYPE, all_multicast=True)) as wire:

            async def our_probe() -> bytes:
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(LIMIT):
                    while True:
                        frame = await loop.sock_recv(wire, 2048)
                        heard = ndp.parse(frame)
                        if heard is not None and heard.is_probe and heard.target == VIP:
                            return frame

            for theirs, conflict in ((False, ""), (True, rival.mac)):
                asking = asyncio.create_task(segment.announcer.probe([VIP]))
                ours = await our_probe()
                wire.send(ndp.probe(mac, VIP) if theirs else ours)
                assert await asking == [Claim(address=VIP, conflict=conflict)]
    finally:
        await slow.remove("")
        run("ip link del uplink")


async def test_other_traffic_wakes_nobody(nodes: list[Station]) -> None:
    listener, talker = nodes[:2]
    solicitation = ndp.probe(bytes.fromhex("020000000001"), VIP)
    advertisement = ndp.announcement(bytes.fromhex("020000000001"), VIP)
    with (
        call_in(
            listener.path,
            lambda: frames.open_socket("eth0", ndp.ETHERTYPE, program=ndp.FILTER, all_multicast=True),
        ) as heard,
        call_in(talker.path, lambda: frames.open_socket("eth0", ndp.ETHERTYPE)) as wire,
    ):
        for position, byte in ((54, 128), (54, 134), (54, 137), (20, 17), (20, 6)):  # echo, RA, redirect; UDP, TCP
            wire.send(solicitation[:position] + bytes([byte]) + solicitation[position + 1 :])
        wire.send(solicitation)
        wire.send(advertisement)
        came: list[bytes] = []
        async with asyncio.timeout(LIMIT):
            while advertisement not in came:
                came.append(await asyncio.get_running_loop().sock_recv(heard, 2048))
    own = bytes.fromhex("020000000001")
    assert [frame for frame in came if frame[6:12] == own] == [solicitation, advertisement]


async def test_no_socket_of_the_namespace_is_reached(segment: KernelSegment, client6: Station) -> None:
    """Listening on every address in the namespace gets nobody; ping is answered, as for IPv4."""
    await segment.announcer.claim([VIP])
    inside = Station(INSIDE, FOUR)
    with contextlib.ExitStack() as stack:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            made = stack.enter_context(inside.socket(kind, 8080, ipv6=True))
            if kind == socket.SOCK_STREAM:
                made.listen()
        for port in (8080, 8081):
            with pytest.raises(ConnectionRefusedError):
                await client6.ask_tcp(VIP, port)
            with pytest.raises(ConnectionRefusedError):
                await client6.ask_udp(VIP, port)
    assert pings(client6, VIP)


async def test_who_is_no_neighbour_takes_no_place_among_them(segment: KernelSegment, client: Station) -> None:
    """A flood of made-up senders would else push the host's own neighbours out of the kernel's table."""
    far, near = IPv6Address("2001:db8::50"), IPv6Address("fd99::50")
    await segment.announcer.claim([VIP])
    run(f"ip -n {client.name} neigh replace {VIP} lladdr {segment.mac} dev eth0")  # as a router's that passes them on
    for source, answered in ((far, False), (near, True)):
        run(f"ip -n {client.name} address add {source}/128 dev eth0 nodad")
        run(f"ip -n {client.name} route replace {VIP}/128 dev eth0 src {source}")
        assert pings(client, VIP) == answered
        assert (str(source) in run(f"ip -n {INSIDE} -6 neigh show {source}")) == answered


async def test_nothing_is_forwarded(segment: KernelSegment, client6: Station, nodes: list[Station]) -> None:
    """Not even where somebody has made the namespace a router."""
    node = IPv6Address("fd99::11")
    nodes[0].take(node)
    await segment.announcer.claim([VIP])
    run(f"ip netns exec {INSIDE} sysctl -qw net.ipv6.conf.all.forwarding=1")
    run(f"ip -n {client6.name} route add {node}/128 via {VIP} dev eth0")
    assert pings(client6, VIP)
    assert not pings(client6, node)
    run(f"ip -n {client6.name} route del {node}/128")
    assert pings(client6, node)


async def test_addresses_outlive_the_link_s_going_down(
    dataplane: HostDataPlane, segment: KernelSegment, client6: Station
) -> None:
    await segment.announcer.claim([FOUR, VIP])
    run(f"ip -n {INSIDE} link set lan0 down")
    run(f"ip -n {INSIDE} link set lan0 up")
    assert await segment.announcer.held() == {FOUR, VIP}
    await segment.close()
    again = await dataplane.open(CONFIG)
    assert await again.announcer.held() == {FOUR, VIP}  # routes are lost with the link, and mended
    await until(lambda: pings(client6, VIP) and pings(client6, FOUR), "both answer again")


async def test_a_former_agent_s_namespace_gets_ipv6(dataplane: HostDataPlane, client6: Station) -> None:
    """Earlier ones switched it off."""
    await (await dataplane.open(CONFIG)).close()
    run(f"ip netns exec {INSIDE} sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    segment = await dataplane.open(CONFIG)
    await segment.engine.start()
    assert await segment.announcer.claim([VIP]) == [Claim(address=VIP)]
    assert pings(client6, VIP)


async def test_a_refused_claim_changes_nothing(segment: KernelSegment) -> None:
    await segment.announcer.claim([FOUR + 1])
    run(f"ip netns exec {INSIDE} sysctl -qw net.ipv6.conf.lan0.disable_ipv6=1")
    with pytest.raises(DataPlaneError, match=f"refused to add {VIP}/128 on lan0: Permission denied"):
        await segment.announcer.claim([FOUR, VIP])
    assert await segment.announcer.held() == {FOUR + 1}


async def test_without_ipv6_there_is_ipv4(dataplane: HostDataPlane, client: Station) -> None:
    """A link of less than 1,280 bytes has no IPv6 at all, as one in a kernel without it."""
    run(f"ip link set {BRIDGE} mtu 1200")
    segment = await dataplane.open(CONFIG)
    await segment.engine.start()
    assert await segment.engine.intact()
    for ask in (segment.announcer.claim, segment.announcer.probe):
        with pytest.raises(DataPlaneError, match=f"{VIP} is IPv6, which this network's link has not got"):
            await ask([FOUR, VIP])
    assert await segment.announcer.claim([FOUR]) == [Claim(address=FOUR)]
    await segment.announcer.withdraw([VIP])
    assert await segment.announcer.held() == {FOUR}
    assert pings(client, FOUR)


async def test_both_families_wait_together(lan: None) -> None:
    slow = HostDataPlane("test", timing=Timing(probes=1, listen=0.5))
    segment = await slow.open(CONFIG)
    start = time.perf_counter()
    await segment.announcer.claim([VIP, FOUR])
    assert 0.5 <= time.perf_counter() - start < 0.9
    await slow.remove("")


async def test_many_take_as_long_as_for_ipv4(segment: KernelSegment) -> None:
    async def claiming(first: IPAddress) -> float:
        start = time.perf_counter()
        addresses = [first + i for i in range(500)]
        assert all(not claim.conflict for claim in await segment.announcer.claim(addresses))
        assert await segment.announcer.held() >= set(addresses)
        await segment.announcer.withdraw(addresses)
        return time.perf_counter() - start

    four = await claiming(IPv4Address("10.97.0.1"))
    six = await claiming(VIP)
    assert six < 3 * four + 0.5
