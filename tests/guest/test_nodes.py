"""Which nodes the host is told of, when, and what becomes of those it refuses."""

from ipaddress import ip_network

from cloudprovider.bridge.fake import MemoryTenant
from cloudprovider.core.annotations import VIRTUAL_MACHINE
from cloudprovider.core.errors import Unavailable
from cloudprovider.kube.resources import NODES
from tests.guest.world import TENANT, World, in_virtual_time, pass_time


def names(world: World) -> list[str]:
    return [node.name for node in world.backend.nodes.get(TENANT, ())]


@in_virtual_time
async def test_a_change_is_told_once_and_heartbeats_are_not() -> None:
    world = World()
    for i in range(3):
        await world.node(f"n{i}", f"10.0.0.{i + 1}")
    async with world.leading():
        await world.until_true(lambda: names(world) == ["n0", "n1", "n2"])
        assert world.calls("report_nodes") == 1
        for i in range(3, 6):  # within the debounce: one report
            await world.node(f"n{i}", f"10.0.0.{i + 1}")
        await world.until_true(lambda: len(names(world)) == 6)
        assert world.calls("report_nodes") == 2
        await world.user.merge_patch(NODES, "", "n0", {"metadata": {"labels": {"heart": "beat"}}})
        await pass_time(100)
        assert world.calls("report_nodes") == 2
        assert world.writes() == 0


@in_virtual_time
async def test_the_machine_that_a_node_is_is_told_when_it_is_noted() -> None:
    world = World()
    await world.node("a", "10.0.0.1")
    async with world.leading():
        await world.until_true(lambda: names(world) == ["a"])
        for machine, told in (("vm-1", "vm-1"), ("a", "")):
            await world.user.merge_patch(NODES, "", "a", {"metadata": {"annotations": {VIRTUAL_MACHINE: machine}}})
            await world.until_true(lambda told=told: world.backend.nodes[TENANT][0].virtual_machine == told)  # type: ignore[misc]


@in_virtual_time
async def test_excluded_deleted_and_back() -> None:
    world = World()
    label = "node.kubernetes.io/exclude-from-external-load-balancers"
    await world.node("a", "10.0.0.1")
    await world.node("b", "10.0.0.2")
    async with world.leading():
        await world.until_true(lambda: names(world) == ["a", "b"])
        await world.user.merge_patch(NODES, "", "a", {"metadata": {"labels": {label: ""}}})
        await world.until_true(lambda: names(world) == ["b"])
        await world.user.merge_patch(NODES, "", "a", {"metadata": {"labels": {label: None}}})
        await world.until_true(lambda: names(world) == ["a", "b"])
        await world.user.merge_patch(
            NODES, "", "b", {"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}}
        )
        await world.until_true(lambda: names(world) == ["a"])
        await world.user.delete(NODES, "", "a")
        await world.until_true(lambda: names(world) == [])


@in_virtual_time
async def test_not_ready_goes_after_the_grace_time_without_any_event() -> None:
    world = World()
    await world.node("a", "10.0.0.1")
    await world.node("b", "10.0.0.2")
    async with world.leading():
        await world.until_true(lambda: names(world) == ["a", "b"])
        await world.node("a", "10.0.0.1", ready="Unknown")
        await pass_time(55)
        assert names(world) == ["a", "b"]
        await pass_time(10)
        assert names(world) == ["b"]
        await world.node("a", "10.0.0.1", ready="True")
        await world.until_true(lambda: names(world) == ["a", "b"])


@in_virtual_time
async def test_a_node_outside_the_tenants_networks_gets_one_event() -> None:
    world = World()
    world.backend.set_tenant(TENANT, MemoryTenant(node_cidrs=(ip_network("10.0.0.0/24"),)))
    await world.node("good", "10.0.0.1")
    await world.node("bad", "10.9.0.1")
    async with world.leading():
        await world.until_true(lambda: names(world) == ["good"])
        await world.node("third", "10.0.0.3")
        await world.until_true(lambda: names(world) == ["good", "third"])
        await pass_time(10)
        (event,) = await world.events()
        assert (event.involved_object.kind, event.involved_object.name) == ("Node", "bad")
        assert (event.type, event.reason) == ("Warning", "OutsideNodeCIDRs")
        assert "10.9.0.1 is outside the cluster's node networks" in event.message


@in_virtual_time
async def test_a_host_that_does_not_take_them_is_asked_again_with_backoff() -> None:
    world = World()
    await world.node("a", "10.0.0.1")
    async with world.leading():
        await world.until_true(lambda: names(world) == ["a"])
        world.backend.failure = Unavailable("away")
        await world.node("b", "10.0.0.2")
        calls = world.calls("report_nodes")
        await pass_time(60)
        assert 2 <= world.calls("report_nodes") - calls <= 10
        world.backend.failure = None
        await world.until_true(lambda: names(world) == ["a", "b"], 60)


@in_virtual_time
async def test_they_are_told_again_when_the_host_is_reached_again() -> None:
    world = World()
    await world.node("a", "10.0.0.1")
    async with world.leading():
        await world.until_true(lambda: names(world) == ["a"])
        with world.bridge.cut():
            await world.node("b", "10.0.0.2")
            await pass_time(30)
            world.backend.nodes.clear()
        await world.until_true(lambda: names(world) == ["a", "b"])
