"""A host cluster in memory, a kernel in memory, a DHCP server in memory, and agents among them."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Interface, ip_address

import msgspec

from cloudprovider.agent.config import AgentConfig
from cloudprovider.agent.fellows import MakeWatch
from cloudprovider.agent.membership import Timing
from cloudprovider.agent.program import Agent
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, Address, Listener, LoadBalancer
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import NetworkConfig, Segment
from cloudprovider.dataplane.fake import FakeDataPlane, FakeNetwork
from cloudprovider.dhcp.fake import FakeDhcpClient, FakeDhcpServer
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.fakestore import FakeCluster
from cloudprovider.kube.resources import EVENTS, GUESTCLUSTERS, LOADBALANCERS
from cloudprovider.liveness.fake import FakeLan as FakeBfd
from cloudprovider.liveness.fake import FakePeerWatch
from cloudprovider.probe.fake import FakeProber, FakeTargets
from cloudprovider.routing.fake import FakeFabric, FakeSpeaker
from tests.core.test_forwarding import HTTP, cluster, lb

VIP = ip_address("10.0.0.100")
MGMT = NetworkConfig("", "mgmt-br", IPv4Interface("10.0.0.2/24"))
VLAN2 = NetworkConfig("default/vlan2", "vlan2-br", IPv4Interface("10.2.0.2/24"))
OLD = Address(ip="10.0.0.100", ip_pool="p", prefix_length=24)
NEW = Address(ip="10.0.0.150", ip_pool="q", prefix_length=24)
MAC = "02:00:00:00:00:99"


def own(config: NetworkConfig) -> list[IPAddress]:
    return [interface.ip for interface in (config.address, config.address6) if interface is not None]


def unwatched(_: Segment, config: NetworkConfig) -> FakePeerWatch:
    """Nobody is watched: for an agent that is alone."""
    return FakePeerWatch(FakeBfd(time.monotonic), own(config))


class World:
    """A host cluster with one tenant of two nodes, and agents of one instance."""

    def __init__(self) -> None:
        self.cluster = FakeCluster(lambda: datetime(2026, 1, 1, tzinfo=UTC))
        self.client = FakeKubeClient(self.cluster, program="test")
        self.dataplane = FakeDataPlane(devices=("mgmt-br", "vlan2-br"))
        self.now = datetime.now(UTC).replace(microsecond=0)
        self.dhcp = FakeDhcpServer(
            addresses=[ip_address(f"10.0.0.{n}") for n in (200, 201)],  # type: ignore[misc]
            server=IPv4Address("10.0.0.1"),
            gateway=IPv4Address("10.0.0.1"),
        )
        self.servers: dict[str, FakeDhcpServer] = {}
        """Those of networks with another one than ``dhcp``."""
        self.deaf = ""
        """Why no DHCP client can be had."""
        self.leases: list[FakeDhcpClient] = []
        """The clients that agents made, the newest last."""
        self.heard = FakeBfd(time.monotonic)
        """Which hosts hear each other."""
        self.fabric = FakeFabric(time.time)
        """The routers that agents speak to."""
        self.probed = FakeTargets()
        """What nodes answer when they are probed."""
        self.cluster.seed(GUESTCLUSTERS, cluster("n1", "n2"))

    @property
    def network(self) -> FakeNetwork:
        return self.dataplane.namespaces.get("") or FakeNetwork()

    def agent(  # noqa: PLR0917
        self,
        node: str = "h1",
        dataplane: FakeDataPlane | None = None,
        networks: tuple[NetworkConfig, ...] = (MGMT,),
        timing: Timing | None = None,
        now: Callable[[], datetime] | None = None,
        make_watch: MakeWatch | None = None,
    ) -> Agent:
        config = AgentConfig(node_name=node, instance="fake", networks=networks)
        client = FakeKubeClient(self.cluster, program=node)
        return Agent(
            config,
            client,
            dataplane or self.dataplane,
            random.Random(1),
            connect=self.connect,
            make_prober=lambda _segment, _network: FakeProber(self.probed),
            make_speaker=lambda _segment, _config: FakeSpeaker(self.fabric),
            make_watch=make_watch or (lambda _segment, config: FakePeerWatch(self.heard, own(config))),
            now=now or (lambda: self.now),
            timing=timing,
        )

    @asynccontextmanager
    async def connect(
        self, segment: Segment, network: str, probe: Callable[[IPv4Address], Awaitable[str]]
    ) -> AsyncIterator[FakeDhcpClient]:
        if self.deaf:
            raise DataPlaneError(self.deaf)
        self.leases.append(
            FakeDhcpClient(self.servers.get(network, self.dhcp), network=network, now=lambda: self.now, probe=probe)
        )
        yield self.leases[-1]

    def seed(self, name: str = "a", vip: str = "10.0.0.100", *listeners: Listener) -> LoadBalancer:
        return self.cluster.seed(LOADBALANCERS, lb(name, vip, *(listeners or (HTTP,))))

    async def lb(self, name: str = "a") -> LoadBalancer:
        return await self.client.get(LOADBALANCERS, "t", name)

    async def controller_says(
        self, addresses: Sequence[Address], following: Sequence[Address] = (), name: str = "a"
    ) -> None:
        """Write the controller's part of the status."""
        status = {"addresses": msgspec.to_builtins(addresses), "nextAddresses": msgspec.to_builtins(following)}
        obj = await self.lb(name)
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": {"uid": obj.metadata.uid},
            "status": status,
        }
        await self.client.apply(
            LOADBALANCERS, *obj.key, patch, field_manager="cloudprovider-controller", subresource="status"
        )

    async def held(self, name: str = "a") -> list[str]:
        """What the holder says that it has up."""
        holder = (await self.lb(name)).status.holder
        return [] if holder is None else holder.addresses

    async def lease(self) -> str:
        """The address that is leased, "" for none."""
        lease = (await self.lb()).status.lease
        return "" if lease is None else lease.ip

    async def copy_lease(self, *following: Address) -> None:
        """The controller's part: the lease becomes an address."""
        lease = (await self.lb()).status.lease
        assert lease is not None
        given = Address(ip=lease.ip, prefix_length=lease.prefix_length, gateway=lease.gateway, network=lease.network)
        await self.controller_says([given], following)

    def seed_dhcp(self, *finalizers: str, name: str = "a", network: str = "", **spec: object) -> LoadBalancer:
        obj = lb(name, "", HTTP, ipam="dhcp")
        annotations = {NETWORK_ANNOTATION: network}
        metadata = msgspec.structs.replace(obj.metadata, finalizers=list(finalizers), annotations=annotations)
        wanted = msgspec.structs.replace(obj.spec, **spec)
        return self.cluster.seed(LOADBALANCERS, msgspec.structs.replace(obj, metadata=metadata, spec=wanted))

    async def serve_by_dhcp(self, *finalizers: str) -> LoadBalancer:
        """Bring up a load balancer whose address is by DHCP, for an agent that runs."""
        obj = self.seed_dhcp(*finalizers)
        await until(self.lease)
        await self.copy_lease()
        await until(self.holds)
        return obj

    async def pass_time(self, seconds: float) -> None:
        """Let the wall clock go on, for the newest DHCP client."""
        self.now += timedelta(seconds=seconds)
        await self.leases[-1].settle()

    async def events(self) -> list[tuple[str, str]]:
        """Reason and message of all events, by reason."""
        return sorted((e.reason, e.message) for e in (await self.client.list(EVENTS)).items)

    async def holds(self, name: str = "a", node: str = "h1") -> bool:
        holder = (await self.lb(name)).status.holder
        return holder is not None and holder.node == node

    async def condition(self, kind: str, name: str = "a") -> Condition | None:
        return find((await self.lb(name)).status.conditions, kind)

    async def says(self, kind: str, reason: str, name: str = "a") -> bool:
        found = await self.condition(kind, name)
        return found is not None and found.reason == reason

    async def says_in(self, kind: str, part: str, name: str = "a") -> bool:
        found = await self.condition(kind, name)
        return found is not None and part in found.message


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(agent.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], object], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while True:
            result = condition()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.002)
