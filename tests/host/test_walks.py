"""Random histories of a tenant's load balancers: created, changed, shared, moved, in conflict, deleted; pools that
grow, blocks deleted by hand, hosts killed and started. Nothing doubles, leaks, strays or moves without cause."""

import asyncio
import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from cloudprovider.core.api.loadbalancer import ForeignAddress, LoadBalancer
from cloudprovider.core.conditions import find
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.test_sharing import TENANT, lb
from tests.host.world import World, guest_cluster, pool, subnet
from tests.kube import virtualtime

NAMES = ("a", "b", "c", "d", "e")
PORTS = {name: 80 + i // 2 for i, name in enumerate(NAMES)}  # some collide when they share
RANGES = {"p": ("192.0.2.0/28", "192.0.2.2", "192.0.2.5"), "q": ("192.0.2.240/28", "192.0.2.245", "192.0.2.247")}
WIDER = ("192.0.2.0/28", "192.0.2.2", "192.0.2.8")
SETTLED = 20.0
"""Virtual seconds after which all that can happen has."""

wishes = st.fixed_dictionaries(
    {
        "ip_pool": st.sampled_from(["", "p", "q"]),
        "addresses": st.sampled_from([[], [], ["192.0.2.4"], ["192.0.2.246"]]),
        "primary_service": st.sampled_from(["", "", "default/a", "default/b"]),
    }
)
names = st.sampled_from(NAMES)
steps = st.one_of(
    st.tuples(st.just("ask"), names, wishes),
    st.tuples(st.just("ask"), names, wishes),
    st.tuples(st.sampled_from(["delete", "conflict"]), names, st.none()),
    st.tuples(st.sampled_from(["restart", "lose a block", "widen", "agent goes", "agent comes"]), st.none(), st.none()),
)


def plain(wish: Mapping[str, Any]) -> dict[str, Any]:
    """Who shares asks for nothing of its own (translate sees to that)."""
    return {**wish, "ip_pool": "", "addresses": []} if wish["primary_service"] else dict(wish)


@dataclass
class Walk:
    """One history, and what was promised so far. ``shown``: the address of each, as of the last quiet moment."""

    world: World
    rng: random.Random
    lbs: dict[str, LoadBalancer] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)
    count: int = 0

    async def ask(self, name: str, wish: Mapping[str, Any]) -> None:
        if name in self.lbs:
            spec = msgspec.structs.replace(self.lbs[name].spec, **plain(wish))
            self.lbs[name] = msgspec.structs.replace(self.lbs[name], spec=spec)
            patch = {"ipPool": spec.ip_pool, "addresses": spec.addresses, "primaryService": spec.primary_service}
            await self.world.client.merge_patch(LOADBALANCERS, *self.lbs[name].key, {"spec": patch})
        else:
            self.count += 1
            self.lbs[name] = lb(name, PORTS[name], uid=f"{name}{self.count}", **plain(wish))
            await self.world.client.create(LOADBALANCERS, self.lbs[name])

    async def delete(self, name: str) -> None:
        if (gone := self.lbs.pop(name, None)) is not None:
            await self.world.client.delete(LOADBALANCERS, *gone.key)

    async def conflict(self, name: str) -> None:
        """Somebody else has its address, found before it was up."""
        if name not in self.lbs:
            return
        current = await self.world.client.get(LOADBALANCERS, *self.lbs[name].key)
        if not current.status.address or current.status.holder is not None:
            return
        foreign = [msgspec.to_builtins(ForeignAddress(ip=current.status.address, hardware_address="02:00:00:00:00:99"))]
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": {"uid": current.metadata.uid},
            "status": {"foreignAddresses": foreign},
        }
        key = current.key
        await self.world.client.apply(
            LOADBALANCERS, *key, patch, field_manager="cloudprovider-agent", subresource="status"
        )

    async def lose_a_block(self) -> None:
        blocks = await self.world.blocks()
        if blocks:
            await self.world.client.delete(IPBLOCKS, "", self.rng.choice(blocks).metadata.name)

    def related(self, name: str) -> set[str]:
        """Those whose address may follow what happens to ``name``: its group, before and after."""
        roots = {name, *(b.spec.primary_service.rpartition("/")[2] for n, b in self.lbs.items() if n == name)}
        sharers = {n for n, b in self.lbs.items() if b.spec.primary_service.rpartition("/")[2] in roots}
        return roots | sharers

    async def check(self, moved: set[str]) -> None:
        """See that all is well at a quiet moment; only ``moved`` may show another address than at the last one."""
        allocated = await self.world.allocations()  # no address twice
        recorded = {
            (a, o)
            for b in await self.world.blocks()
            for a, r in b.spec.allocations.items()
            for o in (r.owner, *r.sharers)
        }
        now: dict[str, str] = {}
        for name, made in self.lbs.items():
            current = await self.world.client.get(LOADBALANCERS, *made.key)
            status, owner = current.status, "/".join(made.key)
            allocation = find(status.conditions, "Allocated")
            assert allocation is not None, name
            assert allocation.message
            for entry in status.addresses:
                assert (entry.ip, owner) in recorded, f"{name} shows {entry.ip}, which no block records for it"
            if status.address:
                now[name] = status.address
            else:
                assert allocation.status == "False", name
        living = {"/".join(made.key) for made in self.lbs.values()}
        assert {o for _, o in recorded} <= living, "a record of nobody"
        assert len(allocated) == len(set(now.values()) | set(allocated))
        for name, address in self.shown.items():
            if name in now and name not in moved:
                assert now[name] == address, f"{name} moved from {address} to {now[name]} without cause"
        for one, address in now.items():
            for other in (name for name, shown in now.items() if name > one and shown == address):
                assert other in self.related(one) or one in self.related(other), f"{one} and {other} on {address}"
        self.shown = now


async def walk(history: list[tuple[str, Any, Any]], number: int) -> None:
    cluster = FakeCluster(utc_now)
    rng = random.Random(number)

    world = World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster, program="host"))
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
    for name, (cidr, first, last) in RANGES.items():
        await world.client.create(IPPOOLS, pool(name, subnet(cidr, first, last)))
    here = Walk(world, rng)
    async with AsyncExitStack() as stack:
        host: Host = await stack.enter_async_context(world.host())
        agent = AsyncExitStack()
        agent_runs = False
        for kind, name, wish in history:
            moved = set(NAMES) if kind in {"lose a block", "conflict"} else here.related(name) if name else set()
            match kind:
                case "ask":
                    moved |= {name}
                    await here.ask(name, wish)
                    moved |= here.related(name)
                case "delete":
                    await here.delete(name)
                case "conflict":
                    await here.conflict(name)
                case "restart":
                    await agent.aclose()
                    agent_runs = False
                    await stack.aclose()
                    host = await stack.enter_async_context(world.host())
                case "lose a block":
                    await here.lose_a_block()
                case "widen":
                    spec = {"ranges": msgspec.to_builtins([subnet(*WIDER)])}
                    await world.client.merge_patch(IPPOOLS, "", "p", {"spec": spec})
                case "agent goes":
                    await agent.aclose()
                    agent_runs = False
                case _ if not agent_runs:
                    await agent.enter_async_context(world.agent(host))
                    agent_runs = True
            if agent_runs or kind == "agent comes":
                await asyncio.sleep(SETTLED)
                if not await pending(world):
                    await here.check(moved | set(here.shown) - set(here.lbs))
                    continue
            here.shown = {}  # not at rest: what it will come to is not known
        if not agent_runs:
            await agent.enter_async_context(world.agent(host))
        await asyncio.sleep(SETTLED)
        await here.check(set(NAMES))
        for made in await world.load_balancers():
            assert not made.status.next_addresses, f"{made.metadata.name} is on its way for ever"
        for name in list(here.lbs):
            await here.delete(name)
        await asyncio.sleep(SETTLED)
        assert await world.load_balancers() == []
        assert await world.allocations() == {}
        await agent.aclose()


async def pending(world: World) -> bool:
    """Whether one is being deleted still: it waits for its holder."""
    return any(made.metadata.deletion_timestamp for made in await world.load_balancers())


@seed(20260401)
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=st.lists(steps, min_size=5, max_size=25), number=st.integers(0, 1000))
def test_any_history(history: list[tuple[str, Any, Any]], number: int) -> None:
    virtualtime.run(walk(history, number))
