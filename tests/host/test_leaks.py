"""Silence takes nothing away: a guest that is merely away keeps every address, however long."""

import asyncio

from cloudprovider.bridge.api import Hello
from cloudprovider.core.exchange import Inventory, InventoryItem, Listener, LoadBalancerRequest, Tenant
from cloudprovider.host.clock import utc_now
from cloudprovider.host.controller import AUDIT_SECONDS
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS
from tests.host.world import World, eventually, guest_cluster, pool, services, subnet, virtually

TENANT = Tenant("team-a", "blue")
HELLO = Hello(cluster_uid="kube-system-1", guest_version="1")
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))
DAYS = 3


async def prepared() -> World:
    cluster = FakeCluster(utc_now)
    made = World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster))
    await made.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
    await made.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    return made


@virtually(prepared)
async def test_a_guest_that_is_away_for_days_loses_nothing(world: World) -> None:
    keys = services(5)
    async with world.host() as host, world.agent(host):
        await host.backend.connect(TENANT, HELLO)
        for key in keys:
            await host.backend.ensure(TENANT, key, REQUEST, ())
        states = host.backend.states(TENANT).states
        await eventually(lambda: all(key in states and states[key].addresses for key in keys))
        before = await world.allocations()
        assert len(before) == 5
        await asyncio.sleep(DAYS * 86400)
        assert AUDIT_SECONDS < 86400
        assert await world.allocations() == before
    async with world.host() as host, world.agent(host):  # nor by a restart, with nobody there to ask
        await asyncio.sleep(86400)
        assert await world.allocations() == before
        assert len(host.caches.load_balancers_of(TENANT)) == 5
        # It comes back, and one Service has gone meanwhile.
        await host.backend.connect(TENANT, HELLO)
        told = Inventory(tuple(InventoryItem(key) for key in keys[1:]), "9", complete=True, fencing_token=2)
        assert (await host.backend.report_inventory(TENANT, told)).deleted == (keys[0],)
        await eventually(lambda: len(host.caches.load_balancers_of(TENANT)) == 4)
        assert len(await world.allocations()) == 4
