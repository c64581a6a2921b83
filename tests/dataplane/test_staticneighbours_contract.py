"""What everything that fixes neighbours does, the kernel's and the fake alike."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import Segment
from tests.dataplane.lan import CONFIG
from tests.dataplane.world import World

FOUR, SIX = IPv4Address("10.99.0.77"), IPv6Address("fd99::77")
ONE, OTHER = MACAddress("02:00:00:00:00:01"), MACAddress("02:00:00:00:00:02")
BOTH: dict[IPAddress, MACAddress] = {FOUR: ONE, SIX: ONE}


async def test_what_is_set_is_there_and_nothing_else(segment: Segment) -> None:
    fixed = segment.static_neighbours
    assert await fixed.observe() == {}
    await fixed.set(BOTH)
    assert await fixed.observe() == BOTH
    await fixed.set({FOUR: OTHER})
    assert await fixed.observe() == {FOUR: OTHER}
    await fixed.set({})
    assert await fixed.observe() == {}


async def test_changes_concern_what_they_name(segment: Segment) -> None:
    fixed = segment.static_neighbours
    await fixed.set(BOTH)
    await fixed.change({SIX: OTHER, FOUR + 1: ONE, FOUR + 2: None})
    assert await fixed.observe() == {FOUR: ONE, SIX: OTHER, FOUR + 1: ONE}
    await fixed.change({FOUR: None, SIX: None})
    assert await fixed.observe() == {FOUR + 1: ONE}
    assert await fixed.repair() == 0


async def test_what_somebody_changes_is_put_right(world: World, segment: Segment) -> None:
    fixed = segment.static_neighbours
    await fixed.set({**BOTH, FOUR + 1: ONE})
    world.meddle(FOUR, None)
    world.meddle(SIX, OTHER)
    world.meddle(FOUR + 2, OTHER)
    assert await fixed.observe() == {FOUR + 1: ONE, SIX: OTHER, FOUR + 2: OTHER}
    assert await fixed.repair() == 3
    assert await fixed.observe() == {**BOTH, FOUR + 1: ONE}
    assert await fixed.repair() == 0


async def test_they_outlive_the_agent_and_the_next_one_forgets_the_stale(world: World) -> None:
    first = await world.dataplane.open(CONFIG)
    await first.static_neighbours.set(BOTH)
    await first.close()
    second = await world.dataplane.open(CONFIG)
    assert await second.static_neighbours.observe() == BOTH
    await second.static_neighbours.set({FOUR: ONE, FOUR + 1: OTHER})
    assert await second.static_neighbours.observe() == {FOUR: ONE, FOUR + 1: OTHER}
    await second.close()


@pytest.mark.parametrize(
    ("address", "mac"),
    [
        ("127.0.0.5", ONE),
        ("224.0.0.5", ONE),
        ("0.0.0.0", ONE),
        ("169.254.1.1", ONE),
        ("::1", ONE),
        ("ff02::1", ONE),
        ("fe80::1", ONE),
        ("10.99.0.78", MACAddress("ff:ff:ff:ff:ff:ff")),
        ("10.99.0.78", MACAddress("01:00:5e:00:00:01")),
        ("10.99.0.78", MACAddress("00:00:00:00:00:00")),
    ],
)
async def test_what_no_machine_has_is_refused_whole(segment: Segment, address: str, mac: MACAddress) -> None:
    fixed = segment.static_neighbours
    await fixed.set({FOUR: ONE})
    bad: dict[IPAddress, MACAddress] = {SIX: ONE, ip_address(address): mac}
    with pytest.raises(DataPlaneError, match="is no machine's"):
        await fixed.change(bad)
    with pytest.raises(DataPlaneError, match="is no machine's"):
        await fixed.set(bad)
    assert await fixed.observe() == {FOUR: ONE}


async def test_thousands_at_once(segment: Segment) -> None:
    many: dict[IPAddress, MACAddress] = {IPv4Address("10.98.0.1") + i: ONE for i in range(3000)}
    await segment.static_neighbours.set(many)
    assert await segment.static_neighbours.observe() == many
    await segment.static_neighbours.change(dict.fromkeys(many))
    assert await segment.static_neighbours.observe() == {}
