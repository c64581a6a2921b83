"""Faults in sharing that the walks (test_walks.py) have found, each as short as it can be told."""

import asyncio
from typing import Any

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.test_sharing import TENANT, lb
from tests.host.views import condition, given, seen
from tests.host.world import World, guest_cluster, pool, subnet, virtually

SETTLED = 5.0
"""Virtual seconds after which all that can happen has."""


async def a_shop() -> World:
    cluster = FakeCluster(utc_now)
    made = World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster, program="host"))
    await made.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), subnet("2001:db8::/112")))
    await made.client.create(IPPOOLS, pool("q", subnet("198.51.100.0/24")))
    await made.client.create(IPPOOLS, pool("r", subnet("203.0.113.0/24"), network="default/vlan2"))
    await made.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
    return made


async def change(world: World, one: LoadBalancer, **spec: Any) -> None:
    await world.client.merge_patch(LOADBALANCERS, *one.key, {"spec": spec})


def addresses(host: Host, one: LoadBalancer) -> list[str]:
    return [a.ip for a in seen(host, one).status.addresses]


def reason(host: Host, one: LoadBalancer) -> str:
    found = condition(host, one)
    return "" if found is None else found.reason


@virtually(a_shop)
async def test_who_had_an_address_first_keeps_it_when_who_shares_it_leaves_the_group(world: World) -> None:
    """It was taken for a stranger on its own address, and moved."""
    web, api = lb("web", 80), lb("api", 81, "web")
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, web)
        await given(host, web)
        await world.client.create(LOADBALANCERS, api)
        assert await given(host, api) == "192.0.2.2"
        await change(world, api, primaryService="default/none")
        await asyncio.sleep(SETTLED)
        assert reason(host, api) == "AddressKept"
        assert addresses(host, web) == ["192.0.2.2"]
        assert set(await world.allocations()) == {"192.0.2.2"}


@virtually(a_shop)
async def test_a_primary_joins_nothing_that_it_would_give_back_at_once(world: World) -> None:
    """It did so for ever, four times a second."""
    api, web = lb("api", 81), lb("web", 80, ip_pool="p")
    web.metadata.annotations[NETWORK_ANNOTATION] = "default/vlan2"
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, api)
        await given(host, api)
        await change(world, api, primaryService="default/web")
        await world.client.create(LOADBALANCERS, web)
        await asyncio.sleep(SETTLED)
        before = [b.metadata.resource_version for b in await world.blocks()]
        await asyncio.sleep(SETTLED)
        assert [b.metadata.resource_version for b in await world.blocks()] == before
        assert addresses(host, web) == []


@virtually(a_shop)
async def test_members_without_a_primary_agree_about_one_address(world: World) -> None:
    """Each of two moved to the other's, for ever."""
    one, two = lb("one", 80, ip_pool="p"), lb("two", 81, ip_pool="q")
    async with world.host() as host, world.agent(host):
        for each in (one, two):
            await world.client.create(LOADBALANCERS, each)
            await given(host, each)
        for each in (one, two):
            await change(world, each, primaryService="default/none", ipPool="")
        await asyncio.sleep(SETTLED)
        assert addresses(host, one) == addresses(host, two)
        assert len(await world.allocations()) == 1


@virtually(a_shop)
async def test_who_waits_to_share_is_told_of_a_record_written_anew(world: World) -> None:
    """The primary itself had not changed meanwhile."""
    web, api = lb("web", 80), lb("api", 81, "web")
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, web)
        await given(host, web)
        (block,) = await world.blocks()
        await world.client.create(LOADBALANCERS, api)
        await world.client.delete(IPBLOCKS, "", block.metadata.name)
        await asyncio.sleep(SETTLED)
        assert addresses(host, api) == ["192.0.2.2"]


@virtually(a_shop)
async def test_an_address_that_ranges_reach_no_longer_is_on_its_pools_network(world: World) -> None:
    """Who came to share it showed it on the management network."""
    web, api = lb("web", 80, ip_pool="r"), lb("api", 81, "web")
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, web)
        await given(host, web)
        moved = {"spec": {"ranges": [{"subnet": "10.0.0.0/24"}]}}  # past admission
        await world.client.merge_patch(IPPOOLS, "", "r", moved)
        await world.client.create(LOADBALANCERS, api)
        await given(host, api)
        assert [(a.ip, a.network) for a in seen(host, api).status.addresses] == [("203.0.113.2", "default/vlan2")]


@virtually(a_shop)
async def test_a_primary_gets_the_second_family_that_it_needs_besides_what_it_shares(world: World) -> None:
    api = lb("api", 81)
    web = lb("web", 80, ip_families=["IPv4"], ip_family_policy="RequireDualStack")
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, api)
        await given(host, api)
        await change(world, api, primaryService="default/web")
        await asyncio.sleep(SETTLED)
        await world.client.create(LOADBALANCERS, web)
        await asyncio.sleep(SETTLED)
        assert addresses(host, web) == ["192.0.2.2", "2001:db8::2"]


@virtually(a_shop)
async def test_a_primary_that_has_an_address_of_its_own_joins_no_other_one(world: World) -> None:
    """It joined and left that of its group for ever, where they could not come to its own."""
    web, api, first = lb("web", 80, ip_pool="q"), lb("api", 81, ip_pool="p"), lb("first", 81, "web")
    async with world.host() as host:
        for each in (api, web, first):
            await world.client.create(LOADBALANCERS, each)
            await given(host, each)
        await change(world, api, primaryService="default/web", ipPool="")  # its port is taken there
        only_v4 = {"spec": {"ranges": [{"subnet": "192.0.2.0/24"}]}}
        await world.client.merge_patch(IPPOOLS, "", "p", only_v4)
        await change(world, web, ipPool="", ipFamilies=["IPv4"], ipFamilyPolicy="RequireDualStack")
        await asyncio.sleep(SETTLED)
        before = [b.metadata.resource_version for b in await world.blocks()]
        await asyncio.sleep(SETTLED)
        assert [b.metadata.resource_version for b in await world.blocks()] == before
        assert addresses(host, web) == ["198.51.100.2"]


@virtually(a_shop)
async def test_what_was_anothers_and_is_left_alone_is_ones_own(world: World) -> None:
    web, api = lb("web", 80), lb("api", 81, "web")
    async with world.host() as host, world.agent(host):
        await world.client.create(LOADBALANCERS, web)
        await given(host, web)
        await world.client.create(LOADBALANCERS, api)
        await given(host, api)
        await change(world, api, primaryService="default/none")
        await asyncio.sleep(SETTLED)
        await change(world, api, primaryService="", addresses=["192.0.2.2"])
        await asyncio.sleep(SETTLED)
        await change(world, web, addresses=["192.0.2.9"])
        await asyncio.sleep(SETTLED)
        assert addresses(host, web) == ["192.0.2.9"]
        assert addresses(host, api) == ["192.0.2.2"]
        assert reason(host, api) == "Allocated"
