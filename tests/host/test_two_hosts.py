"""Two controllers at once, by mistake or because an old leader does not know yet that it is none."""

import asyncio

from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import IPPOOLS, LOADBALANCERS
from tests.host.views import given, vm
from tests.host.world import World, eventually, pool, subnet, virtually

COUNT = 60


async def prepared() -> World:
    cluster = FakeCluster(utc_now)
    made = World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster))
    await made.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/26"), subnet("198.51.100.0/26")))
    return made


@virtually(prepared)
async def test_no_address_twice_and_nothing_left(world: World) -> None:
    async with world.host() as one, world.host() as other:
        for i in range(COUNT):
            await world.client.create(LOADBALANCERS, vm(f"vm{i}"))
            if i % 3 == 2:
                await world.client.delete(LOADBALANCERS, *vm(f"vm{i - 1}").key)
        living = [f"vm{i}" for i in range(COUNT) if i % 3 != 1]
        for name in living:
            assert await given(one, vm(name)) == await given(other, vm(name))
        await asyncio.sleep(60)  # virtual: whatever one gave beside the other is given back by then
        shown = {lb.status.address: f"team-a/{lb.metadata.name}" for lb in await world.load_balancers()}
        assert len(shown) == len(living)
        assert await world.allocations() == shown
        for name in living:
            await world.client.delete(LOADBALANCERS, *vm(name).key)
        await eventually(lambda: not one.caches.load_balancers.objects and not other.caches.load_balancers.objects)
        await asyncio.sleep(60)
    assert await world.allocations() == {}
