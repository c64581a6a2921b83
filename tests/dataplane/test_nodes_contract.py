"""What everything that watches nodes does, the kernel's and the fake alike."""

import asyncio
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address

import pytest

from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import Nodes, Segment
from tests.dataplane.lan import LIMIT
from tests.dataplane.world import World

FOUR = IPv4Address("10.99.0.77")
EACH = pytest.mark.parametrize("address", [FOUR, IPv6Address("fd99::77")])


async def told(nodes: Nodes, true: Callable[[], bool]) -> None:
    """Look only when called back, until it is true."""
    changed = asyncio.Event()
    nodes.on_change(changed.set)
    async with asyncio.timeout(LIMIT):
        while not true():
            await changed.wait()
            changed.clear()


@EACH
async def test_who_is_followed_is_known_while_it_answers(world: World, segment: Segment, address: IPAddress) -> None:
    nodes, silent = segment.nodes, address + 1
    with world.occupy(address) as mac:
        assert nodes.known == {}
        nodes.follow([address, silent])
        await told(nodes, lambda: nodes.known == {address: mac})
        assert nodes.settled(address)
        await told(nodes, lambda: nodes.settled(silent))
        assert nodes.known == {address: mac}
    await told(nodes, lambda: nodes.known == {})
    assert nodes.settled(address)


@EACH
async def test_nobody_is_called_back_by_what_he_says_himself(
    world: World, segment: Segment, address: IPAddress
) -> None:
    called: list[int] = []
    with world.occupy(address):
        segment.nodes.on_change(lambda: called.append(1))
        segment.nodes.follow([address])
        assert called == []
        await told(segment.nodes, lambda: address in segment.nodes.known)
        segment.nodes.on_change(lambda: called.append(1))
        segment.nodes.follow([])
        assert called == []
        assert segment.nodes.known == {}
        assert not segment.nodes.settled(address)


async def test_what_was_read_does_not_change(world: World, segment: Segment) -> None:
    with world.occupy(FOUR) as mac:
        segment.nodes.follow([FOUR])
        await told(segment.nodes, lambda: FOUR in segment.nodes.known)
        before = segment.nodes.known
        segment.nodes.follow([])
        assert before == {FOUR: mac}
