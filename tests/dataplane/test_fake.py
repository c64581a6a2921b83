"""What the fake's network lets a test do, and what comes of it."""

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, ListenerKey
from cloudprovider.dataplane.fake import FakeDataPlane
from tests.dataplane.lan import BRIDGE, CONFIG

HERE, AWAY = IPv4Address("10.99.0.11"), IPv4Address("10.99.0.12")
MAC, OTHER = MACAddress("02:00:00:00:01:01"), MACAddress("02:00:00:00:01:02")
WEB = ListenerKey(IPv4Address("10.99.0.100"), "TCP", 80)


async def test_nodes_are_known_while_they_answer_and_are_followed() -> None:
    fake = FakeDataPlane(devices=[BRIDGE])
    segment = await fake.open(CONFIG)
    network = fake.namespaces[""]
    changed = asyncio.Event()
    segment.nodes.on_change(changed.set)
    network.station(HERE, MAC)
    assert not segment.nodes.known
    assert not segment.nodes.settled(HERE)
    changed.clear()
    segment.nodes.follow([HERE, AWAY])
    assert not changed.is_set()
    async with asyncio.timeout(1):
        await changed.wait()
    assert segment.nodes.known == {HERE: MAC}
    assert segment.nodes.settled(AWAY)
    network.station(HERE, OTHER)
    network.unsettled.add(AWAY)
    assert segment.nodes.known == {HERE: OTHER}
    assert not segment.nodes.settled(AWAY)
    network.settle(AWAY)
    network.station(HERE, None)
    assert segment.nodes.settled(AWAY)
    assert not segment.nodes.known


async def test_pins_go_by_hand_and_when_nothing_is_changing_any_more() -> None:
    fake = FakeDataPlane(devices=[BRIDGE])
    segment = await fake.open(CONFIG)
    await segment.engine.start()
    moving = Forward(group=GroupId(1), mode="dsr", former=Former("nat"))
    await segment.engine.apply(Changes(groups={GroupId(1): Group(frozenset({MAC}))}, forwards={WEB: moving}))
    pins = fake.namespaces[""].pins
    pins.update({(WEB, MAC): 2, (WEB, OTHER): 3})
    assert await segment.engine.unpin({OTHER: [replace(WEB, port=81)]}) == 0
    assert await segment.engine.unpin({OTHER: [WEB]}) == 3
    assert await segment.engine.pins() == {(WEB, MAC): 2}
    await segment.engine.apply(Changes(forwards={WEB: replace(moving, former=None, pinned=True)}))
    assert await segment.engine.pins() == {(WEB, MAC): 2}
    await segment.engine.apply(Changes(forwards={WEB: replace(moving, former=None)}))
    assert await segment.engine.pins() == {}
