"""The whole agent between an API server in memory and a kernel in memory."""

import msgspec

from cloudprovider.core.api.loadbalancer import Address
from cloudprovider.core.errors import Unavailable
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import GUESTCLUSTERS, LEASES, LOADBALANCERS
from tests.agent.world import VIP, World, running, until
from tests.core.test_forwarding import HTTP, cluster, key, lb


async def test_a_load_balancer_is_forwarded_announced_and_reported_in_one_write() -> None:
    world = World()
    world.seed()
    agent = world.agent()
    async with running(agent):
        await until(world.holds)
        assert not agent.not_ready
    obj = await world.lb()
    assert obj.status.holder is not None
    assert obj.status.holder.addresses == ["10.0.0.100"]
    assert obj.status.holder.generation == obj.metadata.generation
    assert {c.type: c.status for c in obj.status.conditions} == {
        "Programmed": "True",
        "Ready": "True",
        "ClientAddressNotPreserved": "True",
    }
    assert world.network.vips == {VIP}


async def test_the_status_is_written_once() -> None:
    world = World()
    world.seed()
    agent = world.agent()
    async with running(agent):
        await until(world.holds)
        world.seed("b", "10.0.0.101")
        await until(lambda: world.holds("b"))
        client = agent._client
        assert isinstance(client, FakeKubeClient)
        assert client.requests.total(resource="loadbalancers/status") == 2


async def test_a_deleted_one_is_withdrawn_before_the_holder_goes() -> None:
    world = World()
    obj = world.seed()
    await world.client.merge_patch(LOADBALANCERS, "t", "a", {"metadata": {"finalizers": ["x/y"]}})
    async with running(world.agent()):
        await until(world.holds)
        await world.client.delete(LOADBALANCERS, *obj.key)

        async def released() -> bool:
            status = (await world.lb()).status
            assert status.holder is None or status.holder.addresses
            return status.holder is None

        await until(released)
        assert not world.network.vips
        assert not world.network.ledger.plan().forwards
        # The controller's fields are not the agent's to take away.
        assert (await world.lb()).status.addresses


async def test_a_changed_port_follows_and_the_generation_is_told() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        patch = {"spec": {"listeners": [{"port": 81, "backendPort": 30081}]}}
        generation = (await world.client.merge_patch(LOADBALANCERS, "t", "a", patch)).metadata.generation

        async def followed() -> bool:
            holder = (await world.lb()).status.holder
            return holder is not None and holder.generation == generation

        await until(followed)
        assert set(world.network.ledger.plan().forwards) == {key("10.0.0.100", 81)}


async def test_nodes_that_go_are_told_and_those_that_come_heal() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await world.client.merge_patch(GUESTCLUSTERS, "t", "c", {"status": {"nodes": []}}, subresource="status")
        await until(lambda: world.says("Ready", "NoNodes"))
        assert world.network.vips == {VIP}  # refused, not withdrawn
        nodes = msgspec.to_builtins(cluster("n1").status)
        await world.client.merge_patch(GUESTCLUSTERS, "t", "c", {"status": nodes}, subresource="status")
        await until(lambda: world.says("Ready", "Ready"))


async def test_an_unknown_network_is_told() -> None:
    world = World()
    obj = lb("a", "10.0.0.100", HTTP)
    obj.status.addresses[0] = Address(ip="10.0.0.100", prefix_length=24, network="x/y")
    world.cluster.seed(LOADBALANCERS, obj)
    async with running(world.agent()):
        await until(lambda: world.says("Programmed", "NetworkNotConfigured"))
    assert not world.network.vips


async def test_an_address_that_is_none_is_told() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await world.controller_says([Address(ip="10.0.0.300", ip_pool="p", prefix_length=24)])
        await until(lambda: world.says("Programmed", "InvalidSpec"))
        assert await world.held() == []
    assert not world.network.vips


async def test_an_outage_of_the_api_server_takes_nothing_away() -> None:
    world = World()
    world.seed()
    agent = world.agent()
    async with running(agent):
        await until(world.holds)
        client = agent._client
        assert isinstance(client, FakeKubeClient)
        down = True

        async def away(call: Call) -> None:
            if down and call.program == "h1":
                raise Unavailable("away")

        world.cluster.before = away
        world.cluster.cut_watches()
        await until(lambda: client.requests.total(code=0) >= 2)
        assert world.network.vips == {VIP}
        assert world.network.ledger.plan().forwards
        down = False
        world.seed("b", "10.0.0.101")
        await until(lambda: world.holds("b"), 20)


async def test_leave_removes_what_is_its_own_and_lets_go() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
    await world.agent().leave()
    assert not world.dataplane.namespaces
    assert (await world.lb()).status.holder is None
    assert not (await world.client.list(LEASES)).items
