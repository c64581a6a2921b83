"""A Service's way to its address, and the requests it costs."""

import asyncio

import pytest

from cloudprovider.core.api.kubernetes import SERVICE_FINALIZER
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import Conflict, Unavailable
from cloudprovider.core.exchange import LoadBalancerRequest, ServiceKey
from cloudprovider.guest.servicestatus import READY
from cloudprovider.kube.fakestore import Call
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
    assert b"cloudprovider_guest_time_to_address_seconds_count 1.0\n" in await world.registry.text()


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
        await world.served()
    writes = world.writes()
    async with world.leading():
        await world.until_true(lambda: world.calls("ensure") == 2)
        await pass_time(100)
        assert (world.writes(), world.calls("ensure")) == (writes, 2)


@in_virtual_time
async def test_a_host_that_restarts_is_asked_again_for_everything() -> None:
    world = World()
    async with world.leading():
        service = await world.served()
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
async def test_what_the_host_lost_is_asked_for_again_and_keeps_its_address() -> None:
    world = World()
    async with world.leading():
        service = await world.served(loadBalancerIP="192.0.2.50")
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
        await world.served()
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
        await world.served()
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
        await world.served()
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
            await world.served()
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
        await world.served()
        away = True
        world.cluster.cut_watches(Unavailable("connection reset"))
        await world.create("second")
        await world.delete()
        before = world.guest.requests.total()
        await pass_time(60)
        assert world.guest.requests.total() - before < 60
        away = False
        await world.until_ready("second")
        await world.until(world.gone)


@in_virtual_time
async def test_names_of_63_characters_and_a_hundred_ports() -> None:
    world = World()
    async with world.leading():
        name = "n" * 63
        ports = [{"name": f"p{i}", "port": 1000 + i, "nodePort": 30000 + i} for i in range(100)]
        service = await world.served(name, ports=ports)
        assert len(world.backend.load_balancers[TENANT, world.key(service)].request.listeners) == 100


@in_virtual_time
async def test_the_host_knows_which_service_it_is() -> None:
    world = World()
    async with world.leading():
        service = await world.served()
        assert world.balancers() == [ServiceKey("shop", "web", service.metadata.uid)]
