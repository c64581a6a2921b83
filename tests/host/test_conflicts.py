"""Somebody else has an address: another one is taken, it is said who, and the address comes back after a time."""

import asyncio
from datetime import timedelta
from ipaddress import ip_address
from typing import Any

import msgspec

from cloudprovider.bridge.api import Hello
from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import ForeignAddress, LoadBalancer
from cloudprovider.core.exchange import ReportedNode, Tenant
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.host.controller import REOPEN_SECONDS
from cloudprovider.host.loadbalancers import CONFLICT_TIME
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS, NODES
from tests.host.views import given, refused, seen, told, vm
from tests.host.world import World, eventually, guest_cluster, host_node, pool, subnet, virtually

MAC = "02:00:00:00:00:99"
TENANT = Tenant("team-a", "blue")


async def found_elsewhere(world: World, host: Host, lb: LoadBalancer) -> None:
    """Say as an agent does that somebody else has the load balancer's address."""
    status = seen(host, lb).status
    foreign = [msgspec.to_builtins(ForeignAddress(ip=status.address, hardware_address=MAC))]
    await world.client.apply(
        LOADBALANCERS,
        *lb.key,
        {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": {"uid": seen(host, lb).metadata.uid},
            "status": {"foreignAddresses": foreign},
        },
        field_manager="cloudprovider-agent",
        subresource="status",
    )


async def prepared(**spec: Any) -> World:
    cluster = FakeCluster(utc_now)
    made = World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster))
    await made.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24", "192.0.2.2", "192.0.2.3")))
    await made.client.create(LOADBALANCERS, vm(**spec))
    return made


async def test_another_address_is_taken_and_it_is_said_who_has_it() -> None:
    world = await prepared()
    async with world.host() as host:
        assert await given(host, vm()) == "192.0.2.2"
        await found_elsewhere(world, host, vm())
        await eventually(lambda: seen(host, vm()).status.address == "192.0.2.3", "another address")
        (block,) = await world.blocks()
        assert set(block.spec.allocations) == {"192.0.2.3"}
        conflict = block.spec.conflicts["192.0.2.2"]
        assert conflict.hardware_address == MAC
        await world.client.create(LOADBALANCERS, vm("late"))
        assert "2 IPv4" in await refused(host, vm("late"), "PoolExhausted")
        fixed = vm("fixed", addresses=["192.0.2.2"])
        await world.client.create(LOADBALANCERS, fixed)
        assert MAC in await refused(host, fixed, "AddressConflict")

        assert MAC in (await told(world, "AddressConflict")).message


async def test_an_address_asked_for_by_name_stays() -> None:
    world = await prepared(addresses=["192.0.2.2"])
    async with world.host() as host:
        await given(host, vm())
        await found_elsewhere(world, host, vm())
        await eventually(lambda: bool(seen(host, vm()).status.foreign_addresses))
        await world.client.create(LOADBALANCERS, vm("other"))
        assert await given(host, vm("other")) == "192.0.2.3"  # a whole round later
        assert seen(host, vm()).status.address == "192.0.2.2"
        assert not (await world.blocks())[0].spec.conflicts


async def test_no_address_of_a_hosts_node_is_given_also_one_of_a_node_that_comes() -> None:
    world = await prepared()
    await world.client.create(NODES, host_node("host-1", "192.0.2.2"))
    async with world.host() as host:
        assert await given(host, vm()) == "192.0.2.3"
        await world.client.create(LOADBALANCERS, vm("late"))
        assert "1 IPv4" in await refused(host, vm("late"), "PoolExhausted")
        await world.client.delete(NODES, "", "host-1")
        assert await given(host, vm("late")) == "192.0.2.2"


async def test_whoever_is_found_to_have_an_address_may_be_a_guests_node() -> None:
    """What is set aside for a conflict is no load balancer's address: its owner keeps its traffic."""
    world = await prepared()
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT, GuestClusterSpec(node_cidrs=["192.0.2.0/24"])))
    async with world.host() as host:
        await host.backend.connect(TENANT, Hello(cluster_uid="kube-system-1", guest_version="1"))
        assert await given(host, vm()) == "192.0.2.2"
        node = ReportedNode("worker-1", (ip_address("192.0.2.2"),))
        (rejected,) = await host.backend.report_nodes(TENANT, [node])
        assert rejected.reason == "LoadBalancerAddress"
        await found_elsewhere(world, host, vm())

        def accepted() -> bool:
            cluster = host.caches.guest_cluster(TENANT)
            return cluster is not None and [n.name for n in cluster.status.nodes] == ["worker-1"]

        await eventually(accepted, "the node to be let in")


@virtually(prepared)
async def test_it_comes_back_into_circulation(world: World) -> None:
    began, loop = utc_now() - timedelta(seconds=asyncio.get_running_loop().time()), asyncio.get_running_loop()
    world.now = lambda: began + timedelta(seconds=loop.time())
    async with world.host() as host:
        await given(host, vm())
        await found_elsewhere(world, host, vm())
        await eventually(lambda: seen(host, vm()).status.address == "192.0.2.3")
        await world.client.create(LOADBALANCERS, vm("late"))
        await refused(host, vm("late"), "PoolExhausted")
    async with world.host() as host:  # a restart forgets nothing
        await refused(host, vm("late"), "PoolExhausted")
        await asyncio.sleep(CONFLICT_TIME.total_seconds() - 30)
        assert (await world.blocks())[0].spec.conflicts.keys() == {"192.0.2.2"}
        await asyncio.sleep(30 + REOPEN_SECONDS)
        assert await given(host, vm("late")) == "192.0.2.2"
        assert not (await world.blocks())[0].spec.conflicts
