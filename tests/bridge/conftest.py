"""A bridge on loopback: real TLS, a real server, the backend in memory."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import ip_network
from pathlib import Path

import pytest

from cloudprovider.bridge.api import Hello
from cloudprovider.bridge.client import ClientConfig, GrpcBridge
from cloudprovider.bridge.fake import MemoryBackend, MemoryTenant
from cloudprovider.bridge.observer import ClientObserver, ServerObserver
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.bridge.tlsfiles import TlsPaths
from tests.bridge.backend_contract import LOAD_BALANCERS, PORTS
from tests.bridge.tls import DOMAIN, OTHER, TENANT, Authority, now
from tests.bridge.waiting import Watched

HELLO = Hello(cluster_uid="uid-of-kube-system", guest_version="1")


@dataclass
class Bridge:
    """The server side, and how to make clients."""

    authority: Authority
    backend: MemoryBackend
    server_paths: TlsPaths
    stack: AsyncExitStack
    port: int = 0
    server: BridgeServer | None = None
    clock: Callable[[], datetime] = now
    observer: ServerObserver | None = None
    clients: list[GrpcBridge] = field(default_factory=list)

    def _now(self) -> datetime:
        return self.clock()

    async def start(self, port: int = 0) -> None:
        config = ServerConfig(listen=f"127.0.0.1:{port}", tls=self.server_paths, trust_domain=DOMAIN)
        self.server = BridgeServer(config, self.backend, now=self._now, observer=self.observer)
        self.port = await self.server.start()

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(grace=0.2)
            self.server = None

    def client(
        self,
        paths: TlsPaths | None = None,
        *,
        hello: Hello = HELLO,
        port: int = 0,
        observer: ClientObserver | None = None,
    ) -> GrpcBridge:
        paths = paths or self.authority.write("client", self.authority.client())
        config = ClientConfig(target=f"127.0.0.1:{port or self.port}", tls=paths, hello=hello, backoff=(0.05, 0.5))
        client = GrpcBridge(config, random_source=random.Random(1), observer=observer)
        self.stack.push_async_callback(client.close)
        return client

    def watch(self, client: GrpcBridge) -> Watched:
        watched = Watched(client)
        self.stack.push_async_callback(watched.close)
        return watched


@pytest.fixture
async def bridge(tmp_path: Path) -> AsyncIterator[Bridge]:
    authority = Authority.make(tmp_path / "tls")
    backend = MemoryBackend(automatic=True, network=ip_network("198.18.0.0/15"))
    bounds = MemoryTenant(load_balancers=LOAD_BALANCERS, ports=PORTS, node_cidrs=(ip_network("10.0.0.0/8"),))
    backend.set_tenant(TENANT, bounds)
    backend.set_tenant(OTHER, bounds)
    async with AsyncExitStack() as stack:
        made = Bridge(authority, backend, authority.write("server", authority.server()), stack)
        await made.start()
        stack.push_async_callback(made.stop)
        yield made
