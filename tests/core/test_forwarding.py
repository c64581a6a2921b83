"""The table's deltas, added up, are always the plan that a table made from scratch has."""

from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_LABEL,
    Address,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
    ServiceReference,
)
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.plan import Changes, Forward, GroupId, IPAddress, ListenerKey, Plan
from cloudprovider.core.wanted import wanted

K = TypeVar("K")
V = TypeVar("V")
NODES = {"n1": "10.0.0.11", "n2": "10.0.0.12", "n3": "10.0.0.13"}
HTTP = Listener(port=80, backend_port=30080)


def cluster(*nodes: str, name: str = "c") -> GuestCluster:
    return GuestCluster(
        metadata=ObjectMeta(namespace="t", name=name),
        status=GuestClusterStatus(nodes=[GuestNode(name=n, addresses=[NODES[n]]) for n in nodes]),
    )


def lb(name: str, vip: str, *listeners: Listener, local: list[str] | None = None, **spec: object) -> LoadBalancer:
    return LoadBalancer(
        metadata=ObjectMeta(namespace="t", name=name, labels={CLUSTER_LABEL: "c"}, generation=1),
        spec=LoadBalancerSpec(
            workload_type="cluster",
            listeners=list(listeners),
            service=ServiceReference(namespace="d", name=name, uid="u"),
            external_traffic_policy="Cluster" if local is None else "Local",
            endpoint_nodes=local or [],
            **spec,  # type: ignore[arg-type]
        ),
        status=LoadBalancerStatus(addresses=[Address(ip=vip, ip_pool="p", prefix_length=24)] if vip else []),
    )


def table(*objects: GuestCluster | LoadBalancer) -> ForwardingTable:
    result = ForwardingTable([""])
    for obj in objects:
        if isinstance(obj, GuestCluster):
            result.set_cluster(obj)
        else:
            result.set_load_balancer(obj)
    return result


def key(vip: str, port: int = 80) -> ListenerKey:
    return ListenerKey(ip_address(vip), "TCP", port)


def test_services_of_a_cluster_share_one_group() -> None:
    plan = table(cluster("n1", "n2"), lb("a", "10.0.0.100", HTTP), lb("b", "10.0.0.101", HTTP)).plan("")
    (group,) = plan.groups
    assert plan.groups[group].members == {IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12")}
    assert plan.forwards == {key("10.0.0.100"): Forward(group, 30080), key("10.0.0.101"): Forward(group, 30080)}


def test_group_ids_do_not_depend_on_order() -> None:
    objects: list[GuestCluster | LoadBalancer] = [
        cluster("n1", "n2"),
        lb("a", "10.0.0.100", HTTP),
        lb("b", "10.0.0.101", HTTP, local=["n2"]),
    ]
    assert table(*objects).plan("") == table(*reversed(objects)).plan("")


def test_policy_local_goes_to_the_nodes_with_endpoints_only() -> None:
    plan = table(cluster("n1", "n2"), lb("a", "10.0.0.100", HTTP, local=["n2", "unknown"])).plan("")
    assert [g.members for g in plan.groups.values()] == [{IPv4Address("10.0.0.12")}]


def test_without_a_node_the_listener_refuses_and_recovers() -> None:
    tested = table(lb("a", "10.0.0.100", HTTP))
    assert tested.plan("").forwards == {key("10.0.0.100"): Forward(GroupId(0), 30080)}
    assert not tested.has_nodes(("t", "a"))
    tested.set_cluster(cluster("n1"))
    assert tested.has_nodes(("t", "a"))
    assert tested.set_cluster(cluster()) == {IPv4Address("10.0.0.11")}
    assert tested.plan("") == Plan(
        frozenset([ip_address("10.0.0.100")]), {}, {key("10.0.0.100"): Forward(GroupId(0), 30080)}
    )


def test_two_claim_one_listener_first_serves_then_its_heir() -> None:
    other = Listener(port=80, backend_port=31111)
    tested = table(cluster("n1"), lb("a", "10.0.0.100", HTTP), lb("b", "10.0.0.100", other))
    assert tested.displaced(("t", "b")) == {key("10.0.0.100"): ("t", "a")}
    tested.set_load_balancer(lb("a", "10.0.0.100", HTTP, session_affinity="ClientIP"))
    assert tested.displaced(("t", "b")), "a change of the first must not hand its listener on"
    assert tested.remove_load_balancer(("t", "a")) == {"": frozenset()}
    assert tested.plan("").forwards[key("10.0.0.100")].backend_port == 31111
    assert tested.vips("") == {ip_address("10.0.0.100")}
    assert tested.remove_load_balancer(("t", "b")) == {"": {key("10.0.0.100")}}
    assert tested.plan("") == Plan()


def test_unknown_network_and_bad_input_are_problems_not_crashes() -> None:
    elsewhere = lb("a", "10.0.0.100", HTTP)
    elsewhere.status.addresses[0] = Address(ip="10.0.0.100", prefix_length=24, network="x/y")
    tested = table(elsewhere, lb("b", "10.0.0.101", HTTP, source_ranges=["10.0.0.0/99"]))
    for name, reason in (("a", "NetworkNotConfigured"), ("b", "InvalidSpec")):
        want = tested.load_balancer(("t", name))
        assert want is not None
        assert want.problem is not None
        assert want.problem.reason == reason


def test_a_port_without_node_port_is_told_and_the_others_are_served() -> None:
    want = wanted(lb("a", "10.0.0.100", HTTP, Listener(port=443)), [""])
    assert want is not None
    assert want.partial is not None
    assert "TCP 443" in want.partial.message
    assert [k.port for _, k in want] == [80]


def test_asks_nothing_while_it_has_no_address_or_goes_away() -> None:
    assert wanted(lb("a", "", HTTP), [""]) is None


def moving(name: str, old: Address, new: Address) -> LoadBalancer:
    made = lb(name, "", HTTP)
    made.status.addresses.append(old)
    made.status.next_addresses.append(new)
    return made


def test_while_it_moves_both_addresses_are_served_each_on_its_network() -> None:
    old = Address(ip="10.0.0.100", prefix_length=24)
    new = Address(ip="10.0.0.100", prefix_length=24, network="default/vlan2")
    tested = ForwardingTable(["", "default/vlan2"])
    tested.set_cluster(cluster("n1"))
    tested.set_load_balancer(lb("a", "10.0.0.100", HTTP))
    tested.take_changes("")
    assert tested.set_load_balancer(moving("a", old, new)) == {}
    assert [tested.plan(n).forwards.keys() for n in ("", "default/vlan2")] == [{key("10.0.0.100")}] * 2
    after = lb("a", "", HTTP)
    after.status.addresses.append(new)
    assert tested.set_load_balancer(after) == {"": {key("10.0.0.100")}}
    assert tested.plan("") == Plan()
    assert tested.vips("default/vlan2") == {ip_address("10.0.0.100")}


def test_what_follows_elsewhere_does_not_spoil_what_is_shown() -> None:
    old = Address(ip="10.0.0.100", prefix_length=24)
    for new, reason in (
        (Address(ip="10.9.0.1", prefix_length=24, network="x/y"), "NetworkNotConfigured"),
        (Address(ip="2001:db8::1", prefix_length=64), "IPv6NotForwarded"),
    ):
        want = wanted(moving("a", old, new), [""])
        assert want is not None
        assert (want.problem, want.partial, want.following) == (None, None, ())
        assert want.awaited is not None
        assert want.awaited.reason == reason


def test_of_two_families_the_one_that_is_forwarded_is_served() -> None:
    both = lb("a", "10.0.0.100", HTTP)
    both.status.addresses.append(Address(ip="2001:db8::1", prefix_length=64))
    want = wanted(both, [""])
    assert want is not None
    assert want.problem is None
    assert want.partial is not None
    assert want.partial.reason == "IPv6NotForwarded"
    assert [str(p.vip) for p in want.shown] == ["10.0.0.100"]
    del both.status.addresses[0]
    alone = wanted(both, [""])
    assert alone is not None
    assert alone.problem is not None


names = st.sampled_from(["a", "b", "c"])
vips = st.sampled_from(["", "10.0.0.100", "10.0.0.101"])
node_sets = st.sets(st.sampled_from(sorted(NODES)))


class Incremental(RuleBasedStateMachine):
    """Random histories: applying every delta to what was there gives the plan made from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ForwardingTable([""])
        self.kernel = Plan()
        self.lbs: dict[str, LoadBalancer] = {}
        self.cluster: GuestCluster | None = None

    @rule(name=names, vip=vips, local=st.none() | node_sets, ports=st.sets(st.sampled_from([80, 443]), min_size=1))
    def put(self, name: str, vip: str, local: set[str] | None, ports: set[int]) -> None:
        listeners = [Listener(port=p, backend_port=30000 + p) for p in sorted(ports)]
        self.lbs[name] = lb(name, vip, *listeners, local=None if local is None else sorted(local))
        self.table.set_load_balancer(self.lbs[name])

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.lbs.pop(name, None)
        self.table.remove_load_balancer(("t", name))

    @rule(nodes=node_sets)
    def nodes(self, nodes: set[str]) -> None:
        self.cluster = cluster(*sorted(nodes))
        self.table.set_cluster(self.cluster)

    @rule()
    def forget_cluster(self) -> None:
        self.cluster = None
        self.table.remove_cluster(("t", "c"))

    @invariant()
    def deltas_add_up(self) -> None:
        self.kernel = applied(self.kernel, self.table.take_changes(""))
        plan = self.table.plan("")
        assert (self.kernel.groups, self.kernel.forwards) == (plan.groups, plan.forwards)

    @invariant()
    def groups_are_used_and_known(self) -> None:
        plan = self.table.plan("")
        assert {f.group for f in plan.forwards.values()} - {0} == set(plan.groups)
        assert all(group.members for group in plan.groups.values())

    @invariant()
    def every_vip_and_listener_is_served(self) -> None:
        plan = self.table.plan("")
        fresh = table(*([self.cluster] if self.cluster else []), *self.lbs.values()).plan("")
        assert plan.vips == fresh.vips
        assert plan.forwards.keys() == fresh.forwards.keys()


def applied(plan: Plan, changes: Changes) -> Plan:
    return Plan(groups=merged(plan.groups, changes.groups), forwards=merged(plan.forwards, changes.forwards))


def merged(have: Mapping[K, V], delta: Mapping[K, V | None]) -> dict[K, V]:
    return {k: v for k, v in {**have, **delta}.items() if v is not None}


TestIncremental = Incremental.TestCase


@given(st.lists(st.sampled_from(sorted(NODES)), unique=True))
def test_group_members_are_exactly_the_reported_nodes(nodes: list[str]) -> None:
    plan = table(cluster(*nodes), lb("a", "10.0.0.100", HTTP)).plan("")
    expected: frozenset[IPAddress] = frozenset(ip_address(NODES[n]) for n in nodes)
    assert [g.members for g in plan.groups.values()] == ([expected] if nodes else [])
