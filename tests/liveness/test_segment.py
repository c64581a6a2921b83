"""bfdd in the namespaces that the data plane makes, under its rules."""

import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from pathlib import Path

import pytest

from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import Segment
from cloudprovider.dataplane.namespace import call_in
from cloudprovider.dataplane.ruleset_nat import BFD_PER_SECOND, BFD_PORT
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.liveness.api import Liveness
from cloudprovider.liveness.bfd import BfdWatch
from tests.dataplane.lan import CONFIG, station, until
from tests.liveness.world import PACE, RealHosts, Running

pytestmark = pytest.mark.kernel

SO_RCVBUFFORCE = 33  # asm-generic/socket.h
ADDRESSES = {"one": ("10.99.0.21", "fd99::21"), "two": ("10.99.0.22", "fd99::22")}


@pytest.fixture
async def segments(real: RealHosts) -> AsyncIterator[dict[str, Segment]]:
    """Two hosts' namespaces on one network."""
    planes = {name: HostDataPlane(name) for name in ADDRESSES}
    made: dict[str, Segment] = {}
    try:
        for name, (v4, v6) in ADDRESSES.items():
            own, own6 = IPv4Interface(f"{v4}/24"), IPv6Interface(f"{v6}/64")
            made[name] = await planes[name].open(replace(CONFIG, address=own, address6=own6))
            await made[name].engine.start()
        yield made
    finally:
        for plane in planes.values():
            await plane.close()
            for network in await plane.networks():
                await plane.remove(network)


@pytest.mark.parametrize("version", [4, 6])
async def test_hosts_hear_each_other_under_the_rules(
    segments: dict[str, Segment], version: int, tmp_path: Path
) -> None:
    addresses = {name: ip_address(both[version == 6]) for name, both in ADDRESSES.items()}
    async with contextlib.AsyncExitStack() as stack:
        running: dict[str, Running] = {}
        for name, segment in segments.items():
            watch = BfdWatch("", [addresses[name]], segment.packets, pace=PACE, directory=tmp_path / "bfd")
            watch.follow({other: address for other, address in addresses.items() if other != name})
            running[name] = await stack.enter_async_context(Running(watch))
        await running["one"].until("two", Liveness.UP)
        await running["two"].until("one", Liveness.UP)


async def counting(segment: Segment, address: IPAddress) -> socket.socket:
    """What bfdd would be given: a socket on its port."""

    def make(_link: str) -> socket.socket:
        made = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
        made.bind(("", BFD_PORT))
        return made

    return await segment.packets(make)


def take(inside: socket.socket) -> list[bytes]:
    """All that has come."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(inside.recv(100))
    return found


@pytest.mark.parametrize("version", [4, 6])
async def test_only_packets_of_the_network_itself_come_in_and_not_too_many(
    segments: dict[str, Segment], version: int
) -> None:
    own = ip_address(ADDRESSES["one"][version == 6])
    vip = ip_address("10.99.0.77" if version == 4 else "fd99::77")
    await segments["one"].announcer.claim([vip])
    with station("tenant", "10.99.0.50") as tenant, await counting(segments["one"], own) as inside:
        tenant.take(ip_address("fd99::50"))

        def send(target: IPAddress, hops: int, *datagrams: bytes) -> None:
            def inside_tenant() -> None:
                family, level, option = (
                    (socket.AF_INET, socket.IPPROTO_IP, socket.IP_TTL)
                    if version == 4
                    else (socket.AF_INET6, socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
                )
                with socket.socket(family, socket.SOCK_DGRAM) as made:
                    made.setsockopt(level, option, hops)
                    for datagram in datagrams:
                        with contextlib.suppress(ConnectionRefusedError):
                            made.sendto(datagram, (str(target), BFD_PORT))

            call_in(tenant.path, inside_tenant)

        got: list[bytes] = []

        def arrived() -> bool:
            send(own, 255, b"last")
            got.extend(take(inside))
            return b"last" in got

        send(own, 254, b"routed")
        send(vip, 255, b"address of a load balancer")
        await until(arrived, "a packet of the network itself")
        assert set(got) == {b"last"}
        many = 4 * BFD_PER_SECOND
        send(own, 255, *[b"flood"] * many)
        assert 0 < len(take(inside)) < many
