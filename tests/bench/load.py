"""Services created and deleted over a fixed number of connections, and when each got its address."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

from cloudprovider.core.api.kubernetes import Service, ServicePort, ServiceSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import NotFound
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import SERVICES

NAMESPACE: Final = "default"


def service(name: str) -> Service:
    """Two ports, no selector: the price of a Service, without that of pods."""
    return Service(
        metadata=ObjectMeta(name=name, namespace=NAMESPACE),
        spec=ServiceSpec(
            type="LoadBalancer",
            ports=[
                ServicePort(name="http", port=80, target_port=8080),
                ServicePort(name="https", port=443, target_port=8443),
            ],
        ),
    )


@dataclass
class Timeline:
    """Moments (monotonic) by Service name: the create's answer, the address in the status, the end of the object."""

    answered: dict[str, float] = field(default_factory=dict)
    addressed: dict[str, float] = field(default_factory=dict)
    asked_to_go: dict[str, float] = field(default_factory=dict)
    gone: dict[str, float] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], bool], limit: float) -> None:
        """Wait until what was seen fulfils ``condition``. Raises TimeoutError after ``limit`` seconds."""
        async with asyncio.timeout(limit):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def lags(self, names: Sequence[str]) -> list[float]:
        """Seconds from the create's answer to the address in the status, sorted."""
        return sorted(max(0.0, self.addressed[n] - self.answered[n]) for n in names)


@asynccontextmanager
async def watching(client: KubeClient) -> AsyncIterator[Timeline]:
    """A timeline that follows the Services of the namespace."""
    timeline = Timeline()
    informer = Informer(client, SERVICES, rng=random.Random(), namespace=NAMESPACE)

    def changed(old: Service | None, new: Service | None) -> None:
        now = time.monotonic()
        if new is None:
            if old is not None:
                timeline.gone[old.metadata.name] = now
        elif new.status.load_balancer.ingress and new.metadata.name not in timeline.addressed:
            timeline.addressed[new.metadata.name] = now
            timeline.addresses[new.metadata.name] = new.status.load_balancer.ingress[0].ip
        timeline.changed.set()

    informer.on_change(changed)
    task = asyncio.create_task(informer.run())
    await informer.synced.wait()
    try:
        yield timeline
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def create(client: KubeClient, names: Sequence[str], timeline: Timeline, connections: int) -> None:
    """Create Services as fast as ``connections`` callers can."""

    async def one(name: str) -> None:
        await client.create(SERVICES, service(name))
        timeline.answered[name] = time.monotonic()

    await _spread(names, one, connections)


async def delete(client: KubeClient, names: Sequence[str], timeline: Timeline, connections: int) -> None:
    """Delete Services likewise."""

    async def one(name: str) -> None:
        timeline.asked_to_go[name] = time.monotonic()
        with suppress(NotFound):
            await client.delete(SERVICES, NAMESPACE, name)

    await _spread(names, one, connections)


async def _spread(names: Sequence[str], work: Callable[[str], Awaitable[None]], workers: int) -> None:
    waiting = iter(names)

    async def worker() -> None:
        for name in waiting:
            await work(name)

    async with asyncio.TaskGroup() as group:
        for _ in range(workers):
            group.create_task(worker())
