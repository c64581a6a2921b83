"""A guest cluster, its host cluster, and all between them: only the API servers and the agent are stand-ins."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from typing_extensions import override

from cloudprovider.bridge.api import Hello, Welcome
from cloudprovider.bridge.certificates import KeyPair, issue_server
from cloudprovider.bridge.client import ClientConfig, GrpcBridge
from cloudprovider.bridge.local import LocalBridge
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.bridge.tlsfiles import TlsPaths
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.exchange import LoadBalancerRequest, LoadBalancerState, ServiceKey, Tenant
from cloudprovider.core.plan import IPAddress
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS
from tests.bridge.tls import DAY, DOMAIN, Authority, now
from tests.guest.world import HELLO, TENANT, World
from tests.host.leases import keep
from tests.host.world import World as HostWorld
from tests.host.world import eventually, guest_cluster, pool, subnet

OTHER = Tenant("tenants", "green")
OTHER_HELLO = Hello(cluster_uid="another-kube-system-uid", guest_version="test")


@dataclass
class Chain:
    """The host side: tenants TENANT and OTHER, pool "default", the host's parts and an agent. Guests come and go."""

    world: HostWorld
    host: Host

    async def edit(self, tenant: Tenant = TENANT, **patch: object) -> GuestCluster:
        """Change a GuestCluster as its operator would."""
        return await self.world.client.merge_patch(GUESTCLUSTERS, tenant.namespace, tenant.cluster, dict(patch))

    async def cluster(self, tenant: Tenant = TENANT) -> GuestCluster:
        return await self.world.client.get(GUESTCLUSTERS, tenant.namespace, tenant.cluster)

    def annotations(self, tenant: Tenant = TENANT) -> dict[str, str]:
        """Of the GuestCluster, as the host knows it."""
        found = self.host.caches.guest_cluster(tenant)
        return {} if found is None else found.metadata.annotations

    async def add_pool(self, name: str, cidr: str) -> None:
        await self.world.client.create(IPPOOLS, pool(name, subnet(cidr)))

    async def versions(self, tenant: Tenant = TENANT) -> dict[tuple[str, str], str]:
        """The tenant's LoadBalancers with their resource versions: equal as long as nobody has touched one."""
        found = (await self.world.client.list(LOADBALANCERS)).items
        names = {lb.key for lb in self.host.caches.load_balancers_of(tenant)}
        return {lb.key: lb.metadata.resource_version for lb in found if lb.key in names}

    def ports(self, tenant: Tenant = TENANT) -> set[int]:
        """The ports that the tenant's load balancers listen on."""
        return {each.port for lb in self.host.caches.load_balancers_of(tenant) for each in lb.spec.listeners}

    def local(self, tenant: Tenant = TENANT, hello: Hello = HELLO) -> LocalBridge:
        """A client without a wire, as virtual time needs it."""
        return LocalBridge(self.host.backend, tenant, hello)


@asynccontextmanager
async def chain(trusted: Callable[[], bytes] | None = None) -> AsyncIterator[Chain]:
    """``trusted``: the CAs that the bridge trusts, where there is one."""
    cluster = FakeCluster(utc_now)
    world = HostWorld(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster))
    for tenant in (TENANT, OTHER):
        await world.client.create(GUESTCLUSTERS, guest_cluster(tenant))
    await world.client.create(IPPOOLS, pool("default", subnet("192.0.2.0/24")))
    async with world.host(trusted=trusted) as host, world.agent(host):
        alive = asyncio.create_task(keep(world.client, "host-1"))
        try:
            yield Chain(world, host)
        finally:
            alive.cancel()
            await asyncio.wait([alive])


class CountingBridge(GrpcBridge):
    """The shipped client, and how often it was used."""

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config)
        self.calls: Counter[str] = Counter()

    @override
    async def connect(self) -> Welcome:
        self.calls["connect"] += 1
        return await super().connect()

    @override
    async def ensure(
        self,
        service: ServiceKey,
        request: LoadBalancerRequest,
        shown_addresses: tuple[IPAddress, ...] = (),
        *,
        trace: str = "",
    ) -> LoadBalancerState:
        self.calls["ensure"] += 1
        return await super().ensure(service, request, shown_addresses, trace=trace)


@dataclass
class Wire:
    """A chain with a real bridge in it: gRPC over TLS on loopback."""

    chain: Chain
    authority: Authority
    stack: AsyncExitStack
    port: int = 0
    server: BridgeServer | None = None
    guest: World = field(default_factory=World)
    paths: TlsPaths = field(init=False)

    async def start(self) -> None:
        self.show(self.authority.ca)
        tls = self.paths
        config = ServerConfig(listen=f"127.0.0.1:{self.port}", tls=tls, trust_domain=DOMAIN)
        self.server = BridgeServer(config, self.chain.host.backend)
        self.port = await self.server.start()

    def show(self, signer: KeyPair, trusted: bytes = b"") -> None:
        """Have the bridge's files hold a certificate by ``signer``; ``trusted``: whom it trusts, if not the same CA."""
        pair = issue_server(signer, ["127.0.0.1"], now=now(), validity=DAY)
        self.paths = self.authority.write("server", pair, KeyPair(trusted or signer.certificate, b""))

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(grace=0.2)
            self.server = None

    def client(self, paths: TlsPaths, hello: Hello = HELLO) -> CountingBridge:
        config = ClientConfig(target=f"127.0.0.1:{self.port}", tls=paths, hello=hello, backoff=(0.05, 0.5))
        client = CountingBridge(config)
        self.stack.push_async_callback(client.close)
        return client

    async def settle(self) -> None:
        """Come to where the stream has nothing left to tell: it looks at the certificate with all that it tells. A node
        is reported late enough for that."""
        await self.guest.node("node-1", "10.0.0.1")

        def reported() -> bool:
            found = self.chain.host.caches.guest_cluster(TENANT)
            return found is not None and bool(found.status.nodes)

        await eventually(reported, "the nodes in the GuestCluster's status")

    async def quiet(self, bridge: CountingBridge, attempts: int = 4) -> None:
        """Let ``bridge`` try to connect ``attempts`` times more, and see that nobody hears of it each time."""
        before = self.guest.writes(), bridge.calls["ensure"]
        wanted = bridge.calls["connect"] + attempts
        await eventually(lambda: bridge.calls["connect"] >= wanted, f"{attempts} attempts to connect")
        assert (self.guest.writes(), bridge.calls["ensure"]) == before


@asynccontextmanager
async def wired(folder: Path) -> AsyncIterator[Wire]:
    async with AsyncExitStack() as stack:
        trusted = (folder / "tls" / "server.ca").read_bytes
        made = Wire(await stack.enter_async_context(chain(trusted)), Authority.make(folder / "tls"), stack)
        await made.start()
        stack.push_async_callback(made.stop)
        yield made
