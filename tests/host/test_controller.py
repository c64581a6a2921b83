"""Addresses given and taken back, over an API server in memory."""

import asyncio
from typing import Any

import msgspec

from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.kubernetes import Namespace
from cloudprovider.core.api.loadbalancer import (
    FINALIZER,
    NETWORK_ANNOTATION,
    Address,
    Holder,
    LoadBalancer,
    LoadBalancerStatus,
)
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import Allocation, IPBlock, IPBlockSpec, Scope
from cloudprovider.core.exchange import Listener as Port
from cloudprovider.core.exchange import LoadBalancerRequest, Tenant
from cloudprovider.core.lbobject import object_key, wanted_object
from cloudprovider.host.caches import PROJECT_ID_ANNOTATION
from cloudprovider.kube.fake import FakeCluster
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS, NAMESPACES
from tests.host.views import condition, given, refused, seen, told, vm
from tests.host.world import World, eventually, guest_cluster, pool, services, subnet

TENANT = Tenant("team-a", "blue")
REQUEST = LoadBalancerRequest(listeners=(Port("http", "TCP", 80, 30080),))


class TestGiving:
    async def test_a_machines_load_balancer_gets_an_address_with_all_that_it_takes(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), network="default/vlan1"))
        lb = vm()
        annotated = msgspec.structs.replace(
            lb, metadata=msgspec.structs.replace(lb.metadata, annotations={NETWORK_ANNOTATION: "default/vlan1"})
        )
        await world.client.create(LOADBALANCERS, annotated)
        async with world.host() as host:
            assert await given(host, lb) == "192.0.2.2"
            status = seen(host, lb).status
            assert status.addresses == [
                Address(ip="192.0.2.2", ip_pool="p", prefix_length=24, gateway="192.0.2.1", network="default/vlan1")
            ]
            assert status.allocated_address is not None
            assert status.allocated_address.mask == "255.255.255.0"
            assert status.address_key == seen(host, lb).metadata.uid
            assert FINALIZER in seen(host, lb).metadata.finalizers
            allocated = condition(host, lb)
            assert allocated is not None
            assert (allocated.status, allocated.message) == ("True", "192.0.2.2 from pool p")
            assert condition(host, lb, "Ready") is None
        assert await world.allocations() == {"192.0.2.2": "team-a/vm"}

    async def test_nothing_is_written_once_all_is_as_it_should_be(self, world: World, cluster: FakeCluster) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
            await eventually(lambda: host.caches.pools.objects["", "p"].status.available == 252)
        version = cluster.version
        async with world.host() as host:
            await host.controller.load_balancers.queue.idle()
            host.controller.audit()
            await host.controller.load_balancers.queue.idle()
            # A change elsewhere comes after whatever the restart would have written.
            await world.client.create(LOADBALANCERS, vm("later"))
            await given(host, vm("later"))
        lb = await world.load_balancer(vm().key)
        assert lb is not None
        assert int(lb.metadata.resource_version) <= version

    async def test_a_batch_that_is_done_brings_no_other(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
            batches = host.controller.load_balancers.batches
            await eventually(lambda: not batches._pending.is_set(), "the batch to be done")
            for _ in range(100):
                await asyncio.sleep(0)
                assert not batches._pending.is_set(), "an empty batch would make the next Service wait"

    async def test_a_stock_providers_object_is_left_alone(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        stock = await world.client.create(LOADBALANCERS, vm("stock", workload_type="cluster"))
        async with world.host() as host:
            await world.client.create(LOADBALANCERS, vm("ours"))
            await given(host, vm("ours"))
            assert seen(host, stock) == stock

    async def test_what_is_recorded_for_a_stock_providers_object_is_its_own_until_it_goes(self, world: World) -> None:
        """As `cloudprovider takeover` records it: the guest goes on using the address."""
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        stock = await world.client.create(LOADBALANCERS, vm("stock", workload_type="cluster"))
        record = Allocation(owner="/".join(stock.key), uid=stock.metadata.uid, since="2026-01-01T00:00:00Z")
        spec = IPBlockSpec(pool="p", first="192.0.2.0", allocations={"192.0.2.2": record})
        await world.client.create(IPBLOCKS, IPBlock(metadata=ObjectMeta(name="p-192.0.2.0"), spec=spec))
        async with world.host() as host:
            await world.client.create(LOADBALANCERS, vm("ours"))
            await given(host, vm("ours"))
            assert host.controller.audit().dangling == ()
            assert (await world.allocations())["192.0.2.2"] == "/".join(stock.key)
            await world.client.delete(LOADBALANCERS, *stock.key)
            await eventually(lambda: host.controller.book.ledger.held_by("/".join(stock.key)) == ())

    async def test_an_invalid_request_says_so(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm("dhcp", ipam="dhcp"))
        await world.client.create(LOADBALANCERS, vm("nowhere", ip_pool="other"))
        await world.client.create(LOADBALANCERS, vm("outside", addresses=["198.51.100.1"]))
        async with world.host() as host:
            assert "no agent" in await refused(host, vm("dhcp"), "WaitingForLease")
            assert "other" in await refused(host, vm("nowhere"), "PoolNotFound")
            assert "198.51.100.1" in await refused(host, vm("outside"), "AddressNotInPool")
            ready = condition(host, vm("outside"), "Ready")
            assert ready is not None
            assert (ready.status, ready.reason) == ("False", "AddressNotInPool")
        assert await world.allocations() == {}

    async def test_both_families_or_none(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), subnet("2001:db8::10/128")))
        dual: dict[str, Any] = {"ip_family_policy": "RequireDualStack", "ip_families": ["IPv6", "IPv4"]}
        await world.client.create(LOADBALANCERS, vm("first", **dual))
        async with world.host() as host:
            assert await given(host, vm("first")) == "2001:db8::10"
            assert [a.ip for a in seen(host, vm("first")).status.addresses] == ["2001:db8::10", "192.0.2.2"]
            await world.client.create(LOADBALANCERS, vm("second", **dual))
            assert "IPv6" in await refused(host, vm("second"), "PoolExhausted")
            prefers = vm("third", ip_family_policy="PreferDualStack", ip_families=["IPv4"])
            await world.client.create(LOADBALANCERS, prefers)
            assert await given(host, prefers) == "192.0.2.3"
            assert len(seen(host, prefers).status.addresses) == 1
        assert len(await world.allocations()) == 3


class TestWaiting:
    async def test_all_that_wait_are_given_when_the_pool_grows(self, world: World) -> None:
        small = await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24", "192.0.2.10", "192.0.2.11")))
        for i in range(6):
            await world.client.create(LOADBALANCERS, vm(f"vm{i}"))
        async with world.host() as host:
            for i in range(2, 6):
                assert "all 2 IPv4 addresses" in await refused(host, vm(f"vm{i}"), "PoolExhausted")
            spec = pool("p", subnet("192.0.2.0/24", "192.0.2.10", "192.0.2.20")).spec
            fresh = await world.client.get(IPPOOLS, "", small.metadata.name)
            await world.client.replace(IPPOOLS, msgspec.structs.replace(fresh, spec=spec))
            for i in range(6):
                await given(host, vm(f"vm{i}"))
            await eventually(lambda: condition(host, vm("vm5"), "Ready") is None)
        assert len(await world.allocations()) == 6

    async def test_who_waits_gets_what_is_freed(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.7/32")))
        first, second = vm("first"), vm("second")
        await world.client.create(LOADBALANCERS, first)
        async with world.host() as host:
            await given(host, first)
            await world.client.create(LOADBALANCERS, second)
            await refused(host, second, "PoolExhausted")
            await world.client.delete(LOADBALANCERS, *first.key)
            assert await given(host, second) == "192.0.2.7"

    async def test_a_pool_that_comes_later_is_used(self, world: World) -> None:
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await refused(host, vm(), "NoPoolMatches")
            await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
            assert await given(host, vm()) == "192.0.2.2"

    async def test_a_named_pool_that_comes_later_is_used(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm(ip_pool="later"))
        async with world.host() as host:
            assert '"later"' in await refused(host, vm(), "PoolNotFound")
            await world.client.create(IPPOOLS, pool("later", subnet("198.51.100.0/24")))
            assert await given(host, vm()) == "198.51.100.2"

    async def test_a_guests_limits_and_project_are_followed(self, world: World) -> None:
        scope = Scope(project="c-a/p-b", namespace="*", guest_cluster="blue")
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24"), scope=scope))
        await world.client.create(NAMESPACES, Namespace(metadata=ObjectMeta(name="team-a")))
        await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
        (service,) = services(1)
        async with world.host() as host:
            await host.backend.ensure(TENANT, service, REQUEST, ())
            lb = host.caches.load_balancers.objects[object_key(TENANT, service)]
            assert "1 other pool" in await refused(host, lb, "NoPoolMatches")
            patch = {"metadata": {"annotations": {PROJECT_ID_ANNOTATION: "c-a:p-b"}}}
            await world.client.merge_patch(NAMESPACES, "", "team-a", patch)
            assert await given(host, lb) == "192.0.2.2"

    async def test_a_guests_object_without_its_guest_cluster_gets_nothing(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        orphan = wanted_object(TENANT, services(1)[0], REQUEST, cluster_uid="u", limits=GuestClusterSpec())
        await world.client.create(LOADBALANCERS, orphan)
        async with world.host() as host:
            assert "GuestCluster" in await refused(host, orphan, "NoPoolMatches")


class TestKeeping:
    async def test_what_cant_be_had_instead_moves_nothing_and_is_said(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm(ip_pool="p"))
        async with world.host() as host:
            address = await given(host, vm())
            await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipPool": "q"}})

            def complains() -> bool:
                found = condition(host, vm())
                return found is not None and 'there is no pool "q"' in found.message

            await eventually(complains)
            found = condition(host, vm())
            assert found is not None
            assert (found.status, found.reason) == ("True", "AddressKept")
            assert seen(host, vm()).status.address == address

    async def test_addresses_without_a_record_are_recorded_before_others_are_served(
        self, world: World, cluster: FakeCluster
    ) -> None:
        """A host restored from a backup without blocks."""
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        for i in range(3):
            await world.client.create(LOADBALANCERS, vm(f"new{i}"))
        old = await world.client.create(LOADBALANCERS, vm("old"))
        cluster.seed(LOADBALANCERS, with_address(old, "192.0.2.2"))
        async with world.host() as host:
            for i in range(3):
                await given(host, vm(f"new{i}"))
            assert seen(host, old).status.address == "192.0.2.2"
            event = await told(world, "AddressNotRecorded")
            assert event.message == "192.0.2.2 is used by the load balancer team-a/old, and was not recorded: it is now"
        allocations = await world.allocations()
        assert allocations["192.0.2.2"] == "team-a/old"
        assert len(allocations) == 4

    async def test_of_two_with_one_address_the_recorded_one_keeps_it(self, world: World, cluster: FakeCluster) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm("right"))
        async with world.host() as host:
            assert await given(host, vm("right")) == "192.0.2.2"
        wrong = await world.client.create(LOADBALANCERS, vm("wrong"))
        cluster.seed(LOADBALANCERS, with_address(wrong, "192.0.2.2"))
        async with world.host() as host:
            await eventually(lambda: seen(host, wrong).status.address == "192.0.2.3")
            assert seen(host, vm("right")).status.address == "192.0.2.2"
            assert (await told(world, "AddressNotRecorded")).message == (
                "192.0.2.2 is shown by the load balancer team-a/wrong, but recorded for team-a/right: team-a/wrong gets"
                " another one"
            )

    async def test_a_second_record_is_given_back(self, world: World) -> None:
        """Of two hosts that ran at once, each from a block of its own."""
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/23")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            assert await given(host, vm()) == "192.0.2.2"
            mine = seen(host, vm()).metadata.uid
        second = IPBlock(
            api_version=IPBLOCKS.api_version,
            kind=IPBLOCKS.kind,
            metadata=ObjectMeta(name="p-192.0.3.0"),
            spec=IPBlockSpec(
                pool="p", first="192.0.3.0", allocations={"192.0.3.7": Allocation(owner="team-a/vm", uid=mine)}
            ),
        )
        await world.client.create(IPBLOCKS, second)
        async with world.host() as host:
            await eventually(lambda: not host.caches.blocks.objects["", "p-192.0.3.0"].spec.allocations)
            assert seen(host, vm()).status.address == "192.0.2.2"
        assert await world.allocations() == {"192.0.2.2": "team-a/vm"}

    async def test_a_pool_that_is_gone_takes_no_address_away(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
        for block in await world.blocks():
            await world.client.delete(IPBLOCKS, "", block.metadata.name)
        await world.client.delete(IPPOOLS, "", "p")
        async with world.host() as host:
            assert "it keeps 192.0.2.2" in await refused(host, vm(), "PoolNotFound")
            assert seen(host, vm()).status.address == "192.0.2.2"

    async def test_a_pools_new_gateway_reaches_everybody(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
            spec = {"ranges": [{"subnet": "192.0.2.0/24", "gateway": "192.0.2.254"}]}
            await world.client.merge_patch(IPPOOLS, "", "p", {"spec": spec})
            await eventually(lambda: seen(host, vm()).status.addresses[0].gateway == "192.0.2.254")


class TestGivingBack:
    async def test_not_while_a_host_holds_it(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
            holder = msgspec.to_builtins(Holder(node="h", generation=1, addresses=["192.0.2.2"], mode="nat"))
            await apply_holder(world, {"holder": holder})
            await world.client.delete(LOADBALANCERS, *vm().key)
            await eventually(lambda: bool(seen(host, vm()).metadata.deletion_timestamp))
            await world.client.create(LOADBALANCERS, vm("other"))
            await given(host, vm("other"))
            assert (await world.allocations())["192.0.2.2"] == "team-a/vm"
            await apply_holder(world, {})
            await eventually(lambda: vm().key not in host.caches.load_balancers.objects)
        assert await world.allocations() == {"192.0.2.3": "team-a/other"}

    async def test_also_when_somebody_took_the_finalizer(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
            holder = msgspec.to_builtins(Holder(node="h", generation=1, addresses=["192.0.2.2"], mode="nat"))
            await apply_holder(world, {"holder": holder})
            await world.client.merge_patch(LOADBALANCERS, *vm().key, {"metadata": {"finalizers": None}})
            await world.client.delete(LOADBALANCERS, *vm().key)
            await eventually(lambda: not host.controller.book.ledger.owners())
        assert await world.allocations() == {}

    async def test_records_of_who_is_gone_are_given_back_at_the_start(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        leaked = {
            "192.0.2.9": Allocation(owner="team-a/gone", uid="u1"),
            "192.0.2.10": Allocation(owner="agent/host-1"),
        }
        await world.client.create(
            IPBLOCKS,
            IPBlock(
                api_version=IPBLOCKS.api_version,
                kind=IPBLOCKS.kind,
                metadata=ObjectMeta(name="p-192.0.2.0"),
                spec=IPBlockSpec(pool="p", first="192.0.2.0", allocations=leaked),
            ),
        )
        async with world.host() as host:
            await eventually(lambda: host.controller.book.ledger.owners() == {"agent/host-1"})
            event = await told(world, "AddressReleased")
            assert (event.involved_object.name, event.message[:24]) == ("p", "192.0.2.9 was recorded f")

    async def test_a_namesake_gets_its_own_record(self, world: World) -> None:
        await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
            first = seen(host, vm()).metadata.uid
            await world.client.delete(LOADBALANCERS, *vm().key)
            await eventually(lambda: vm().key not in host.caches.load_balancers.objects)
            await world.client.create(LOADBALANCERS, vm())
            await given(host, vm())
            second = seen(host, vm()).metadata.uid
            await eventually(lambda: len(host.controller.book.held(seen(host, vm()))) == 1)
        assert first != second
        assert len(await world.allocations()) == 1


def with_address(lb: LoadBalancer, address: str) -> LoadBalancer:
    addresses = [Address(ip=address, ip_pool="p", prefix_length=24, gateway="192.0.2.1")]
    status = LoadBalancerStatus(address=address, addresses=addresses, address_key=lb.metadata.uid)
    return msgspec.structs.replace(lb, status=status)


async def apply_holder(world: World, status: dict[str, object]) -> None:
    patch = {"apiVersion": LOADBALANCERS.api_version, "kind": LOADBALANCERS.kind, "status": status}
    await world.client.apply(LOADBALANCERS, *vm().key, patch, field_manager="cloudprovider-agent", subresource="status")
