"""A guest cluster and its host in memory, in virtual time: the leading guest program between two fakes."""

import asyncio
import functools
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, ParamSpec, TypeVar

import msgspec

from cloudprovider.bridge.api import BridgeClient, Hello
from cloudprovider.bridge.fake import MemoryBackend, MemoryTenant
from cloudprovider.bridge.local import LocalBridge
from cloudprovider.bridge.statelog import StateLog
from cloudprovider.core.api.kubernetes import SERVICE_FINALIZER, EndpointSlice, Event, Node, Service
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import NotFound
from cloudprovider.core.exchange import ServiceKey, Tenant
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.core.translate import Classes
from cloudprovider.guest.leading import Leadership
from cloudprovider.guest.metrics import GuestMetrics
from cloudprovider.guest.servicestatus import READY
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import ENDPOINTSLICES, EVENTS, NODES, SERVICES
from tests.kube import virtualtime

P = ParamSpec("P")
T = TypeVar("T")

TENANT = Tenant("tenants", "blue")
HELLO = Hello(cluster_uid="kube-system-uid", guest_version="test")
START = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 30.0
"""Seconds (of virtual time) that anything may take which is not asked for by name."""


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test on a loop whose time passes only when nothing is left to do."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        virtualtime.run(test(*args, **kwargs))

    return run


def now() -> datetime:
    return START + timedelta(seconds=asyncio.get_running_loop().time())


class World:
    def __init__(self, *, automatic: bool = True, classes: Classes | None = None) -> None:
        self.classes = classes or Classes(default=True)
        self.cluster = FakeCluster(now)
        self.user = FakeKubeClient(self.cluster, program="kubectl")
        self.guest = FakeKubeClient(self.cluster, program="guest")
        self.backend = MemoryBackend(automatic=automatic)
        self.backend.set_tenant(TENANT, MemoryTenant())
        self.bridge = LocalBridge(self.backend, TENANT, HELLO)
        self.registry = Registry("guest", "0")
        self.metrics = GuestMetrics(self.registry)
        self.leadership: Leadership
        self.tokens = 0
        self.tracer: Tracer = NO_TRACER

    @asynccontextmanager
    async def leading(self, bridge: BridgeClient | None = None) -> AsyncIterator[Leadership]:
        """Lead while the block runs; as after a restart, nothing is remembered from before. ``bridge``: to another
        host than ``backend``."""
        self.tokens += 1
        rng = random.Random(self.tokens)
        self.bridge = LocalBridge(self.backend, TENANT, HELLO)
        events = EventRecorder(self.guest, component="test", instance="test", now=now, rng=rng)
        self.leadership = Leadership(
            self.guest,
            bridge or self.bridge,
            classes=self.classes,
            fencing_token=self.tokens,
            events=events,
            metrics=self.metrics,
            rng=rng,
            tracer=self.tracer,
            now=now,
        )
        tasks = [asyncio.create_task(self.leadership.run()), asyncio.create_task(events.run())]
        try:
            yield self.leadership
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # -- what a user does ------------------------------------------------------------------------------------------

    async def create(self, name: str = "web", annotations: dict[str, str] | None = None, **spec: Any) -> Service:
        body = {
            "metadata": {"namespace": "shop", "name": name, "annotations": annotations or {}},
            "spec": {
                "type": "LoadBalancer",
                "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
                "ipFamilies": ["IPv4"],
                **spec,
            },
        }
        return await self.user.create(SERVICES, msgspec.convert(body, Service))

    async def served(self, name: str = "web", **wanted: Any) -> Service:
        """Create a Service (see :meth:`create`) and wait until it has its address."""
        service = await self.create(name, **wanted)
        if not self.backend.automatic:
            await self.until_true(lambda: (TENANT, self.key(service)) in self.backend.load_balancers)
            self.backend.program(TENANT, self.key(service))
        await self.until_ready(name)
        return service

    async def change(self, name: str = "web", **patch: Any) -> Service:
        return await self.user.merge_patch(SERVICES, "shop", name, patch)

    async def show(self, *ips: str, name: str = "web") -> None:
        """Write addresses into the status, as another controller would."""
        ingress = [{"ip": ip, "ipMode": "VIP"} for ip in ips]
        patch = {"status": {"loadBalancer": {"ingress": ingress or None}}}
        await self.user.merge_patch(SERVICES, "shop", name, patch, subresource="status")

    async def delete(self, name: str = "web") -> None:
        await self.user.delete(SERVICES, "shop", name)

    async def node(self, name: str, address: str, *, ready: str = "True", **metadata: Any) -> None:
        body = {
            "metadata": {"name": name, **metadata},
            "status": {
                "addresses": [{"type": "InternalIP", "address": address}],
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": now().isoformat()}],
            },
        }
        self.cluster.seed(NODES, msgspec.convert(body, Node))

    async def endpoints(self, piece: str, *nodes: str, service: str = "web", ready: bool = True) -> None:
        body = {
            "metadata": {"namespace": "shop", "name": piece, "labels": {"kubernetes.io/service-name": service}},
            "endpoints": [{"nodeName": n, "conditions": {"ready": ready}} for n in nodes],
        }
        self.cluster.seed(ENDPOINTSLICES, msgspec.convert(body, EndpointSlice))

    # -- what can be seen ------------------------------------------------------------------------------------------

    async def service(self, name: str = "web") -> Service | None:
        try:
            return await self.user.get(SERVICES, "shop", name)
        except NotFound:
            return None

    async def gone(self, name: str = "web") -> bool:
        return await self.service(name) is None

    async def ips(self, name: str = "web") -> list[str]:
        service = await self.service(name)
        return [entry.ip for entry in service.status.load_balancer.ingress] if service else []

    async def ready(self, name: str = "web") -> Condition | None:
        service = await self.service(name)
        return find(service.status.conditions, READY) if service else None

    async def reason(self, name: str = "web") -> str:
        condition = await self.ready(name)
        return condition.reason if condition else ""

    async def held(self, name: str = "web") -> bool:
        service = await self.service(name)
        return service is not None and SERVICE_FINALIZER in service.metadata.finalizers

    async def events(self, kind: Literal["Normal", "Warning"] | None = None) -> list[Event]:
        found = (await self.user.list(EVENTS)).items
        return [e for e in found if kind is None or e.type == kind]

    def key(self, service: Service) -> ServiceKey:
        return ServiceKey("shop", service.metadata.name, service.metadata.uid)

    def balancers(self) -> list[ServiceKey]:
        return [key for _, key in self.backend.load_balancers]

    def writes(self) -> int:
        """Requests of the guest program but for reading."""
        requests = self.guest.requests
        return requests.total() - sum(requests.total(verb=verb) for verb in ("get", "list", "watch"))

    def calls(self, name: str) -> int:
        return self.backend.calls.count(name)

    def forget_stream(self) -> None:
        """Let the host's log of states begin anew, as after its restart: no stream resumes. Best while it is cut."""
        old = self.backend.states(TENANT)
        fresh = self.backend._logs[TENANT] = StateLog()
        for state in old.states.values():
            fresh.publish(state)

    def asked(self) -> int:
        """Calls about single Services that the host got."""
        return self.calls("ensure") + self.calls("delete")

    async def until(self, condition: Callable[[], Coroutine[Any, Any, T]], limit: float = LIMIT) -> T:
        """Wait until ``condition`` holds; return what it returned."""
        async with asyncio.timeout(limit):
            while not (found := await condition()):  # noqa: ASYNC110 - the time that passes is virtual
                await asyncio.sleep(0.01)
        return found

    async def until_true(self, condition: Callable[[], bool], limit: float = LIMIT) -> None:
        async with asyncio.timeout(limit):
            while not condition():  # noqa: ASYNC110 - the time that passes is virtual
                await asyncio.sleep(0.01)

    async def until_ready(self, name: str = "web") -> list[str]:
        async def served() -> list[str]:
            condition = await self.ready(name)
            return await self.ips(name) if condition and condition.status == "True" else []

        return await self.until(served)

    async def until_reason(self, reason: str, name: str = "web", limit: float = LIMIT) -> Condition:
        async def said() -> Condition | None:
            condition = await self.ready(name)
            return condition if condition and condition.reason == reason else None

        found = await self.until(said, limit)
        assert found is not None
        return found


async def pass_time(seconds: float) -> None:
    """Let virtual time pass, with all that falls due in it."""
    await asyncio.sleep(seconds)
