"""Whose address it is: the host's knowledge before what is heard, and who came first before who comes later."""

from ipaddress import IPv4Address, ip_address, ip_interface

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudprovider.core.choices import ClusterKey
from cloudprovider.core.groups import Node, Sightings
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.modes import NetworkFacts
from cloudprovider.core.plan import ForwardMode, IPAddress, Member
from cloudprovider.core.reach import Reach

A, B, C = (MACAddress(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))
ONE, TWO, AWAY = ip_address("10.0.0.11"), ip_address("10.0.0.12"), ip_address("10.9.0.11")
ACME, ACME_TOO, RIVAL = ("acme", "c"), ("acme", "loadbalancer/web"), ("rival", "c")
LAN = "default/lan"
FACTS = NetworkFacts((ip_interface("10.0.0.2/24"),), frozenset({ip_address("10.0.0.1")}))


def node(*addresses: IPAddress, macs: tuple[MACAddress, ...] = (), on: str = LAN) -> Node:
    return Node(addresses, tuple((on, mac) for mac in macs))


def machine(mac: MACAddress, *addresses: IPAddress) -> Node:
    return Node(addresses, (("", mac),), is_machine=True)


def reach(**clusters: Node) -> Reach:
    """One network, with the node of each of some clusters: ``acme``, ``acme_too``, ``rival``, in this order."""
    made = Reach([LAN])
    made.set_facts(LAN, FACTS)
    for name, one in clusters.items():
        cluster = {"acme": ACME, "acme_too": ACME_TOO, "rival": RIVAL}[name]
        made.set_nodes(cluster, {"n": one})
        made.use(LAN, cluster, 1)
    return made


def member(
    tested: Reach, cluster: ClusterKey, address: IPAddress = ONE, mode: ForwardMode = "nat", name: str = "n"
) -> Member | None:
    return tested.member(LAN, mode, cluster, tested.nodes(cluster)[name], address)


def hear(tested: Reach, **heard: MACAddress) -> None:
    known: dict[IPAddress, MACAddress] = {{"one": ONE, "two": TWO}[name]: mac for name, mac in heard.items()}
    tested.set_seen(LAN, Sightings(known))


def test_a_node_of_which_nothing_is_known_is_reached_as_it_is_heard() -> None:
    tested = reach(acme=node(ONE))
    assert member(tested, ACME) == ONE
    assert member(tested, ACME, mode="dsr") is None
    hear(tested, one=B)
    assert member(tested, ACME, mode="dsr") == B
    assert tested.fixed(LAN) == {}


@pytest.mark.parametrize("known", [node(ONE, macs=(A,)), machine(A, ONE)])
def test_what_the_host_knows_counts_and_nothing_that_is_heard(known: Node) -> None:
    tested = reach(acme=known)
    assert tested.fixed(LAN) == {ONE: A}
    for heard in ({}, {"one": B}):
        hear(tested, **heard)
        assert member(tested, ACME) == ONE
        assert member(tested, ACME, mode="dsr") == A
        assert tested.fixed(LAN) == {ONE: A}


@pytest.mark.parametrize("known", [node(ONE, macs=(A, B)), node(ONE, macs=(A, B), on="other/name")])
def test_of_several_macs_of_a_machine_the_one_that_answers_counts_but_no_other_s(known: Node) -> None:
    """The network may have several names: a machine without an interface on this one is on it by another."""
    tested = reach(acme=known)
    for heard in (None, C):
        hear(tested, **({} if heard is None else {"one": heard}))
        assert member(tested, ACME) is member(tested, ACME, mode="dsr") is None
        assert tested.fixed(LAN) == {}
    tested.set_seen(LAN, Sightings({ONE: B}))
    assert (member(tested, ACME), member(tested, ACME, mode="dsr")) == (ONE, B)
    assert tested.fixed(LAN) == {ONE: B}


def test_elsewhere_a_node_is_reached_by_the_gateway_and_a_machine_not_at_all() -> None:
    tested = reach(acme=node(AWAY, macs=(A,)), acme_too=machine(B, AWAY))
    assert member(tested, ACME, AWAY) == AWAY
    assert member(tested, ACME_TOO, AWAY) is None
    assert tested.fixed(LAN) == {}


@pytest.mark.parametrize("address", ["10.0.0.1", "10.0.0.2", "10.0.0.255"])
def test_nobody_s_machine_is_the_gateway_or_the_host(address: str) -> None:
    lied = ip_address(address)
    tested = reach(acme=machine(A, lied))
    assert tested.fixed(LAN) == {}
    assert member(tested, ACME, lied) is None


@pytest.mark.parametrize("late", [machine(B, ONE), node(ONE, macs=(B,)), node(ONE)])
def test_who_was_first_keeps_an_address(late: Node) -> None:
    tested = reach(acme=machine(A, ONE), rival=late)
    assert tested.fixed(LAN) == {ONE: A}
    assert member(tested, ACME) == ONE
    assert member(tested, RIVAL) is None  # what is sent there would reach the other tenant's machine
    assert tested.set_nodes(ACME, {})[LAN] == {RIVAL}
    assert member(tested, RIVAL) == ONE
    assert tested.fixed(LAN) == ({ONE: B} if late.interfaces else {})


def test_who_was_first_keeps_it_also_where_nothing_is_known_of_him() -> None:
    tested = reach(rival=node(ONE), acme=machine(A, ONE))
    assert tested.fixed(LAN) == {}
    assert member(tested, RIVAL) == ONE
    assert member(tested, ACME) is None
    assert member(tested, ACME, mode="dsr") == A  # frames go to the machine, whatever address it has
    hear(tested, one=C)
    assert member(tested, RIVAL, mode="dsr") == C


def test_one_namespace_does_not_stand_in_its_own_way() -> None:
    """A guest's node, of whose machine nothing was known yet, and a load balancer for that machine itself."""
    tested = reach(acme=node(ONE), acme_too=machine(A, ONE))
    assert tested.fixed(LAN) == {ONE: A}
    assert member(tested, ACME) == member(tested, ACME_TOO) == ONE


def test_two_who_know_the_same_share_it() -> None:
    tested = reach(acme=machine(A, ONE), acme_too=machine(A, ONE))
    tested.set_nodes(ACME, {})
    assert tested.fixed(LAN) == {ONE: A}
    assert not tested.release(LAN, lambda _: set())
    assert member(tested, ACME_TOO) == ONE


def test_of_two_in_one_cluster_who_had_it_keeps_it() -> None:
    tested = reach(acme=machine(B, ONE))
    tested.set_nodes(ACME, {"a": machine(A, ONE), "n": machine(B, ONE)})
    assert tested.fixed(LAN) == {ONE: B}
    assert member(tested, ACME, name="a") is None
    assert member(tested, ACME, name="n") == ONE


def test_a_new_agent_leaves_an_address_to_whom_the_old_one_gave_it() -> None:
    tested = reach(acme=machine(A, ONE), rival=machine(B, ONE))
    assert tested.adopt(LAN, {ONE: B, TWO: C}) == {ACME, RIVAL}
    assert tested.fixed(LAN) == {ONE: B, TWO: C}  # TWO's: connections may go on
    tested.release(LAN, lambda _: set())
    assert tested.fixed(LAN) == {ONE: B}
    assert (member(tested, ACME), member(tested, RIVAL)) == (None, ONE)


def test_an_address_stays_fixed_while_connections_go_on() -> None:
    tested = reach(acme=machine(A, ONE))
    tested.take_fixed(LAN)
    tested.use(LAN, ACME, -1)
    assert not tested.release(LAN, lambda asked: asked)
    assert tested.take_fixed(LAN) == {}
    assert tested.release(LAN, lambda _: set())
    assert tested.take_fixed(LAN) == {ONE: None}
    assert tested.fixed(LAN) == {}


def test_a_network_of_other_addresses_fixes_others() -> None:
    tested = reach(acme=machine(A, ONE, AWAY))
    tested.set_facts(LAN, NetworkFacts((ip_interface("10.9.0.2/24"),)))
    assert tested.fixed(LAN) == {AWAY: A}
    assert member(tested, ACME, ONE) is None


nodes_of = st.dictionaries(
    st.sampled_from("xy"),
    st.builds(
        lambda numbers, mac, kind: machine(mac, *numbers) if kind == "machine" else node(*numbers, macs=(mac,) * kind),
        st.lists(st.sampled_from([ONE, TWO, AWAY]), unique=True, max_size=2),
        st.sampled_from([A, B, C]),
        st.sampled_from(["machine", 0, 1]),
    ),
)
clusters = st.sampled_from([ACME, ACME_TOO, RIVAL])


class Histories(RuleBasedStateMachine):
    """Whatever happens: one address has one MAC, who has it keeps it, and deltas add up."""

    def __init__(self) -> None:
        super().__init__()
        self.reach = reach()
        self.nodes: dict[ClusterKey, dict[str, Node]] = {}
        self.used: set[ClusterKey] = set()
        self.kernel: dict[IPAddress, MACAddress] = {}
        self.members: dict[tuple[ClusterKey, str, IPAddress], Member | None] = {}
        self.changed: set[ClusterKey] = set()

    def remember(self, cluster: ClusterKey, concerned: object) -> None:
        assert isinstance(concerned, set)
        self.changed = {cluster, *concerned}

    @rule(cluster=clusters, nodes=nodes_of)
    def change(self, cluster: ClusterKey, nodes: dict[str, Node]) -> None:
        self.nodes[cluster] = nodes
        self.remember(cluster, self.reach.set_nodes(cluster, nodes).get(LAN, set()))

    @rule(cluster=clusters)
    def use(self, cluster: ClusterKey) -> None:
        self.used ^= {cluster}
        self.remember(cluster, self.reach.use(LAN, cluster, 1 if cluster in self.used else -1))

    @rule()
    def release(self) -> None:
        self.reach.release(LAN, lambda _: set())
        self.changed = set()

    @invariant()
    def deltas_add_up(self) -> None:
        for address, mac in self.reach.take_fixed(LAN).items():
            if mac is None:
                del self.kernel[address]
            else:
                self.kernel[address] = mac
        assert self.kernel == self.reach.fixed(LAN)
        assert all(isinstance(a, IPv4Address) and a != AWAY for a in self.kernel)

    @invariant()
    def nobody_is_sent_to_another_s_machine(self) -> None:
        fixed = self.reach.fixed(LAN)
        for cluster in self.used:
            for one in self.nodes.get(cluster, {}).values():
                for address in one.addresses:
                    if self.reach.member(LAN, "nat", cluster, one, address) is None or address not in fixed:
                        continue
                    macs = [mac for _, mac in one.interfaces] or self.known_to(cluster[0], address)
                    assert fixed[address] in macs

    def known_to(self, namespace: str, address: IPAddress) -> list[MACAddress]:
        its = [n for c in self.used if c[0] == namespace for n in self.nodes.get(c, {}).values()]
        return [mac for one in its if address in one.addresses for _, mac in one.interfaces]

    @invariant()
    def who_is_not_named_as_concerned_is_where_he_was(self) -> None:
        now = {
            (cluster, name, address): self.reach.member(LAN, "nat", cluster, one, address)
            for cluster in self.used
            for name, one in self.nodes.get(cluster, {}).items()
            for address in one.addresses
        }
        for key in now.keys() & self.members.keys():
            if key[0] not in self.changed:
                assert now[key] == self.members[key]
        self.members = now


TestHistories = Histories.TestCase
