"""The table's deltas, added up, are always the plan that a table made from scratch has."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_interface
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_LABEL,
    Address,
    Backend,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
    ServiceReference,
)
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.exchange import Mode
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.groups import Sightings
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.modes import NetworkFacts
from cloudprovider.core.plan import Changes, Former, Forward, Group, GroupId, IPAddress, ListenerKey, Plan
from cloudprovider.core.transitions import MOVING_SECONDS
from cloudprovider.core.wanted import wanted

K = TypeVar("K")
V = TypeVar("V")
NODES = {"n1": "10.0.0.11", "n2": "10.0.0.12", "n3": "10.0.0.13"}
MACS = {name: MACAddress.parse(f"02:00:00:00:00:1{name[1]}") for name in NODES}
HTTP = Listener(port=80, backend_port=30080)


def cluster(*nodes: str, name: str = "c") -> GuestCluster:
    return GuestCluster(
        metadata=ObjectMeta(namespace="t", name=name),
        status=GuestClusterStatus(nodes=[GuestNode(name=n, addresses=[NODES[n]]) for n in nodes]),
    )


def lb(
    name: str, vip: str, *listeners: Listener, local: list[str] | None = None, mode: Mode = "nat", **spec: object
) -> LoadBalancer:
    return LoadBalancer(
        metadata=ObjectMeta(namespace="t", name=name, labels={CLUSTER_LABEL: "c"}, generation=1),
        spec=LoadBalancerSpec(
            workload_type="cluster",
            listeners=list(listeners),
            service=ServiceReference(namespace="d", name=name, uid="u"),
            external_traffic_policy="Cluster" if local is None else "Local",
            endpoint_nodes=local or [],
            mode=mode,
            **spec,  # type: ignore[arg-type]
        ),
        status=LoadBalancerStatus(addresses=[Address(ip=vip, ip_pool="p", prefix_length=24)] if vip else []),
    )


def backend(name: str, *addresses: str, mac: str = "", direct: bool = False) -> Backend:
    """A virtual machine that is used; by default it is the node of this name."""
    where = list(addresses) or [NODES[name]]
    return Backend(name=name, addresses=where, mac_address=str(mac or MACS[name]), direct=direct)


def vm(
    name: str,
    vip: str,
    *listeners: Listener,
    backends: Sequence[Backend] = (),
    namespace: str = "t",
    network: str = "",
    **spec: object,
) -> LoadBalancer:
    """A load balancer for virtual machines, as the host controller has written it."""
    addresses = [Address(ip=vip, ip_pool="p", prefix_length=24, network=network)] if vip else []
    return LoadBalancer(
        metadata=ObjectMeta(namespace=namespace, name=name, generation=1),
        spec=LoadBalancerSpec(
            workload_type="vm",
            listeners=list(listeners),
            backend_server_selector={"app": ["web"]},
            **spec,  # type: ignore[arg-type]
        ),
        status=LoadBalancerStatus(addresses=addresses, backends=list(backends)),
    )


def table(*objects: GuestCluster | LoadBalancer) -> ForwardingTable:
    result = ForwardingTable([""], lambda: 0.0)
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
    assert tested.set_cluster(cluster()) == {("t", "a")}
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
    tested = table(cluster("n1"), lb("a", "10.0.0.100", HTTP, Listener(port=443)))
    trouble = tested.trouble(("t", "a"))
    assert trouble is not None
    assert trouble.reason == "NoNodePort"
    assert "TCP 443" in trouble.message
    assert tested.plan("").forwards.keys() == {key("10.0.0.100")}


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
    tested = ForwardingTable(["", "default/vlan2"], lambda: 0.0)
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
    new = Address(ip="10.9.0.1", prefix_length=24, network="x/y")
    want = wanted(moving("a", old, new), [""])
    assert want is not None
    assert (want.problem, want.partial, want.following) == (None, None, ())
    assert want.awaited is not None
    assert want.awaited.reason == "NetworkNotConfigured"


def seen(*names: str, awaited: tuple[str, ...] = ()) -> Sightings:
    macs = {ip_address(NODES[name]): MACS[name] for name in names}
    return Sightings(macs, frozenset(ip_address(NODES[name]) for name in awaited))


def test_where_all_nodes_stand_on_the_network_frames_go_to_their_macs() -> None:
    tested = table(cluster("n1", "n2"), lb("a", "10.0.0.100", Listener(port=80), mode="auto"))
    assert tested.modes.followed("") == {ip_address("10.0.0.11"), ip_address("10.0.0.12")}
    assert tested.plan("").forwards[key("10.0.0.100")].group == 0
    tested.set_sightings("", seen("n1", awaited=("n2",)))
    plan = tested.plan("")
    (group,) = plan.groups
    assert plan.groups == {group: Group(frozenset({MACS["n1"]}))}
    assert plan.forwards == {key("10.0.0.100"): Forward(group, mode="dsr")}
    assert tested.set_sightings("", seen("n1", "n2")) == frozenset()
    assert tested.plan("").groups == {group: Group(frozenset({MACS["n1"], MACS["n2"]}), former=frozenset({MACS["n1"]}))}


def test_nodes_are_known_before_a_change_to_dsr() -> None:
    tested = table(cluster("n1"), lb("a", "10.0.0.100", HTTP))
    assert tested.modes.followed("") == {ip_address("10.0.0.11")}
    tested.set_sightings("", seen("n1"))
    tested.set_load_balancer(lb("a", "10.0.0.100", HTTP, mode="dsr"))
    forward = tested.plan("").forwards[key("10.0.0.100")]
    assert (forward.mode, forward.former) == ("dsr", Former("nat"))


def test_it_is_looked_for_nodes_until_all_have_been_asked() -> None:
    tested = table(cluster("n1"), lb("a", "10.0.0.100", HTTP, mode="dsr"))
    tested.set_sightings("", seen(awaited=("n1",)))
    assert tested.is_looking(("t", "a"))
    tested.set_sightings("", seen())
    assert not tested.is_looking(("t", "a"))
    assert not tested.has_nodes(("t", "a"))
    assert tested.set_sightings("", seen("n1")) == {("t", "a")}
    assert tested.has_nodes(("t", "a"))


def test_a_node_elsewhere_and_an_obstacle_turn_auto_into_nat() -> None:
    away = GuestNode(name="n9", addresses=["10.9.0.1"])
    far = cluster("n1")
    far.status.nodes.append(away)
    tested = table(cluster("n1"), lb("a", "10.0.0.100", HTTP, mode="auto"))
    tested.set_sightings("", seen("n1"))
    (old,) = tested.plan("").groups
    assert tested.set_cluster(far) == {("t", "a")}
    forward = tested.plan("").forwards[key("10.0.0.100")]
    assert (forward.mode, forward.former) == ("nat", Former("dsr", old))
    assert {c.mode for c in tested.choices(("t", "a")).values()} == {"nat"}
    assert tested.set_cluster(cluster("n1")) == {("t", "a")}
    assert tested.plan("").forwards[key("10.0.0.100")].mode == "dsr"
    assert tested.set_facts("", NetworkFacts(dsr_obstacle="no")) == {("t", "a")}
    assert tested.plan("").forwards[key("10.0.0.100")].mode == "nat"


def test_what_its_mode_can_t_serve_is_told() -> None:
    far = cluster("n1")
    far.status.nodes.append(GuestNode(name="n9", addresses=["10.9.0.1"]))
    tested = table(far, lb("a", "10.0.0.100", HTTP, mode="dsr"), lb("b", "10.0.0.101", HTTP))
    tested.set_facts("", NetworkFacts(own=(ip_interface("10.0.0.5/24"),)))
    trouble = tested.trouble(("t", "a"))
    assert trouble is not None
    assert trouble.reason == "ModeNotPossible"
    assert "10.9.0.1 is not in 10.0.0.0/24" in trouble.message
    assert tested.trouble(("t", "b")) is None
    assert tested.plan("").forwards.keys() == {key("10.0.0.101")}


def test_frames_for_an_address_of_another_subnet_go_to_the_host_s_own_network_where_that_is_asked_for() -> None:
    nodes = frozenset({ip_address("10.0.0.11")})
    tested = table(cluster("n1"), lb("a", "203.0.113.1", HTTP, mode="dsr"), lb("b", "203.0.113.2", HTTP))
    for own, followed in (("10.9.0.5/24", frozenset()), ("10.0.0.5/24", nodes), ("10.9.0.5/24", frozenset())):
        tested.set_facts("", NetworkFacts(own=(ip_interface(own),)))
        assert tested.modes.followed("") == followed
        assert (tested.trouble(("t", "a")) is None) is bool(followed)
    tested.set_facts("", NetworkFacts(own=(ip_interface("10.0.0.5/24"),)))
    (direct,) = tested.choices(("t", "a")).values()
    (translated,) = tested.choices(("t", "b")).values()
    assert (direct.mode, translated.mode) == ("dsr", "nat")


def test_both_families_are_forwarded_each_to_its_own_addresses() -> None:
    both = lb("a", "10.0.0.100", HTTP)
    both.status.addresses.append(Address(ip="2001:db8::1", prefix_length=64))
    dual = cluster("n1")
    dual.status.nodes[0].addresses.append("2001:db8::11")
    plan = table(dual, both).plan("")
    assert {plan.groups[f.group].members for f in plan.forwards.values()} == {
        frozenset({ip_address("10.0.0.11")}),
        frozenset({ip_address("2001:db8::11")}),
    }


def test_source_ranges_of_the_other_family_alone_let_nobody_in() -> None:
    plan = table(cluster("n1"), lb("a", "10.0.0.100", HTTP, source_ranges=["2001:db8::/32"])).plan("")
    assert [str(s) for s in plan.forwards[key("10.0.0.100")].sources] == ["0.0.0.0/32"]


def test_nodes_that_fail_are_left_out_unless_all_do() -> None:
    tested = table(cluster("n1", "n2"), lb("a", "10.0.0.100", HTTP))
    n1, n2 = ip_address("10.0.0.11"), ip_address("10.0.0.12")
    tested.set_failing(frozenset({n1}))
    assert [g.members for g in tested.plan("").groups.values()] == [{n2}]
    tested.set_failing(frozenset({n1, n2}))
    assert [g.members for g in tested.plan("").groups.values()] == [{n1, n2}]


def test_a_failing_node_is_better_than_none_that_answers() -> None:
    tested = table(cluster("n1", "n2"), lb("a", "10.0.0.100", HTTP, mode="dsr"))
    tested.set_sightings("", seen("n1"))
    tested.set_failing(frozenset({ip_address("10.0.0.11")}))
    assert [g.members for g in tested.plan("").groups.values()] == [{MACS["n1"]}]


def test_a_node_that_fails_by_one_family_is_out_in_both() -> None:
    both = lb("a", "10.0.0.100", HTTP)
    both.status.addresses.append(Address(ip="2001:db8::100", prefix_length=64))
    dual = cluster("n1", "n2")
    for number, node in enumerate(dual.status.nodes, start=1):
        node.addresses.append(f"2001:db8::1{number}")
    tested = table(dual, both)
    tested.set_failing(frozenset({ip_address("10.0.0.11")}))
    members = {member for group in tested.plan("").groups.values() for member in group.members}
    assert members == {ip_address("10.0.0.12"), ip_address("2001:db8::12")}


def test_a_node_that_sends_back_one_load_balancer_s_packets_keeps_the_others() -> None:
    tested = table(cluster("n1", "n2"), lb("a", "10.0.0.100", HTTP), lb("b", "10.0.0.101", HTTP))
    tested.set_refusing(("t", "a"), frozenset({"n1"}))
    plan = tested.plan("")
    assert plan.groups[plan.forwards[key("10.0.0.100")].group].members == {ip_address("10.0.0.12")}
    assert len(plan.groups[plan.forwards[key("10.0.0.101")].group].members) == 2
    tested.set_refusing(("t", "a"), frozenset())
    assert len(tested.plan("").groups) == 1


def test_a_new_agent_goes_on_with_what_the_old_one_left() -> None:
    old = table(cluster("n1", "n2"), lb("a", "10.0.0.100", HTTP, mode="dsr"))
    old.set_sightings("", seen("n1", "n2"))
    new = table(cluster("n1"), lb("a", "10.0.0.100", HTTP, mode="dsr"))
    new.set_sightings("", seen("n1"))
    new.adopt("", old.plan(""), {})
    (group,) = new.plan("").groups.values()
    assert group == Group(frozenset({MACS["n1"]}), former=frozenset({MACS["n1"], MACS["n2"]}))


names = st.sampled_from(["a", "b", "c"])
vips = st.sampled_from(["", "10.0.0.100", "10.0.0.101"])
node_sets = st.sets(st.sampled_from(sorted(NODES)))


class Incremental(RuleBasedStateMachine):
    """Random histories: applying every delta to what was there gives the plan made from scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ForwardingTable([""], lambda: self.now)
        self.now = 0.0
        self.kernel = Plan()
        self.vips: set[IPAddress] = set()
        self.lbs: dict[str, LoadBalancer] = {}
        self.cluster: GuestCluster | None = None
        self.seen = Sightings()
        self.failing: frozenset[IPAddress] = frozenset()
        self.facts = NetworkFacts()
        self.fixed: dict[IPAddress, MACAddress] = {}

    @rule(
        name=st.sampled_from(["m", "n"]),
        vip=vips,
        names=node_sets,
        port=st.sampled_from([80, 8080]),
        how=st.tuples(st.sampled_from(["auto", "dsr", "nat"]), st.booleans()),
    )
    def put_machines(self, name: str, vip: str, names: set[str], port: int, how: tuple[Mode, bool]) -> None:
        mode, direct = how
        backends = [backend(n, direct=direct) for n in sorted(names)]
        self.lbs[name] = vm(name, vip, Listener(port=80, backend_port=port), backends=backends, mode=mode)
        self.table.set_load_balancer(self.lbs[name])

    @rule(
        name=names,
        vip=vips,
        local=st.none() | node_sets,
        ports=st.sets(st.sampled_from([80, 443]), min_size=1),
        how=st.tuples(st.sampled_from(["auto", "dsr", "nat"]), st.booleans()),
    )
    def put(self, name: str, vip: str, local: set[str] | None, ports: set[int], how: tuple[Mode, bool]) -> None:
        mode, sticky = how
        listeners = [Listener(port=p, backend_port=30000 + p if sticky else None) for p in sorted(ports)]
        affinity = "ClientIP" if sticky else "None"
        self.lbs[name] = lb(
            name,
            vip,
            *listeners,
            local=None if local is None else sorted(local),
            mode=mode,
            session_affinity=affinity,
        )
        self.table.set_load_balancer(self.lbs[name])

    @rule(name=st.sampled_from(["a", "b", "c", "m", "n"]))
    def delete(self, name: str) -> None:
        self.lbs.pop(name, None)
        self.table.remove_load_balancer(("t", name))

    @rule(nodes=node_sets)
    def nodes(self, nodes: set[str]) -> None:
        self.cluster = cluster(*sorted(nodes))
        self.table.set_cluster(self.cluster)

    @rule(names=node_sets)
    def sight(self, names: set[str]) -> None:
        self.seen = seen(*sorted(names))
        self.table.set_sightings("", self.seen)

    @rule(names=node_sets)
    def probe(self, names: set[str]) -> None:
        self.failing = frozenset(ip_address(NODES[name]) for name in names)
        self.table.set_failing(self.failing)

    @rule(obstacle=st.sampled_from(["", "no"]))
    def stand(self, obstacle: str) -> None:
        self.facts = NetworkFacts(dsr_obstacle=obstacle)
        self.table.set_facts("", self.facts)

    @rule(seconds=st.sampled_from([1.0, MOVING_SECONDS]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.table.transitions("").due(self.now)
        self.table.transitions("").release(())

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
    def fixed_neighbours_add_up_and_are_those_of_machines(self) -> None:
        self.table.release_fixed("")
        for address, mac in self.table.take_fixed("").items():
            if mac is None:
                del self.fixed[address]
            else:
                self.fixed[address] = mac
        assert self.fixed == self.table.fixed("")
        wanted = [lb for lb in self.lbs.values() if lb.spec.workload_type == "vm" and lb.status.addresses]
        assert {NODES[b.name] for lb in wanted for b in lb.status.backends} <= {str(a) for a in self.fixed}

    @invariant()
    def addresses_that_came_or_went_are_told(self) -> None:
        for vip in self.table.take_vips(""):
            (self.vips.add if self.table.users_of("", vip) else self.vips.discard)(vip)
        assert self.vips == self.table.vips("")

    @invariant()
    def groups_are_used_and_known(self) -> None:
        plan = self.table.plan("")
        used = {f.group for f in plan.forwards.values()}
        used |= {f.former.group for f in plan.forwards.values() if f.former is not None}
        assert used - {0} == set(plan.groups)
        assert all(group.members for group in plan.groups.values())

    @invariant()
    def every_vip_and_listener_is_served(self) -> None:
        plan = self.table.plan("")
        table_from_scratch = table(*([self.cluster] if self.cluster else []), *self.lbs.values())
        table_from_scratch.set_facts("", self.facts)
        table_from_scratch.set_sightings("", self.seen)
        table_from_scratch.set_failing(self.failing)
        fresh = table_from_scratch.plan("")
        assert plan.vips == fresh.vips
        assert plan.forwards.keys() == fresh.forwards.keys()
        assert self.table.modes.followed("") == table_from_scratch.modes.followed("")
        assert self.table.modes.node_addresses("") == table_from_scratch.modes.node_addresses("")
        for listener, forward in plan.forwards.items():
            if self.table.owner("", listener) == table_from_scratch.owner("", listener):
                want = replace(fresh.forwards[listener], former=None, pinned=False)
                assert replace(forward, former=None, pinned=False) == want
                if want.group:
                    assert plan.groups[forward.group].members == fresh.groups[want.group].members


def applied(plan: Plan, changes: Changes) -> Plan:
    return Plan(groups=merged(plan.groups, changes.groups), forwards=merged(plan.forwards, changes.forwards))


def merged(have: Mapping[K, V], delta: Mapping[K, V | None]) -> dict[K, V]:
    return {k: v for k, v in {**have, **delta}.items() if v is not None}


TestIncremental = Incremental.TestCase


@given(st.lists(st.sampled_from(sorted(NODES)), unique=True))
def test_group_members_are_exactly_the_reported_nodes(nodes: list[str]) -> None:
    plan = table(cluster(*nodes), lb("a", "10.0.0.100", HTTP)).plan("")
    expected = frozenset(ip_address(NODES[n]) for n in nodes)
    assert [g.members for g in plan.groups.values()] == ([expected] if nodes else [])
