"""Whose a Service is, and whose the addresses that it shows."""

import pytest

from cloudprovider.core.api.kubernetes import SERVICE_FINALIZER
from cloudprovider.core.translate import (
    DEFAULT_CLASS,
    Classes,
)
from cloudprovider.kube.resources import SERVICES
from tests.guest.world import World, in_virtual_time, pass_time


@pytest.mark.parametrize(
    ("classes", "wanted", "served"),
    [
        (Classes(default=True), "", True),
        (Classes(default=True), DEFAULT_CLASS, True),
        (Classes(default=True), "example.com/other", False),
        (Classes(own="example.com/lan"), "example.com/lan", True),
        (Classes(own="example.com/lan"), "", False),
    ],
)
def test_classes(classes: Classes, wanted: str, served: bool) -> None:
    @in_virtual_time
    async def scenario() -> None:
        world = World(classes=classes)
        async with world.leading():
            await world.create(loadBalancerClass=wanted)
            await pass_time(20)
            assert bool(await world.ips()) == served
            assert world.writes() == (3 if served else 0)

    scenario()


@in_virtual_time
async def test_a_foreign_service_keeps_its_finalizer_and_its_status() -> None:
    world = World(classes=Classes(own="example.com/lan"))
    async with world.leading():
        await world.create(loadBalancerClass="example.com/other")
        await world.change(metadata={"finalizers": [SERVICE_FINALIZER]})
        await world.show("198.51.100.1")
        await world.delete()
        await pass_time(20)
        assert await world.held()
        assert await world.ips() == ["198.51.100.1"]
        assert world.writes() == 0


@in_virtual_time
async def test_the_services_of_another_instance_of_this_program_are_left_alone() -> None:
    world = World(classes=Classes(own="example.com/one"))
    async with world.leading():
        await world.served(loadBalancerClass="example.com/one")
    writes = world.writes()
    other = World(classes=Classes(own="example.com/two"))
    other.cluster, other.user, other.guest = world.cluster, world.user, world.guest
    async with other.leading():
        await pass_time(30)
        await world.change(metadata={"finalizers": None})
        await pass_time(30)
        assert await world.ips() == ["192.0.2.1"]
        assert await world.reason() == "AddressAssigned"
        assert world.writes() == writes


@in_virtual_time
async def test_a_foreign_owner_is_reported_and_never_fought() -> None:
    world = World()
    async with world.leading():
        await world.served()
        await world.show("198.51.100.1")
        condition = await world.until_reason("ForeignOwner")
        assert "198.51.100.1" in condition.message
        assert "192.0.2.1" in condition.message
        await pass_time(1000)
        assert await world.ips() == ["198.51.100.1"]
        assert world.writes() == 5
    async with world.leading():
        await pass_time(60)
        assert await world.ips() == ["198.51.100.1"]
        await world.show()
        assert await world.until_ready() == ["192.0.2.1"]


@in_virtual_time
async def test_addresses_of_another_controller_from_before_are_taken_over_if_they_can_be() -> None:
    world = World()
    await world.create()
    await world.show("192.0.2.77")
    async with world.leading():
        assert await world.until_ready() == ["192.0.2.77"]


@in_virtual_time
async def test_addresses_of_another_controller_that_cant_be_had_are_left() -> None:
    world = World()
    async with world.leading():
        await world.served("first", loadBalancerIP="192.0.2.77")
    await world.create()
    await world.show("192.0.2.77")
    async with world.leading():
        await world.until_reason("ForeignOwner")
        assert await world.ips() == ["192.0.2.77"]


@in_virtual_time
async def test_an_emptied_status_is_written_again_ever_more_slowly() -> None:
    world = World()
    async with world.leading():
        await world.served()
        for _ in range(3):
            await world.show()
            await world.until_ready()
        before = world.writes()
        for _ in range(20):
            await world.show()
            await pass_time(5)
        assert world.writes() - before < 10


@in_virtual_time
async def test_a_service_that_shows_a_host_name_of_another_owner() -> None:
    world = World()
    await world.create()
    await world.user.merge_patch(
        SERVICES,
        "shop",
        "web",
        {"status": {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}},
        subresource="status",
    )
    async with world.leading():
        condition = await world.until_reason("ForeignOwner")
        assert "lb.example.com" in condition.message
