"""Faults that the walks (test_walks.py) have found, each as short as it can be told."""

import asyncio
from ipaddress import ip_address
from typing import Any

import pytest

from cloudprovider.bridge.api import QuotaExceeded
from cloudprovider.core.addressing import Refusal
from cloudprovider.core.api.guestcluster import GuestClusterSpec, Quota
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION
from cloudprovider.core.api.pool import Allocation, IPBlock
from cloudprovider.core.errors import Conflict
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey
from cloudprovider.core.wants import Release
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.test_moves import until_allocated
from tests.host.test_sharing import TENANT, lb
from tests.host.views import condition, given, refused, seen, vm
from tests.host.world import World, eventually, guest_cluster, pool, subnet, virtually

DUAL: dict[str, Any] = {"ip_families": ["IPv4"], "ip_family_policy": "RequireDualStack"}


async def test_two_blocks_lost_at_once_for_one_load_balancer(world: World, cluster: FakeCluster) -> None:
    """It ended the program."""
    world.connect = lambda: FakeKubeClient(cluster, program="host")
    refused: set[str] = set()

    async def refuse(call: Call) -> None:
        if call.resource == "ipblocks" and call.verb == "create" and call.name not in refused:
            refused.add(call.name)
            raise Conflict("lost", status=409)

    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), subnet("2001:db8::/112")))
    cluster.before = refuse
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm(**DUAL))
        await given(host, vm())
        assert len(seen(host, vm()).status.addresses) == 2
        assert len(refused) == 2


async def test_of_two_families_preferred_one_is_given_where_the_other_is_used_up(world: World) -> None:
    v6 = subnet("2001:db8::/124", "2001:db8::2", "2001:db8::2")
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), v6))
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm("first", ip_families=["IPv6"]))
        await given(host, vm("first"))
        await world.client.create(LOADBALANCERS, vm(ip_family_policy="PreferDualStack"))
        assert await given(host, vm()) == "192.0.2.2"


async def test_the_reason_is_told_although_a_second_family_is_not_to_be_had_either(world: World) -> None:
    v6 = subnet("2001:db8::/124", "2001:db8::2", "2001:db8::2")
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), v6))
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm("first", addresses=["192.0.2.2", "2001:db8::2"]))
        await given(host, vm("first"))
        one = vm(addresses=["192.0.2.2"], ip_family_policy="PreferDualStack")
        await world.client.create(LOADBALANCERS, one)
        await refused(host, one, "AddressInUse")


@pytest.mark.parametrize("fixed", [[], ["192.0.2.2"]])
async def test_to_the_same_address_of_another_network(world: World, fixed: list[str]) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(IPPOOLS, pool("r", subnet("192.0.2.0/24"), network="default/vlan2"))
    await world.client.create(LOADBALANCERS, vm(addresses=fixed))
    async with world.host() as host, world.agent(host):
        await given(host, vm())
        await eventually(lambda: seen(host, vm()).status.holder is not None)
        patch = {"metadata": {"annotations": {NETWORK_ANNOTATION: "default/vlan2"}}}
        await world.client.merge_patch(LOADBALANCERS, *vm().key, patch)
        await eventually(lambda: [a.ip_pool for a in seen(host, vm()).status.addresses] == ["r"], "the move")
        await eventually(lambda: len(host.controller.book.held(seen(host, vm()))) == 1, "the old one given back")
        (held,) = host.controller.book.held(seen(host, vm()))
        assert held.pool == "r"


async def test_a_move_goes_on_after_its_block_was_lost(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(LOADBALANCERS, vm(ip_pool="p"))
    async with world.host() as host:
        await given(host, vm())
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "none"}})
        await eventually(lambda: _reason(host) == "AddressKept")
        (block,) = await world.blocks()
        await lose(world, host, block)
        await until_allocated(world, host, {"192.0.2.2"})
        await world.client.create(IPPOOLS, pool("none", subnet("198.51.100.0/24")))
        await until_allocated(world, host, {"192.0.2.2", "198.51.100.2"})


async def test_what_is_shown_is_recorded_anew_although_it_has_another_one(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(IPPOOLS, pool("q", subnet("198.51.100.0/24")))
    await world.client.create(LOADBALANCERS, vm(ip_pool="p"))
    async with world.host() as host:
        async with world.agent(host):
            await given(host, vm())
            await eventually(lambda: seen(host, vm()).status.holder is not None)
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "q"}})
        await until_allocated(world, host, {"192.0.2.2", "198.51.100.2"})
        (lost,) = [b for b in await world.blocks() if b.spec.pool == "p"]
        await lose(world, host, lost)
        await until_allocated(world, host, {"192.0.2.2", "198.51.100.2"})
        assert seen(host, vm()).status.address == "192.0.2.2"


async def two_hosts() -> World:
    cluster = FakeCluster(utc_now)
    made = World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster, program="host"))
    await made.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/29", "192.0.2.2", "192.0.2.2")))
    made.cluster = cluster  # type: ignore[attr-defined]
    return made


@virtually(two_hosts)
async def test_two_hosts_do_not_write_against_each_other_for_ever(world: World) -> None:
    """One knows only what was true some time ago."""
    writes = 0

    async def count(call: Call) -> None:
        nonlocal writes
        writes += call.verb == "apply"
        if writes > 50:
            await asyncio.Event().wait()

    async with world.host() as one, world.host():
        await world.client.create(LOADBALANCERS, vm("first"))
        await given(one, vm("first"))
        await world.client.create(LOADBALANCERS, vm())
        await eventually(lambda: _reason(one) == "PoolExhausted")
        await asyncio.sleep(5)  # virtual
        one.controller.load_balancers.batches._decided[vm().key] = Refusal("PoolExhausted", "so it was once")
        world.cluster.before = count  # type: ignore[attr-defined]
        one.controller.load_balancers.queue.add(vm().key)
        await asyncio.sleep(5)  # virtual
        found = condition(one, vm())
        assert found is not None
        assert "all 1 IPv4" in found.message
        assert writes < 10


async def test_a_quota_counts_leases(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    spec = GuestClusterSpec(quota=Quota(addresses=1), node_cidrs=["10.0.0.0/8"])
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT, spec))
    await world.client.create(LOADBALANCERS, lb("leased", 80, ipam="dhcp"))
    async with world.host() as host:
        await refused(host, lb("leased", 80), "WaitingForLease")
        await world.client.create(LOADBALANCERS, lb("web", 80))
        await refused(host, lb("web", 80), "QuotaExceeded")


async def test_who_waits_for_an_address_can_not_get_round_the_quota_by_dhcp(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    spec = GuestClusterSpec(quota=Quota(addresses=1), node_cidrs=["10.0.0.0/8"])
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT, spec))
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, lb("web", 80))
        await given(host, lb("web", 80))
        await world.client.create(LOADBALANCERS, lb("more", 81))
        await refused(host, lb("more", 81), "QuotaExceeded")
        request = LoadBalancerRequest(listeners=(Listener("", "TCP", 81, 30081),), ipam="dhcp")
        with pytest.raises(QuotaExceeded):
            await host.backend.ensure(TENANT, ServiceKey("default", "more", "uid-more"), request, ())


async def test_a_release_that_waited_takes_nothing_that_is_shown(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm())
        await given(host, vm())
        late = Release(pool="p", address=ip_address("192.0.2.2"), owner="team-a/vm", uid=seen(host, vm()).metadata.uid)
        host.controller.load_balancers.batches.release([late])
        await world.client.create(LOADBALANCERS, vm("next"))  # is decided with it, or later
        await given(host, vm("next"))
        assert await world.allocations() == {"192.0.2.2": "team-a/vm", "192.0.2.3": "team-a/next"}


async def test_an_address_shown_that_is_anothers_is_let_go(world: World) -> None:
    """It was kept for ever."""
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24", "192.0.2.2", "192.0.2.2")))
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm())
        await given(host, vm())
    other = await world.client.create(LOADBALANCERS, vm("other"))
    (block,) = await world.blocks()
    block.spec.allocations["192.0.2.2"] = Allocation(
        owner="team-a/other", uid=other.metadata.uid, since="2026-01-01T00:00:00Z", tenant="team-a"
    )
    await world.client.replace(IPBLOCKS, block)
    async with world.host() as host:
        await eventually(lambda: not seen(host, vm()).status.addresses, "that it is let go")
        assert await given(host, other) == "192.0.2.2"


async def test_who_waits_for_a_quota_is_asked_again_when_a_conflict_frees_some(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24", "192.0.2.2", "192.0.2.2")))
    await world.client.create(IPPOOLS, pool("q", subnet("198.51.100.0/24")))
    spec = GuestClusterSpec(quota=Quota(addresses=1), node_cidrs=["10.0.0.0/8"])
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT, spec))
    web, more = lb("web", 80, ip_pool="p"), lb("more", 81, ip_pool="q")
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, web)
        await given(host, web)
        await world.client.create(LOADBALANCERS, more)
        await refused(host, more, "QuotaExceeded")
        foreign = [{"ip": "192.0.2.2", "hardwareAddress": "02:00:00:00:00:99"}]
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": {"uid": seen(host, web).metadata.uid},
            "status": {"foreignAddresses": foreign},
        }
        await world.client.apply(
            LOADBALANCERS, *web.key, patch, field_manager="cloudprovider-agent", subresource="status"
        )
        assert await given(host, more) == "198.51.100.2"


async def test_of_two_that_need_two_addresses_each_one_gets_them(world: World) -> None:
    """Each had half of what the other one lacked: both went without."""
    v4, v6 = subnet("192.0.2.0/24"), subnet("2001:db8::/124", "2001:db8::2", "2001:db8::2")
    await world.client.create(IPPOOLS, pool("p", v4, v6))
    await world.client.create(LOADBALANCERS, vm("first", addresses=["192.0.2.9"]))
    async with world.host() as host:
        await given(host, vm("first"))
    hopeless = vm("a", addresses=["192.0.2.9"], ip_family_policy="RequireDualStack")
    await world.client.create(LOADBALANCERS, hopeless)
    await world.client.create(LOADBALANCERS, vm("b", **DUAL))
    async with world.host() as host:
        await given(host, vm("b"))
        assert len(seen(host, vm("b")).status.addresses) == 2
        await refused(host, hopeless, "AddressInUse")
        assert len(await world.allocations()) == 3


async def test_a_move_of_two_families_counts_twice_for_no_limit(world: World) -> None:
    for name, v4, v6 in (("p", "192.0.2.0/24", "2001:db8::/112"), ("q", "198.51.100.0/24", "2001:db8:1::/112")):
        await world.client.create(IPPOOLS, pool(name, subnet(v4), subnet(v6)))
    spec = GuestClusterSpec(quota=Quota(addresses=2), node_cidrs=["10.0.0.0/8"])
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT, spec))
    web = lb("web", 80, ip_pool="p", **DUAL)
    async with world.host() as host, world.agent(host):
        await world.client.create(LOADBALANCERS, web)
        await given(host, web)
        await world.client.merge_patch(LOADBALANCERS, *web.key, {"spec": {"ipPool": "q"}})
        await until_allocated(world, host, {"198.51.100.2", "2001:db8:1::2"})


async def test_a_second_family_is_asked_for_again_when_there_is_room(world: World) -> None:
    v6 = subnet("2001:db8::/124", "2001:db8::2", "2001:db8::2")
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), v6))
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm("first", ip_families=["IPv6"]))
        await given(host, vm("first"))
        await world.client.create(LOADBALANCERS, vm(ip_family_policy="PreferDualStack"))
        assert await given(host, vm()) == "192.0.2.2"
        await world.client.delete(LOADBALANCERS, *vm("first").key)
        await eventually(lambda: len(seen(host, vm()).status.addresses) == 2, "both families")


async def test_an_address_in_use_whose_record_is_lost_goes_to_nobody_who_waits_for_it(
    world: World, cluster: FakeCluster
) -> None:
    """Not even while who shows it is being worked on."""
    world.connect = lambda: FakeKubeClient(cluster, program="host")
    held_up, may_go_on = asyncio.Event(), asyncio.Event()

    async def hold_up(call: Call) -> None:
        if call.program == "host" and (call.verb, call.name) == ("apply", "vm"):
            held_up.set()
            await may_go_on.wait()

    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24", "192.0.2.2", "192.0.2.3")))
    late = vm("late", addresses=["192.0.2.2"])
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm())
        await given(host, vm())
        await world.client.create(LOADBALANCERS, late)
        await refused(host, late, "AddressInUse")
        cluster.before = hold_up
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "none"}})
        await held_up.wait()
        (block,) = await world.blocks()
        await lose(world, host, block)
        may_go_on.set()
        assert await world.allocations() == {"192.0.2.2": "team-a/vm"}


async def lose(world: World, host: Host, block: IPBlock) -> None:
    """Delete a block by hand, and wait for the one that takes its place."""
    name = block.metadata.name
    await world.client.delete(IPBLOCKS, "", name)

    def made_anew() -> bool:
        found = host.caches.blocks.get("", name)
        return found is not None and found.metadata.uid != block.metadata.uid

    await eventually(made_anew, f"{name} made anew")


def _reason(host: Host) -> str:
    found = condition(host, vm())
    return "" if found is None else found.reason
