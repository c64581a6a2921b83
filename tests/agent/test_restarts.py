"""A new agent finds what the one before it left: nothing is called withdrawn before it is."""

import asyncio
import time
from ipaddress import ip_address

import msgspec
from typing_extensions import override

from cloudprovider.core.api.loadbalancer import Address, Listener
from cloudprovider.core.plan import ListenerKey
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.fake import FakeDataPlane, FakeFlow, FakeSegment
from cloudprovider.kube.resources import LOADBALANCERS
from tests.agent.world import MGMT, NEW, OLD, VIP, VLAN2, World, running, until
from tests.core.test_forwarding import HTTP, key, lb

FLOW = FakeFlow(key(OLD.ip), ip_address("10.0.0.11"))
ELSEWHERE = Address(ip="10.9.0.1", ip_pool="x", prefix_length=24, network="x/y")


class SlowDataPlane(FakeDataPlane):
    """One whose management network can't be opened before ``may`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    @override
    async def open(self, config: NetworkConfig) -> FakeSegment:
        if config.name == MGMT.name:
            await self.may.wait()
        return await super().open(config)


async def left_behind() -> tuple[World, SlowDataPlane]:
    """An agent has served a load balancer with a connection, and is gone; the next one does not get at the kernel."""
    world = World()
    world.dataplane = dataplane = SlowDataPlane()
    dataplane.may.set()
    world.seed()
    await world.client.merge_patch(LOADBALANCERS, "t", "a", {"metadata": {"finalizers": ["x/y"]}})
    async with running(world.agent()):
        await until(world.holds)
    world.network.flows.add(FLOW)
    dataplane.may.clear()
    return world, dataplane


async def the_agent_reports(world: World) -> None:
    """Wait until it has read all objects and has told about one that needs no kernel, which comes last."""
    obj = lb("z", "", HTTP)
    obj.status.addresses.append(ELSEWHERE)
    world.cluster.seed(LOADBALANCERS, obj)
    await until(lambda: world.says("Programmed", "NetworkNotConfigured", "z"))


async def test_one_that_was_deleted_meanwhile_is_held_until_it_is_withdrawn() -> None:
    world, dataplane = await left_behind()
    await world.client.delete(LOADBALANCERS, "t", "a")
    async with running(world.agent()):
        await the_agent_reports(world)
        assert await world.held() == [OLD.ip]
        dataplane.may.set()

        async def let_go() -> bool:
            gone = (await world.lb()).status.holder is None
            if gone:
                assert VIP not in world.network.vips
                assert not world.network.ledger.forwards
                assert FLOW not in world.network.flows
            return gone

        await until(let_go)


async def test_an_address_that_was_replaced_meanwhile_is_named_until_it_is_withdrawn() -> None:
    world, dataplane = await left_behind()
    await world.controller_says([NEW])
    async with running(world.agent()):
        await the_agent_reports(world)
        assert await world.held() == [OLD.ip]
        dataplane.may.set()

        async def moved() -> bool:
            found = await world.held()
            if OLD.ip not in found:
                assert VIP not in world.network.vips
            return found == [NEW.ip]

        await until(moved)
        assert FLOW not in world.network.flows


async def test_an_address_that_was_replaced_meanwhile_by_one_on_another_network() -> None:
    world, dataplane = await left_behind()
    dataplane.devices.add(VLAN2.device)
    there = Address(ip="10.2.0.100", ip_pool="r", prefix_length=24, network=VLAN2.name)
    await world.controller_says([there])
    async with running(world.agent(networks=(MGMT, VLAN2))):
        await until(lambda: VLAN2.name in dataplane.namespaces and dataplane.namespaces[VLAN2.name].vips)
        await the_agent_reports(world)
        assert await world.held() == [OLD.ip]
        dataplane.may.set()

        async def moved() -> bool:
            return await world.held() == [there.ip]

        await until(moved)


async def test_a_network_that_was_never_there_holds_nothing_back() -> None:
    """It could not have had an address up; which network the old one was on, nobody knows any more."""
    world, dataplane = await left_behind()
    await world.controller_says([NEW])
    dataplane.may.set()
    assert VLAN2.device not in dataplane.devices
    async with running(world.agent(networks=(MGMT, VLAN2))):

        async def moved() -> bool:
            return await world.held() == [NEW.ip]

        await until(moved)


async def test_a_network_of_no_configuration_any_more_is_removed() -> None:
    there = Address(ip="10.2.0.100", ip_pool="r", prefix_length=24, network=VLAN2.name)
    world = World()
    obj = lb("a", "", HTTP)
    obj.status.addresses.append(there)
    world.cluster.seed(LOADBALANCERS, obj)
    async with running(world.agent(networks=(MGMT, VLAN2))):
        await until(world.holds)
    async with running(world.agent()):
        await until(lambda: world.says("Programmed", "NetworkNotConfigured"))
        assert await world.held() == []
    assert await world.dataplane.networks() == [MGMT.name]


async def test_what_an_agent_did_not_come_to_end_is_ended_by_the_next() -> None:
    """Flows by UDP of a node that had left, and all of a listener that was gone; connections have their time."""
    world, dataplane = await left_behind()
    gone = ip_address("10.0.0.13")
    dns = ListenerKey(VIP, "UDP", 53)
    flows = {
        "of nobody": FakeFlow(key(OLD.ip, 81), ip_address("10.0.0.11")),
        "udp, left": FakeFlow(dns, gone),
        "udp, there": FakeFlow(dns, ip_address("10.0.0.12")),
        "tcp, left": FakeFlow(key(OLD.ip), gone),
    }
    world.network.flows.update(flows.values())
    obj = await world.lb()
    listeners = [HTTP, Listener(port=53, protocol="UDP", backend_port=30053)]
    spec = msgspec.structs.replace(obj.spec, listeners=listeners, drain_seconds=1)
    await world.client.replace(LOADBALANCERS, msgspec.structs.replace(obj, spec=spec))
    dataplane.may.set()
    async with running(world.agent()):
        kept = {FLOW, flows["udp, there"], flows["tcp, left"]}
        await until(lambda: world.network.flows == kept)
        assert dns in world.network.ledger.forwards, "first new flows must not come to the node any more"
        kept.remove(flows["tcp, left"])
        began = time.monotonic()
        await until(lambda: world.network.flows == kept)
        assert time.monotonic() - began > 0.5
