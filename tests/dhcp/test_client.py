"""The real client's own ways, on a wire: its pace, its deafness to strangers, its end."""

import asyncio
import contextlib
import errno
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import pytest
from typing_extensions import override

from cloudprovider.core.errors import DataPlaneError, InvalidRequest
from cloudprovider.dhcp import packet
from cloudprovider.dhcp.api import Lease, LeaseRequest
from cloudprovider.dhcp.client import SocketDhcpClient
from cloudprovider.dhcp.effects import Reason
from cloudprovider.dhcp.fake import FakeDhcpServer
from cloudprovider.dhcp.identity import client_identity
from cloudprovider.dhcp.message import MalformedPacket, MessageType
from cloudprovider.dhcp.timing import Timing
from tests.dhcp.networks import LINK, WireNetwork, key, model, request
from tests.dhcp.test_packet import OFFER
from tests.dhcp.waiting import until
from tests.dhcp.wire import WireServer, owner, wire

DISCOVER, REQUEST, RELEASE = MessageType.DISCOVER, MessageType.REQUEST, MessageType.RELEASE


@pytest.fixture
async def network() -> AsyncIterator[WireNetwork]:
    made = WireNetwork(model(100))
    yield made
    await made.close()


async def nobody(_address: IPv4Address) -> str:
    return ""


def client_of(
    end: socket.socket,
    *,
    timing: Timing,
    rate: float = 500.0,
    probe: Callable[[IPv4Address], Awaitable[str]] = nobody,
) -> SocketDhcpClient:
    return SocketDhcpClient(
        end,
        mac=LINK,
        network="",
        probe=probe,
        now=lambda: datetime.now(UTC),
        rng=random.Random(1),
        timing=timing,
        rate=rate,
    )


@contextlib.asynccontextmanager
async def alone(
    served: FakeDhcpServer,
    *,
    timing: Timing,
    rate: float = 500.0,
    probe: Callable[[IPv4Address], Awaitable[str]] = nobody,
) -> AsyncIterator[tuple[SocketDhcpClient, WireServer]]:
    """One client, running, and its server."""
    with wire(served) as (server, end):
        client = client_of(end, timing=timing, rate=rate, probe=probe)
        run = asyncio.get_running_loop().create_task(client.run())
        try:
            yield client, server
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)


async def test_messages_go_out_at_the_rate() -> None:
    loop = asyncio.get_running_loop()
    async with alone(replace(model(), answering=False), rate=100, timing=Timing()) as (client, server):
        start = loop.time()
        for number in range(50):
            client.want(request(number))
        await until("all", lambda: len(server.heard) == 50)
        assert 0.4 <= loop.time() - start < 2


async def test_a_retransmission_counts_from_when_the_message_went_out() -> None:
    silent = replace(model(), answering=False)
    async with alone(silent, rate=100, timing=Timing(first=0.2, jitter=0.01)) as (client, server):
        for number in range(50):  # the last goes out after 0.5 s
            client.want(request(number))
        await until("all", lambda: len({d.message.chaddr for d in server.heard}) == 50)
        last = next(n for n in range(50) if client_identity(owner(n)).chaddr == server.heard[-1].message.chaddr)
        assert last == 49
        assert client.state(key(49)).problem is None


async def test_frames_have_the_lease_s_own_mac_and_after_silence_the_link_s(network: WireNetwork) -> None:
    network.server.answering = False
    client = network.host()
    client.want(request())
    await until("three", lambda: len(network.wires[0].heard) >= 3)
    mine, link = client_identity(owner(0)).chaddr, bytes.fromhex(LINK.replace(":", ""))
    assert [datagram.source_mac for datagram in network.wires[0].heard[:3]] == [mine, link, mine]
    assert {datagram.message.chaddr for datagram in network.wires[0].heard} == {mine}
    network.server.answering = True
    await until("a lease", lambda: client.state(key()).lease)
    chosen = [d.source_mac for d in network.wires[0].heard[-2:]]
    assert len(set(chosen)) == 1  # what was answered is kept to


async def test_what_is_not_for_us_is_dropped_and_counted(network: WireNetwork) -> None:
    client = network.host()
    client.want(request())
    await until("a lease", lambda: client.state(key()).lease)
    (server,) = network.wires
    server.say(OFFER)
    server.say(replace(OFFER, chaddr=client_identity(owner(0)).chaddr))
    server.send(b"noise")
    await until(
        "the counts",
        lambda: client.counts().dropped == {"unknown-client": 1, "unknown-xid": 1, "short-frame": 1},
    )
    assert client.counts().received == {"offer": 3, "ack": 1}


async def test_no_damaged_frame_does_more_than_be_counted(network: WireNetwork) -> None:
    """Each of them, whether it can't be read or only was not asked for; the lease stays as it is."""
    client = network.host()
    client.want(request())
    await until("a lease", lambda: client.state(key()).lease)
    before, received = client.state(key()), sum(client.counts().received.values())
    (server,) = network.wires
    offer = replace(OFFER, chaddr=client_identity(owner(0)).chaddr)
    rng = random.Random(5)
    readable = 0
    for number in range(1, 501):
        frame = bytearray(server.framed(offer))
        frame[40:42] = bytes(2)  # no checksum over what follows: it is read to its end
        for _ in range(rng.randint(1, 8)):
            frame[rng.randrange(42, len(frame))] = rng.randrange(256)
        sent = bytes(frame if rng.random() < 0.7 else frame[: rng.randrange(len(frame))])
        with contextlib.suppress(MalformedPacket):
            packet.decode(sent)
            readable += 1
        server.send(sent)
        await until("its count", lambda number=number: sum(client.counts().dropped.values()) == number)  # type: ignore[misc]
    assert 100 < readable < 400, "both kinds"
    assert sum(client.counts().received.values()) == received + readable
    assert client.state(key()) == before


async def test_a_release_that_waits_is_not_sent_after_the_owner_has_come_back(network: WireNetwork) -> None:
    client = network.host()
    client.want(request())
    await until("a lease", lambda: client.state(key()).lease)
    client.drop(key(), release=True)
    client.want(request())
    await until("a lease", lambda: client.state(key()).lease)
    assert RELEASE not in network.wires[0].kinds()


async def test_releases_that_wait_go_out_with_the_end(network: WireNetwork) -> None:
    client = network.host()
    for number in range(60):
        client.want(request(number))
    await until("the leases", lambda: all(client.state(key(number)).lease for number in range(60)))
    for number in range(60):
        client.drop(key(number), release=True)
    network.leave(client)
    await until("the releases", lambda: network.wires[0].kinds().count(RELEASE) == 60)
    assert network.server.owners == {}


async def test_a_dropped_lease_is_not_probed_to_its_end() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def probe(_address: IPv4Address) -> str:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return ""

    async with alone(model(), timing=Timing(), probe=probe) as (client, server):
        client.want(request())
        await asyncio.wait_for(asked.wait(), 5)
        client.drop(key(), release=True)
        await asyncio.wait_for(ended.wait(), 5)  # a probe may take ten seconds by itself
        await until("the release", lambda: RELEASE in server.kinds())


async def test_a_probe_that_ends_late_tells_nothing_of_a_dropped_lease() -> None:
    asked, ended = asyncio.Event(), asyncio.Event()

    async def stubborn(_address: IPv4Address) -> str:
        asked.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ended.set()
        return "02:00:00:00:00:aa"

    changes: list[object] = []
    silent = model()
    async with alone(silent, timing=Timing(first=0.1, jitter=0.01), probe=stubborn) as (client, _):
        silent.answering = False
        client.want(request())
        await until("a problem", lambda: client.state(key()).problem)
        silent.answering = True
        await asyncio.wait_for(asked.wait(), 5)
        client.on_change(changes.append)
        client.drop(key(), release=False)
        await asyncio.wait_for(ended.wait(), 5)
        client.want(request(1))
        await until("the next one's turn", lambda: client.counts().received.get("ack") == 2)
    assert key() not in changes


async def test_the_end_of_a_lease_waits_for_no_turn() -> None:
    short = replace(model(100), duration=timedelta(seconds=1))
    async with alone(short, rate=5, timing=Timing()) as (client, _):
        client.want(request())
        await until("a lease", lambda: client.state(key()).lease)
        short.answering = False
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(1, 50):  # ten seconds' worth
            client.want(request(number))
        await until("the end", lambda: client.state(key()).lease is None)
        assert loop.time() - start < 3


async def test_a_sentence_stays_until_there_is_something_new() -> None:
    silent = replace(model(), answering=False)
    async with alone(silent, timing=Timing(first=0.5, jitter=0.01)) as (client, server):
        client.want(request())

        def reason() -> Reason | None:
            problem = client.state(key()).problem
            return problem.reason if problem is not None else None

        await until("silence", lambda: reason() is Reason.NO_ANSWER)
        server.say(OFFER)  # to somebody else
        server.say(replace(OFFER, chaddr=client_identity(owner(0)).chaddr))  # of an exchange that is over
        await until("both", lambda: len(client.counts().dropped) == 2)
        assert reason() is Reason.NO_ANSWER
        await until("the next call", lambda: reason() is Reason.NO_OFFER)


async def test_a_probe_without_an_answer_is_given_up_and_told(network: WireNetwork) -> None:
    async def probe(_address: IPv4Address) -> str:
        await asyncio.Event().wait()
        return ""

    network.probe = probe
    client = network.host()
    client.want(request())

    def told() -> bool:
        problem = client.state(key()).problem
        return problem is not None and problem.reason is Reason.PROBE_FAILED

    await until("the problem", told)


async def test_a_fault_in_the_probe_ends_the_run(network: WireNetwork) -> None:
    async def probe(_address: IPv4Address) -> str:
        raise ZeroDivisionError

    network.probe = probe
    client = network.host()
    client.want(request())
    (run,) = network.running()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(run, 5)


async def test_a_link_that_is_lost_ends_the_run_with_a_reason() -> None:
    class Broken(socket.socket):
        @override
        def recvmsg(self, *_args: object) -> tuple[bytes, list[tuple[int, int, bytes]], int, object]:
            raise OSError(errno.ENXIO, "No such device or address")

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, Broken(fileno=theirs.detach()) as broken:
        broken.settimeout(0)
        client = client_of(broken, timing=Timing())
        ours.send(b"something")
        with pytest.raises(DataPlaneError, match="No such device"):
            await asyncio.wait_for(client.run(), 5)


async def test_many_leases_that_come_and_go_leave_nothing_behind(network: WireNetwork) -> None:
    client = network.host()
    assert isinstance(client, SocketDhcpClient)
    for _ in range(50):
        for number in range(20):
            client.want(request(number))
        for number in range(20):
            client.drop(key(number), release=False)
    assert len(client._schedule) <= 2 * 20 + 64
    assert not client._held
    assert not client._by_mac
    assert not client._farewells


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="no identity"):
        LeaseRequest(key=key(), identity="")
    for hostname in ("wäb", "a\nb", "a" * 254):
        with pytest.raises(InvalidRequest, match="no host name"):
            LeaseRequest(key=key(), identity=owner(0), hostname=hostname)


def test_leases_that_make_no_sense_are_refused() -> None:
    now = datetime.now(UTC)
    lease = Lease(
        address=IPv4Address("10.0.0.5"),
        prefix_length=24,
        gateway=None,
        server=IPv4Address("10.0.0.1"),
        acquired_at=now,
        renew_at=now + timedelta(seconds=10),
        rebind_at=now + timedelta(seconds=15),
        expires_at=now + timedelta(seconds=20),
    )
    with pytest.raises(ValueError, match="only some"):
        replace(lease, rebind_at=None)
    with pytest.raises(ValueError, match="without a time zone"):
        replace(lease, acquired_at=now.replace(tzinfo=None))
