"""What somebody else did to the rules is noticed, shown as a difference, and mended by carrying that out."""

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.maglev import table_size
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, ListenerKey, Plan, diff
from cloudprovider.dataplane import ruleset_dsr, ruleset_nat
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from cloudprovider.dataplane.standing import Standing
from tests.dataplane.lan import CONFIG, OWN, run

pytestmark = pytest.mark.kernel

VIP, VIP6 = IPv4Address("10.99.0.100"), IPv6Address("fd99::100")
NODES = Group(frozenset(IPv4Address("10.99.0.11") + i for i in range(3)))
FOUR = Group(NODES.members | {IPv4Address("10.99.0.20")})
STATIONS = Group(frozenset(MACAddress(f"02:00:00:00:01:0{i}") for i in range(1, 4)))
MOVING = Group(STATIONS.members, former=STATIONS.members | {MACAddress("02:00:00:00:01:09")})
PLAN = Plan(
    groups={GroupId(1): NODES, GroupId(2): NODES, GroupId(3): STATIONS, GroupId(4): MOVING},
    forwards={
        ListenerKey(VIP, "TCP", 80): Forward(group=GroupId(1), backend_port=30080),
        ListenerKey(VIP, "UDP", 53): Forward(
            group=GroupId(1), backend_port=30053, sources=frozenset({IPv4Network("10.99.0.0/24")})
        ),
        ListenerKey(VIP, "TCP", 81): Forward(group=GroupId(2), backend_port=30081, by_client=True),
        ListenerKey(VIP + 1, "TCP", 80): Forward(
            group=GroupId(3), mode="dsr", by_client=True, sources=frozenset({IPv4Network("10.99.0.0/24")})
        ),
        ListenerKey(VIP + 2, "UDP", 53): Forward(group=GroupId(3), mode="dsr", former=Former("dsr", GroupId(4))),
        ListenerKey(VIP + 3, "UDP", 53): Forward(group=GroupId(4), mode="dsr"),
        ListenerKey(VIP + 4, "TCP", 80): Forward(
            group=GroupId(1), backend_port=30080, former=Former("dsr", GroupId(3), by_client=True)
        ),
        ListenerKey(VIP6, "TCP", 80): Forward(group=GroupId(3), mode="dsr", pinned=True),
    },
)
DSR, FRAGMENTS = f"{VIP + 1} . tcp . 80", VIP + 3
KEY = f"{VIP} . tcp . 80"


def check_chains() -> None:
    """Every chain is there."""
    standing = Standing(mac=MACAddress("02:00:00:00:00:01"), own=OWN)
    for table in (ruleset_nat.table(4, standing), ruleset_nat.table(6, standing), ruleset_dsr.table(standing)):
        family = {2: "ip", 10: "ip6", 5: "netdev"}[table.family]
        listed = run(f"ip netns exec lb-test-mgmt nft -t list table {family} cloudprovider")
        assert [name for name in table.chains if f"chain {name} {{" not in listed] == []


def nft(command: str) -> None:
    run(f"ip netns exec lb-test-mgmt nft {command}")


def run_script(nft: str, script: str) -> None:
    subprocess.run([*nft.split(), "-f", "-"], input=script, text=True, check=True)


@pytest.fixture
async def dataplane(lan: None) -> AsyncIterator[HostDataPlane]:
    made = HostDataPlane("test")
    yield made
    for network in await made.networks():
        await made.remove(network)


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    opened = await dataplane.open(CONFIG)
    await opened.engine.start()
    await opened.engine.apply(diff(Plan(), PLAN))
    return opened


@pytest.mark.parametrize(
    "command",
    [
        f"delete element ip cloudprovider listeners {{ {KEY} }}",
        f"delete element ip cloudprovider ports {{ {KEY} }}",
        f"add element ip cloudprovider listeners {{ {VIP} . tcp . 9 : 1 }}",
        f"add element ip cloudprovider ports {{ {VIP} . tcp . 9 : 9 }}",
        f"add element ip cloudprovider listeners {{ {VIP} . sctp . 9 : 1 }}",
        f"add element ip cloudprovider sources_8 {{ {VIP} . udp . 53 . 10.0.0.0 }}",
        f"add element ip cloudprovider sources_8 {{ {VIP} . udp . 53 . 10.0.0.1 }}",
        f"add element ip cloudprovider sources_8 {{ {KEY} . 10.0.0.0 }}",
        f"add element ip cloudprovider sources_8 {{ {VIP} . tcp . 9 . 10.0.0.0 }}",
        f"delete element ip cloudprovider sources_24 {{ {VIP} . udp . 53 . 10.99.0.0 }}",
        "delete element ip cloudprovider tables { 1 }",
        "add element ip cloudprovider tables { 9 : goto by_flow_4099 }",
        "add element ip cloudprovider tables { 0x41000009 : drop }",
        "delete element ip cloudprovider slots_4099 { 1 . 77 }",
        "add element ip cloudprovider slots_4099 { 9 . 0 : 10.99.0.66 }",
        "add element ip cloudprovider slots_4099 { 1 . 20000 : 10.99.0.66 }",
        'add element ip cloudprovider slots_4099 { 0x80000001 . 5 comment "no" : 10.99.0.66 }',
        "add element ip cloudprovider slots_65537 { 1 . 0 : 10.99.0.66 }",
        "flush map ip cloudprovider listeners",
        "flush map ip cloudprovider slots_4099",
        "flush map ip cloudprovider tables",
        "delete element ip cloudprovider backends { 10.99.0.11 }",
        "add element ip cloudprovider begun { 10.99.0.66 }",
        f"delete element netdev cloudprovider listeners4 {{ {DSR} }}",
        f"add element netdev cloudprovider listeners4 {{ {VIP} . tcp . 80 : 3 }}",
        f"add element netdev cloudprovider listeners4 {{ {VIP} . tcp . 9 : 3 }}",
        f"add element netdev cloudprovider listeners4 {{ {VIP} . sctp . 9 : 3 }}",
        f"add element netdev cloudprovider former4 {{ {DSR} : 3 }}",
        f"delete element netdev cloudprovider former4 {{ {VIP + 2} . udp . 53 }}",
        "flush map netdev cloudprovider errors4",
        f"delete element netdev cloudprovider listeners6 {{ {VIP6} . tcp . 80 }}",
        f"delete element netdev cloudprovider sources4_24 {{ {DSR} . 10.99.0.0 }}",
        f"add element netdev cloudprovider sources4_8 {{ {DSR} . 10.0.0.1 }}",
        f"add element netdev cloudprovider sources6_64 {{ {VIP6} . tcp . 80 . fd66:: }}",
        f"delete element netdev cloudprovider fragments4 {{ {FRAGMENTS} }}",
        f"add element netdev cloudprovider fragments4 {{ {VIP} : 0x86000003 }}",
        "delete element netdev cloudprovider tables4 { 3 }",
        "delete element netdev cloudprovider steps6 { 0x81000004 }",
        "add element netdev cloudprovider tables4 { 0x41000009 : drop }",
        "delete element netdev cloudprovider ways { ip }",
        "add element netdev cloudprovider ways { arp : goto v4 }",
        "flush map netdev cloudprovider ways",
        "delete element netdev cloudprovider members { 3 . 02:00:00:00:01:01 }",
        "add element netdev cloudprovider members { 3 . 02:00:00:00:66:66 }",
        "add element netdev cloudprovider members { 0x81000003 . 02:00:00:00:66:66 }",
        "delete element netdev cloudprovider backends { 02:00:00:00:01:02 }",
        "delete element netdev cloudprovider slots_4099 { 3 . 77 }",
        "delete element netdev cloudprovider slots_4099 { 0x08000004 . 77 }",
        "add element netdev cloudprovider slots_4099 { 3 . 20000 : 02:00:00:00:66:66 }",
        "add element netdev cloudprovider slots_65537 { 0x08000003 . 1 : 02:00:00:00:66:66 }",
        'add element netdev cloudprovider slots_4099 { 0x80000001 . 5 comment "no" : 02:00:00:00:66:66 }',
        "flush map netdev cloudprovider slots_4099",
    ],
)
async def test_broken_elements_are_seen_and_mended(segment: KernelSegment, command: str) -> None:
    assert await segment.engine.undisturbed()
    nft(command)
    assert not await segment.engine.undisturbed()
    assert await segment.engine.intact()
    have = await segment.engine.observe()
    await segment.engine.apply(diff(have, PLAN))
    assert await segment.engine.observe() == PLAN
    assert await segment.engine.undisturbed()
    fresh = HostDataPlane("test")  # one that has never believed anything else
    await segment.close()
    again = await fresh.open(CONFIG)
    await again.engine.start()
    assert await again.engine.observe() == PLAN
    assert not again.engine._held.foreign
    await again.close()


@pytest.mark.parametrize(
    "command",
    [
        "flush ruleset",
        "flush chain ip cloudprovider forward",
        "add rule ip cloudprovider input accept",
        "insert rule ip cloudprovider translate return",
        "add chain ip cloudprovider extra { type filter hook forward priority -1; policy drop; }",
        "add chain ip cloudprovider forward { policy accept; }",
        "delete chain ip cloudprovider source",
        "delete table ip cloudprovider",
        "delete table ip6 cloudprovider",
        "flush chain ip6 cloudprovider input",
        "insert rule ip6 cloudprovider input accept",
        "add chain ip6 cloudprovider extra { type filter hook input priority -1; policy drop; }",
        "delete table netdev cloudprovider",
        "flush chain netdev cloudprovider ingress",
        "insert rule netdev cloudprovider out drop",
        "delete chain netdev cloudprovider ingress",
        'add chain netdev cloudprovider extra { type filter hook ingress device "lan0" priority -1; policy drop; }',
    ],
)
async def test_broken_chains_are_seen_and_mended(segment: KernelSegment, command: str) -> None:
    nft(command)
    assert not await segment.engine.intact()
    await segment.engine.start()
    assert await segment.engine.intact()
    await segment.engine.apply(diff(await segment.engine.observe(), PLAN))
    assert await segment.engine.observe() == PLAN
    listed = run("ip netns exec lb-test-mgmt nft -t list ruleset")
    assert "chain extra" not in listed
    assert "ct status dnat snat to 10.99.0.2" in listed
    check_chains()


async def test_a_predecessor_with_other_maps_is_replaced(segment: KernelSegment) -> None:
    nft("delete table ip cloudprovider")
    nft("add table ip cloudprovider")
    nft("add map ip cloudprovider listeners { type ipv4_addr : mark; }")
    nft("add chain ip cloudprovider forward { type nat hook postrouting priority 0; policy accept; }")
    await segment.engine.start()
    await segment.engine.apply(diff(await segment.engine.observe(), PLAN))
    assert await segment.engine.observe() == PLAN


async def test_tables_of_others_stay_as_they_are(dataplane: HostDataPlane) -> None:
    """On the host and in our namespace: while ours are made, changed, mended and replaced, and (on the host) after."""
    script = "".join(
        f"add table {family} firewall\nadd set {family} firewall known {{ type {kind}; elements = {{ {one} }}; }}\n"
        f"add chain {family} firewall input {{ type filter hook prerouting priority -5; policy accept; }}\n"
        f"add rule {family} firewall input counter\n"
        for family, kind, one in (("ip", "ipv4_addr", VIP), ("ip6", "ipv6_addr", VIP6), ("inet", "ipv4_addr", VIP))
    )
    inside, here = "ip netns exec lb-test-mgmt nft", "nft"

    def listed(nft: str) -> list[str]:
        lines = [line for f in ("ip", "ip6", "inet") for line in run(f"{nft} -s list table {f} firewall").splitlines()]
        return lines + [line for line in run(f"{nft} list tables").splitlines() if not line.endswith(" cloudprovider")]

    run_script(here, script)
    before = listed(here)
    opened = await dataplane.open(CONFIG)
    run_script(inside, script)
    assert listed(inside) == before
    await opened.engine.start()
    await opened.engine.apply(diff(Plan(), PLAN))
    assert await opened.engine.observe() == PLAN
    nft("delete table ip cloudprovider")
    nft("flush chain netdev cloudprovider out")
    assert not await opened.engine.intact()
    await opened.engine.start()
    await opened.engine.apply(diff(await opened.engine.observe(), PLAN))
    await opened.engine._load(afresh=True)
    await opened.engine.start()
    await opened.engine.apply(diff(await opened.engine.observe(), Plan()))
    assert listed(inside) == before
    await opened.close()
    assert listed(here) == before
    await dataplane.remove("")
    assert listed(here) == before


async def test_changing_what_somebody_took_away_is_refused_and_heals(segment: KernelSegment) -> None:
    nft(f"delete element ip cloudprovider listeners {{ {KEY} }}")
    gone = Changes(forwards={ListenerKey(VIP, "TCP", 80): None})
    with pytest.raises(DataPlaneError, match=r"refused to remove 1 element.* of listeners: No such file"):
        await segment.engine.apply(gone)
    have = await segment.engine.observe()
    await segment.engine.apply(diff(have, PLAN))
    await segment.engine.apply(gone)
    assert (await segment.engine.observe()).forwards.keys() == PLAN.forwards.keys() - gone.forwards.keys()


async def test_what_is_applied_while_the_kernel_is_read_is_not_lost(segment: KernelSegment) -> None:
    have = PLAN
    for turn in range(20):
        reading = asyncio.create_task(segment.engine.observe())
        for step in range(10):
            await asyncio.sleep(0)
            key = ListenerKey(VIP, "TCP", 1000 + (turn * 10 + step) % 37)
            forward = None if key in have.forwards else Forward(group=GroupId(1), backend_port=30000 + step)
            nodes = NODES if step % 2 else FOUR
            await segment.engine.apply(Changes(groups={GroupId(2): nodes}, forwards={key: forward}))
            forwards = {**have.forwards, key: forward}
            have = Plan(
                groups={**have.groups, GroupId(2): nodes},
                forwards={k: f for k, f in forwards.items() if f is not None},
            )
        assert await reading == await segment.engine.observe() == have
        assert await segment.engine.undisturbed()


async def test_people_can_read_the_rules(segment: KernelSegment) -> None:
    """nft 1.0.6 can list all that is in the kernel, elements made over netlink among it."""
    listed = run("ip netns exec lb-test-mgmt nft list table ip cloudprovider")
    assert f"{KEY} counter packets 0 bytes 0 : 0x00000001" in listed
    assert f"{KEY} : 30080" in listed
    assert "0x80000001 : goto by_client_4099" in listed
    assert f"{VIP} . udp . 53 . 10.99.0.0" in listed
    listed = run("ip netns exec lb-test-mgmt nft list table netdev cloudprovider")
    assert f"{DSR} counter packets 0 bytes 0 : 0xc0000003" in listed
    assert f"0x80000003 : goto by_client4_{table_size(len(STATIONS.members))}" in listed
    assert "0x00000004 : goto tracked6" in listed
    assert json.loads(run("ip netns exec lb-test-mgmt nft -j list table netdev cloudprovider"))
    check_chains()
