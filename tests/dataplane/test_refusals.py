"""What no data plane takes: a sentence says what is wrong, and nothing is changed. The kernel's and the fake alike."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, ListenerKey, Member, Plan, diff
from cloudprovider.dataplane.api import Segment
from tests.dataplane.lan import CONFIG, OWN
from tests.dataplane.world import World

VIP = IPv4Address("10.99.0.100")
VIP6 = IPv6Address("fd99::100")
WEB = ListenerKey(VIP, "TCP", 80)
DNS = ListenerKey(VIP, "UDP", 53)
OTHER = ListenerKey(VIP, "TCP", 443)
OTHER6 = ListenerKey(VIP6, "TCP", 443)
ADDRESSES, MACS, NEW = GroupId(1), GroupId(2), GroupId(3)
NAT = Forward(group=ADDRESSES, backend_port=30080)
DSR = Forward(group=MACS, mode="dsr")
NODES = frozenset(IPv4Address("10.99.0.11") + i for i in range(3))
STATIONS = frozenset(MACAddress(f"02:00:00:00:01:0{i}") for i in range(1, 4))
BEFORE = IPv4Address("10.99.0.3")
PLAN = Plan(groups={ADDRESSES: Group(NODES), MACS: Group(STATIONS)}, forwards={WEB: NAT, DNS: DSR})


def group(*members: Member) -> Changes:
    return Changes(groups={NEW: Group(frozenset(members))})


def forward(changed: Forward) -> Changes:
    return Changes(forwards={OTHER: changed})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (forward(replace(NAT, group=NEW)), "10.99.0.100 TCP 443 forwards to group 3, which is not there"),
        (forward(replace(DSR, group=NEW)), "forwards to group 3, which is not there"),
        (group(IPv4Address("10.99.0.11"), IPv6Address("fd99::11")), "group 3 mixes IPv4 addresses and IPv6 addresses"),
        (group(IPv4Address("10.99.0.11"), MACAddress("02:00:00:00:00:01")), "group 3 mixes IPv4 addresses and MACs"),
        (
            Changes(groups={NEW: Group(STATIONS, former=frozenset({IPv4Address("10.99.0.11")}))}),
            "group 3 mixes IPv4 addresses and MACs",
        ),
        (forward(replace(DSR, group=ADDRESSES)), "in mode dsr to group 1, whose members are IPv4 addresses"),
        (forward(replace(NAT, group=MACS)), "in mode nat to group 2, whose members are MACs"),
        (
            forward(replace(DSR, former=Former("dsr", NEW))),
            "10.99.0.100 TCP 443 forwards from group 3, which is not there",
        ),
        (forward(replace(DSR, former=Former("dsr", ADDRESSES))), "in mode dsr from group 1, whose members are IPv4"),
        (forward(replace(DSR, former=Former("dsr"))), "in a former mode dsr there is no group 0"),
        (forward(replace(DSR, former=Former("dsr", GroupId(1 << 24)))), "former group 16777216 is out of range"),
        (forward(replace(DSR, former=Former("nat", MACS))), "a former mode nat has neither group nor affinity"),
        (forward(replace(NAT, former=Former("nat"))), "stays in mode nat"),
        (forward(replace(DSR, former=Former("nat"), pinned=True)), "is both changing and pinned"),
        (Changes(groups={NEW: Group(STATIONS, former=STATIONS, pinned=True)}), "group 3 is both changing and pinned"),
        (Changes(groups={NEW: Group(NODES, former=NODES)}), "whose flows conntrack remembers"),
        (Changes(groups={NEW: Group(NODES, pinned=True)}), "whose flows conntrack remembers"),
        (forward(replace(DSR, backend_port=80)), "in mode dsr a port is not changed"),
        (forward(replace(DSR, group=GroupId(0))), "in mode dsr there is no group 0"),
        (forward(replace(NAT, backend_port=0)), "backend port 0 is out of range"),
        (
            forward(replace(DSR, predecessor=BEFORE)),
            "10.99.0.3, the host that had the address before, knows no more of",
        ),
        (forward(replace(NAT, predecessor=IPv6Address("fd99::3"))), "is IPv6, the address is IPv4; leave it out"),
        (
            forward(replace(NAT, predecessor=OWN.ip)),
            "the host that had the address before, is this host's own address on the network",
        ),
        (forward(replace(NAT, predecessor=VIP)), "has that very address as its own"),
        (
            Changes(forwards={replace(OTHER, protocol="UDP"): replace(NAT, predecessor=BEFORE)}),
            "can't know more of UDP, which has no beginning",
        ),
        (
            Changes(groups={NEW: Group(frozenset({VIP}))}, forwards={OTHER: replace(NAT, group=NEW)}),
            "group 3, which has that very address as a node",
        ),
        (Changes(groups={ADDRESSES: Group(NODES | {VIP})}), "node 10.99.0.100 is an address that forwards to this"),
        (group(IPv4Address("127.0.0.5")), "node 127.0.0.5 is a loopback address"),
        (group(IPv4Address("224.0.0.5")), "node 224.0.0.5 is a multicast address"),
        (group(IPv4Address("0.0.0.0")), "node 0.0.0.0 is the unspecified address"),
        (group(IPv4Address("255.255.255.255")), "node 255.255.255.255 is the broadcast address"),
        (group(OWN.network.broadcast_address), "node 10.99.0.255 is the broadcast address of 10.99.0.0/24"),
        (group(OWN.ip), "node 10.99.0.2 is this host's own address"),
        (group(IPv6Address("::")), "node :: is the unspecified address"),
        (group(IPv6Address("::1")), "node ::1 is a loopback address"),
        (group(IPv6Address("ff02::1")), "node ff02::1 is a multicast address"),
        (group(IPv6Address("fe80::1")), "node fe80::1 is a link-local address"),
        (group(MACAddress("ff:ff:ff:ff:ff:ff")), "node ff:ff:ff:ff:ff:ff is not the MAC of one machine"),
        (group(MACAddress("01:00:5e:00:00:01")), "node 01:00:5e:00:00:01 is not the MAC of one machine"),
        (group(MACAddress("00:00:00:00:00:00")), "node 00:00:00:00:00:00 is not the MAC of one machine"),
        (
            Changes(groups={NEW: Group(STATIONS, former=frozenset({MACAddress("33:33:00:00:00:01")}))}),
            "node 33:33:00:00:00:01 is not the MAC of one machine",
        ),
        (Changes(groups={MACS: Group(NODES)}), "can't come to have IPv4 addresses as members instead of MACs"),
        (forward(replace(DSR, sources=frozenset({ip_network("fd00::/8")}))), "source range fd00::/8 is IPv6"),
        (
            Changes(forwards={OTHER6: replace(DSR, sources=frozenset({ip_network("10.0.0.0/8")}))}),
            "source range 10.0.0.0/8 is IPv4",
        ),
    ],
)
async def test_nonsense_is_refused_whole(segment: Segment, wrong: Changes, said: str) -> None:
    await segment.engine.apply(diff(Plan(), PLAN))
    with pytest.raises(DataPlaneError) as error:
        await segment.engine.apply(
            Changes(
                groups={GroupId(9): Group(NODES), **wrong.groups},
                forwards={ListenerKey(VIP, "UDP", 9): replace(NAT, group=GroupId(9)), **wrong.forwards},
            )
        )
    assert said in str(error.value)
    assert await segment.engine.observe() == PLAN


async def test_the_host_s_own_mac_is_no_node(segment: Segment) -> None:
    with pytest.raises(DataPlaneError, match="is this host's own MAC on the network"):
        await segment.engine.apply(group(MACAddress(segment.mac)))


async def test_a_group_that_flows_come_from_is_not_removed(segment: Segment) -> None:
    came = replace(DSR, group=NEW, former=Former("dsr", MACS))
    await segment.engine.apply(Changes(groups={MACS: Group(STATIONS), NEW: Group(STATIONS)}, forwards={WEB: came}))
    with pytest.raises(DataPlaneError, match="group 2 can't be removed: 1 forwards use it"):
        await segment.engine.apply(Changes(groups={MACS: None}))
    await segment.engine.apply(Changes(groups={MACS: None}, forwards={WEB: replace(came, former=None, pinned=True)}))
    assert (await segment.engine.observe()).groups.keys() == {NEW}


@pytest.mark.parametrize("family", [4, 6])
async def test_without_an_address_of_its_own_a_network_has_dsr_only(world: World, family: int) -> None:
    config = replace(CONFIG, address=None, gateway=None) if family == 4 else CONFIG
    vip, node = (VIP, IPv4Address("10.99.0.11")) if family == 4 else (VIP6, IPv6Address("fd99::11"))
    segment = await world.dataplane.open(config)
    await segment.engine.start()
    key = ListenerKey(vip, "TCP", 80)
    with pytest.raises(DataPlaneError, match=f"this network has no IPv{family} address for this host; give it one"):
        await segment.engine.apply(Changes(groups={ADDRESSES: Group(frozenset({node}))}, forwards={key: NAT}))
    plan = Plan(
        groups={MACS: Group(STATIONS)},
        forwards={key: DSR, replace(key, port=81): Forward(group=GroupId(0), backend_port=1)},
    )
    await segment.engine.apply(diff(Plan(), plan))
    assert await segment.engine.observe() == plan
    await segment.close()
