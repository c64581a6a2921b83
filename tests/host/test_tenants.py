"""Tenants: binding, limits, nodes, inventories, and their end."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import msgspec
import pytest

from cloudprovider.bridge.api import Hello, Reason
from cloudprovider.core.api.guestcluster import REBIND_ANNOTATION, GuestCluster, InventoryRecord
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import BridgeError, InvalidRequest, NotPermitted, Unavailable
from cloudprovider.core.exchange import (
    Inventory,
    InventoryItem,
    Listener,
    LoadBalancerRequest,
    ReportedNode,
    ServiceKey,
    Tenant,
)
from cloudprovider.core.lbobject import object_key
from cloudprovider.core.tenancy import NodeRules, check_nodes
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.host.tenants import TenantEnd
from cloudprovider.kube.fake import Call, FakeCluster
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS, NODES
from tests.host.views import vm
from tests.host.world import World, eventually, guest_cluster, host_node, pool, services, subnet

TENANT = Tenant("team-a", "blue")
HELLO = Hello(cluster_uid="kube-system-1", guest_version="1.0")
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))


@pytest.fixture
async def host(world: World) -> AsyncIterator[Host]:
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
    await world.client.create(IPPOOLS, pool("p", subnet("10.0.0.0/24")))
    await world.client.create(NODES, host_node("host-1", "10.0.1.1"))
    async with world.host() as host, world.agent(host):
        await host.backend.connect(TENANT, HELLO)
        yield host


def cluster_of(host: Host) -> GuestCluster:
    found = host.caches.guest_cluster(TENANT)
    assert found is not None
    return found


def inventory(*items: ServiceKey, version: str = "1", token: int = 1) -> Inventory:
    return Inventory(tuple(InventoryItem(i) for i in items), version, complete=True, fencing_token=token)


async def up(host: Host, service: ServiceKey) -> str:
    await host.backend.ensure(TENANT, service, REQUEST, ())
    states = host.backend.states(TENANT).states
    await eventually(lambda: bool(states[service].addresses))
    return str(states[service].addresses[0].ip)


class TestBinding:
    async def test_it_survives_a_restart_and_refuses_a_clone(self, world: World, host: Host) -> None:
        async with world.host() as again:
            await again.backend.connect(TENANT, HELLO)
            with pytest.raises(BridgeError) as refused:
                await again.backend.connect(TENANT, replace(HELLO, cluster_uid="clone"))
        assert refused.value.reason == Reason.CLUSTER_MISMATCH
        assert cluster_of(host).status.cluster_uid == HELLO.cluster_uid

    async def test_connecting_again_writes_nothing(self, host: Host) -> None:
        before = cluster_of(host)
        await host.backend.connect(TENANT, HELLO)
        assert cluster_of(host) == before

    @pytest.mark.parametrize("permitted", ["any", "kube-system-2"])
    async def test_an_operator_lets_a_rebuilt_cluster_in_once(self, world: World, host: Host, permitted: str) -> None:
        await host.backend.report_inventory(TENANT, inventory(token=9))
        patch = {"metadata": {"annotations": {REBIND_ANNOTATION: permitted}}}
        await world.client.merge_patch(GUESTCLUSTERS, *cluster_of(host).key, patch)
        await eventually(lambda: REBIND_ANNOTATION in cluster_of(host).metadata.annotations)
        await host.backend.connect(TENANT, replace(HELLO, cluster_uid="kube-system-2"))
        assert cluster_of(host).status.cluster_uid == "kube-system-2"
        assert REBIND_ANNOTATION not in cluster_of(host).metadata.annotations
        for other in ("kube-system-1", "kube-system-3"):
            with pytest.raises(BridgeError, match="belongs to the cluster"):
                await host.backend.connect(TENANT, replace(HELLO, cluster_uid=other))
        await host.backend.report_inventory(TENANT, inventory(token=0))  # its leaders count anew

    async def test_a_rebinding_that_could_not_be_written_goes_on(
        self, world: World, host: Host, cluster: FakeCluster
    ) -> None:
        patch = {"metadata": {"annotations": {REBIND_ANNOTATION: "any"}}}
        await world.client.merge_patch(GUESTCLUSTERS, *cluster_of(host).key, patch)
        await eventually(lambda: REBIND_ANNOTATION in cluster_of(host).metadata.annotations)

        async def refuse(call: Call) -> None:
            if call.resource == "guestclusters/status":
                raise Unavailable("busy", status=503)

        cluster.before = refuse
        rebuilt = replace(HELLO, cluster_uid="kube-system-2")
        with pytest.raises(Unavailable):
            await host.backend.connect(TENANT, rebuilt)
        cluster.before = None
        with pytest.raises(BridgeError, match="belongs to the cluster"):
            await host.backend.connect(TENANT, replace(HELLO, cluster_uid="kube-system-3"))
        await host.backend.connect(TENANT, rebuilt)
        assert cluster_of(host).status.cluster_uid == "kube-system-2"

    async def test_a_lock_out_date_that_is_none_locks_everybody_out(self, world: World, host: Host) -> None:
        patch = {"spec": {"revokedBefore": "2026-06-31T00:00:00Z"}}
        await world.client.merge_patch(GUESTCLUSTERS, *cluster_of(host).key, patch)

        def locked() -> bool:
            policy = host.backend.policy(TENANT)
            return policy is not None and policy.revoked_before == datetime.max.replace(tzinfo=UTC)

        await eventually(locked)


class TestEnsure:
    async def test_only_what_differs_is_written(self, world: World, host: Host) -> None:
        (service,) = services(1)
        await up(host, service)
        before = host.caches.load_balancers.objects[object_key(TENANT, service)]
        await host.backend.ensure(TENANT, service, REQUEST, ())
        assert host.caches.load_balancers.objects[before.key] == before
        await host.backend.ensure(TENANT, service, replace(REQUEST, affinity_seconds=60), ())
        after = host.caches.load_balancers.objects[before.key]
        assert (after.spec.session_affinity, after.spec.session_affinity_timeout_seconds) == ("ClientIP", 60)
        assert after.metadata.uid == before.metadata.uid
        assert after.status.address == before.status.address

    async def test_an_object_of_somebody_else_is_never_overwritten(self, world: World, host: Host) -> None:
        (service,) = services(1)
        foreign = await world.client.create(LOADBALANCERS, vm(object_key(TENANT, service)[1], "team-a"))
        for _ in range(2):  # found by creating, then in the cache
            with pytest.raises(BridgeError) as refused:
                await host.backend.ensure(TENANT, service, REQUEST, ())
            assert refused.value.reason == Reason.IDENTITY_MISMATCH
        found = await world.load_balancer(foreign.key)
        assert found is not None
        assert found.spec == foreign.spec
        await host.backend.delete(TENANT, service)
        assert await world.load_balancer(foreign.key) is not None

    async def test_one_that_is_going_away_must_be_gone_first(self, host: Host) -> None:
        (service,) = services(1)
        await up(host, service)
        await host.backend.delete(TENANT, service)
        with pytest.raises(BridgeError) as refused:
            await host.backend.ensure(TENANT, service, REQUEST, ())
        assert (refused.value.reason, refused.value.retryable) == (Reason.UNAVAILABLE, True)
        await eventually(lambda: service not in host.backend.states(TENANT).states)
        await up(host, service)

    async def test_an_unanswered_creation_is_found_again(self, host: Host, cluster: FakeCluster) -> None:
        (service,) = services(1)

        async def lose(call: Call) -> None:
            if call.verb == "create" and call.resource == "loadbalancers":
                raise Unavailable("no answer")

        cluster.after = lose
        with pytest.raises(Unavailable):
            await host.backend.ensure(TENANT, service, REQUEST, ())
        cluster.after = None
        await up(host, service)
        assert len(host.caches.load_balancers.objects) == 1

    async def test_what_this_host_can_not_do_is_said(self, host: Host) -> None:
        with pytest.raises(NotPermitted, match="in no project"):
            await host.backend.ensure(TENANT, services(1)[0], replace(REQUEST, scope_project="c-x/p-y"), ())

    async def test_states_are_there_after_a_restart(self, world: World, host: Host) -> None:
        (service,) = services(1)
        address = await up(host, service)
        async with world.host() as again:
            assert [str(a.ip) for a in again.backend.states(TENANT).states[service].addresses] == [address]


def node(name: str, address: str) -> ReportedNode:
    return ReportedNode(name, (ip_address(address),))


def accepted(host: Host) -> list[str]:
    return [n.name for n in cluster_of(host).status.nodes]


class TestNodes:
    async def test_they_stand_in_the_status_and_the_others_in_a_condition(self, host: Host) -> None:
        (service,) = services(1)
        vip = await up(host, service)
        nodes = [node("a", "10.0.2.1"), node("b", "10.0.1.1"), node("c", "10.0.0.1"), node("d", vip)]
        rejected = await host.backend.report_nodes(TENANT, [*nodes, node("e", "10.96.0.1"), node("f", "192.0.2.1")])
        assert [(r.name, r.reason) for r in rejected] == [
            ("b", "HostAddress"),
            ("c", "GatewayAddress"),
            ("d", "LoadBalancerAddress"),
            ("e", "ReservedRange"),
            ("f", "OutsideNodeCIDRs"),
        ]
        status = cluster_of(host).status
        assert [(n.name, n.addresses) for n in status.nodes] == [("a", ["10.0.2.1"])]
        told = find(status.conditions, "NodesRejected")
        assert told is not None
        assert vip in told.message
        await host.backend.report_nodes(TENANT, nodes[:1])
        assert find(cluster_of(host).status.conditions, "NodesRejected") is None

    async def test_the_same_again_writes_nothing(self, host: Host) -> None:
        await host.backend.report_nodes(TENANT, [node("a", "10.0.2.1")])
        before = cluster_of(host)
        await host.backend.report_nodes(TENANT, [node("a", "10.0.2.1")])
        assert cluster_of(host) == before

    async def test_an_operators_narrower_or_wider_cidrs_count_at_once(self, world: World, host: Host) -> None:
        await host.backend.report_nodes(TENANT, [node("a", "10.0.2.1"), node("b", "172.16.0.1")])

        async def with_cidrs(*cidrs: str) -> None:
            await world.client.merge_patch(GUESTCLUSTERS, *cluster_of(host).key, {"spec": {"nodeCidrs": list(cidrs)}})

        await with_cidrs("172.16.0.0/16")
        await eventually(lambda: [n.name for n in cluster_of(host).status.nodes] == ["b"])
        await with_cidrs("172.16.0.0/16", "10.0.0.0/8")
        await eventually(lambda: [n.name for n in cluster_of(host).status.nodes] == ["a", "b"])

    @pytest.mark.parametrize("kind", ["gateway", "host address"])
    async def test_an_address_that_the_host_takes_and_gives_back(self, world: World, host: Host, kind: str) -> None:
        await host.backend.report_nodes(TENANT, [node("a", "10.0.2.1"), node("b", "10.0.3.1")])
        assert accepted(host) == ["a", "b"]
        if kind == "gateway":
            await world.client.create(IPPOOLS, pool("q", subnet("10.0.3.0/24")))
        else:
            await world.client.create(NODES, host_node("host-2", "10.0.3.1"))
        await eventually(lambda: accepted(host) == ["a"], f"the {kind} is refused")
        told = find(cluster_of(host).status.conditions, "NodesRejected")
        assert told is not None
        assert "10.0.3.1" in told.message
        if kind == "gateway":
            await world.client.delete(IPPOOLS, "", "q")
        else:
            await world.client.delete(NODES, "", "host-2")
        await eventually(lambda: accepted(host) == ["a", "b"], f"what was the {kind} is accepted again")
        assert find(cluster_of(host).status.conditions, "NodesRejected") is None

    async def test_an_address_that_a_load_balancer_takes_and_gives_back(self, host: Host) -> None:
        first, second = services(2)
        vip = await up(host, first)
        after = str(ip_address(vip) + 1)
        rejected = await host.backend.report_nodes(TENANT, [node("a", vip), node("b", after)])
        assert [r.name for r in rejected] == ["a"]
        assert await up(host, second) == after
        await eventually(lambda: accepted(host) == [], "an accepted address became a load balancer's")
        await host.backend.delete(TENANT, first)
        await eventually(lambda: accepted(host) == ["a"], "a load balancer's address was freed")

    async def test_what_changed_while_no_host_ran_is_checked_at_the_start(self, world: World, host: Host) -> None:
        other = Tenant("team-b", "green")
        cluster = guest_cluster(other)
        await world.client.create(GUESTCLUSTERS, cluster)
        nodes = [{"name": "a", "addresses": ["10.0.1.1"]}, {"name": "b", "addresses": ["10.0.2.1"]}]
        patch = {"apiVersion": cluster.api_version, "kind": cluster.kind, "status": {"nodes": nodes}}
        await world.client.apply(
            GUESTCLUSTERS, *cluster.key, patch, field_manager="cloudprovider-bridge", subresource="status"
        )
        async with world.host() as later:

            def names() -> list[str]:
                found = later.caches.guest_cluster(other)
                return [] if found is None else [n.name for n in found.status.nodes]

            await eventually(lambda: names() == ["b"])

    async def test_a_burst_of_allocations_checks_only_whom_it_concerns_and_once(
        self, host: Host, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checks: list[int] = []

        def counting(nodes: Sequence[ReportedNode], rules: NodeRules) -> object:
            checks.append(len(nodes))
            return check_nodes(nodes, rules)

        keys = services(101)
        vip = await up(host, keys[0])
        await host.backend.report_nodes(TENANT, [node("far", "10.0.2.1")])
        monkeypatch.setattr("cloudprovider.host.nodes.check_nodes", counting)
        for key in keys[1:51]:
            await host.backend.ensure(TENANT, key, REQUEST, ())
        states = host.backend.states(TENANT).states
        await eventually(lambda: all(states[k].addresses for k in keys[:51]))
        await host.backend.report_nodes(TENANT, [node(f"n{i:03}", str(ip_address(vip) + i)) for i in range(51, 101)])
        assert checks == [50], "nobody's addresses were concerned: the only check is that of the report"
        for key in keys[51:]:
            await host.backend.ensure(TENANT, key, REQUEST, ())
        await eventually(lambda: accepted(host) == [])
        assert len(checks) < 25, "fifty allocations, gathered"

    async def test_too_many_are_refused(self, host: Host) -> None:
        nodes = [node(f"n{i}", "10.0.2.1") for i in range(5001)]
        with pytest.raises(InvalidRequest, match="5000"):
            await host.backend.report_nodes(TENANT, nodes)


class TestInventory:
    async def test_what_waits_for_a_second_one_stands_in_a_condition(self, host: Host) -> None:
        keys = services(8)
        for key in keys:
            await host.backend.ensure(TENANT, key, REQUEST, ())
        assert (await host.backend.report_inventory(TENANT, inventory(keys[0]))).held_back == 7
        told = find(cluster_of(host).status.conditions, "InventoryHeldBack")
        assert told is not None
        assert "7 of its 8" in told.message
        again = await host.backend.report_inventory(TENANT, inventory(keys[0]))
        assert (again.deleted, again.held_back) == ((), 7), "the same list sent again"
        second = await host.backend.report_inventory(TENANT, inventory(keys[0], version="2"))
        assert (set(second.deleted), second.held_back) == (set(keys[1:]), 0)
        assert find(cluster_of(host).status.conditions, "InventoryHeldBack") is None
        await eventually(lambda: len(host.caches.load_balancers.objects) == 1)

    async def test_the_record_says_what_was_accepted(self, host: Host) -> None:
        await host.backend.report_inventory(TENANT, inventory(version="7", token=4))
        record = cluster_of(host).status.inventory
        assert record is not None
        assert msgspec.structs.replace(record, time="") == InventoryRecord(resource_version="7", fencing_token=4)

    async def test_what_was_just_asked_for_is_not_taken_by_an_older_list(self, world: World, host: Host) -> None:
        (service,) = services(1)
        async with world.host(settle_seconds=60) as careful:
            await careful.backend.ensure(TENANT, service, REQUEST, ())
            result = await careful.backend.report_inventory(TENANT, inventory())
            assert (result.deleted, result.held_back) == ((), 0)
        await eventually(lambda: object_key(TENANT, service) in host.caches.load_balancers.objects)
        assert (await host.backend.report_inventory(TENANT, inventory(version="2"))).held_back == 1, "an empty list"
        assert (await host.backend.report_inventory(TENANT, inventory(version="3"))).deleted == (service,)


class TestEnd:
    async def test_load_balancers_go_after_the_grace_and_then_the_tenant(self, world: World, host: Host) -> None:
        keys = services(3)
        for key in keys:
            await up(host, key)
        end = TenantEnd(world.client, host.caches, now=utc_now)
        just_now = utc_now()
        left = await end.proceed(TENANT, just_now, 3600)
        assert left is not None
        assert 590 < left <= 600, "looks again: the grace may be changed"
        assert len(host.caches.load_balancers_of(TENANT)) == 3
        long_ago = just_now - timedelta(hours=2)
        assert await end.proceed(TENANT, long_ago, 3600) is not None
        await eventually(lambda: not host.caches.load_balancers_of(TENANT))
        assert await end.proceed(TENANT, long_ago, 3600) is None
        assert await world.allocations() == {}

    async def test_a_tenant_that_ends_makes_nothing_new(self, world: World, host: Host) -> None:
        key = cluster_of(host).key
        await world.client.merge_patch(GUESTCLUSTERS, *key, {"metadata": {"finalizers": ["test/hold"]}})
        await world.client.delete(GUESTCLUSTERS, *key)
        await eventually(lambda: bool(cluster_of(host).metadata.deletion_timestamp))
        with pytest.raises(BridgeError) as refused:
            await host.backend.ensure(TENANT, services(1)[0], REQUEST, ())
        assert refused.value.reason == Reason.TENANT_TERMINATING
        await host.backend.delete(TENANT, services(1)[0])

    async def test_policy_changes_are_told_and_other_writes_are_not(self, world: World, host: Host) -> None:
        told: list[Tenant] = []
        stop = host.backend.on_policy_change(told.append)
        await host.backend.report_nodes(TENANT, [node("a", "10.0.2.1")])
        assert told == []
        spec = {"spec": {"revokedFingerprints": ["a" * 64]}}
        await world.client.merge_patch(GUESTCLUSTERS, *cluster_of(host).key, spec)
        await eventually(lambda: told == [TENANT])
        stop()
        await world.client.delete(GUESTCLUSTERS, *cluster_of(host).key)
        await eventually(lambda: host.backend.policy(TENANT) is None)
        assert told == [TENANT]
        with pytest.raises(BridgeError, match="no GuestCluster"):
            await host.backend.report_nodes(TENANT, [])
