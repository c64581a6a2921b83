"""A network's link that goes down and comes back: addresses, routes and nodes are as before, and everybody is told."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Interface

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import arp, frames, linkwatch, ndp
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.dataplane.nodewatch import Pace
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from cloudprovider.dataplane.upkeep import Upkeep
from tests.dataplane.lan import BRIDGE, CONFIG, HOST, LIMIT, Station, pings, run, until

pytestmark = pytest.mark.kernel

BOTH = replace(CONFIG, address6=IPv6Interface("fd99::2/64"), gateway6=IPv6Address("fd99::1"))
FOUR, SIX, ELSEWHERE = IPv4Address("10.99.0.100"), IPv6Address("fd99::100"), IPv6Address("fd55::100")
VIPS: list[IPAddress] = [FOUR, SIX, ELSEWHERE]
INSIDE = "lb-test-mgmt"
FAST = Pace(confirm=0.3, answer=0.1, first=60.0, slowest=60.0)
"""So slow to ask again that a node is found in time only because the link has come back."""
PORT = "(the host's end of the pair)"


@pytest.fixture
async def dataplane(lan: None) -> AsyncIterator[HostDataPlane]:
    made = HostDataPlane("test", timing=Timing(between=0.005, listen=0.02), pace=FAST)
    yield made
    await made.close()
    for network in await made.networks():
        await made.remove(network)


@pytest.fixture
async def segment(dataplane: HostDataPlane, client: Station) -> KernelSegment:
    client.take(IPv6Address("fd99::50"))
    opened = await dataplane.open(BOTH)
    await opened.engine.start()
    await opened.announcer.claim(VIPS)
    opened.nodes.follow([client.address, IPv6Address("fd99::50")])
    await until(lambda: len(opened.nodes.known) == 2, "the node is known")
    return opened


def state() -> list[str]:
    """Addresses and routes inside, without what the kernel does on its own."""
    addresses = [line.split()[3] for line in run(f"ip -n {INSIDE} -oneline address show dev lan0").splitlines()]
    routes = [
        line.strip()
        for family in ("-4", "-6")
        for line in run(f"ip -n {INSIDE} {family} route show").splitlines()
        if not line.startswith("fe80::")
    ]
    return sorted(addresses) + sorted(routes)


def port() -> str:
    return next(word for word in run("ip -br link").split() if word.startswith("lb")).partition("@")[0]


def switch(commands: list[str]) -> None:
    for command in commands:
        run(command.replace(PORT, port()) if PORT in command else command)


MADE_ANEW = [
    f"ip link add {BRIDGE} type bridge",
    f"ip address add {HOST}/24 dev {BRIDGE}",
    f"ip link set {BRIDGE} up",
    f"ip link set v-client master {BRIDGE} up",
]


@pytest.mark.parametrize(
    ("down", "up"),
    [
        ([f"ip -n {INSIDE} link set lan0 down"], [f"ip -n {INSIDE} link set lan0 up"]),
        ([f"ip link set {PORT} down"], [f"ip link set {PORT} up"]),
        ([f"ip link set {BRIDGE} down"], [f"ip link set {BRIDGE} up"]),
        ([f"ip link del {BRIDGE}"], MADE_ANEW),
    ],
    ids=["inside", "outside", "the bridge", "a new bridge"],
)
async def test_what_a_link_loses_is_back_when_it_is(
    segment: KernelSegment, client: Station, down: list[str], up: list[str]
) -> None:
    before, known = state(), dict(segment.nodes.known)
    assert all(pings(client, vip) for vip in VIPS[:2])
    assert segment.carries
    switch(down)
    await until(lambda: not segment.carries, "it is known")
    await until(lambda: not segment.nodes.known, "nobody is there")
    assert await segment.announcer.held() >= {FOUR}
    with (
        call_in(client.path, lambda: frames.open_socket("eth0", arp.ETHERTYPE)) as four,
        call_in(client.path, lambda: frames.open_socket("eth0", ndp.ETHERTYPE, program=ndp.FILTER)) as six,
    ):
        switch(up)
        own = bytes.fromhex(segment.mac.replace(":", ""))
        await heard(four, arp.announcements(own, FOUR)[0])
        await heard(six, ndp.announcement(own, SIX))
    await until(lambda: segment.nodes.known == known, "the node is known again")
    assert segment.carries
    assert state() == before
    assert await segment.announcer.held() == set(VIPS)
    assert all(pings(client, vip) for vip in VIPS[:2])


async def heard(wire: socket.socket, frame: bytes) -> None:
    async with asyncio.timeout(LIMIT):
        while await asyncio.get_running_loop().sock_recv(wire, 2048) != frame:
            pass


async def test_an_interruption_that_nobody_could_see_is_made_good_too(segment: KernelSegment) -> None:
    """Down and up again before the agent looks: the routes are gone all the same."""
    before = state()
    run(f"ip -n {INSIDE} link set lan0 down")
    run(f"ip -n {INSIDE} link set lan0 up")
    assert "default" not in run(f"ip -n {INSIDE} -4 route show")
    await until(lambda: state() == before, "all is back")


async def test_other_links_of_the_host_do_not_matter(
    segment: KernelSegment, monkeypatch: pytest.MonkeyPatch, client: Station
) -> None:
    restored: list[object] = []

    async def restore(links: object) -> None:
        restored.append(links)

    monkeypatch.setattr(Upkeep, "restore", restore)
    looked = asyncio.Event()
    look = Upkeep.look

    def seen(links: Upkeep) -> object:
        looked.set()
        return look(links)

    monkeypatch.setattr(Upkeep, "look", seen)
    run("ip link add other type veth peer name another")
    run("ip link set other up")
    run("ip link del other")
    async with asyncio.timeout(LIMIT):
        await looked.wait()
    await asyncio.sleep(0.1)  # nothing is to come
    assert restored == []


class Flaky:
    """Links that fail as often as they are told to."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.seen = 1
        self.restored = asyncio.Event()

    def look(self) -> int:
        return self.seen

    async def restore(self) -> None:
        if self.failures:
            self.failures -= 1
            raise DataPlaneError("no")
        self.restored.set()


async def test_what_could_not_be_put_back_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(linkwatch, "_BETWEEN", 0.01)
    monkeypatch.setattr(linkwatch, "_SLOWEST", 0.04)
    links = Flaky(failures=4)
    keeper = linkwatch.LinkKeeper("", links)
    task = asyncio.create_task(keeper.run())
    await asyncio.sleep(0)
    links.seen = 2
    keeper.changed()
    async with asyncio.timeout(LIMIT):
        await links.restored.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    waits = [record.__dict__["retry_in"] for record in caplog.records if "retry_in" in record.__dict__]
    assert waits == [0.01, 0.02, 0.04, 0.04]


async def test_a_link_that_is_gone_for_good_is_said(
    segment: KernelSegment, dataplane: HostDataPlane, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sockets and rules went with it: the network is to be opened again, which makes it anew."""
    run(f"ip link del {port()}")
    with pytest.raises(DataPlaneError) as error:
        await segment.announcer.held()
    assert error.value.errno == errno.ENODEV
    await until(lambda: any("lan0 has vanished" in str(r.__dict__.get("error")) for r in caplog.records), "it is said")
    await until(lambda: not segment.nodes.known, "nobody is there")
    await segment.close()
    again = await dataplane.open(BOTH)
    await again.announcer.claim(VIPS)
    assert await again.announcer.held() == set(VIPS)
