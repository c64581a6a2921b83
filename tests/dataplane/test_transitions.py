"""Mode dsr while something changes: what is under way goes on, what begins follows at once.

Established connections are real ones: a node that gets a segment of a flow that it does not know resets it.
"""

import struct
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Former, Forward, Group, IPAddress, ListenerKey
from cloudprovider.dataplane import ruleset_dsr
from cloudprovider.dataplane.api import STACK
from cloudprovider.dataplane.nftables import Transaction, each_element, element, value
from cloudprovider.dataplane.ruleset import TABLE
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
    connections,
    group,
    mac,
    macs,
    nft,
    returning,
    serving,
    started,
)
from tests.dataplane.lan import Station, run

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("both_families")]

BOTH = pytest.mark.parametrize("vip", [VIP, VIP6])
ALL = dict.fromkeys((WEB, DNS, WEB6, DNS6), TO_ONE)
TO_NAT = Forward(group=ADDRESSES, backend_port=30080)


@pytest.fixture
async def segment(dataplane: HostDataPlane) -> KernelSegment:
    return await started(dataplane)


async def survivors(flows: list[Connection]) -> set[int]:
    """The client's ports of the flows that still go on."""
    return {flow.source for flow in flows if await flow.alive()}


def all_of(flows: list[Connection]) -> set[int]:
    return {flow.source for flow in flows}


async def fresh(client: Station, vip: IPAddress, count: int = 40) -> set[str]:
    """The nodes that new connections go to."""
    return {await client.ask_tcp(vip, 80) for _ in range(count)}


@BOTH
async def test_a_node_joins(segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress) -> None:
    two, three = group(nodes[:2]), group(nodes)
    await segment.engine.apply(Changes(groups={ONE: two}, forwards=ALL))
    async with serving(nodes), connections(client, 30, vip) as flows:
        assert {flow.node for flow in flows} == {"n1", "n2"}
        await segment.engine.apply(Changes(groups={ONE: replace(three, former=two.members)}))
        assert await survivors(flows) == all_of(flows)
        async with connections(client, 30, vip) as later:
            assert {flow.node for flow in later} == {"n1", "n2", "n3"}
            assert await survivors(later) == all_of(later)
            assert sum((await segment.engine.pins()).values()) == 60
            await segment.engine.apply(Changes(groups={ONE: replace(three, pinned=True)}))
            assert await survivors(flows) == all_of(flows)
            assert await survivors(later) == all_of(later)
            assert await fresh(client, vip) == {"n1", "n2", "n3"}
            assert sum((await segment.engine.pins()).values()) == 60  # nothing more is pinned
            await segment.engine.apply(Changes(groups={ONE: three}))
            assert await segment.engine.pins() == {}
            assert await survivors(later) == all_of(later)  # by the table, as they began
            moved = all_of(flows) - await survivors(flows)
            assert 0 < len(moved) < 25  # 10 are expected: a third


async def test_pins_are_searched_only_when_a_change_ends(
    segment: KernelSegment, nodes: list[Station], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be 65,536 of each kind: nodes that come and go in quick succession don't wait for them."""
    searched: list[object] = []

    async def search(doomed: object) -> int:
        searched.append(doomed)
        return 0

    monkeypatch.setattr(segment.engine, "_forget_pins", search)
    two, three = group(nodes[:2]), group(nodes)
    for changing in (two, replace(three, former=two.members), replace(two, former=three.members)):
        await segment.engine.apply(Changes(groups={ONE: changing}, forwards={WEB: TO_ONE}))
    await segment.engine.apply(Changes(groups={ONE: replace(two, pinned=True)}))
    assert searched == []
    await segment.engine.apply(Changes(groups={ONE: two}))
    assert len(searched) == 1


@BOTH
async def test_a_node_leaves_and_is_drained(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    three, two, key = group(nodes), group(nodes[:2]), ListenerKey(vip, "TCP", 80)
    gone = mac(nodes[2])
    await segment.engine.apply(Changes(groups={ONE: three}, forwards=ALL))
    async with serving(nodes), connections(client, 30, vip) as flows:
        await segment.engine.apply(Changes(groups={ONE: replace(two, former=three.members)}))
        assert await survivors(flows) == all_of(flows)
        assert await fresh(client, vip) == {"n1", "n2"}
        await segment.engine.apply(Changes(groups={ONE: replace(two, pinned=True)}))
        assert await survivors(flows) == all_of(flows)
        draining = {flow.source for flow in flows if flow.node == "n3"}
        assert (await segment.engine.pins())[key, gone] == len(draining) > 0
        assert await segment.engine.unpin({gone: [DNS], mac(nodes[0]): []}) == 0
        assert await segment.engine.unpin({gone: [key]}) == len(draining)
        assert (key, gone) not in await segment.engine.pins()
        assert await survivors(flows) == all_of(flows) - draining
        assert await fresh(client, vip) == {"n1", "n2"}


@BOTH
async def test_datagrams_leave_with_the_node(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    three, two = group(nodes), group(nodes[:2])
    await segment.engine.apply(Changes(groups={ONE: two}, forwards=ALL))

    async def names() -> dict[int, str]:
        return {port: await client.ask_udp(vip, 53, source=port) for port in range(20000, 20030)}

    async with serving(nodes):
        before = await names()
        await segment.engine.apply(Changes(groups={ONE: replace(three, former=two.members)}))
        assert await names() == before  # nobody has left
        await segment.engine.apply(Changes(groups={ONE: replace(three, pinned=True)}))
        assert await names() == before  # pinned
        await segment.engine.apply(Changes(groups={ONE: three}))
        spread = await names()
        assert set(spread.values()) == {"n1", "n2", "n3"}
        await segment.engine.apply(Changes(groups={ONE: replace(two, former=three.members)}))
        assert set((await names()).values()) == {"n1", "n2"}
        # Pinned ones leave as well.
        one = group(nodes[:1])
        await segment.engine.apply(Changes(groups={ONE: replace(one, former=two.members)}))
        assert set((await names()).values()) == {"n1"}
        await segment.engine.apply(Changes(groups={ONE: replace(group(nodes[1:2]), pinned=True)}))
        assert set((await names()).values()) == {"n2"}


@BOTH
@pytest.mark.parametrize("on", [True, False])
async def test_affinity_comes_and_goes(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress, on: bool
) -> None:
    key = ListenerKey(vip, "TCP", 80)
    before, after = replace(TO_ONE, by_client=not on), replace(TO_ONE, by_client=on)
    await segment.engine.apply(Changes(groups={ONE: group(nodes)}, forwards={key: before}))
    async with serving(nodes), connections(client, 20, vip) as flows:
        moving = replace(after, former=Former("dsr", ONE, by_client=not on))
        await segment.engine.apply(Changes(forwards={key: moving}))
        assert await survivors(flows) == all_of(flows)
        assert len(await fresh(client, vip)) == (1 if on else 3)
        async with connections(client, 5, vip) as later:
            await segment.engine.apply(Changes(forwards={key: replace(after, pinned=True)}))
            assert await survivors(flows) == all_of(flows)
            assert await survivors(later) == all_of(later)
            assert sum((await segment.engine.pins()).values()) >= 25
            await segment.engine.apply(Changes(forwards={key: after}))
            assert await segment.engine.pins() == {}
            assert await survivors(later) == all_of(later)
            assert 0 < len(await survivors(flows)) < 20


async def test_from_nat_to_dsr(segment: KernelSegment, client: Station, nodes: list[Station]) -> None:
    addresses = Group(frozenset(node.address for node in nodes))
    await segment.engine.apply(Changes(groups={ADDRESSES: addresses, ONE: group(nodes)}, forwards={WEB: TO_NAT}))
    async with serving(nodes) as came, connections(client, 20) as flows:
        assert not any(came.values())  # by the other port
        moving = Changes(groups={ADDRESSES: None}, forwards={WEB: replace(TO_ONE, former=Former("nat"))})
        await segment.engine.apply(moving)
        assert await survivors(flows) == all_of(flows)
        async with connections(client, 20) as later:
            assert {source for sources in came.values() for source in sources} == {"::ffff:10.99.0.50"}
            assert (await segment.engine.pins())[WEB, STACK] == 20
            await segment.engine.apply(Changes(forwards={WEB: replace(TO_ONE, pinned=True)}))
            assert await survivors(flows) == all_of(flows)
            assert await survivors(later) == all_of(later)
            assert await segment.engine.unpin({STACK: [WEB]}) == 20
            assert await survivors(flows) == set()
            assert await survivors(later) == all_of(later)
        assert await segment.connections.forget_listeners([WEB]) >= 20


async def test_from_dsr_to_nat(segment: KernelSegment, client: Station, nodes: list[Station]) -> None:
    addresses = Group(frozenset(node.address for node in nodes))
    await segment.engine.apply(Changes(groups={ADDRESSES: addresses, ONE: group(nodes)}, forwards={WEB: TO_ONE}))
    async with serving(nodes) as came, connections(client, 20) as flows:
        assert sum(map(len, came.values())) == 20
        await segment.engine.apply(Changes(forwards={WEB: replace(TO_NAT, former=Former("dsr", ONE))}))
        assert await survivors(flows) == all_of(flows)
        async with connections(client, 20) as later:
            assert sum(map(len, came.values())) == 20
            await segment.engine.apply(Changes(groups={ONE: None}, forwards={WEB: replace(TO_NAT, pinned=True)}))
            assert await survivors(flows) == all_of(flows)
            assert await survivors(later) == all_of(later)
            pins = await segment.engine.pins()
            assert pins[WEB, STACK] == 20
            assert sum(pins.values()) == 40
            await segment.engine.apply(Changes(forwards={WEB: TO_NAT}))
            assert await survivors(later) == all_of(later)
            assert await survivors(flows) == set()


@BOTH
async def test_from_one_group_to_another(
    segment: KernelSegment, client: Station, nodes: list[Station], vip: IPAddress
) -> None:
    key, dns = ListenerKey(vip, "TCP", 80), ListenerKey(vip, "UDP", 53)
    there = replace(TO_ONE, group=TWO)
    await segment.engine.apply(
        Changes(groups={ONE: group(nodes[:2]), TWO: group(nodes[1:])}, forwards={key: TO_ONE, dns: TO_ONE})
    )
    async with serving(nodes), connections(client, 20, vip) as flows:
        moving = replace(there, former=Former("dsr", ONE))
        await segment.engine.apply(Changes(forwards={key: moving, dns: moving}))
        assert {await client.ask_udp(vip, 53) for _ in range(20)} == {"n2", "n3"}
        assert await survivors(flows) == all_of(flows)
        assert await fresh(client, vip) == {"n2", "n3"}
        pinned = replace(there, pinned=True)
        await segment.engine.apply(Changes(groups={ONE: None}, forwards={key: pinned, dns: pinned}))
        assert await survivors(flows) == all_of(flows)
        gone = {flow.source for flow in flows if flow.node == "n1"}
        assert await segment.engine.unpin({mac(nodes[0]): [key]}) == len(gone)
        assert await survivors(flows) == all_of(flows) - gone


async def test_one_change_after_another(segment: KernelSegment, client: Station, nodes: list[Station]) -> None:
    """What was pinned by the first is pinned still in the second; the agent in between has been another."""
    two, three = group(nodes[:2]), group(nodes)
    await segment.engine.apply(Changes(groups={ONE: two}, forwards=ALL))
    async with serving(nodes), connections(client, 20) as flows:
        await segment.engine.apply(Changes(groups={ONE: replace(three, former=two.members)}))
        assert await survivors(flows) == all_of(flows)
        await segment.engine.start()
        last = group(nodes[2:])
        await segment.engine.apply(Changes(groups={ONE: replace(last, former=three.members)}))
        assert await survivors(flows) == all_of(flows)
        assert await fresh(client, VIP) == {"n3"}
        gone = {node: [WEB] for node in macs(nodes[:2])}
        assert await segment.engine.unpin(gone) == 20
        await segment.engine.apply(Changes(groups={ONE: replace(last, pinned=True)}))
        assert await survivors(flows) == set()


async def test_a_port_that_is_used_again_begins_anew(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """A SYN is a beginning, whatever was pinned for the same ports before."""
    three, one = group(nodes), group(nodes[:1])
    await segment.engine.apply(Changes(groups={ONE: three}, forwards=ALL))
    async with serving(nodes):
        await segment.engine.apply(Changes(groups={ONE: replace(three, former=one.members)}))
        names = {port: await client.ask_tcp(VIP, 80, source=port) for port in range(20000, 20020)}
        assert set(names.values()) == {"n1", "n2", "n3"}
        await segment.engine.apply(Changes(groups={ONE: replace(one, former=three.members)}))
        for port in names:
            assert await client.ask_tcp(VIP, 80, source=port) == "n1"
        assert sum((await segment.engine.pins()).values()) == 20


async def test_a_node_that_drains_and_accepts_no_more_is_told_of(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """Its frames come back although it is no member any more."""
    two, one, deaf = group(nodes[:2]), group(nodes[:1]), nodes[1]
    await segment.engine.apply(Changes(groups={ONE: two}, forwards=ALL))
    async with serving(nodes[:2]), connections(client, 20) as flows:
        await segment.engine.apply(Changes(groups={ONE: replace(one, former=two.members)}))
        assert await survivors(flows) == all_of(flows)
        deaf.pass_on()
        run(f"ip -n {deaf.name} address del {VIP}/32 dev lo")
        held = (flow for flow in flows if flow.node == deaf.name)  # each writes once: what is sent again comes late
        for phase in (replace(one, former=two.members), replace(one, pinned=True)):
            await segment.engine.apply(Changes(groups={ONE: phase}))
            before = sum((await segment.engine.returned()).values())
            sent = (await segment.engine.counters())[WEB].packets
            next(held).writer.write(b"still there?\n")
            back = await returning(segment, before)
            assert back.keys() == {(WEB, mac(deaf))}
            went = (await segment.engine.counters())[WEB].packets - sent
            # Each went once and came back once, where it could circle 64 times; acknowledgements of before come late.
            assert went <= 3 * sum(back.values()) + len(flows)
        for flow in flows:
            flow.close()


def pin_elements(port: int, count: int, node: MACAddress) -> list[bytes]:
    """Pins of so many made-up clients' flows."""
    flow = struct.Struct("=4s4s2sxx2sxx")
    clients = (IPv4Address("10.128.0.0") + i for i in range(count))
    keys = (flow.pack(c.packed, VIP.packed, port.to_bytes(2, "big"), (80).to_bytes(2, "big")) for c in clients)
    return [element(key, value(node.packed)) for key in keys]


async def test_when_nothing_more_can_be_pinned_flows_go_by_the_tables(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """Spoofed SYNs may fill the map; who comes then, and who was there and not pinned yet, is served still."""
    two, three, name = group(nodes[:2]), group(nodes), ruleset_dsr.pins(4, "TCP")
    await segment.engine.apply(Changes(groups={ONE: two}, forwards=ALL))
    async with serving(nodes), connections(client, 10) as flows:
        await segment.engine.apply(Changes(groups={ONE: replace(three, former=two.members)}))
        full = Transaction(TABLE)
        full.add(name, pin_elements(1024, ruleset_dsr.MOST_PINS, mac(nodes[0])))
        segment.engine._commit(full)
        assert await survivors(flows) == all_of(flows)
        assert await fresh(client, VIP) == {"n1", "n2"}
        affinity = replace(TO_ONE, by_client=True, former=Former("dsr", ONE))
        await segment.engine.apply(Changes(forwards={WEB: affinity}))
        assert await survivors(flows) == all_of(flows)
        assert await fresh(client, VIP) == {"n1", "n2"}
        assert await segment.engine.pins() == {(WEB, mac(nodes[0])): ruleset_dsr.MOST_PINS}
        assert await segment.engine.unpin({mac(nodes[0]): [WEB]}) == ruleset_dsr.MOST_PINS
        assert await survivors(flows) == all_of(flows)
        assert sum((await segment.engine.pins()).values()) == len(flows)


async def test_a_syn_that_nothing_follows_is_soon_forgotten(
    segment: KernelSegment, client: Station, nodes: list[Station]
) -> None:
    """A flood from made-up addresses does not keep others from being pinned for long."""
    await segment.engine.apply(Changes(groups={ONE: Group(macs(nodes), former=macs(nodes))}, forwards=ALL))

    def left() -> str:
        listed = nft("list map netdev cloudprovider pins4_tcp")
        return listed.partition("expires ")[2].partition(" ")[0]

    with pytest.raises(TimeoutError):  # nobody accepts the address
        await client.connect(VIP, 80, limit=0.5)
    assert "s" in left()
    assert "m" not in left().replace("ms", "")
    nft("flush map netdev cloudprovider pins4_tcp")
    async with serving(nodes), connections(client, 1):
        assert left().startswith(("59m", "1h"))


async def test_pins_that_end_while_they_are_forgotten_hinder_nothing(
    segment: KernelSegment, nodes: list[Station]
) -> None:
    node, name = mac(nodes[0]), ruleset_dsr.pins(4, "TCP")
    moving = Group(frozenset({node}), former=frozenset({node}))
    await segment.engine.apply(Changes(groups={ONE: moving}, forwards=ALL))
    pins = Transaction(TABLE)
    pins.add(name, pin_elements(1024, 300, node))
    segment.engine._commit(pins)
    held = [item.key for part, _ in segment.engine._nftables.elements(TABLE, name) for item in each_element(part)]
    assert len(held) == 300
    some = Transaction(TABLE)
    some.remove(name, [element(key) for key in held[::100]])
    segment.engine._commit(some)
    assert segment.engine._remove_pins(name, held) == 297
    assert await segment.engine.pins() == {}
    assert await segment.engine.undisturbed()
