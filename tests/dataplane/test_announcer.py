"""What every announcer does, the kernel's and the fake alike: addresses of both families, and the packet socket."""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import frames
from cloudprovider.dataplane.api import Claim, Segment
from tests.dataplane.lan import CONFIG, LIMIT, until
from tests.dataplane.world import World

FOUR = IPv4Address("10.99.0.100")
SIX = IPv6Address("fd99::100")
BOTH: Sequence[IPAddress] = (FOUR, SIX)
EACH = pytest.mark.parametrize("vip", BOTH)


@EACH
async def test_free_addresses_are_claimed_once_and_withdrawn(segment: Segment, vip: IPAddress) -> None:
    others = [vip + i for i in range(1, 200)]
    assert await segment.announcer.claim([vip, *others]) == [Claim(address=a) for a in [vip, *others]]
    assert await segment.announcer.claim([vip, vip]) == [Claim(address=vip), Claim(address=vip)]
    assert await segment.announcer.held() == {vip, *others}
    await segment.announcer.withdraw([*others, vip + 1000])
    assert await segment.announcer.held() == {vip}
    assert await segment.announcer.claim([]) == []


@EACH
async def test_an_address_that_somebody_has_is_not_taken(world: World, segment: Segment, vip: IPAddress) -> None:
    free = vip + 1
    with world.occupy(vip) as mac:
        claims = await segment.announcer.claim([vip, free])
        assert claims == [Claim(address=vip, conflict=mac), Claim(address=free)]
        assert await segment.announcer.held() == {free}
    assert await segment.announcer.claim([vip]) == [Claim(address=vip)]
    assert await segment.announcer.held() == {vip, free}


@EACH
async def test_who_answers_is_heard_in_a_hurry_too(world: World, segment: Segment, vip: IPAddress) -> None:
    with world.occupy(vip) as mac:
        assert await segment.announcer.claim([vip], hurried=True) == [Claim(address=vip, conflict=mac)]
    assert await segment.announcer.claim([vip], hurried=True) == [Claim(address=vip)]
    assert await segment.announcer.held() == {vip}


def opened(link: str) -> socket.socket:
    return frames.open_socket(link, 0x0800)


async def test_both_families_come_and_go_in_one_call(segment: Segment) -> None:
    assert await segment.announcer.claim([SIX, FOUR]) == [Claim(address=SIX), Claim(address=FOUR)]
    assert await segment.announcer.held() == {FOUR, SIX}
    await segment.announcer.withdraw([FOUR, SIX])
    assert await segment.announcer.held() == frozenset()


@EACH
async def test_a_probe_tells_who_has_an_address_and_takes_none(world: World, segment: Segment, vip: IPAddress) -> None:
    held, free = vip + 1, vip + 2
    await segment.announcer.claim([held])
    with world.occupy(vip) as mac:
        assert await segment.announcer.probe([free, vip, held, vip]) == [
            Claim(address=free),
            Claim(address=vip, conflict=mac),
            Claim(address=held),
            Claim(address=vip, conflict=mac),
        ]
    assert await segment.announcer.probe([vip]) == [Claim(address=vip)]
    with world.occupy(held):  # too late: it is ours, and whoever takes it is reported and resisted
        assert await segment.announcer.probe([held]) == [Claim(address=held)]
        assert await segment.announcer.claim([held]) == [Claim(address=held)]
    assert await segment.announcer.probe([]) == []
    assert await segment.announcer.held() == {held}


@EACH
async def test_an_address_may_be_asked_for_while_it_is_asked_for(
    world: World, segment: Segment, vip: IPAddress
) -> None:
    with world.occupy(vip) as mac:
        answers = await asyncio.gather(
            segment.announcer.probe([vip]), segment.announcer.claim([vip]), segment.announcer.probe([vip])
        )
    assert all(answer == [Claim(address=vip, conflict=mac)] for answer in answers)
    one, two = await asyncio.gather(segment.announcer.claim([vip]), segment.announcer.claim([vip, vip + 1]))
    assert [*one, *two] == [Claim(address=vip), Claim(address=vip), Claim(address=vip + 1)]
    assert await segment.announcer.held() == {vip, vip + 1}


@EACH
async def test_what_a_fellow_gives_is_taken_without_asking(world: World, segment: Segment, vip: IPAddress) -> None:
    with world.occupy(vip):
        await segment.announcer.take([vip, vip + 1, vip])
        assert await segment.announcer.held() == {vip, vip + 1}
        await segment.announcer.take([vip])
    with pytest.raises(DataPlaneError, match="can't be announced"):
        await segment.announcer.take([vip + 2, IPv6Address("ff02::1")])
    assert await segment.announcer.held() == {vip, vip + 1}


@EACH
async def test_an_address_is_left_to_whom_it_may_go_to_and_to_nobody_else(
    world: World, segment: Segment, vip: IPAddress
) -> None:
    asked: list[tuple[IPAddress, str]] = []
    fought: list[tuple[IPAddress, str]] = []

    def may_have(address: IPAddress, mac: str) -> bool:
        asked.append((address, mac))
        return address == vip

    segment.announcer.on_conflict(lambda address, mac: fought.append((address, mac)))
    segment.announcer.yield_to(may_have)
    await segment.announcer.claim([vip, vip + 1])
    with world.occupy(vip + 1) as mac:
        await until(lambda: bool(fought), "the conflict")
        assert await segment.announcer.held() == {vip, vip + 1}
    assert fought == [(vip + 1, mac)] == asked[:1]
    with world.occupy(vip) as mac:
        await until(lambda: (vip, mac) in asked, "the question")
        assert await segment.announcer.held() == {vip + 1}
    assert len(fought) == 1


@EACH
@pytest.mark.parametrize("later", [True, False, None])
async def test_who_may_have_it_as_is_known_a_second_later_is_not_fought(
    world: World, segment: Segment, vip: IPAddress, later: bool | None
) -> None:
    asked: list[float] = []
    fought: list[str] = []

    def may_have(_address: IPAddress, _mac: str) -> bool | None:
        asked.append(asyncio.get_running_loop().time())
        return None if len(asked) == 1 else later

    segment.announcer.on_conflict(lambda _address, mac: fought.append(mac))
    segment.announcer.yield_to(may_have)
    await segment.announcer.claim([vip])
    with world.occupy(vip) as mac:
        await until(lambda: len(asked) > 1, "the second question")
    assert asked[1] - asked[0] >= 0.9
    assert await segment.announcer.held() == (set() if later else {vip})
    assert fought[:1] == ([] if later else [mac])


@pytest.mark.parametrize("address", ["fe80::100", "ff02::100", "::1", "::"])
async def test_what_nobody_can_announce_is_refused_whole(segment: Segment, address: str) -> None:
    for ask in (segment.announcer.claim, segment.announcer.probe):
        with pytest.raises(DataPlaneError, match=f"{address} can't be announced: it is link-local, multicast"):
            await ask([FOUR, SIX, IPv6Address(address)])
    assert await segment.announcer.held() == frozenset()


async def test_the_next_agent_finds_the_addresses(world: World) -> None:
    first = await world.dataplane.open(CONFIG)
    assert await first.announcer.held() == frozenset()
    await first.announcer.claim(BOTH)
    await first.close()
    second = await world.dataplane.open(CONFIG)
    assert await second.announcer.held() == set(BOTH)
    assert await second.announcer.claim(BOTH) == [Claim(address=vip) for vip in BOTH]
    await second.announcer.withdraw(BOTH)
    assert await second.announcer.held() == frozenset()
    await second.close()


async def test_whole_frames_go_out_and_come_in(world: World, segment: Segment) -> None:
    """Also from an Ethernet address that is not the link's, as each DHCP lease has one."""
    own = await segment.packets(opened)
    with own, world.wire() as theirs:
        assert len(bytes.fromhex(segment.mac.replace(":", ""))) == 6
        asked = frame("ffffffffffff", "020000000077", b"to the network")
        own.send(asked)
        assert await received(theirs, b"to the network") == asked
        answer = frame("020000000077", "020000000001", b"from the network")
        theirs.send(answer)
        assert await received(own, b"from the network") == answer


async def test_each_packet_socket_is_a_new_one(segment: Segment) -> None:
    with await segment.packets(opened) as one, await segment.packets(opened) as other:
        assert one.fileno() != other.fileno()


def frame(to: str, sender: str, payload: bytes) -> bytes:
    """An IPv4 packet of an experimental protocol in a frame: bridges drop what is no valid IPv4."""
    size = (20 + len(payload)).to_bytes(2, "big")
    ends = bytes(4) + b"\xff" * 4
    header = b"\x45\x00" + size + bytes(4) + b"\x40\xfd"
    checksum = 0xFFFF - int.from_bytes(header + b"\0\0" + ends, "big") % 0xFFFF
    return bytes.fromhex(to + sender) + b"\x08\x00" + header + checksum.to_bytes(2, "big") + ends + payload


async def received(packets: socket.socket, marker: bytes) -> bytes:
    """The first frame with the marker that comes."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(LIMIT):
        while marker not in (heard := await loop.sock_recv(packets, 2048)):
            pass
    return heard
