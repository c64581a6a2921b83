"""The agent on the kernel: what it does there by itself, as its nodes and clients see it."""

import asyncio
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address
from typing import get_args

import msgspec
import pytest

from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.program import Agent
from cloudprovider.core.api.guestcluster import GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import Listener
from cloudprovider.core.exchange import Mode
from cloudprovider.dataplane.conntrack import Conntrack
from cloudprovider.dataplane.segment import HostDataPlane
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.resources import EVENTS, GUESTCLUSTERS, LOADBALANCERS
from cloudprovider.probe.fake import FakeProber, FakeTargets
from tests.agent.world import World, running, until, unwatched
from tests.core.test_forwarding import HTTP, lb
from tests.dataplane.dsr import Connection, connections, nft, serving
from tests.dataplane.lan import BRIDGE, CONFIG, Station, bridge, run, station
from tests.lab.sandbox import ENVIRONMENT_MARK

pytestmark = pytest.mark.kernel

VIPS: dict[Mode, IPv4Address] = {mode: IPv4Address("10.99.0.101") + place for place, mode in enumerate(get_args(Mode))}
FIXED: tuple[Mode, ...] = ("nat", "dsr")
MODES = pytest.mark.parametrize("mode", FIXED)
DNS = Listener(port=53, protocol="UDP", backend_port=30053)
SECONDS = 10.0
"""To mend what somebody else has changed: three looks."""
DRAIN_SECONDS = 2


class Host:
    """A host cluster in memory, and an agent with a real kernel."""

    def __init__(self, dataplane: HostDataPlane, nodes: list[Station]) -> None:
        self.world = World()
        self.nodes = nodes
        self._dataplane = dataplane
        self.agent = self.new_agent()

    def new_agent(self) -> Agent:
        return Agent(
            AgentConfig(node_name="h1", instance="test", networks=(CONFIG,)),
            FakeKubeClient(self.world.cluster, program="h1"),
            self._dataplane,
            random.Random(1),
            connect=self.world.connect,
            make_prober=lambda _segment, _network: FakeProber(FakeTargets()),
            make_watch=unwatched,
        )

    async def has_nodes(self, nodes: list[Station], *others: GuestNode) -> None:
        found = [GuestNode(name=node.name, addresses=[str(node.address)]) for node in nodes] + list(others)
        patch = {"status": msgspec.to_builtins(GuestClusterStatus(nodes=found))}
        await self.world.client.merge_patch(GUESTCLUSTERS, "t", "c", patch, subresource="status")

    async def serves(self, mode: Mode, drain_seconds: int = 300, *listeners: Listener) -> None:
        """A load balancer of that name and mode, up; its nodes accept its address."""
        for node in self.nodes:
            node.accept(VIPS[mode])
        obj = lb(mode, str(VIPS[mode]), *(listeners or (HTTP,)), mode=mode, drain_seconds=drain_seconds)
        self.world.cluster.seed(LOADBALANCERS, obj)
        await until(lambda: self.world.says("Ready", "Ready", mode), 10)


@pytest.fixture
def stations() -> Iterator[list[Station]]:
    """A client and three nodes on the bridge of a host."""
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        pytest.skip("makes links and rules: run it by tests/lab/sandbox pytest ...")
    with ExitStack() as stack:
        stack.enter_context(bridge())
        yield [
            stack.enter_context(station(name, f"10.99.0.{number}"))
            for name, number in (("client", 50), ("n1", 11), ("n2", 12), ("n3", 13))
        ]


@pytest.fixture
def client(stations: list[Station]) -> Station:
    return stations[0]


@pytest.fixture
async def host(stations: list[Station]) -> AsyncIterator[Host]:
    dataplane = HostDataPlane("test")
    made = Host(dataplane, stations[1:])
    await made.has_nodes(made.nodes)
    yield made
    await dataplane.close()
    for network in await dataplane.networks():
        await dataplane.remove(network)


async def answered(client: Station, vip: IPv4Address) -> bool:
    try:
        _, writer = await client.connect(vip, HTTP.port, limit=0.3)
    except OSError:  # TimeoutError is one
        return False
    writer.transport.abort()
    return True


@pytest.mark.parametrize(
    "commands",
    [
        ["delete table ip cloudprovider", "delete table netdev cloudprovider"],
        ["flush map ip cloudprovider listeners", "flush map netdev cloudprovider listeners4"],
        ["flush chain ip cloudprovider translate", "flush chain netdev cloudprovider ingress"],
        ["insert rule ip cloudprovider classify drop", "insert rule netdev cloudprovider out drop"],
    ],
    ids=["tables", "elements", "chains", "rules"],
)
async def test_what_somebody_breaks_is_mended_within_seconds_and_told(
    host: Host, client: Station, commands: list[str]
) -> None:
    both = [VIPS[mode] for mode in FIXED]
    async with running(host.agent), serving(host.nodes):
        for mode in FIXED:
            await host.serves(mode)
        for vip in both:
            await until(partial(answered, client, vip))
        for command in commands:
            nft(command)
        await until(lambda: told(host, set(FIXED)), SECONDS)
        for vip in both:
            await until(partial(answered, client, vip))


async def told(host: Host, names: set[str]) -> bool:
    events = (await host.world.client.list(EVENTS)).items
    return {e.involved_object.name for e in events if e.reason == "RulesMended"} >= names


@MODES
async def test_a_connection_is_reset_when_its_node_s_time_to_drain_is_over(
    host: Host, client: Station, mode: Mode
) -> None:
    vip = VIPS[mode]
    async with running(host.agent), serving(host.nodes):
        await host.serves(mode, drain_seconds=DRAIN_SECONDS)
        await until(lambda: answered(client, vip))
        async with connections(client, 30, vip) as flows:
            assert {flow.node for flow in flows} == {"n1", "n2", "n3"}
            began = time.monotonic()
            await host.has_nodes(host.nodes[1:])
            leaving = [flow for flow in flows if flow.node == "n1"]
            staying = [flow for flow in flows if flow.node != "n1"]
            ended: dict[int, float] = {}

            async def ends() -> bool:
                # In mode dsr who says nothing until then takes the new choice: few, but not none.
                assert all([await flow.alive() for flow in staying])
                for flow in leaving:
                    if flow.source not in ended and not await flow.alive():
                        ended[flow.source] = time.monotonic() - began
                return len(ended) == len(leaving)

            await until(ends, SECONDS)
            assert min(ended.values()) >= DRAIN_SECONDS
            assert all([await flow.alive() for flow in staying])
            assert {await client.ask_tcp(vip, HTTP.port) for _ in range(20)} == {"n2", "n3"}


@MODES
async def test_a_node_that_left_before_an_agent_came_is_drained_by_it(host: Host, client: Station, mode: Mode) -> None:
    vip = VIPS[mode]
    async with serving(host.nodes):
        async with running(host.agent):
            await host.serves(mode, drain_seconds=3 * DRAIN_SECONDS)
            await until(partial(answered, client, vip))
            flows = [await Connection.open(client, vip) for _ in range(30)]
            assert {flow.node for flow in flows} == {"n1", "n2", "n3"}
            await host.has_nodes(host.nodes[1:])

            async def left() -> bool:
                return {await client.ask_tcp(vip, HTTP.port) for _ in range(20)} == {"n2", "n3"}

            await until(left, 2 * DRAIN_SECONDS)
            assert all([await flow.alive() for flow in flows])
        async with running(host.new_agent()):

            async def over() -> bool:
                return not any([await flow.alive() for flow in flows if flow.node == "n1"])

            await until(over, 2 * SECONDS)
            assert all([await flow.alive() for flow in flows if flow.node != "n1"])
        for flow in flows:
            flow.close()


async def test_datagrams_to_a_node_that_left_go_elsewhere_though_the_agent_was_killed(
    host: Host, client: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the change of the rules and the end of the flows."""
    vip = VIPS["nat"]
    killed = asyncio.Event()

    async def die(*_: object, **__: object) -> int:
        killed.set()
        return await asyncio.Future()

    async def names(ports: range) -> list[str]:
        return [await client.ask_udp(vip, DNS.port, source=port) for port in ports]

    async with serving(host.nodes):
        async with running(host.agent):
            await host.serves("nat", 300, HTTP, DNS)
            await until(partial(answered, client, vip))
            assert set(await names(range(20000, 20030))) == {"n1", "n2", "n3"}
            with monkeypatch.context() as patched:
                patched.setattr(Conntrack, "forget_backends", die)
                await host.has_nodes(host.nodes[1:])
                async with asyncio.timeout(SECONDS):
                    await killed.wait()
            assert "n1" in await names(range(20000, 20030))
            assert "n1" not in await names(range(20100, 20130))
        async with running(host.new_agent()):

            async def elsewhere() -> bool:
                try:
                    return "n1" not in await names(range(20000, 20030))
                except TimeoutError:  # n1's answer came when its flow had just ended
                    return False

            await until(elsewhere, SECONDS)


async def test_auto_is_nat_while_a_node_stands_elsewhere_and_cuts_nobody(host: Host, client: Station) -> None:
    async with running(host.agent), serving(host.nodes):
        await host.serves("auto")
        vip = VIPS["auto"]
        await until(lambda: answered(client, vip))
        assert await host.world.says_in("Programmed", "Mode dsr (all nodes stand in 10.99.0.0/24)", "auto")
        async with connections(client, 10, vip) as flows:
            await host.has_nodes(host.nodes, GuestNode(name="far", addresses=["192.0.2.11"]))
            await until(lambda: host.world.says_in("Programmed", "Mode nat (192.0.2.11 is not in", "auto"))
            assert await host.world.says("ClientAddressNotPreserved", "Masquerade", "auto")
            assert f"{vip} . tcp . 80" in nft("list map ip cloudprovider ports")
            assert all([await flow.alive() for flow in flows])
            await host.has_nodes(host.nodes)
            await until(lambda: host.world.says_in("Programmed", "Mode dsr", "auto"))
            assert all([await flow.alive() for flow in flows])
            assert {await client.ask_tcp(vip, HTTP.port) for _ in range(40)} == {"n1", "n2", "n3"}


async def test_a_node_with_another_mac_is_sent_to_by_it(host: Host, client: Station) -> None:
    """Also when it does not say so itself; connections of the others go on."""
    async with running(host.agent), serving(host.nodes):
        await host.serves("dsr")
        vip, changed = VIPS["dsr"], host.nodes[0]
        await until(partial(answered, client, vip))
        async with connections(client, 20, vip) as flows:
            run(f"ip -n {changed.name} link set eth0 address 02:00:00:00:77:01")

            async def all_answer() -> bool:
                return all([await answered(client, vip) for _ in range(20)])

            await until(all_answer, SECONDS)
            async with connections(client, 30, vip) as later:
                assert {flow.node for flow in later} == {"n1", "n2", "n3"}
            assert all([await flow.alive() for flow in flows if flow.node != changed.name])


@MODES
async def test_connections_go_on_after_the_interface_was_down(host: Host, client: Station, mode: Mode) -> None:
    """For so long that in mode dsr all nodes were lost, and connections were refused."""
    vip = VIPS[mode]
    async with running(host.agent), serving(host.nodes):
        await host.serves(mode)
        await until(partial(answered, client, vip))
        async with connections(client, 20, vip) as flows:
            run(f"ip link set {BRIDGE} down")
            if mode == "dsr":
                await until(lambda: host.world.says("Ready", "NoNodes", mode), SECONDS)
            assert not await answered(client, vip)
            run(f"ip link set {BRIDGE} up")
            await until(lambda: host.world.says("Ready", "Ready", mode), SECONDS)
            await until(partial(answered, client, vip), SECONDS)
            assert all([await flow.alive() for flow in flows])

            async def goes_to_all() -> bool:  # it is ready with the first node that answers again
                return {await client.ask_tcp(vip, HTTP.port) for _ in range(40)} == {"n1", "n2", "n3"}

            await until(goes_to_all, SECONDS)


@MODES
async def test_a_node_that_answers_for_the_address_itself_is_named(host: Host, client: Station, mode: Mode) -> None:
    """As kube-proxy in mode ipvs makes it, without strictARP: it asks for its client's MAC by the address."""
    async with running(host.agent), serving(host.nodes):
        await host.serves(mode)
        vip, careless = VIPS[mode], host.nodes[0]
        await until(partial(answered, client, vip))
        for name in ("arp_ignore", "arp_announce"):
            run(f"ip netns exec {careless.name} sysctl -qw net.ipv4.conf.all.{name}=0")
        run(f"ip -n {careless.name} neigh flush dev eth0")
        assert await told_of_claim(host, mode) == ""
        with careless.socket(socket.SOCK_DGRAM, address=vip) as answer:
            answer.sendto(b"?", (str(client.address), 9))
        await until(lambda: told_of_claim(host, mode))
        assert "Node n1 " in await told_of_claim(host, mode)
        assert "strictARP" in await told_of_claim(host, mode)
        await until(lambda: host.world.says("Ready", "AddressClaimedByNode", mode))


async def told_of_claim(host: Host, name: str) -> str:
    events = (await host.world.client.list(EVENTS)).items
    return "".join(e.message for e in events if (e.reason, e.involved_object.name) == ("AddressClaimedByOther", name))
