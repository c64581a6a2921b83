"""A Service that goes, or is no load balancer any more: the host first, then the finalizer, whatever comes between."""

from cloudprovider.core.api.kubernetes import SERVICE_FINALIZER
from tests.guest.world import TENANT, World, in_virtual_time, pass_time


@in_virtual_time
async def test_deletion_waits_for_the_host_and_costs_one_request() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.served()
        writes = world.writes()
        await world.delete()
        await world.until_true(lambda: world.calls("delete") == 1)
        await pass_time(20)
        assert await world.held()
        assert world.calls("delete") == 1
        world.backend.release(TENANT, world.key(service))
        await world.until(world.gone)
        await pass_time(5)
        assert world.writes() == writes + 1


@in_virtual_time
async def test_the_type_changed_away_and_back() -> None:
    world = World()
    async with world.leading():
        await world.served()
        await world.change(spec={"type": "ClusterIP"})
        await world.show()  # the API server does that with the type
        await world.until_true(lambda: not world.backend.load_balancers)

        async def let_go() -> bool:
            return not await world.held() and await world.ready() is None

        await world.until(let_go)
        assert {e.reason for e in await world.events()} == {"AddressAssigned", "LoadBalancerDeleted"}
        await world.change(spec={"type": "LoadBalancer"})
        assert await world.until_ready() == ["192.0.2.1"]
        assert await world.held()


@in_virtual_time
async def test_the_type_changed_back_before_the_host_is_done() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.served()
        await world.change(spec={"type": "NodePort"})
        await world.until_true(lambda: world.calls("delete") == 1)
        await world.change(spec={"type": "LoadBalancer"})
        await pass_time(20)
        assert world.calls("ensure") == 1
        assert await world.held()
        world.backend.release(TENANT, world.key(service))
        await world.until_true(lambda: world.calls("ensure") == 2)
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()


@in_virtual_time
async def test_the_type_changed_back_while_the_host_restarts() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.served()
        await world.change(spec={"type": "NodePort"})
        await world.until_true(lambda: world.calls("delete") == 1)
        await world.change(spec={"type": "LoadBalancer"})
        with world.bridge.cut():
            world.forget_stream()
            await pass_time(1)
        await world.until_true(lambda: world.calls("ensure") >= 2)
        world.backend.release(TENANT, world.key(service))
        await world.until_true(lambda: len(world.backend.load_balancers) == 1)
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()
        assert not world.backend.load_balancers[TENANT, world.key(service)].deleting


@in_virtual_time
async def test_a_deletion_goes_on_while_the_host_restarts() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.served()
        await world.delete()
        await world.until_true(lambda: world.calls("delete") == 1)
        with world.bridge.cut():
            world.backend.release(TENANT, world.key(service))
            world.forget_stream()
            await pass_time(5)
            assert await world.held()
        await world.until(world.gone)


@in_virtual_time
async def test_a_restart_while_the_type_is_changed_cleans_up() -> None:
    world = World()
    async with world.leading():
        await world.served()
    await world.change(spec={"type": "ClusterIP"})
    async with world.leading():

        async def let_go() -> bool:
            return not await world.held()

        await world.until(let_go)
        assert world.balancers() == []


@in_virtual_time
async def test_a_restart_while_a_service_is_deleted_cleans_up() -> None:
    world = World()
    async with world.leading():
        await world.served()
    await world.delete()
    async with world.leading():
        await world.until(world.gone)
        assert world.balancers() == []


@in_virtual_time
async def test_a_service_deleted_before_the_host_knew_it_is_let_go() -> None:
    world = World()
    await world.create()
    await world.change(metadata={"finalizers": [SERVICE_FINALIZER]})  # and then the program was killed
    await world.delete()
    async with world.leading():
        await world.until(world.gone)


@in_virtual_time
async def test_recreated_under_the_same_name() -> None:
    world = World()
    async with world.leading():
        first = await world.served()
        await world.change(metadata={"finalizers": None})
        await world.delete()
        second = await world.served()
        await world.until_true(lambda: world.balancers() == [world.key(second)])
        assert first.metadata.uid != second.metadata.uid
        assert world.calls("delete") == 1


@in_virtual_time
async def test_recreated_while_the_program_was_away() -> None:
    world = World()
    async with world.leading():
        await world.served()
    await world.change(metadata={"finalizers": None})
    await world.delete()
    second = await world.create()
    async with world.leading():
        await world.until_ready()
        await world.until_true(lambda: world.balancers() == [world.key(second)])


@in_virtual_time
async def test_gone_without_its_finalizer_the_inventory_collects_it() -> None:
    world = World()
    async with world.leading():
        await world.served()
        await pass_time(5)  # the inventory that follows the connection is not the one
        await world.change(metadata={"finalizers": None})
        await world.delete()
        await world.until_true(lambda: not world.backend.load_balancers)
        assert world.calls("delete") == 0


@in_virtual_time
async def test_a_list_that_comes_up_short_deletes_nothing_at_once() -> None:
    world = World()
    async with world.leading():
        empty = world.cluster.snapshot()
        for i in range(30):
            await world.create(f"web{i}")
        for i in range(30):
            await world.until_ready(f"web{i}")
        full = world.cluster.snapshot()
        world.cluster.restore(empty)
        inventories = world.calls("report_inventory")
        await world.until_true(lambda: world.calls("report_inventory") == inventories + 1)
        await pass_time(100)
        assert len(world.balancers()) == 30
        world.cluster.restore(full)
        await pass_time(600)
        assert len(world.balancers()) == 30
