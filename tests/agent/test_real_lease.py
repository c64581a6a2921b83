"""The agent on the kernel, with an address from a real DHCP server (dnsmasq)."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Interface, ip_address
from pathlib import Path

import msgspec
import pytest

from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.program import Agent, connect
from cloudprovider.core.api.guestcluster import GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import DhcpLease
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, LOADBALANCERS
from cloudprovider.probe.fake import FakeProber, FakeTargets
from tests.agent.world import World, running, until, unwatched
from tests.dataplane.lan import Station
from tests.dhcp.lan import BRIDGE, SUBNET, bridge, station
from tests.dhcp.servers import Dnsmasq, Terms
from tests.lab.sandbox import ENVIRONMENT_MARK

pytestmark = pytest.mark.kernel

RANGE = Terms(first=SUBNET[256], last=SUBNET[300], lease=600)
NODE, CLIENT = SUBNET[11], SUBNET[50]
OWN = NetworkConfig("", BRIDGE, IPv4Interface((SUBNET[3], SUBNET.prefixlen)))


class Lan:
    """A node, a client and dnsmasq on the bridge of a host."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        stack.enter_context(bridge())
        self.node = Station(stack.enter_context(station("n1", NODE)).name, NODE)
        self.client = Station(stack.enter_context(station("client", CLIENT)).name, CLIENT)
        self.server = Dnsmasq(stack.enter_context(station("server", SUBNET[2])), folder)
        stack.callback(self.server.stop)
        self.server.start(RANGE)
        self.dataplane = HostDataPlane("test")

    def agent(self, world: World) -> Agent:
        config = AgentConfig(node_name="h1", instance="test", networks=(OWN,))
        client = FakeKubeClient(world.cluster, program="h1")
        by_socket = partial(connect, rng=random.SystemRandom())
        return Agent(
            config,
            client,
            self.dataplane,
            random.Random(1),
            connect=by_socket,
            make_prober=lambda _segment, _network: FakeProber(FakeTargets()),
            make_watch=unwatched,
        )


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Lan]:
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        pytest.skip("makes links, rules and a server: run it by tests/lab/sandbox pytest ...")
    with ExitStack() as stack:
        yield Lan(stack, tmp_path)


@pytest.fixture
async def lan(made: Lan) -> AsyncIterator[Lan]:
    yield made
    for network in await made.dataplane.networks():
        await made.dataplane.remove(network)


@pytest.fixture
async def world() -> World:
    """A host cluster whose tenant has the one node, and a load balancer by DHCP."""
    world = World()
    status = GuestClusterStatus(nodes=[GuestNode(name="n1", addresses=[str(NODE)])])
    patch = {"status": msgspec.to_builtins(status)}
    await world.client.merge_patch(GUESTCLUSTERS, "t", "c", patch, subresource="status")
    world.seed_dhcp("x/y")
    return world


async def shown(world: World) -> DhcpLease:
    lease = (await world.lb()).status.lease
    assert lease is not None
    return lease


async def shout_noise(namespace: str) -> None:
    """Broadcast from there to the port of DHCP clients what is no DHCP message."""
    shout = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1); "
        f"s.sendto(b'noise', ('{SUBNET.broadcast_address}', 68))"
    )
    child = await asyncio.create_subprocess_exec("nsenter", f"--net=/run/netns/{namespace}", "python3", "-c", shout)
    assert await child.wait() == 0


async def test_a_lease_is_forwarded_outlives_the_agent_and_is_given_back(lan: Lan, world: World) -> None:
    async with lan.node.serving_tcp(30080):
        async with running(lan.agent(world)):
            await until(world.lease, 10)
            first = await shown(world)
            assert datetime.fromisoformat(first.expiry_time) > datetime.now(UTC)
            assert (first.server, first.prefix_length) == (str(SUBNET[2]), SUBNET.prefixlen)
            vip = ip_address(first.ip)
            assert lan.server.wait_for_leases(1) == {vip}
            assert f" {vip} a " in (lan.server.folder / "leases").read_text(), "its host name"
            await world.copy_lease()
            await until(world.holds, 10)
            reader, writer = await lan.client.connect(vip, 80)
            assert await reader.readline() == b"dhcp-n1\n"
        # No agent runs: the kernel goes on.
        assert await lan.client.ask_tcp(vip, 80) == "dhcp-n1"
        agent = lan.agent(world)
        async with running(agent):
            await until(lambda: lan.server.process.log_text().count("DHCPACK") == 2, 10)
            assert lan.server.process.log_text().count("DHCPDISCOVER") == 1
            assert (await shown(world)).ip == first.ip
            writer.write(b"still here\n")
            assert await reader.readline() == b"still here\n"
            writer.transport.abort()
            assert lan.server.leases() == {vip}
            await shout_noise(lan.server.link.name)
            counted = 'cloudprovider_agent_dhcp_dropped_total{network="management",reason="short-message"} 1.0'

            async def told() -> bool:
                return counted in (await agent.registry.text()).decode()

            await until(told, 10)
            received = 'dhcp_messages_total{direction="received",network="management",type="ack"} 1.0'
            assert received in (await agent.registry.text()).decode()
            await world.client.delete(LOADBALANCERS, "t", "a")

            async def released() -> bool:
                status = (await world.lb()).status
                return status.lease is None and status.holder is None

            await until(released, 10)
            await until(lambda: not lan.server.leases(), 10)
            with pytest.raises((TimeoutError, OSError)):
                await lan.client.connect(vip, 80, limit=1.0)
    assert f"DHCPRELEASE(eth0) {vip}" in lan.server.process.log_text()
