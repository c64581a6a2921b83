"""Load balancers for virtual machines: what they send to, over an API server in memory."""

import asyncio
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from cloudprovider.core.api.guestcluster import (
    GuestCluster,
    GuestClusterSpec,
    GuestClusterStatus,
    GuestNode,
    MachineInterface,
    NodeMachine,
)
from cloudprovider.core.api.kubernetes import Node, NodeAddress, NodeStatus
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import Backend, LoadBalancer
from cloudprovider.core.api.meta import Condition, ObjectMeta
from cloudprovider.core.errors import Forbidden, KubeError, NotFound
from cloudprovider.core.exchange import ReportedNode, Tenant
from cloudprovider.core.guestmachines import GUEST_CLUSTER_LABEL
from cloudprovider.host.assembly import Host
from cloudprovider.kube.fake import Call, FakeCluster
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS, NODES, VIRTUAL_MACHINE_INSTANCES
from tests.core.instances import MAC, VLAN, instance, nic, reported
from tests.host.views import condition, given, seen, told, vm
from tests.host.world import World, eventually, guest_cluster, pool, subnet

WEB = {"app": "web"}
TENANT = Tenant("team-b", "blue")
NOT_SERVED = NotFound("the server could not find the requested resource", status=404)


def web_lb(name: str = "lb", namespace: str = "shop", **spec: object) -> LoadBalancer:
    return vm(name, namespace, **{"ip_pool": "p", "backend_server_selector": {"app": ["web"]}, **spec})


def machine(name: str, *addresses: str, **fields: Any) -> VirtualMachineInstance:
    return instance(name, *addresses, **{"labels": WEB, **fields})


async def start(world: World, *machines: VirtualMachineInstance) -> None:
    for one in machines:
        await world.client.create(VIRTUAL_MACHINE_INSTANCES, one)


async def change(world: World, name: str, patch: dict[str, object], namespace: str = "shop") -> None:
    await world.client.merge_patch(VIRTUAL_MACHINE_INSTANCES, namespace, name, patch)


def sends_to(host: Host, lb: LoadBalancer) -> dict[str, str]:
    """Machine to address, or to the reason why not."""
    return {
        b.name: b.reason or ",".join(b.addresses) for b in seen(host, lb).status.backends if b.addresses or b.reason
    }


async def followed(host: Host, lb: LoadBalancer, expected: dict[str, str]) -> None:
    await eventually(lambda: sends_to(host, lb) == expected, f"{expected} within a second", limit=1.0)


def found(host: Host, lb: LoadBalancer) -> Condition:
    said = condition(host, lb, "BackendsFound")
    assert said is not None
    return said


def message_of(host: Host, lb: LoadBalancer, name: str) -> str:
    (backend,) = (b for b in seen(host, lb).status.backends if b.name == name)
    return backend.message


@pytest.fixture
async def pooled(world: World) -> World:
    await world.client.create(IPPOOLS, pool("p", subnet("10.0.8.0/24", "10.0.8.100", "10.0.8.199"), network=VLAN))
    return world


class TestFollowing:
    async def test_a_machines_life_is_followed_within_a_second(self, pooled: World) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        async with pooled.host() as host:
            await given(host, lb)
            await eventually(lambda: found(host, lb).reason == "NoBackends")
            await start(
                pooled,
                machine("a", phase="Scheduling", connected=False),
                machine("other", "10.0.8.9", labels={"app": "db"}),
            )
            await change(pooled, "a", {"status": {"phase": "Running"}})
            await followed(host, lb, {"a": "AgentNotConnected"})
            assert "qemu-guest-agent" in found(host, lb).message

            told_by_agent = {
                "name": "nic-1",
                "mac": MAC,
                "ipAddresses": ["10.0.8.5"],
                "infoSource": "domain, guest-agent",
            }
            await change(pooled, "a", {"status": {"interfaces": [told_by_agent]}})
            await followed(host, lb, {"a": "10.0.8.5"})
            assert seen(host, lb).status.backends == [Backend(name="a", addresses=["10.0.8.5"], mac_address=MAC)]
            assert seen(host, lb).status.backend_servers == ["10.0.8.5"]
            assert found(host, lb).status == "True"

            await change(pooled, "a", {"status": {"interfaces": [{**told_by_agent, "ipAddresses": ["10.0.8.6"]}]}})
            await followed(host, lb, {"a": "10.0.8.6"})
            await change(pooled, "a", {"metadata": {"labels": {"app": "db"}}})
            await followed(host, lb, {})
            await change(pooled, "a", {"metadata": {"labels": {"app": "web"}}})
            await followed(host, lb, {"a": "10.0.8.6"})
            await start(pooled, machine("b", "10.0.8.7"))
            await followed(host, lb, {"a": "10.0.8.6", "b": "10.0.8.7"})
            await change(pooled, "a", {"status": {"phase": "Succeeded"}})
            await followed(host, lb, {"b": "10.0.8.7"})
            await pooled.client.delete(VIRTUAL_MACHINE_INSTANCES, "shop", "b")
            await followed(host, lb, {})
            assert seen(host, lb).status.backend_servers == []
            assert found(host, lb).reason == "NoBackends"
            event = await told(pooled, "AgentNotConnected")
            assert (event.type, event.involved_object.name) == ("Warning", "lb")

    async def test_a_changed_selector_chooses_others_at_once(self, pooled: World) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("a", "10.0.8.5"), machine("b", "10.0.8.6", labels={"app": "db"}))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5"})
            patch = {"spec": {"backendServerSelector": {"app": ["web", "db"]}}}
            await pooled.client.merge_patch(LOADBALANCERS, *lb.key, patch)
            await followed(host, lb, {"a": "10.0.8.5", "b": "10.0.8.6"})

    async def test_other_namespaces_machines_are_not_chosen(self, pooled: World) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("a", "10.0.8.5", namespace="theirs"), machine("b", "10.0.8.6"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"b": "10.0.8.6"})

    async def test_the_machines_stand_in_the_status_though_there_is_no_address(self, world: World) -> None:
        lb = web_lb(ip_pool="")
        await world.client.create(LOADBALANCERS, lb)
        await start(world, machine("a", "10.0.8.5"), machine("b", "10.0.0.5", nics=(nic(network=None),)))
        async with world.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "NotOnNetwork", "b": "10.0.0.5"})
            assert condition(host, lb).reason == "NoPoolMatches"  # type: ignore[union-attr]
            assert seen(host, lb).status.addresses == []
            await change(world, "b", {"status": {"phase": "Failed"}})
            await followed(host, lb, {"a": "NotOnNetwork"})

    async def test_an_address_and_the_machines_behind_it_come_in_one_write(
        self, pooled: World, cluster: FakeCluster
    ) -> None:
        lb = web_lb()
        await start(pooled, machine("a", "10.0.8.5", "fd00::5"))
        async with pooled.host() as host:
            await eventually(lambda: bool(host.caches.machines.objects))
            writes = counted(cluster)
            await pooled.client.create(LOADBALANCERS, lb)
            await given(host, lb)
            assert sends_to(host, lb) == {"a": "10.0.8.5"}
            await asyncio.sleep(0.3)
            await host.controller.load_balancers.queue.idle()
            assert len(writes) == 1

    async def test_when_the_address_moves_to_another_network_the_machines_are_met_there(self, pooled: World) -> None:
        await pooled.client.create(IPPOOLS, pool("q", subnet("10.0.9.0/24"), network="default/vlan9"))
        lb = web_lb()
        nics = (nic("a"), nic("b", "default/vlan9"))
        status = (reported("10.0.8.5", name="a"), reported("10.0.9.5", name="b"))
        await start(pooled, machine("m", nics=nics, status=status))
        await pooled.client.create(LOADBALANCERS, lb)
        async with pooled.host() as host, pooled.agent(host):
            await eventually(lambda: sends_to(host, lb) == {"m": "10.0.8.5"})
            told = []

            def changed(_: LoadBalancer | None, new: LoadBalancer | None) -> None:
                if new is not None:
                    told.append((new.status.addresses[0].network, *new.status.backend_servers))

            host.caches.load_balancers.on_change(changed)
            await pooled.client.merge_patch(LOADBALANCERS, *lb.key, {"spec": {"ipPool": "q"}})
            await eventually(lambda: sends_to(host, lb) == {"m": "10.0.9.5"})
            assert set(told) == {(VLAN, "10.0.8.5"), ("default/vlan9", "10.0.9.5")}

    async def test_a_migration_writes_nothing(self, pooled: World, cluster: FakeCluster) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("a", "10.0.8.5"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5"})
            writes = counted(cluster)
            for step in (
                {"migrationState": {"targetNode": "host-2"}},
                {"nodeName": "host-2", "conditions": [{"type": "Ready", "status": "False"}]},
                {"migrationState": {"completed": True}, "conditions": [{"type": "AgentConnected", "status": "True"}]},
            ):
                await change(pooled, "a", {"status": step})
                await asyncio.sleep(0.15)
            await host.controller.load_balancers.queue.idle()
            assert writes == []
            assert sends_to(host, lb) == {"a": "10.0.8.5"}

    async def test_many_machines_that_start_at_once_cost_few_writes(self, pooled: World, cluster: FakeCluster) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        async with pooled.host() as host:
            await given(host, lb)
            await eventually(lambda: condition(host, lb, "BackendsFound") is not None)
            writes = counted(cluster)
            await start(pooled, *(machine(f"m{i:03}", f"10.0.8.{i}") for i in range(2, 100)))
            await eventually(lambda: len(sends_to(host, lb)) == 98, limit=2.0)
            assert len(writes) <= 10


class TestBesideTheAgent:
    async def test_health_is_the_agents_and_stays_as_it_says(self, pooled: World, cluster: FakeCluster) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("a", "10.0.8.5"), machine("b", "10.0.8.6"))
        async with pooled.host() as host:
            await eventually(lambda: len(sends_to(host, lb)) == 2)
            writes = counted(cluster)
            up = {"healthy": True, "since": "2026-01-01T00:00:00Z"}
            health: dict[str, object] = {"backends": [{"name": "b", "health": up}, {"name": "a", "health": up}]}
            await by_agent(pooled, lb, health)
            await eventually(lambda: all(b.health for b in seen(host, lb).status.backends))
            await host.controller.load_balancers.queue.idle()
            assert [w for w in writes if w != "cloudprovider-agent"] == ["cloudprovider"]  # the agent's own, here

            await pooled.client.delete(VIRTUAL_MACHINE_INSTANCES, "shop", "a")
            await followed(host, lb, {"b": "10.0.8.6"})
            backends = {b.name: b for b in seen(host, lb).status.backends}
            assert backends["a"].addresses == []  # what the agent still says of it
            assert (backends["b"].addresses, backends["b"].health is None) == (["10.0.8.6"], False)
            await by_agent(pooled, lb, {"backends": [{"name": "b", "health": up}]})
            await eventually(lambda: [b.name for b in seen(host, lb).status.backends] == ["b"])


class TestWithoutKubeVirt:
    async def test_it_is_said_and_noticed_when_it_comes(self, pooled: World, cluster: FakeCluster) -> None:
        refuse(cluster, NOT_SERVED)
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        async with pooled.host() as host:
            assert await given(host, lb) == "10.0.8.100"
            await eventually(lambda: found(host, lb).reason == "KubeVirtNotInstalled")
            assert (await told(pooled, "KubeVirtNotInstalled")).involved_object.name == "lb"
            refuse(cluster, None)
            await start(pooled, machine("a", "10.0.8.5"))
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5"})

    async def test_while_machines_cant_be_listed_what_was_known_stays(
        self, pooled: World, cluster: FakeCluster
    ) -> None:
        lb, new = web_lb(), web_lb("new")
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("a", "10.0.8.5"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5"})
        refuse(cluster, Forbidden("no", status=403))
        async with pooled.host() as host:
            await pooled.client.create(LOADBALANCERS, new)
            await given(host, new)
            assert found(host, new).status == "Unknown"
            await pooled.client.merge_patch(LOADBALANCERS, *lb.key, {"spec": {"description": "changed"}})
            await host.controller.load_balancers.queue.idle()
            assert sends_to(host, lb) == {"a": "10.0.8.5"}
            assert found(host, lb).status == "True"
            refuse(cluster, None)
            await eventually(lambda: sends_to(host, new) == {"a": "10.0.8.5"})


OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-02T00:00:00Z"


class TestDoubles:
    async def test_who_had_an_address_first_keeps_it_and_the_other_is_told_without_names(self, pooled: World) -> None:
        mine, theirs = web_lb(), web_lb("theirs", "rival")
        await pooled.client.create(LOADBALANCERS, mine)
        await pooled.client.create(LOADBALANCERS, theirs)
        await start(pooled, machine("honest", "10.0.8.5"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, mine) == {"honest": "10.0.8.5"})
            await start(pooled, machine("liar", "10.0.8.5", namespace="rival"))
            await followed(host, theirs, {"liar": "AddressInUse"})
            assert "honest" not in message_of(host, theirs, "liar")
            assert "shop" not in found(host, theirs).message
            assert sends_to(host, mine) == {"honest": "10.0.8.5"}
            event = await told(pooled, "AddressInUse")
            assert (event.involved_object.namespace, event.involved_object.name) == ("rival", "theirs")

            await pooled.client.delete(VIRTUAL_MACHINE_INSTANCES, "shop", "honest")
            await followed(host, theirs, {"liar": "10.0.8.5"})
            await start(pooled, machine("honest", "10.0.8.5"))
            await followed(host, mine, {"honest": "AddressInUse"})
        async with pooled.host() as host:  # by what stands in the statuses
            await host.controller.load_balancers.queue.idle()
            await asyncio.sleep(0.3)
            assert sends_to(host, theirs) == {"liar": "10.0.8.5"}
            assert sends_to(host, mine) == {"honest": "AddressInUse"}

    async def test_of_two_that_are_new_the_older_one_has_it_and_ones_own_is_named(
        self, pooled: World, cluster: FakeCluster
    ) -> None:
        lb = web_lb()
        for name, created in (("a", NEW), ("b", OLD)):
            cluster.seed(VIRTUAL_MACHINE_INSTANCES, machine(name, "10.0.8.5", creation_timestamp=created, uid=name))
        await pooled.client.create(LOADBALANCERS, lb)
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "AddressInUse", "b": "10.0.8.5"})
            assert 'that of the machine "b"' in message_of(host, lb, "a")

    async def test_one_that_is_sent_to_keeps_it_from_an_older_one(self, pooled: World, cluster: FakeCluster) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        cluster.seed(VIRTUAL_MACHINE_INSTANCES, machine("a", "10.0.8.5", creation_timestamp=NEW, uid="a"))
        cluster.seed(VIRTUAL_MACHINE_INSTANCES, machine("b", "10.0.8.6", creation_timestamp=OLD, uid="b"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5", "b": "10.0.8.6"})
            status = {"interfaces": [{"name": "nic-1", "ipAddresses": ["10.0.8.5"]}]}
            await change(pooled, "b", {"status": status})
            await followed(host, lb, {"a": "10.0.8.5", "b": "AddressInUse"})

    async def test_the_same_address_on_another_network_is_another_address(self, pooled: World) -> None:
        lb = web_lb()
        elsewhere = (nic(network="default/vlan9"),)
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("far", "10.0.8.5", namespace="rival", nics=elsewhere), machine("a", "10.0.8.5"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5"})

    @pytest.mark.parametrize(
        ("address", "reason"),
        [
            ("10.0.8.1", "GatewayAddress"),
            ("10.0.8.100", "LoadBalancerAddress"),
            ("10.0.8.3", "HostAddress"),
            ("10.96.0.9", "ReservedRange"),
        ],
    )
    async def test_what_the_host_itself_has_is_no_machines(self, pooled: World, address: str, reason: str) -> None:
        other = vm("first", "rival", ip_pool="p")
        await pooled.client.create(LOADBALANCERS, other)
        await pooled.client.create(
            NODES,
            Node(
                metadata=ObjectMeta(name="host-1"),
                status=NodeStatus(addresses=[NodeAddress(type="InternalIP", address="10.0.8.3")]),
            ),
        )
        async with pooled.host() as host:
            assert await given(host, other) == "10.0.8.100"
            lb = web_lb()
            await pooled.client.create(LOADBALANCERS, lb)
            await given(host, lb)
            await start(pooled, machine("a", address), machine("b", "10.0.8.5"))
            await eventually(lambda: sends_to(host, lb) == {"a": reason, "b": "10.0.8.5"})

    async def test_an_address_that_becomes_a_load_balancers_is_noticed(self, pooled: World) -> None:
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("a", "10.0.8.101"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.101"})
            other = vm("other", "rival", ip_pool="p")
            await pooled.client.create(LOADBALANCERS, other)
            assert await given(host, other) == "10.0.8.101"
            await followed(host, lb, {"a": "LoadBalancerAddress"})

    async def test_an_address_by_dhcp_is_a_load_balancers_too(self, pooled: World) -> None:
        lb, other = web_lb(), vm("other", "rival", ipam="dhcp")
        await pooled.client.create(LOADBALANCERS, lb)
        await pooled.client.create(LOADBALANCERS, other)
        await start(pooled, machine("a", "10.0.8.50"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.50"})
            lease = {"ip": "10.0.8.50", "prefixLength": 24, "network": VLAN}
            leased = {"type": "Leased", "status": "True", "reason": "Leased", "observedGeneration": 1}
            await by_agent(pooled, other, {"lease": lease, "conditions": [leased]})
            assert await given(host, other) == "10.0.8.50"
            await followed(host, lb, {"a": "LoadBalancerAddress"})


class TestGuestNodes:
    """A machine beside the nodes of guest clusters."""

    async def test_a_nodes_address_is_no_other_machines(self, pooled: World, cluster: FakeCluster) -> None:
        cluster.seed(GUESTCLUSTERS, guests("node-1", "10.0.8.5"))
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("liar", "10.0.8.5"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"liar": "AddressInUse"})
            assert "node-1" not in message_of(host, lb, "liar")
            assert "blue" not in message_of(host, lb, "liar")

    async def test_where_the_node_is_the_machine_there_is_but_one(self, pooled: World, cluster: FakeCluster) -> None:
        cluster.seed(GUESTCLUSTERS, guests("node-1", "10.0.8.5"))
        lb = web_lb(namespace="team-b")
        await pooled.client.create(LOADBALANCERS, lb)
        labels = {**WEB, GUEST_CLUSTER_LABEL: "blue"}
        await start(pooled, machine("node-1", "10.0.8.5", namespace="team-b", labels=labels))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"node-1": "10.0.8.5"})
            labels = {GUEST_CLUSTER_LABEL: "red"}
            await change(pooled, "node-1", {"metadata": {"labels": labels}}, "team-b")
            await followed(host, lb, {"node-1": "AddressInUse"})
            assert f"label it {GUEST_CLUSTER_LABEL}=blue" in message_of(host, lb, "node-1")

    @pytest.mark.parametrize("known", [True, False])
    async def test_a_node_elsewhere_has_nothing_to_do_with_it(
        self, pooled: World, cluster: FakeCluster, known: bool
    ) -> None:
        networks = [] if known else ["default/vlan9"]
        cluster.seed(GUESTCLUSTERS, guests("node-1", "10.0.8.5", networks))
        lb = web_lb()
        await pooled.client.create(LOADBALANCERS, lb)
        if known:
            await start(pooled, machine("node-1", namespace="team-b", nics=(nic(network="default/vlan9"),)))
        await start(pooled, machine("a", "10.0.8.5"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5"})

    async def test_a_node_that_reports_a_machines_address_is_rejected_until_the_machine_is_gone(
        self, pooled: World
    ) -> None:
        lb = web_lb()
        await pooled.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
        await pooled.client.create(LOADBALANCERS, lb)
        await start(pooled, machine("a", "10.0.8.5"))
        async with pooled.host() as host:
            await eventually(lambda: sends_to(host, lb) == {"a": "10.0.8.5"})
            (rejected,) = await host.backend.report_nodes(TENANT, [ReportedNode("n", (ip_address("10.0.8.5"),))])
            assert rejected.reason == "AddressInUse"
            assert sends_to(host, lb) == {"a": "10.0.8.5"}
            await pooled.client.delete(VIRTUAL_MACHINE_INSTANCES, "shop", "a")
            await eventually(lambda: nodes_of(host) == ["n"])


class TestMachinesOfNodes:
    """``status.machines`` of a GuestCluster."""

    async def test_nodes_are_known_by_name_and_label_and_followed(self, pooled: World, cluster: FakeCluster) -> None:
        await pooled.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
        blue, red = ({GUEST_CLUSTER_LABEL: name} for name in ("blue", "red"))
        two = (nic("a"), nic("b", "vlan9", mac="02:00:00:00:00:09"))
        hidden = (nic("mgmt", None, masquerade=True),)
        await start(
            pooled,
            instance("n1", "10.0.8.5", labels=blue, nics=two, namespace="team-b"),
            instance("n2", "10.0.8.6", labels={}, nics=hidden, namespace="team-b"),
            instance("n3", "10.0.8.7", labels=red, namespace="team-b"),
            instance("n4", "10.0.8.8", labels=blue, namespace="elsewhere"),
        )
        async with pooled.host() as host:
            nodes = [ReportedNode(f"n{i}", (ip_address(f"10.0.8.{i + 4}"),)) for i in range(1, 5)]
            assert not await host.backend.report_nodes(TENANT, nodes)
            known = NodeMachine(
                name="n1",
                virtual_machine="n1",
                interfaces=[
                    MachineInterface(network=VLAN, mac_address=MAC),
                    MachineInterface(network="team-b/vlan9", mac_address="02:00:00:00:00:09"),
                ],
            )
            expected = [known, NodeMachine(name="n2", virtual_machine="n2")]
            await eventually(lambda: machines_of(host) == expected, limit=1.0)

            await pooled.client.delete(VIRTUAL_MACHINE_INSTANCES, "team-b", "n2")
            await eventually(lambda: machines_of(host) == [known], limit=1.0)
            await change(pooled, "n3", {"metadata": {"labels": blue}}, "team-b")
            await eventually(lambda: [m.name for m in machines_of(host)] == ["n1", "n3"], limit=1.0)

            # The bridge's own writes take nothing of it away, nor hold it.
            await host.backend.report_nodes(TENANT, nodes[:3])
            assert [m.name for m in machines_of(host)] == ["n1", "n3"]
            for name in ("n1", "n3"):
                await pooled.client.delete(VIRTUAL_MACHINE_INSTANCES, "team-b", name)
            await eventually(lambda: machines_of(host) == [], limit=1.0)

    async def test_a_guest_may_name_the_machine_but_none_of_another_cluster(self, pooled: World) -> None:
        await pooled.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
        for name, cluster in (("vm-1", "blue"), ("vm-2", "red")):
            labels = {GUEST_CLUSTER_LABEL: cluster}
            await start(pooled, instance(name, "10.0.8.5", labels=labels, namespace="team-b"))
        async with pooled.host() as host:
            nodes = [
                ReportedNode("n1", (ip_address("10.0.8.5"),), "vm-1"),
                ReportedNode("n2", (ip_address("10.0.8.6"),), "vm-2"),
            ]
            await host.backend.report_nodes(TENANT, nodes)
            await eventually(lambda: [(m.name, m.virtual_machine) for m in machines_of(host)] == [("n1", "vm-1")])
            found = host.caches.guest_cluster(TENANT)
            assert found is not None
            assert [n.virtual_machine for n in found.status.nodes] == ["vm-1", "vm-2"]

    async def test_nothing_is_written_that_has_not_changed(self, pooled: World, cluster: FakeCluster) -> None:
        await pooled.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
        await start(pooled, instance("n1", "10.0.8.5", labels={}, namespace="team-b"))
        async with pooled.host() as host:
            await host.backend.report_nodes(TENANT, [ReportedNode("n1", (ip_address("10.0.8.5"),))])
            await eventually(lambda: [m.name for m in machines_of(host)] == ["n1"])
            writes = counted(cluster, "guestclusters/status")
            await change(pooled, "n1", {"status": {"nodeName": "host-2"}}, "team-b")
            await change(pooled, "n1", {"status": {"phase": "Running", "interfaces": []}}, "team-b")
            await asyncio.sleep(0.3)
            assert writes == []
        async with pooled.host() as host:
            await asyncio.sleep(0.3)
            assert writes == []


def machines_of(host: Host) -> list[NodeMachine]:
    found = host.caches.guest_cluster(TENANT)
    return [] if found is None else found.status.machines


def guests(node: str, address: str, networks: list[str] | None = None) -> GuestCluster:
    cluster = guest_cluster(TENANT, GuestClusterSpec(node_cidrs=["10.0.0.0/8"], networks=networks or []))
    status = GuestClusterStatus(nodes=[GuestNode(name=node, addresses=[address])])
    metadata = msgspec.structs.replace(cluster.metadata, creation_timestamp=OLD, uid="u-1")
    return msgspec.structs.replace(cluster, metadata=metadata, status=status)


def nodes_of(host: Host) -> list[str]:
    found = host.caches.guest_cluster(TENANT)
    return [] if found is None else [node.name for node in found.status.nodes]


def counted(cluster: FakeCluster, resource: str = "loadbalancers/status") -> list[str]:
    """The programs that write such a status from now on."""
    writes: list[str] = []

    async def before(call: Call) -> None:
        if call.verb == "apply" and call.resource == resource:
            writes.append(call.program)

    cluster.before = before
    return writes


def refuse(cluster: FakeCluster, error: KubeError | None) -> None:
    async def before(call: Call) -> None:
        if error is not None and call.resource == "virtualmachineinstances" and call.verb in ("list", "watch"):
            raise error

    cluster.before = before


async def by_agent(world: World, lb: LoadBalancer, status: dict[str, object]) -> None:
    patch = {"apiVersion": LOADBALANCERS.api_version, "kind": LOADBALANCERS.kind, "metadata": {}, "status": status}
    await world.client.apply(LOADBALANCERS, *lb.key, patch, field_manager="cloudprovider-agent", subresource="status")
