"""Who owns a load balancer, as the host controller decides it by Leases and Nodes; over an API server in memory."""

import asyncio
from collections import Counter
from functools import partial
from typing import TypeVar, cast

import msgspec
from typing_extensions import override

from cloudprovider.core.api.kubernetes import Node, NodeSpec
from cloudprovider.core.api.loadbalancer import Holder, LoadBalancer
from cloudprovider.core.api.meta import KubeObject, ObjectMeta
from cloudprovider.core.errors import Conflict
from cloudprovider.core.standing import OWNED, WEIGHT_ANNOTATION
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.api import Json, Resource
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import IPPOOLS, LOADBALANCERS, NODES
from tests.host.leases import keep, renew
from tests.host.views import condition, given, seen, told, vm
from tests.host.world import World, eventually, pool, subnet, virtually

T = TypeVar("T", bound=KubeObject)

EXCLUDE = "node.kubernetes.io/exclude-from-external-load-balancers"


class Overtaken(FakeKubeClient):
    """That of a leader before whose first choice of an owner another one's is written."""

    outcome = ""

    @override
    async def apply(
        self,
        resource: Resource[T],
        namespace: str,
        name: str,
        patch: Json,
        *,
        field_manager: str,
        subresource: str = "",
    ) -> T:
        apply = partial(super().apply, resource, namespace, name, field_manager=field_manager, subresource=subresource)
        status = cast("dict[str, object]", patch.get("status", {}))
        if not status.get("owner") or self.outcome:
            return await apply(patch)
        meanwhile = {**status, "owner": "of another leader"}
        await apply({**patch, "metadata": {"name": name, "namespace": namespace}, "status": meanwhile})
        try:
            made = await apply(patch)
        except Conflict:
            self.outcome = "refused"
            raise
        self.outcome = "written"
        return made


async def hold(world: World, lb: LoadBalancer, node: str) -> None:
    """As the agent that has the addresses up says."""
    patch = {
        "apiVersion": LOADBALANCERS.api_version,
        "kind": LOADBALANCERS.kind,
        "status": {"holder": msgspec.to_builtins(Holder(node=node, generation=1, addresses=[], mode="nat"))},
    }
    await world.client.apply(LOADBALANCERS, *lb.key, patch, field_manager="cloudprovider-agent", subresource="status")


def owner(host: Host, lb: LoadBalancer) -> str:
    return seen(host, lb).status.owner


async def owned_by(host: Host, lb: LoadBalancer, name: str) -> None:
    await eventually(lambda: owner(host, lb) == name, f"{lb.key} is {name}'s, not {owner(host, lb)}'s")


def spread(host: Host) -> Counter[str]:
    return Counter(lb.status.owner for lb in host.caches.load_balancers.objects.values())


async def many(world: World, host: Host, count: int) -> list[LoadBalancer]:
    lbs = [vm(f"vm{n}") for n in range(count)]
    for lb in lbs:
        await world.client.create(LOADBALANCERS, lb)
    for lb in lbs:
        await given(host, lb)
    return lbs


async def a_pool(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))


class TestOwner:
    async def test_it_is_written_with_the_address_by_the_same_request(self, world: World, cluster: FakeCluster) -> None:
        await a_pool(world)
        await renew(world.client, "host-1")
        client = FakeKubeClient(cluster)
        world.connect = lambda: client
        async with world.host() as host:
            before = client.requests.total(resource="loadbalancers/status", verb="apply")
            lbs = await many(world, host, 10)
            assert {owner(host, lb) for lb in lbs} == {"host-1"}
            assert all(condition(host, lb, OWNED) is None for lb in lbs)
            assert client.requests.total(resource="loadbalancers/status", verb="apply") - before == 10

    async def test_one_by_dhcp_has_its_owner_before_its_address(self, world: World) -> None:
        await renew(world.client, "host-1")
        await world.client.create(LOADBALANCERS, vm(ipam="dhcp"))
        async with world.host() as host:
            await owned_by(host, vm(), "host-1")
            assert seen(host, vm()).status.addresses == []
            assert seen(host, vm()).status.address_key == seen(host, vm()).metadata.uid

    async def test_what_a_deposed_leader_sent_last_undoes_nothing(self, world: World, cluster: FakeCluster) -> None:
        """Another leader has decided since: also where the deposed one knew of no owner yet."""
        await a_pool(world)
        await renew(world.client, "host-1")
        late = Overtaken(cluster)
        world.connect = lambda: late
        async with world.host():
            await world.client.create(LOADBALANCERS, vm())
            await eventually(lambda: bool(late.outcome))
        assert late.outcome == "refused"

    async def test_they_are_spread_and_a_restart_moves_none(self, world: World) -> None:
        await a_pool(world)
        for name in ("host-1", "host-2", "host-3"):
            await renew(world.client, name)
        async with world.host() as host:
            lbs = await many(world, host, 30)
            assert set(spread(host).values()) <= {9, 10, 11}
            before = {lb.key: owner(host, lb) for lb in lbs}
        async with world.host() as host:
            await host.controller.load_balancers.queue.idle()
            assert {lb.key: owner(host, lb) for lb in lbs} == before


class TestHostsThatComeAndGo:
    async def test_a_host_that_is_cordoned_gives_up_all_and_gets_its_share_back(self, world: World) -> None:
        await a_pool(world)
        for name in ("host-1", "host-2"):
            await renew(world.client, name)
            await world.client.create(NODES, Node(metadata=ObjectMeta(name=name)))
        async with world.host() as host:
            await many(world, host, 20)
            assert spread(host)["host-1"] in (9, 10, 11)
            for patch, undo in (
                ({"spec": {"unschedulable": True}}, {"spec": {"unschedulable": None}}),
                ({"metadata": {"labels": {EXCLUDE: ""}}}, {"metadata": {"labels": {EXCLUDE: None}}}),
                ({"metadata": {"annotations": {WEIGHT_ANNOTATION: "0"}}}, {"metadata": {"annotations": None}}),
            ):
                await world.client.merge_patch(NODES, "", "host-1", patch)
                await eventually(lambda: spread(host)["host-2"] == 20, "all are the other's")
                await world.client.merge_patch(NODES, "", "host-1", undo)
                await eventually(lambda: spread(host)["host-1"] == 10, "it has its share")

    async def test_a_wrong_weight_is_told_and_counts_as_one(self, world: World) -> None:
        wrong = ObjectMeta(name="host-1", annotations={WEIGHT_ANNOTATION: "heavy"})
        await world.client.create(NODES, Node(metadata=wrong, spec=NodeSpec()))
        await renew(world.client, "host-1")
        await world.client.create(LOADBALANCERS, vm(ipam="dhcp"))
        async with world.host() as host:
            await owned_by(host, vm(), "host-1")
            event = await told(world, "InvalidWeight")
            assert event.involved_object.name == "host-1"
            assert '"heavy" is no whole number from 0 to 100' in event.message

    async def test_only_those_whose_owner_changes_are_written(self, world: World, cluster: FakeCluster) -> None:
        await a_pool(world)
        for name in ("host-1", "host-2"):
            await renew(world.client, name)
        client = FakeKubeClient(cluster)
        world.connect = lambda: client
        async with world.host() as host:
            await many(world, host, 30)
            await host.controller.load_balancers.queue.idle()
            before = client.requests.total(resource="loadbalancers/status")
            await renew(world.client, "host-3")
            await eventually(lambda: spread(host)["host-3"] == 10)
            await host.controller.load_balancers.queue.idle()
            assert client.requests.total(resource="loadbalancers/status") - before == 10


async def _virtual() -> World:
    cluster = FakeCluster(utc_now)
    return World(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster))


in_virtual_time = virtually(_virtual)


class TestSilence:
    @in_virtual_time
    async def test_one_that_goes_silent_loses_all_when_its_lease_ends_and_not_before(self, world: World) -> None:
        await a_pool(world)
        await renew(world.client, "host-1")
        await renew(world.client, "host-2")
        living = asyncio.create_task(keep(world.client, "host-2"))
        loop = asyncio.get_running_loop()
        last = loop.time()
        async with world.host() as host:
            await many(world, host, 20)
            assert set(spread(host)) == {"host-1", "host-2"}
            await asyncio.sleep(last + 14.5 - loop.time())
            assert set(spread(host)) == {"host-1", "host-2"}
            await eventually(lambda: spread(host)["host-2"] == 20)
            assert 15 <= loop.time() - last < 16.1
        living.cancel()

    @in_virtual_time
    async def test_one_that_nobody_hears_is_given_nothing(self, world: World) -> None:
        """Its Lease is still fresh when another host comes, and all is spread anew."""
        await a_pool(world)
        await renew(world.client, "host-1")
        await renew(world.client, "host-2")
        async with world.host(hosts_seconds=10) as host:
            lbs = await many(world, host, 20)
            living = asyncio.create_task(keep(world.client, "host-2", "host-3", silent=("host-1",)))
            for lb in lbs:
                await hold(world, lb, owner(host, lb))
                if owner(host, lb) == "host-1":
                    await hold(world, lb, "host-2")
            await eventually(lambda: spread(host) == {"host-2": 20})
            await eventually(lambda: spread(host)["host-3"] > 0)
            assert spread(host) == {"host-2": 10, "host-3": 10}
            assert host.caches.roster.is_fresh("host-1")
        living.cancel()

    @in_virtual_time
    async def test_one_that_is_back_owns_what_it_still_has(self, world: World) -> None:
        """Its kernel has gone on meanwhile: nothing was taken from it, and nothing moves now."""
        await a_pool(world)
        await renew(world.client, "host-1")
        await renew(world.client, "host-2")
        living = asyncio.create_task(keep(world.client, "host-2"))
        async with world.host(hosts_seconds=10) as host:
            lbs = await many(world, host, 20)
            before = {lb.key: owner(host, lb) for lb in lbs}
            for lb in lbs:
                await hold(world, lb, before[lb.key])
            await eventually(lambda: spread(host)["host-2"] == 20)
            back = asyncio.create_task(keep(world.client, "host-1"))
            await eventually(lambda: {lb.key: owner(host, lb) for lb in lbs} == before)
            await asyncio.sleep(30)
            assert {lb.key: owner(host, lb) for lb in lbs} == before
        living.cancel()
        back.cancel()

    @in_virtual_time
    async def test_one_that_comes_gets_its_share_when_it_has_been_there_for_a_while(self, world: World) -> None:
        await a_pool(world)
        await renew(world.client, "host-1")
        living = asyncio.create_task(keep(world.client, "host-1"))
        loop = asyncio.get_running_loop()
        async with world.host(hosts_seconds=10) as host:
            await many(world, host, 20)
            other = asyncio.create_task(keep(world.client, "host-2"))
            came = loop.time()
            await asyncio.sleep(9)
            assert spread(host) == {"host-1": 20}
            await eventually(lambda: spread(host)["host-2"] == 10)
            assert 10 <= loop.time() - came < 11
        living.cancel()
        other.cancel()

    @in_virtual_time
    async def test_where_no_host_is_left_the_owner_stays_and_the_reason_is_told(self, world: World) -> None:
        await a_pool(world)
        await renew(world.client, "host-1", "")
        await renew(world.client, "host-2", "default/vlan1")
        async with world.host() as host:
            (lb,) = await many(world, host, 1)
            assert owner(host, lb) == "host-1"
            await eventually(lambda: condition(host, lb, OWNED) is not None)
            said = condition(host, lb, OWNED)
            assert said is not None
            assert (said.status, said.reason) == ("False", "NoHost")
            assert "There is no host to serve the management network: host-1 is silent" in said.message
            assert owner(host, lb) == "host-1"
            await renew(world.client, "host-2")
            await owned_by(host, lb, "host-2")
            await eventually(lambda: condition(host, lb, OWNED) is None)


class TestNobody:
    async def test_without_any_host_it_says_so(self, world: World) -> None:
        await a_pool(world)
        await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            await given(host, vm())
            said = condition(host, vm(), OWNED)
            assert said is not None
            assert "no agent has said that it runs" in said.message
            await renew(world.client, "host-1", "default/vlan1")
            await eventually(
                lambda: "host-1 does not stand on the management network" in _message(host, vm()), "which hosts"
            )
            await renew(world.client, "host-1", "", ready=False)
            await eventually(lambda: "host-1 is not ready on the management network" in _message(host, vm()))
            await renew(world.client, "host-1")
            await owned_by(host, vm(), "host-1")
            assert condition(host, vm(), OWNED) is None


class TestTakeover:
    async def test_the_host_that_took_it_over_becomes_the_owner(self, world: World) -> None:
        await a_pool(world)
        for name in ("host-1", "host-2"):
            await renew(world.client, name)
        async with world.host() as host:
            (lb,) = await many(world, host, 1)
            first = owner(host, lb)
            (second,) = {"host-1", "host-2"} - {first}
            await hold(world, lb, first)
            await eventually(lambda: seen(host, lb).status.holder is not None)
            await hold(world, lb, second)
            await owned_by(host, lb, second)

    async def test_one_that_is_still_with_the_host_before_goes_where_it_was_sent(self, world: World) -> None:
        """Its holder is not the owner: that is a move under way, not a takeover."""
        await a_pool(world)
        await renew(world.client, "host-1")
        async with world.host() as host:
            (lb,) = await many(world, host, 1)
            await hold(world, lb, "host-1")
            await renew(world.client, "host-2")
            await world.client.create(
                NODES, Node(metadata=ObjectMeta(name="host-1"), spec=NodeSpec(unschedulable=True))
            )
            await owned_by(host, lb, "host-2")
            await hold(world, lb, "host-3")
            await hold(world, lb, "host-1")
            await world.client.create(LOADBALANCERS, vm("later"))
            await given(host, vm("later"))
            assert owner(host, lb) == "host-2"


def _message(host: Host, lb: LoadBalancer) -> str:
    said = condition(host, lb, OWNED)
    return "" if said is None else said.message
