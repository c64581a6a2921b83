"""Fixed neighbours on a real network: nobody who answers for such an address gets a frame of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, ip_address

import pytest

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import Changes, Forward, Group, GroupId, IPAddress, ListenerKey
from cloudprovider.dataplane import arp, frames, ndp
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.dataplane.lan import BRIDGE, CONFIG, INSIDE, LIMIT, Station, run, until

pytestmark = pytest.mark.kernel

BOTH = replace(CONFIG, address6=IPv6Interface("fd99::2/64"))
VIPS: list[IPAddress] = [IPv4Address("10.99.0.100"), IPv6Address("fd99::100")]
PORT = 8080
EACH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
async def segment(dataplane: HostDataPlane, both_families: None) -> KernelSegment:
    opened = await dataplane.open(BOTH)
    await opened.engine.start()
    await opened.announcer.claim(VIPS)
    return opened


def claimed(version: int) -> IPAddress:
    """The address of n1 that n2 claims to have, too."""
    return ip_address("10.99.0.11" if version == 4 else "fd99::11")


async def forward(segment: KernelSegment, version: int) -> IPAddress:
    """Send what comes for a VIP to n1's address, by mode nat; return the VIP."""
    vip = VIPS[version == 6]
    key, group = ListenerKey(vip, "TCP", 80), GroupId(version)
    changes = Changes(groups={group: Group(frozenset({claimed(version)}))}, forwards={key: Forward(group, PORT)})
    await segment.engine.apply(changes)
    return vip


@contextlib.asynccontextmanager
async def spoofing(liar: Station, version: int) -> AsyncIterator[list[str]]:
    """It has the address, answers for it, and keeps telling everybody so; it serves, too. Yields who came."""
    liar.take(claimed(version))
    mac = MACAddress(liar.mac).packed

    def said() -> list[bytes]:
        address = claimed(version)
        if isinstance(address, IPv4Address):
            return list(arp.announcements(mac, address))
        return [ndp.announcement(mac, address)]

    async def insist() -> None:
        with call_in(liar.path, lambda: frames.open_socket("eth0", arp.ETHERTYPE)) as wire:
            while True:
                for frame in said():
                    frames.send(wire, frame)
                await asyncio.sleep(0.005)

    async with liar.serving_tcp(PORT, ipv6=version == 6) as came:
        task = asyncio.create_task(insist())
        try:
            yield came
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def misled(client: Station, vip: IPAddress) -> None:
    """Ask until the liar has got a connection."""
    async with asyncio.timeout(LIMIT):
        while True:
            with contextlib.suppress(ConnectionError):
                if await client.ask_tcp(vip, 80) == "n2":
                    return


async def who_answers(client: Station, vip: IPAddress, times: int = 20) -> set[str]:
    return {await client.ask_tcp(vip, 80) for _ in range(times)}


@EACH
async def test_who_answers_for_a_fixed_address_gets_nothing(
    segment: KernelSegment, client: Station, nodes: list[Station], version: int
) -> None:
    true, liar = nodes[0], nodes[1]
    address, vip = claimed(version), await forward(segment, version)
    async with true.serving_tcp(PORT, ipv6=version == 6), spoofing(liar, version):
        await misled(client, vip)  # which is what fixing is for
        await segment.static_neighbours.set({address: MACAddress(true.mac)})
        assert await who_answers(client, vip, 100) == {"n1"}
        assert knows(address) == true.mac
        await segment.static_neighbours.change({address: None})
        await misled(client, vip)


@EACH
async def test_what_is_for_a_fixed_neighbour_that_is_away_goes_to_nobody(
    segment: KernelSegment, client: Station, nodes: list[Station], version: int
) -> None:
    """The machine is off: what is for it goes to nobody."""
    true, liar = nodes[0], nodes[1]
    address, vip = claimed(version), await forward(segment, version)
    await segment.static_neighbours.set({address: MACAddress(true.mac)})
    run(f"ip -n {true.name} link set eth0 down")
    async with spoofing(liar, version) as came:
        with pytest.raises(TimeoutError):
            await client.connect(vip, 80, limit=1.5)
        assert came == []


@EACH
async def test_they_are_back_when_the_link_is(segment: KernelSegment, nodes: list[Station], version: int) -> None:
    address, mac = claimed(version), MACAddress(nodes[0].mac)
    await segment.static_neighbours.set({address: mac})
    port = next(line.split()[0].partition("@")[0] for line in run("ip -br link").splitlines() if line.startswith("lb"))
    run(f"ip -n {INSIDE} link set lan0 down")
    assert await segment.static_neighbours.observe() == {}
    run(f"ip -n {INSIDE} link set lan0 up")
    await until(lambda: permanent(address), "back")
    run(f"ip link set {port} down")
    run(f"ip link set {port} up")
    run(f"ip link set {BRIDGE} down")
    run(f"ip link set {BRIDGE} up")
    await until(lambda: permanent(address), "still there")
    assert await segment.static_neighbours.observe() == {address: mac}


def knows(address: IPAddress) -> str:
    found = run(f"ip -n {INSIDE} neigh show {address} dev lan0").split()
    return found[found.index("lladdr") + 1] if "lladdr" in found else ""


def permanent(address: IPAddress) -> bool:
    return "PERMANENT" in run(f"ip -n {INSIDE} neigh show {address} dev lan0")
