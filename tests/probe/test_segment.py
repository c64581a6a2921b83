"""Probes from a network's namespace, of nodes on its LAN: real links, real kernels, both families."""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from cloudprovider.core.health import Answer, Check, Outcome, Verdict
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.questions import GrpcHealth, HttpGet, Question, TcpConnect, Tls
from cloudprovider.dataplane.naming import LINK
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from cloudprovider.probe.api import Target
from cloudprovider.probe.nodes import HEALTHZ_PORT, NodeProbes, healthz
from cloudprovider.probe.prober import SocketProber
from tests.dataplane.lan import CONFIG, Station, bridge, run, station
from tests.dhcp.waiting import until
from tests.lab.pki import Authority
from tests.lab.sandbox import ENVIRONMENT_MARK
from tests.probe.servers import OK, UNAVAILABLE, Behaviour, resetting, saying, serving, silent
from tests.probe.test_exchange import FINE

pytestmark = pytest.mark.kernel

SIX = IPv6Address("fd99::11")
LIMIT = 0.5


@pytest.fixture
def lan() -> Iterator[None]:
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        pytest.skip("makes links and rules: run it by tests/lab/sandbox pytest ...")
    with bridge():
        yield


@pytest.fixture
def node(lan: None) -> Iterator[Station]:
    with station("n1", "10.99.0.11") as made:
        yield made


@pytest.fixture
async def segment(lan: None) -> AsyncIterator[KernelSegment]:
    dataplane = HostDataPlane("probes")
    yield await dataplane.open(CONFIG)
    await dataplane.remove("")


@pytest.fixture
async def prober(segment: KernelSegment) -> AsyncIterator[SocketProber]:
    made = SocketProber(segment.packets)
    yield made
    made.close()


@contextlib.asynccontextmanager
async def serves(node: Station, answer: Behaviour, address: IPAddress | None = None) -> AsyncIterator[None]:
    ipv6 = isinstance(address, IPv6Address)
    async with serving(node.socket(socket.SOCK_STREAM, HEALTHZ_PORT, address or node.address, ipv6=ipv6), answer):
        yield


async def ask(prober: SocketProber, address: IPAddress, timeout: float = LIMIT) -> Outcome:
    found: list[Answer] = []
    await prober.begin(healthz(address), timeout, found.append)
    await until("an answer", lambda: found)
    return found[0].outcome


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (saying(OK), Outcome.GOOD),
        (saying(UNAVAILABLE), Outcome.DRAINING),
        (resetting, Outcome.BAD),
        (silent, Outcome.BAD),
    ],
)
async def test_a_node_that_listens(prober: SocketProber, node: Station, answer: Behaviour, outcome: Outcome) -> None:
    async with serves(node, answer):
        assert await ask(prober, node.address) is outcome


async def test_a_node_that_listens_on_loopback_alone_is_there(prober: SocketProber, node: Station) -> None:
    async with serves(node, saying(OK), IPv4Address("127.0.0.1")):
        assert await ask(prober, node.address) is Outcome.BAD


async def test_a_node_that_drops_what_comes_or_is_not_there_is_silent(prober: SocketProber, node: Station) -> None:
    run(f"ip netns exec {node.name} nft add table ip filter")
    run(
        f"ip netns exec {node.name} nft add chain ip filter input {{ type filter hook input priority 0; policy drop; }}"
    )
    assert await ask(prober, node.address) is Outcome.SILENT
    assert await ask(prober, node.address + 1) is Outcome.SILENT


async def test_an_address_that_nobody_answers_arp_for_is_silent_before_the_timeout(
    prober: SocketProber, node: Station
) -> None:
    """The kernel gives up after three seconds (EHOSTUNREACH)."""
    assert await ask(prober, node.address + 1, timeout=30.0) is Outcome.SILENT


async def test_no_way_to_a_family_or_network_is_this_hosts_own_trouble(prober: SocketProber, node: Station) -> None:
    assert await ask(prober, SIX) is Outcome.UNASKED


async def test_a_link_that_is_down_is_this_hosts_own_trouble(
    prober: SocketProber, segment: KernelSegment, node: Station
) -> None:
    async with serves(node, saying(OK)):
        assert await ask(prober, node.address) is Outcome.GOOD
        run(f"ip -n {segment._path.name} link set {LINK} down")
        assert await ask(prober, node.address) is Outcome.UNASKED


async def test_a_node_of_ipv6(prober: SocketProber, segment: KernelSegment, node: Station) -> None:
    node.take(SIX)
    run(f"ip -n {segment._path.name} address add fd99::2/64 dev {LINK} nodad")
    assert await ask(prober, SIX) is Outcome.BAD
    async with serves(node, saying(OK), SIX):
        assert await ask(prober, SIX) is Outcome.GOOD


async def test_nodes_open_closed_draining_dead_and_back(segment: KernelSegment, prober: SocketProber) -> None:
    """A whole life, at a thirtieth of the time."""
    probes = NodeProbes(prober, now=lambda: datetime.now(UTC), check=Check(period=0.15, timeout=0.15))
    with station("open", "10.99.0.21") as opened, station("closed", "10.99.0.22") as closed:

        def verdict(node: Station) -> Verdict:
            return probes.health(node.address).verdict

        probes.follow([opened.address, closed.address])
        running = asyncio.create_task(probes.run())
        try:
            async with serves(opened, saying(OK)):
                await until("open is good", lambda: verdict(opened) is Verdict.GOOD)
                await until("closed has refused", lambda: probes.health(closed.address).reached)
                assert verdict(closed) is Verdict.UNKNOWN
            async with serves(opened, saying(UNAVAILABLE)):
                await until("open drains", lambda: probes.draining == {opened.address})
            async with serves(opened, saying(OK)):
                await until("open is back", lambda: verdict(opened) is Verdict.GOOD)
            await until("its proxy has died", lambda: probes.failed == {opened.address})
            assert verdict(opened) is Verdict.FAILED

            for node in (opened, closed):
                run(f"ip -n {node.name} link set eth0 down")
            await until("both are lost", lambda: probes.failed == {opened.address, closed.address})
            await until("both unreachable", lambda: verdict(opened) is verdict(closed) is Verdict.UNREACHABLE)

            for node in (opened, closed):
                run(f"ip -n {node.name} link set eth0 up")
            async with serves(opened, saying(OK)):
                await until("both are back", lambda: not probes.failed)
                assert (verdict(opened), verdict(closed)) == (Verdict.GOOD, Verdict.UNKNOWN)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize("kind", ["TCP", "HTTP", "HTTPS", "GRPC"])
async def test_each_kind_goes_through_the_networks_namespace(
    prober: SocketProber, node: Station, kind: str, tmp_path: Path
) -> None:
    """What a server in another namespace of the LAN answers, and what it is when it listens no more."""
    question: dict[str, Question] = {
        "TCP": TcpConnect(),
        "HTTP": HttpGet(),
        "HTTPS": HttpGet(tls=Tls()),
        "GRPC": GrpcHealth(),
    }
    tls = None
    if kind == "HTTPS":
        pair = Authority(tmp_path, "checks").issue("server", common_name="server", hosts=[str(node.address)])
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(pair.certificate, pair.key)
    target = Target(node.address, 8443, question[kind])
    found: list[Answer] = []
    listening = node.socket(socket.SOCK_STREAM, target.port, node.address)
    async with serving(listening, saying(FINE if kind == "GRPC" else OK), tls=tls, until=b"") as seen:
        await prober.begin(target, 5.0, found.append)
        await until("an answer", lambda: found)
        await until("the connection's end", lambda: seen.ends)
    await prober.begin(target, 5.0, found.append)
    await until("another answer", lambda: len(found) > 1)
    assert found == [Answer(Outcome.GOOD), Answer(Outcome.BAD, "connection refused")]
