"""Addresses reserved, excluded, limited, released by hand; and pools that fill up."""

import asyncio
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from cloudprovider.bridge.api import Hello, QuotaExceeded
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterSpec
from cloudprovider.core.api.pool import MANUALLY_RELEASE_ANNOTATION, Allocation, IPPool, Range, Reservation
from cloudprovider.core.conditions import find
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey, Tenant
from cloudprovider.core.lbobject import wanted_object
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.test_moves import until_allocated
from tests.host.views import given, refused, seen, told, vm
from tests.host.world import World, eventually, guest_cluster, pool, subnet

TENANT = Tenant("team-a", "blue")
REQUEST = LoadBalancerRequest(listeners=(Listener("", "TCP", 80, 30080),))


def with_spec(made: IPPool, **changes: Any) -> IPPool:
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, **changes))


def service(name: str, uid: str = "uid") -> Any:
    key = ServiceKey("default", name, uid)
    return wanted_object(TENANT, key, REQUEST, cluster_uid="c", limits=GuestClusterSpec())


def limited_to(addresses: int) -> GuestCluster:
    cluster = guest_cluster(TENANT)
    quota = msgspec.structs.replace(cluster.spec.quota, addresses=addresses)
    return msgspec.structs.replace(cluster, spec=msgspec.structs.replace(cluster.spec, quota=quota))


class TestReserved:
    RESERVATIONS = (
        Reservation(address="192.0.2.2", namespace="team-a", guest_cluster="blue", service="default/shop"),
        Reservation(address="192.0.2.3", namespace="team-a", load_balancer="db"),
    )

    @pytest.fixture
    async def reserved(self, world: World) -> World:
        made = pool("p", subnet("192.0.2.0/24", "192.0.2.2", "192.0.2.4"))
        await world.client.create(IPPOOLS, with_spec(made, reservations=list(self.RESERVATIONS)))
        await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
        return world

    async def test_nobody_else_gets_it_and_its_owner_does_without_asking(self, reserved: World) -> None:
        async with reserved.host() as host:
            await reserved.client.create(LOADBALANCERS, vm("other"))
            assert await given(host, vm("other")) == "192.0.2.4"
            await reserved.client.create(LOADBALANCERS, vm("more"))
            assert "allocated or reserved" in await refused(host, vm("more"), "PoolExhausted")
            await reserved.client.create(LOADBALANCERS, vm("thief", addresses=["192.0.2.3"]))
            await refused(host, vm("thief"), "AddressReserved")
            await reserved.client.create(LOADBALANCERS, vm("db", namespace="team-b"))
            await refused(host, vm("db", namespace="team-b"), "PoolExhausted")
            for uid in ("one", "two"):  # made anew it gets it again
                shop = service("shop", uid)
                await reserved.client.create(LOADBALANCERS, shop)
                assert await given(host, shop) == "192.0.2.2"
                await reserved.client.delete(LOADBALANCERS, *shop.key)
                await eventually(lambda shop=shop: host.caches.load_balancers.get(*shop.key) is None)  # type: ignore[misc]
            await reserved.client.create(LOADBALANCERS, vm("db", addresses=["192.0.2.3"]))
            assert await given(host, vm("db")) == "192.0.2.3"

    async def test_a_reservation_that_goes_serves_those_who_wait(self, reserved: World) -> None:
        async with reserved.host() as host:
            for name in ("a", "b"):
                await reserved.client.create(LOADBALANCERS, vm(name))
            assert await given(host, vm("a")) == "192.0.2.4"
            await refused(host, vm("b"), "PoolExhausted")
            await reserved.client.merge_patch(IPPOOLS, "", "p", {"spec": {"reservations": []}})
            assert await given(host, vm("b")) == "192.0.2.2"

    async def test_who_has_it_before_it_is_reserved_keeps_it(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24", "192.0.2.2", "192.0.2.4")))
        await world.client.create(LOADBALANCERS, vm("first"))
        async with world.host() as host:
            assert await given(host, vm("first")) == "192.0.2.2"
            body = msgspec.to_builtins(list(self.RESERVATIONS))
            await world.client.merge_patch(IPPOOLS, "", "p", {"spec": {"reservations": body}})
            await world.client.create(LOADBALANCERS, vm("next"))
            assert await given(host, vm("next")) == "192.0.2.4"
            assert seen(host, vm("first")).status.address == "192.0.2.2"


class TestRanges:
    async def test_what_is_excluded_is_not_handed_out_and_growing_serves_at_once(self, world: World) -> None:
        taken = Range(subnet="192.0.2.0/29", exclude=["192.0.2.2", "192.0.2.4/31"])
        await world.client.create(IPPOOLS, pool("p", taken))
        async with world.host() as host:
            for name in ("a", "b", "c"):
                await world.client.create(LOADBALANCERS, vm(name))
            got = {await given(host, vm(name)) for name in ("a", "b")}
            assert got == {"192.0.2.3", "192.0.2.6"}
            await refused(host, vm("c"), "PoolExhausted")
            body = [{"subnet": "192.0.2.0/29", "exclude": ["192.0.2.2"]}]
            await world.client.merge_patch(IPPOOLS, "", "p", {"spec": {"ranges": body}})
            assert await given(host, vm("c")) in {"192.0.2.4", "192.0.2.5"}


class TestQuotas:
    async def test_of_a_pool_for_each_tenant(self, world: World) -> None:
        made = with_spec(pool("p", subnet("192.0.2.0/24")), addresses_per_tenant=2)
        await world.client.create(IPPOOLS, made)
        async with world.host() as host:
            for i in range(3):
                await world.client.create(LOADBALANCERS, vm(f"lb{i}"))
            await given(host, vm("lb0"))
            await given(host, vm("lb1"))
            message = await refused(host, vm("lb2"), "QuotaExceeded")
            assert message == (
                'the namespace "team-a" has all 2 addresses of the pool "p" that the pool\'s addressesPerTenant allows:'
                " delete a load balancer that it no longer needs, share an address, or an operator must allow more"
            )
            await world.client.create(LOADBALANCERS, vm("lb2", namespace="team-b"))
            await given(host, vm("lb2", namespace="team-b"))
            await world.client.merge_patch(LOADBALANCERS, *vm("lb0").key, {"spec": {"addresses": ["192.0.2.200"]}})
            await eventually(lambda: bool(seen(host, vm("lb0")).status.next_addresses), "a move within the quota")
            await world.client.merge_patch(IPPOOLS, "", "p", {"spec": {"addressesPerTenant": 9}})
            await given(host, vm("lb2"))

    async def test_of_a_guest_cluster_over_all_pools(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(GUESTCLUSTERS, limited_to(1))
        async with world.host() as host:
            for name in ("a", "b"):
                await world.client.create(LOADBALANCERS, service(name))
            await given(host, service("a"))
            assert "quota.addresses" in await refused(host, service("b"), "QuotaExceeded")
            await world.client.delete(LOADBALANCERS, *service("a").key)
            await given(host, service("b"))

    async def test_of_a_guest_cluster_counts_leases(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(GUESTCLUSTERS, limited_to(2))
        lease = msgspec.structs.replace(
            service("lease"), spec=msgspec.structs.replace(service("lease").spec, ipam="dhcp")
        )
        async with world.host() as host:
            await world.client.create(LOADBALANCERS, lease)
            await eventually(lambda: host.caches.leases_of(TENANT) == 1)
            for name in ("a", "b"):
                await world.client.create(LOADBALANCERS, service(name))
            await given(host, service("a"))
            message = await refused(host, service("b"), "QuotaExceeded")
            assert "has all 2 addresses (1 of them by DHCP) that its GuestCluster's quota.addresses allows" in message
            await world.client.delete(LOADBALANCERS, *lease.key)
            await given(host, service("b"))

    async def test_the_bridge_lets_no_lease_too_many_be_asked_for(self, world: World) -> None:
        """Nobody else counts them: neither at the same moment, nor by another way."""
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(GUESTCLUSTERS, limited_to(3))
        by_dhcp = replace(REQUEST, ipam="dhcp")
        async with world.host() as host:
            await host.backend.connect(TENANT, Hello(cluster_uid="c", guest_version="0"))
            first = ServiceKey("default", "first", "uid-first")
            await host.backend.ensure(TENANT, first, REQUEST, ())
            await given(host, service("first", "uid-first"))
            waits = ServiceKey("default", "waits", "uid-waits")
            await host.backend.ensure(TENANT, waits, replace(REQUEST, network="default/nowhere"), ())
            keys = [ServiceKey("default", f"s{i}", f"uid-{i}") for i in range(6)]
            asked = (host.backend.ensure(TENANT, key, by_dhcp, ()) for key in keys)
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert sum(isinstance(o, QuotaExceeded) for o in outcomes) == 4
            assert host.controller.book.count(TENANT) == 3
            with pytest.raises(QuotaExceeded, match="3 addresses, its limit is 3"):
                await host.backend.ensure(TENANT, waits, by_dhcp, ())
            await host.backend.ensure(TENANT, first, by_dhcp, ())  # instead of the one that it has
            assert host.caches.leases_of(TENANT) == 3

    async def test_the_bridge_says_it_at_once(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(GUESTCLUSTERS, limited_to(2))
        async with world.host() as host:
            await host.backend.connect(TENANT, Hello(cluster_uid="c", guest_version="0"))
            keys = [ServiceKey("default", name, f"uid-{name}") for name in ("web", "lease", "more", "sharer")]
            await host.backend.ensure(TENANT, keys[0], REQUEST, ())
            await given(host, service("web", "uid-web"))
            await host.backend.ensure(TENANT, keys[1], replace(REQUEST, ipam="dhcp"), ())
            with pytest.raises(QuotaExceeded, match="2 addresses, its limit is 2"):
                await host.backend.ensure(TENANT, keys[2], REQUEST, ())
            sharing = replace(REQUEST, listeners=(Listener("", "UDP", 80, 30081),), primary_service="default/web")
            await host.backend.ensure(TENANT, keys[3], sharing, ())
            await host.backend.ensure(TENANT, keys[0], REQUEST, ())  # what there is goes on
            await host.backend.delete(TENANT, keys[1])
            await eventually(lambda: host.controller.book.count(TENANT) == 1)
            await host.backend.ensure(TENANT, keys[2], REQUEST, ())


class TestByHand:
    async def test_a_record_of_a_load_balancer_that_is_gone(self, world: World) -> None:
        """Somebody took the finalizer away while no host program ran, and the record stayed."""
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            address = await given(host, vm())
            release = {"metadata": {"annotations": {MANUALLY_RELEASE_ANNOTATION: f"{address}: team-a/vm"}}}
            await world.client.merge_patch(IPPOOLS, "", "p", release)
            await eventually(lambda: not annotated(host), "the annotation's end")
            assert set(await world.allocations()) == {address}  # the load balancer is there: nothing is released
            assert "still exists" in (await told(world, "NotReleased")).message
            await world.client.merge_patch(LOADBALANCERS, *vm().key, {"metadata": {"finalizers": None}})
        await world.client.delete(LOADBALANCERS, *vm().key)
        await world.client.merge_patch(IPPOOLS, "", "p", release)
        async with world.host() as host:
            await until_allocated(world, host, set())
            await eventually(lambda: not annotated(host), "the annotation's end")

    async def test_a_record_that_the_audit_would_find_only_later(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        async with world.host() as host:
            await world.client.create(LOADBALANCERS, vm())
            address = await given(host, vm())
            (block,) = await world.blocks()
            dangling = {**block.spec.allocations, "192.0.2.9": Allocation(owner="team-a/gone", uid="u1")}
            spec = msgspec.structs.replace(block.spec, allocations=dangling)
            await world.client.replace(IPBLOCKS, msgspec.structs.replace(block, spec=spec))
            await until_allocated(world, host, {address, "192.0.2.9"})
            release = {"metadata": {"annotations": {MANUALLY_RELEASE_ANNOTATION: "192.0.2.9: team-a/gone"}}}
            await world.client.merge_patch(IPPOOLS, "", "p", release)
            await until_allocated(world, host, {address})
            await eventually(lambda: not annotated(host), "the annotation's end")
            message = (await told(world, "Released")).message
            assert message == "192.0.2.9 of team-a/gone, which is gone, is given back as the annotation asks"


def annotated(host: Host) -> bool:
    return MANUALLY_RELEASE_ANNOTATION in host.caches.pools.objects["", "p"].metadata.annotations


class TestFilling:
    async def test_nearly_full_and_full_are_conditions(self, world: World) -> None:
        made = with_spec(pool("p", subnet("192.0.2.0/24", "192.0.2.2", "192.0.2.5")), nearly_full_percent=75)
        await world.client.create(IPPOOLS, made)
        async with world.host() as host:

            def status(kind: str) -> str:
                found = find(host.caches.pools.objects["", "p"].status.conditions, kind)
                return "" if found is None else found.status

            async def until(nearly: str, full: str) -> None:
                await eventually(lambda: (status("NearlyFull"), status("Full")) == (nearly, full), f"{nearly} {full}")

            for i, expected in enumerate([("", ""), ("", ""), ("True", ""), ("True", "True")]):
                await world.client.create(LOADBALANCERS, vm(f"lb{i}"))
                await given(host, vm(f"lb{i}"))
                await eventually(lambda i=i: host.caches.pools.objects["", "p"].status.available == 3 - i)  # type: ignore[misc]
                await until(*expected)
            found = find(host.caches.pools.objects["", "p"].status.conditions, "Full")
            assert found is not None
            assert found.message == "all 4 addresses are allocated or kept: an operator must add a range"
            assert found.message in (await told(world, "NoAddressLeft")).message
            await world.client.delete(LOADBALANCERS, *vm("lb0").key)
            await until("True", "")
            await told(world, "AddressesLeft")
