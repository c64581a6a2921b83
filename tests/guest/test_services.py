"""A Service's way to its address and back, and the requests it costs."""

import asyncio
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from cloudprovider.core.api.kubernetes import SERVICE_FINALIZER
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import Conflict, Unavailable
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey
from cloudprovider.core.translate import (
    DEFAULT_CLASS,
    IP_POOL,
    MODE,
    NAMESPACE,
    NETWORK,
    PROJECT,
    SOURCE_RANGES,
    Classes,
)
from cloudprovider.guest.servicestatus import READY
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import SERVICES
from tests.guest.world import TENANT, World, in_virtual_time, pass_time


@in_virtual_time
async def test_an_address_costs_three_requests() -> None:
    world = World()
    async with world.leading():
        await world.create()
        assert await world.until_ready() == ["192.0.2.1"]
        await pass_time(200)
        requests = world.guest.requests
        assert requests.total(verb="patch", resource="services") == 1
        assert requests.total(verb="apply", resource="services/status") == 1
        assert requests.total(verb="create", resource="events") == 1
        assert world.writes() == 3
        assert world.calls("ensure") == 1
    service = await world.service()
    assert service is not None
    assert service.metadata.finalizers == [SERVICE_FINALIZER]
    assert [(i.ip, i.ip_mode, i.ports) for i in service.status.load_balancer.ingress] == [("192.0.2.1", "VIP", [])]
    condition = find(service.status.conditions, READY)
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "AddressAssigned")
    assert condition.message == "reachable at 192.0.2.1 (pool default), mode nat"
    assert condition.last_transition_time
    (event,) = await world.events()
    assert (event.type, event.reason, event.message) == ("Normal", "AddressAssigned", condition.message)
    assert world.metrics.addresses == 1


@in_virtual_time
async def test_many_at_once_cost_three_requests_each() -> None:
    world = World()
    async with world.leading():
        await asyncio.gather(*(world.create(f"web{i}") for i in range(100)))
        for i in range(100):
            await world.until_ready(f"web{i}")
        await pass_time(10)
        assert world.writes() == 300
        assert world.guest.requests.total(code=409) == 0


@in_virtual_time
async def test_an_address_is_shown_only_when_it_is_programmed() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.create()
        await world.until_true(lambda: len(world.backend.load_balancers) == 1)
        await pass_time(1)
        assert await world.ips() == []
        world.backend.program(TENANT, world.key(service))
        assert await world.until_ready() == ["192.0.2.1"]
        assert world.writes() == 3


@in_virtual_time
async def test_what_takes_long_says_what_it_waits_for() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.create()
        condition = await world.until_reason("Pending")
        assert condition.status == "False"
        assert "Allocated is True: 192.0.2.1 from pool default" in condition.message
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()


@in_virtual_time
async def test_a_restart_writes_nothing_and_asks_the_host_once() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
    writes = world.writes()
    async with world.leading():
        await world.until_true(lambda: world.calls("ensure") == 2)
        await pass_time(100)
        assert (world.writes(), world.calls("ensure")) == (writes, 2)


HTTP = {"name": "http", "port": 80, "nodePort": 30080}
LISTENER = Listener("http", "TCP", 80, 30080)
LOCAL = {"externalTrafficPolicy": "Local", "healthCheckNodePort": 31000}
CLIENT_IP = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}}}
RANGE = ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("before", "change", "fields"),
    [
        ({}, {"ports": [HTTP | {"port": 8080}]}, {"listeners": (replace(LISTENER, port=8080),)}),
        ({}, {"ports": [HTTP | {"nodePort": 30081}]}, {"listeners": (replace(LISTENER, node_port=30081),)}),
        ({}, {"ports": [HTTP | {"name": "renamed"}]}, {"listeners": (replace(LISTENER, name="renamed"),)}),
        ({}, {"ports": [HTTP | {"protocol": "UDP"}]}, {"listeners": (replace(LISTENER, protocol="UDP"),)}),
        ({}, {"loadBalancerIP": "192.0.2.9"}, {"addresses": (ip_address("192.0.2.9"),)}),
        ({}, {"ipFamilyPolicy": "PreferDualStack"}, {"ip_family_policy": "PreferDualStack"}),
        ({}, {"ipFamilies": ["IPv4", "IPv6"]}, {"ip_families": ("IPv4", "IPv6")}),
        ({}, {"sessionAffinity": "ClientIP"}, {"affinity_seconds": 10800}),
        (CLIENT_IP, {"sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, {"affinity_seconds": 5}),
        (CLIENT_IP, {"sessionAffinity": "None", "sessionAffinityConfig": None}, {"affinity_seconds": None}),
        ({}, {"loadBalancerSourceRanges": ["10.0.0.0/8"]}, {"sources": (RANGE,)}),
        ({}, {"externalTrafficPolicy": "Local"}, {"external_traffic_policy": "Local"}),
        (LOCAL, {"healthCheckNodePort": 31001}, {"health_check_node_port": 31001}),
    ],
)
def test_every_change_that_matters_reaches_the_host(
    before: dict[str, Any], change: dict[str, Any], fields: dict[str, Any]
) -> None:
    _changes(before, {"spec": change}, fields)


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [
        (MODE, "dsr", {"mode": "dsr"}),
        (IP_POOL, "default", {"ip_pool": "default"}),
        (NETWORK, "default/vlan8", {"network": "default/vlan8"}),
        (PROJECT, "c-a/p-b", {"scope_project": "c-a/p-b"}),
        (NAMESPACE, "shop", {"scope_namespace": "shop"}),
        (SOURCE_RANGES, "10.0.0.0/8", {"sources": (RANGE,)}),
    ],
)
def test_every_annotation_reaches_the_host(name: str, value: str, fields: dict[str, Any]) -> None:
    _changes({}, {"metadata": {"annotations": {name: value}}}, fields)


def _changes(before: dict[str, Any], patch: dict[str, Any], fields: dict[str, Any]) -> None:
    """``patch`` on a Service with the spec ``before`` changes ``fields`` of the request, and nothing else."""

    @in_virtual_time
    async def scenario() -> None:
        world = World()
        async with world.leading():
            service = await world.create(**before)
            await world.until_ready()
            asked = world.backend.load_balancers[TENANT, world.key(service)].request
            wanted = replace(asked, **fields)
            assert wanted != asked
            await world.change(**patch)
            await world.until_true(lambda: world.calls("ensure") == 2)
            assert world.backend.load_balancers[TENANT, world.key(service)].request == wanted
            await pass_time(5)
            assert (world.writes(), world.calls("ensure")) == (3, 2)

    scenario()


@in_virtual_time
async def test_changes_that_the_nodes_see_to_leave_the_host_alone() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
        port = {"name": "http", "port": 80, "nodePort": 30080, "targetPort": "other", "appProtocol": "http"}
        await world.change(spec={"ports": [port]}, metadata={"labels": {"a": "b"}, "annotations": {"c": "d"}})
        await pass_time(20)
        assert (world.writes(), world.calls("ensure")) == (3, 1)


@in_virtual_time
async def test_deletion_waits_for_the_host_and_costs_one_request() -> None:
    world = World(automatic=False)
    async with world.leading():
        service = await world.create()
        await world.until_true(lambda: len(world.backend.load_balancers) == 1)
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()
        writes = world.writes()
        await world.delete()
        await world.until_true(lambda: world.calls("delete") == 1)
        await pass_time(20)
        assert await world.held()
        assert world.calls("delete") == 1
        world.backend.release(TENANT, world.key(service))
        await world.until(lambda: _gone(world))
        await pass_time(5)
        assert world.writes() == writes + 1


async def _gone(world: World) -> bool:
    return await world.service() is None


@in_virtual_time
async def test_the_type_changed_away_and_back() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
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
        service = await world.create()
        await world.until_true(lambda: len(world.backend.load_balancers) == 1)
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()
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
        service = await world.create()
        await world.until_true(lambda: len(world.backend.load_balancers) == 1)
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()
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
        service = await world.create()
        await world.until_true(lambda: len(world.backend.load_balancers) == 1)
        world.backend.program(TENANT, world.key(service))
        await world.until_ready()
        await world.delete()
        await world.until_true(lambda: world.calls("delete") == 1)
        with world.bridge.cut():
            world.backend.release(TENANT, world.key(service))
            world.forget_stream()
            await pass_time(5)
            assert await world.held()
        await world.until(lambda: _gone(world))


@in_virtual_time
async def test_a_host_that_restarts_is_asked_again_for_everything() -> None:
    world = World()
    async with world.leading():
        service = await world.create()
        await world.until_ready()
        load_balancer = world.backend.load_balancers[TENANT, world.key(service)]
        wanted, load_balancer.request = load_balancer.request, LoadBalancerRequest(listeners=())
        with world.bridge.cut():
            await pass_time(1)
        await pass_time(5)
        assert world.calls("ensure") == 1  # the stream was resumed: nothing is in doubt
        with world.bridge.cut():
            world.forget_stream()
            await pass_time(1)
        await world.until_true(lambda: world.calls("ensure") == 2)
        assert load_balancer.request == wanted
        await pass_time(5)
        assert world.writes() == 3


@in_virtual_time
async def test_a_restart_while_the_type_is_changed_cleans_up() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
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
        await world.create()
        await world.until_ready()
    await world.delete()
    async with world.leading():
        await world.until(lambda: _gone(world))
        assert world.balancers() == []


@in_virtual_time
async def test_a_service_deleted_before_the_host_knew_it_is_let_go() -> None:
    world = World()
    await world.create()
    await world.change(metadata={"finalizers": [SERVICE_FINALIZER]})  # and then the program was killed
    await world.delete()
    async with world.leading():
        await world.until(lambda: _gone(world))


@in_virtual_time
async def test_recreated_under_the_same_name() -> None:
    world = World()
    async with world.leading():
        first = await world.create()
        await world.until_ready()
        await world.change(metadata={"finalizers": None})
        await world.delete()
        second = await world.create()
        await world.until_ready()
        await world.until_true(lambda: world.balancers() == [world.key(second)])
        assert first.metadata.uid != second.metadata.uid
        assert world.calls("delete") == 1


@in_virtual_time
async def test_recreated_while_the_program_was_away() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
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
        await world.create()
        await world.until_ready()
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
        await world.create(loadBalancerClass="example.com/one")
        await world.until_ready()
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
        await world.create()
        await world.until_ready()
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
        await world.create("first", loadBalancerIP="192.0.2.77")
        await world.until_ready("first")
    await world.create()
    await world.show("192.0.2.77")
    async with world.leading():
        await world.until_reason("ForeignOwner")
        assert await world.ips() == ["192.0.2.77"]


@in_virtual_time
async def test_an_emptied_status_is_written_again_ever_more_slowly() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
        for _ in range(3):
            await world.show()
            await world.until_ready()
        before = world.writes()
        for _ in range(20):
            await world.show()
            await pass_time(5)
        assert world.writes() - before < 10


@in_virtual_time
async def test_what_the_host_lost_is_asked_for_again_and_keeps_its_address() -> None:
    world = World()
    async with world.leading():
        service = await world.create(loadBalancerIP="192.0.2.50")
        await world.until_ready()
        await world.change(spec={"loadBalancerIP": None})
        await world.until_true(lambda: world.calls("ensure") == 2)
        world.backend.release(TENANT, world.key(service))
        await world.until_true(lambda: world.calls("ensure") == 3)
        await pass_time(5)
        assert await world.ips() == ["192.0.2.50"]


@in_virtual_time
async def test_an_address_that_changes_on_the_host_changes_here() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
        world.backend.load_balancers.clear()
        log = world.backend.states(TENANT)
        (key,) = log.states
        log.remove(key)
        await world.change(spec={"loadBalancerIP": "192.0.2.60"})

        async def moved() -> bool:
            return await world.ips() == ["192.0.2.60"]

        await world.until(moved)


@in_virtual_time
async def test_a_condition_keeps_its_time_while_its_status_does() -> None:
    world = World()
    async with world.leading():
        await world.create()
        await world.until_ready()
        before = await world.ready()
        await pass_time(100)
        await world.change(spec={"loadBalancerIP": "no"})
        first = await world.until_reason("MalformedValue")
        await pass_time(100)
        await world.change(spec={"loadBalancerIP": None, "ports": []})
        second = await world.until_reason("Required")
        assert before is not None
        assert before.last_transition_time < first.last_transition_time == second.last_transition_time


@in_virtual_time
async def test_a_conflict_is_tried_again() -> None:
    world = World()
    refusals = iter([Conflict("somebody else wrote", status=409)])

    async def refuse(call: Call) -> None:
        if call.program == "guest" and call.verb == "patch" and (error := next(refusals, None)):
            raise error

    world.cluster.before = refuse
    async with world.leading():
        await world.create()
        await world.until_ready()
        assert world.guest.requests.total(code=409) == 1


@pytest.mark.parametrize("verb", ["patch", "apply"])
def test_a_lost_answer_is_asked_for_again(verb: str) -> None:
    @in_virtual_time
    async def scenario() -> None:
        world = World()
        lost = iter([True])

        async def lose(call: Call) -> None:
            if call.program == "guest" and call.verb == verb and next(lost, False):
                raise Unavailable("the answer was lost")

        world.cluster.after = lose
        async with world.leading():
            await world.create()
            await world.until_ready()
            await pass_time(20)
            assert world.writes() <= 4

    scenario()


@in_virtual_time
async def test_an_api_server_that_is_away_for_a_minute() -> None:
    world = World()
    away = False

    async def refuse(call: Call) -> None:
        if away and call.program == "guest":
            raise Unavailable("connection refused")

    world.cluster.before = refuse
    async with world.leading():
        await world.create()
        await world.until_ready()
        away = True
        world.cluster.cut_watches(Unavailable("connection reset"))
        await world.create("second")
        await world.delete()
        before = world.guest.requests.total()
        await pass_time(60)
        assert world.guest.requests.total() - before < 60
        away = False
        await world.until_ready("second")
        await world.until(lambda: _gone(world))


@in_virtual_time
async def test_names_of_63_characters_and_a_hundred_ports() -> None:
    world = World()
    async with world.leading():
        name = "n" * 63
        ports = [{"name": f"p{i}", "port": 1000 + i, "nodePort": 30000 + i} for i in range(100)]
        service = await world.create(name, ports=ports)
        await world.until_ready(name)
        assert len(world.backend.load_balancers[TENANT, world.key(service)].request.listeners) == 100


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


@in_virtual_time
async def test_the_host_knows_which_service_it_is() -> None:
    world = World()
    async with world.leading():
        service = await world.create()
        await world.until_ready()
        assert world.balancers() == [ServiceKey("shop", "web", service.metadata.uid)]
