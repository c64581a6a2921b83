"""Guests' nodes on a real network: learnt, lost, changed, and who is not believed."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import arp, frames, ndp
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.dataplane.nodewatch import Pace
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.lan import CONFIG, Station, run, until

pytestmark = pytest.mark.kernel

FAST = Pace(confirm=0.3, answer=0.1, first=0.05, slowest=1.0, settle=0.2)
SIX = IPv6Address("fd99::11")
NOBODY = IPv4Address("10.99.0.77")
OTHER = MACAddress("02:00:00:00:00:99")
AT_ONCE = 0.5


@pytest.fixture
async def dataplane(lan: None) -> AsyncIterator[HostDataPlane]:
    made = HostDataPlane("test", timing=Timing(between=0.005, listen=0.02), pace=FAST)
    yield made
    await made.close()
    for network in await made.networks():
        await made.remove(network)


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    return await dataplane.open(CONFIG)


@pytest.fixture
def six(nodes: list[Station]) -> None:
    for number, node in enumerate(nodes):
        node.take(SIX + number)


def macs(nodes: list[Station]) -> dict[IPAddress, str]:
    found: dict[IPAddress, str] = {node.address: node.mac for node in nodes}
    return found | {SIX + number: node.mac for number, node in enumerate(nodes)}


async def say(node: Station, *said: bytes) -> None:
    """Send frames from the node's own socket."""
    with call_in(node.path, lambda: frames.open_socket("eth0", arp.ETHERTYPE)) as packets:
        for frame in said:
            assert frames.send(packets, frame)


@pytest.mark.parametrize("own", [True, False])
async def test_nodes_of_both_families_are_learnt_also_without_an_address_of_ones_own(
    dataplane: HostDataPlane, nodes: list[Station], six: None, own: bool
) -> None:
    config = CONFIG if own else replace(CONFIG, address=None, gateway=None)
    segment = await dataplane.open(config)
    told: list[float] = []
    segment.nodes.on_change(lambda: told.append(time.monotonic()))
    segment.nodes.follow([*macs(nodes), NOBODY])
    assert told == []
    await until(lambda: segment.nodes.known == macs(nodes), "all are known")
    assert told
    await until(lambda: segment.nodes.settled(NOBODY), "silence means something")
    assert all(segment.nodes.settled(address) for address in macs(nodes))
    before = len(told)
    await asyncio.sleep(5 * FAST.confirm)  # nothing is to happen, for several rounds
    assert segment.nodes.known == macs(nodes)
    assert len(told) <= before + 1  # the last one, of the silence


async def test_a_node_that_went_is_lost_and_found_again(
    segment: KernelSegment, nodes: list[Station], six: None
) -> None:
    segment.nodes.follow(macs(nodes))
    await until(lambda: len(segment.nodes.known) == 6, "all are known")
    told: list[frozenset[IPAddress]] = []
    segment.nodes.on_change(lambda: told.append(frozenset(segment.nodes.known)))
    gone = nodes[0]
    run(f"ip link set v-{gone.name} down")
    rest = {address: mac for address, mac in macs(nodes).items() if mac != gone.mac}
    await until(lambda: segment.nodes.known == rest, "both its addresses are lost")
    await until(lambda: told[-1:] == [frozenset(rest)], "told so")
    run(f"ip link set v-{gone.name} up")
    await until(lambda: segment.nodes.known == macs(nodes), "it is back")


async def test_at_the_pace_of_the_agent_a_node_is_lost_within_eight_seconds(lan: None, nodes: list[Station]) -> None:
    dataplane = HostDataPlane("test")
    try:
        segment = await dataplane.open(CONFIG)
        segment.nodes.follow([node.address for node in nodes])
        await until(lambda: len(segment.nodes.known) == 3, "all are known", AT_ONCE)
        run(f"ip link set v-{nodes[0].name} down")
        took = await until(lambda: nodes[0].address not in segment.nodes.known, "it is lost", 9.0)
        assert took > 2.0  # two lost answers would not have mattered
    finally:
        await dataplane.remove("")


async def test_a_node_with_another_card_is_known_by_it(segment: KernelSegment, nodes: list[Station], six: None) -> None:
    """It says so by itself in IPv4 (gratuitous ARP), or is found out."""
    node = nodes[0]
    segment.nodes.follow(macs(nodes))
    await until(lambda: segment.nodes.known == macs(nodes), "all are known")
    run(f"ip -n {node.name} link set eth0 address {OTHER}")
    await until(lambda: segment.nodes.known.get(node.address) == OTHER, "found out")
    await until(lambda: segment.nodes.known.get(SIX) == OTHER, "found out")


async def test_an_announcement_counts_at_once(dataplane: HostDataPlane, lan: None, nodes: list[Station]) -> None:
    """A virtual machine has moved to another host, or its address to another machine."""
    slow = HostDataPlane("test")
    segment = await slow.open(CONFIG)
    try:
        segment.nodes.follow([nodes[0].address, SIX])
        await until(lambda: nodes[0].address in segment.nodes.known, "it is known", AT_ONCE)
        heir = MACAddress(nodes[1].mac)
        packed = heir.packed
        run(f"ip -n {nodes[0].name} link set eth0 down")
        await say(nodes[1], *arp.announcements(packed, nodes[0].address), ndp.announcement(packed, SIX))
        await until(lambda: segment.nodes.known == {nodes[0].address: heir, SIX: heir}, "the heir", AT_ONCE)
    finally:
        await slow.remove("")


async def test_what_can_not_be_true_is_not_believed(segment: KernelSegment, nodes: list[Station]) -> None:
    true, liar = nodes[0], nodes[1]
    segment.nodes.follow([true.address, SIX, liar.address])
    await until(lambda: len(segment.nodes.known) == 2, "they are known")
    before = dict(segment.nodes.known)
    own, group, another = MACAddress(segment.mac).packed, b"\x01\x00\x5e\x00\x00\x01", OTHER.packed
    source = MACAddress(liar.mac).packed
    lies = [
        *(frame for mac in (own, group, bytes(6)) for frame in arp.announcements(mac, true.address)),
        *(ndp.announcement(mac, SIX) for mac in (own, group, bytes(6))),
        *(frame[:6] + source + frame[12:] for frame in arp.announcements(another, true.address)),
        ndp.announcement(another, SIX)[:6] + source + ndp.announcement(another, SIX)[12:],
    ]
    told: list[object] = []
    segment.nodes.on_change(lambda: told.append(segment.nodes.known))
    await say(liar, *lies, arp.announcements(another, liar.address)[0])  # the last one is no lie
    await until(lambda: segment.nodes.known.get(liar.address) == OTHER, "the last one was heard")
    assert segment.nodes.known == before | {liar.address: OTHER}


async def test_who_is_not_followed_any_more_is_not_asked(segment: KernelSegment, nodes: list[Station]) -> None:
    segment.nodes.follow([node.address for node in nodes])
    await until(lambda: len(segment.nodes.known) == 3, "all are known")
    segment.nodes.follow([nodes[1].address])
    assert segment.nodes.known == {nodes[1].address: nodes[1].mac}
    assert not segment.nodes.settled(nodes[0].address)
    with call_in(nodes[0].path, lambda: frames.open_socket("eth0", arp.ETHERTYPE)) as wire:
        await asyncio.sleep(4 * FAST.confirm)  # nothing is to come
        assert frames.receive(wire) is None


async def test_watching_nodes_does_not_disturb_the_announcer(segment: KernelSegment, nodes: list[Station]) -> None:
    """Both hear the same frames: conflicts are found, and nodes learnt, by whatever is said."""
    vip = IPv4Address("10.99.0.100")
    segment.nodes.follow([node.address for node in nodes])
    nodes[2].take(vip)
    (claim,) = await segment.announcer.claim([vip])
    assert claim.conflict == nodes[2].mac
    defended: list[str] = []
    segment.announcer.on_conflict(lambda _address, mac: defended.append(mac))
    await segment.announcer.claim([vip + 1])
    await say(nodes[1], arp.announcements(MACAddress(nodes[1].mac).packed, vip + 1)[0])
    await until(lambda: defended == [nodes[1].mac], "the conflict is heard")
    await until(lambda: len(segment.nodes.known) == 3, "all are known")


async def test_a_node_that_looks_for_duplicates_keeps_its_address(segment: KernelSegment, nodes: list[Station]) -> None:
    """It would give up an IPv6 address that somebody asks for from nobody meanwhile (RFC 4862 section 5.4.3)."""
    node, address = nodes[0], SIX
    segment.nodes.follow([address])
    run(f"ip netns exec {node.name} sysctl -qw net.ipv6.conf.eth0.accept_dad=1 net.ipv6.conf.eth0.dad_transmits=2")
    run(f"ip -n {node.name} address add {address}/64 dev eth0")
    assert "tentative" in run(f"ip -n {node.name} address show to {address}")
    await until(lambda: address in segment.nodes.known, "it is known")
    assert "dadfailed" not in run(f"ip -n {node.name} address show to {address}")
    assert "tentative" not in run(f"ip -n {node.name} address show to {address}")


async def test_a_thousand_nodes_are_known_within_seconds_and_stay_known(lan: None, client: Station) -> None:
    """At the pace of the agent; all of them addresses of one machine."""
    everybody: list[IPAddress] = [IPv4Address("10.98.0.1") + i for i in range(500)]
    everybody += [IPv6Address("fd98::1") + i for i in range(500)]
    client.take_all(everybody)
    dataplane = HostDataPlane("test")
    try:
        segment = await dataplane.open(CONFIG)
        told: list[int] = []
        segment.nodes.on_change(lambda: told.append(len(segment.nodes.known)))
        segment.nodes.follow(everybody)
        await until(lambda: len(segment.nodes.known) == 1000, "all are known", 10.0)
        assert segment.nodes.known == dict.fromkeys(everybody, client.mac)
        await until(lambda: told[-1:] == [1000], "told so")
        assert len(told) < 100  # many at a time
        told.clear()
        await asyncio.sleep(9.0)  # nobody is to be lost: each is confirmed, and three unanswered questions would show
        assert told == []
    finally:
        await dataplane.remove("")
