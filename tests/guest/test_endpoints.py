"""Policy Local: the host is told the nodes with endpoints, and nobody else pays for it."""

from cloudprovider.guest.endpoints import slim
from cloudprovider.kube.resources import ENDPOINTSLICES
from tests.guest.world import TENANT, World, in_virtual_time, pass_time


def nodes(world: World) -> tuple[str, ...]:
    (load_balancer,) = world.backend.load_balancers.values()
    return load_balancer.request.endpoint_nodes


@in_virtual_time
async def test_without_policy_local_no_slice_is_read() -> None:
    world = World()
    await world.endpoints("web-1", "a")
    async with world.leading():
        await world.create()
        await world.until_ready()
        assert world.guest.requests.total(resource="endpointslices") == 0


@in_virtual_time
async def test_endpoints_come_and_go() -> None:
    world = World()
    await world.endpoints("web-1", "b", "a")
    await world.endpoints("other-1", "z", service="other")
    async with world.leading():
        await world.create(externalTrafficPolicy="Local", healthCheckNodePort=31000)
        await world.until_ready()
        assert nodes(world) == ("a", "b")
        await world.endpoints("web-2", "c")
        await world.until_true(lambda: nodes(world) == ("a", "b", "c"))
        await world.user.delete(ENDPOINTSLICES, "shop", "web-1")
        await world.until_true(lambda: nodes(world) == ("c",))
        await world.endpoints("web-2", "c", ready=False)
        await world.until_true(lambda: nodes(world) == ())
        calls = world.calls("ensure")
        await world.endpoints("other-1", "y", service="other")
        await world.endpoints("web-2", "c", "c", ready=False)
        await pass_time(5)
        assert world.calls("ensure") == calls
        assert world.writes() == 3
        assert world.guest.requests.total(verb="list", resource="endpointslices") == 1


@in_virtual_time
async def test_the_policy_changed_reads_them_from_then_on() -> None:
    world = World()
    await world.endpoints("web-1", "a")
    async with world.leading():
        await world.create()
        await world.until_ready()
        await world.change(spec={"externalTrafficPolicy": "Local"})
        await world.until_true(lambda: nodes(world) == ("a",))
        await world.change(spec={"externalTrafficPolicy": "Cluster"})
        await world.until_true(lambda: nodes(world) == ())
    assert world.backend.load_balancers[TENANT, world.balancers()[0]].request.external_traffic_policy == "Cluster"


@in_virtual_time
async def test_a_slice_is_kept_small() -> None:
    world = World()
    await world.endpoints("web-1", *["a"] * 100, *["b"] * 100)
    piece = slim(await world.user.get(ENDPOINTSLICES, "shop", "web-1"))
    assert piece is not None
    assert [endpoint.node_name for endpoint in piece.endpoints or ()] == ["a", "b"]
