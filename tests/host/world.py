"""A host cluster for tests: its API server (in memory or real), the host's parts, and an agent that does as told."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from inspect import signature
from ipaddress import ip_network
from typing import TypeVar

import msgspec

from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterSpec
from cloudprovider.core.api.kubernetes import Node, NodeAddress, NodeStatus
from cloudprovider.core.api.loadbalancer import Holder, LoadBalancer
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPBlock, IPPool, IPPoolSpec, Range, Scope, Selector
from cloudprovider.core.errors import NotFound
from cloudprovider.core.exchange import ServiceKey, Tenant
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.host.assembly import Host
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import Clock, utc_now
from cloudprovider.host.metrics import HostMetrics
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.kube import virtualtime

LIMIT = 20.0
"""Seconds until what is waited for must have come."""
EVERYBODY = Scope(project="*", namespace="*", guest_cluster="*")


async def eventually(holds: Callable[[], bool], what: str = "what is waited for", limit: float = LIMIT) -> None:
    """Wait until ``holds``; fail with ``what`` if it does not in time."""
    try:
        async with asyncio.timeout(limit):
            while not holds():  # noqa: ASYNC110 - what is waited for tells nobody
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {limit} s: {what}") from None


async def at_once(*parts: Coroutine[None, None, None]) -> None:
    """Run all of them; the end of one by an error is the end of all."""
    async with asyncio.TaskGroup() as tasks:
        for part in parts:
            tasks.create_task(part)


def pool(name: str, *ranges: Range, network: str = "", priority: int = 0, scope: Scope = EVERYBODY) -> IPPool:
    return IPPool(
        api_version=IPPOOLS.api_version,
        kind=IPPOOLS.kind,
        metadata=ObjectMeta(name=name),
        spec=IPPoolSpec(ranges=list(ranges), selector=Selector(network=network, priority=priority, scope=[scope])),
    )


def subnet(cidr: str, start: str = "", end: str = "") -> Range:
    return Range(subnet=cidr, range_start=start, range_end=end)


def guest_cluster(tenant: Tenant, spec: GuestClusterSpec | None = None) -> GuestCluster:
    return GuestCluster(
        api_version=GUESTCLUSTERS.api_version,
        kind=GUESTCLUSTERS.kind,
        metadata=ObjectMeta(name=tenant.cluster, namespace=tenant.namespace),
        spec=spec or GuestClusterSpec(node_cidrs=["10.0.0.0/8"]),
    )


def host_node(name: str, address: str) -> Node:
    status = NodeStatus(addresses=[NodeAddress(type="InternalIP", address=address)])
    return Node(metadata=ObjectMeta(name=name), status=status)


@dataclass
class World:
    """One API server, and whatever runs over it."""

    client: KubeClient
    connect: Callable[[], KubeClient]
    """Makes another client of the same server, for a host that is restarted."""
    now: Clock = utc_now
    rng: random.Random = field(default_factory=lambda: random.Random(7))

    @asynccontextmanager
    async def host(
        self,
        *,
        readoption_seconds: float = 0.0,
        settle_seconds: float = 0.0,
        hosts_seconds: float = 0.0,
        metrics: HostMetrics | None = None,
        tracer: Tracer = NO_TRACER,
        trusted: Callable[[], bytes] | None = None,
    ) -> AsyncIterator[Host]:
        """Run a host program's parts; leaving the block kills them where they stand."""
        client, time = self.connect(), asyncio.get_running_loop().time
        caches = Caches(client, self.rng, time=time)
        host = Host(
            client,
            caches,
            version="0",
            identity="host-test",
            reserved=(ip_network("10.96.0.0/12"),),
            tracer=tracer,
            now=self.now,
            time=time,
            rng=self.rng,
            metrics=metrics or HostMetrics(Registry("host", "0")),
            settle_seconds=settle_seconds,
            readoption_seconds=readoption_seconds,
            trusted=trusted,
            hosts_seconds=hosts_seconds,
        )
        task = asyncio.create_task(at_once(caches.run(), host.run()))
        try:
            async with asyncio.timeout(LIMIT):
                await host.caches.synced()
            yield host
        finally:
            ended = task.done()
            task.cancel()
            await asyncio.wait([task])
            if ended:
                task.result()

    @asynccontextmanager
    async def agent(self, host: Host, node: str = "host-1") -> AsyncIterator["Agent"]:
        """Run an agent that follows ``host``'s cache: holds what has an address, lets go of what is deleted."""
        agent = Agent(self.client, node)
        host.caches.load_balancers.on_change(agent.changed)
        for lb in host.caches.load_balancers.objects.values():
            agent.changed(None, lb)
        task = asyncio.create_task(agent.run())
        try:
            yield agent
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def load_balancer(self, key: tuple[str, str]) -> LoadBalancer | None:
        try:
            return await self.client.get(LOADBALANCERS, *key)
        except NotFound:
            return None

    async def load_balancers(self) -> list[LoadBalancer]:
        return list((await self.client.list(LOADBALANCERS)).items)

    async def blocks(self) -> list[IPBlock]:
        return list((await self.client.list(IPBLOCKS)).items)

    async def allocations(self) -> dict[str, str]:
        """Address to owner, over all blocks; an address that stands in two of them fails the test."""
        found: dict[str, str] = {}
        for block in await self.blocks():
            for address, allocation in block.spec.allocations.items():
                assert address not in found, f"{address} is allocated twice"
                found[address] = allocation.owner
        return found


W = TypeVar("W", bound=World)


def virtually(
    prepare: Callable[[], Awaitable[W]],
) -> Callable[[Callable[..., Coroutine[None, None, None]]], Callable[..., None]]:
    """Return a decorator that runs a test in virtual time (half a minute costs nothing, and can be measured) with the
    ``world`` that ``prepare`` makes there."""

    def decorate(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
        @wraps(test)
        def run(*owner: object, **arguments: object) -> None:
            async def main() -> None:
                await test(*owner, world=await prepare(), **arguments)

            virtualtime.run(main())

        seen = signature(test)
        shown = [parameter for name, parameter in seen.parameters.items() if name != "world"]
        run.__signature__ = seen.replace(parameters=shown)  # type: ignore[attr-defined] # where pytest looks
        return run

    return decorate


class Agent:
    """What the host sees of an agent: who holds an address."""

    def __init__(self, client: KubeClient, node: str) -> None:
        self._client = client
        self._node = node
        self._work: asyncio.Queue[LoadBalancer] = asyncio.Queue()
        self.requests = 0

    def changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        if new is not None:
            self._work.put_nowait(new)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            lb = await self._work.get()
            if lb.metadata.deletion_timestamp:
                if lb.status.holder is not None:
                    await self._apply(lb, {})
                continue
            addresses = [a.ip for a in (*lb.status.addresses, *lb.status.next_addresses)]
            generation = lb.metadata.generation
            wanted = Holder(node=self._node, generation=generation, addresses=addresses, mode="nat")
            holder = wanted if addresses else None
            if holder != lb.status.holder:
                if holder is None:
                    await self._apply(lb, {})
                    continue
                await self._apply(lb, {"holder": msgspec.to_builtins(holder)})

    async def _apply(self, lb: LoadBalancer, status: dict[str, object]) -> None:
        self.requests += 1
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": {"uid": lb.metadata.uid},
            "status": status,
        }
        try:
            await self._client.apply(
                LOADBALANCERS, *lb.key, patch, field_manager="cloudprovider-agent", subresource="status"
            )
        except NotFound:
            return


def services(count: int, prefix: str = "s") -> list[ServiceKey]:
    return [ServiceKey("default", f"{prefix}{i}", f"uid-{prefix}{i}") for i in range(count)]
