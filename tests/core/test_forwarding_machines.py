"""Load balancers for virtual machines in the table: each is a cluster of its own, known by its MACs."""

from ipaddress import ip_address, ip_interface

import pytest

from cloudprovider.core.api.guestcluster import GuestCluster, MachineInterface, NodeMachine
from cloudprovider.core.api.loadbalancer import Address, Backend, Listener, LoadBalancer
from cloudprovider.core.exchange import Mode
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.groups import Sightings
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.modes import NetworkFacts
from cloudprovider.core.plan import Forward, Group, GroupId, IPAddress, Member, Plan
from tests.core.test_forwarding import HTTP, MACS, NODES, backend, cluster, key, lb, table, vm

WEB = key("10.0.0.100")
PORT = Listener(port=80, backend_port=8080)
SAME = Listener(port=80, backend_port=80)
VM1, VM2 = backend("n1"), backend("n2")
FORGED = MACAddress("02:00:00:00:00:66")


def members(tested: ForwardingTable, port: int = 80) -> frozenset[Member]:
    """Whom the listener of the VIP goes to."""
    plan = tested.plan("")
    group = plan.forwards[key("10.0.0.100", port)].group
    return plan.groups[group].members if group else frozenset()


def address(name: str) -> IPAddress:
    return ip_address(NODES[name])


def fixed(*names: str) -> dict[IPAddress, MACAddress]:
    return {address(name): MACS[name] for name in names}


def known(tested: GuestCluster, *names: str, network: str = "") -> GuestCluster:
    """The tenant with the machines that some of its nodes are."""
    for name in names:
        interface = MachineInterface(network=network, mac_address=str(MACS[name]))
        machine = NodeMachine(name=name, virtual_machine=f"vm-{name}", interfaces=[interface])
        tested.status.machines.append(machine)
    return tested


def test_traffic_goes_to_the_machines_port_and_their_addresses_are_fixed() -> None:
    tested = table(vm("web", "10.0.0.100", PORT, Listener(port=443, backend_port=8443), backends=[VM1, VM2]))
    assert members(tested) == members(tested, 443) == {address("n1"), address("n2")}
    assert [f.backend_port for f in tested.plan("").forwards.values()] == [8080, 8443]
    assert tested.fixed("") == fixed("n1", "n2")
    assert tested.backends_of(("t", "web")) == {"n1": (address("n1"),), "n2": (address("n2"),)}


def test_a_listener_without_a_port_of_the_machine_goes_to_its_own() -> None:
    tested = table(vm("web", "10.0.0.100", Listener(port=80), backends=[VM1]))
    assert tested.plan("").forwards[WEB].backend_port == 80


@pytest.mark.parametrize(
    "left_out",
    [
        Backend(name="n2", reason="NotOnNetwork"),
        Backend(name="n2"),
        Backend(name="n2", addresses=["10.0.0.12"]),
        Backend(name="n2", addresses=["10.0.0.12"], mac_address="nonsense"),
        Backend(name="n2", addresses=["10.0.0.12"], mac_address="ff:ff:ff:ff:ff:ff"),
        Backend(name="n2", addresses=["nonsense"], mac_address=MACS["n2"]),
        Backend(name="n2", addresses=["10.9.0.12"], mac_address=MACS["n2"], reason="AddressInUse"),
    ],
)
def test_nothing_goes_to_a_machine_that_nobody_vouches_for(left_out: Backend) -> None:
    tested = table(vm("web", "10.0.0.100", PORT, backends=[VM1, left_out]))
    assert members(tested) == {address("n1")}
    assert tested.fixed("") == fixed("n1")


def test_without_a_machine_it_refuses_and_recovers() -> None:
    tested = table(vm("web", "10.0.0.100", PORT))
    assert tested.plan("").forwards == {WEB: Forward(GroupId(0), 8080)}
    assert not tested.has_nodes(("t", "web"))
    assert tested.trouble(("t", "web")) is None
    tested.set_load_balancer(vm("web", "10.0.0.100", PORT, backends=[VM1]))
    assert tested.has_nodes(("t", "web"))
    tested.set_load_balancer(vm("web", "10.0.0.100", PORT))
    assert tested.plan("") == Plan(frozenset([WEB.vip]), {}, {WEB: Forward(GroupId(0), 8080)})


def test_a_removed_one_leaves_nothing() -> None:
    tested = table(vm("web", "10.0.0.100", PORT, backends=[VM1]))
    tested.take_changes("")
    assert tested.remove_load_balancer(("t", "web")) == {"": {WEB}}
    tested.release_fixed("")
    assert tested.plan("") == Plan()
    assert tested.fixed("") == {}
    assert tested.backends_of(("t", "web")) == {}


def test_an_address_stays_fixed_while_a_machine_that_left_drains() -> None:
    now = 0.0
    tested = ForwardingTable([""], lambda: now)
    tested.set_load_balancer(vm("web", "10.0.0.100", PORT, backends=[VM1, VM2], drain_seconds=300))
    tested.set_load_balancer(vm("web", "10.0.0.100", PORT, backends=[VM2], drain_seconds=300))
    assert members(tested) == {address("n2")}
    assert not tested.release_fixed("")
    assert tested.fixed("") == fixed("n1", "n2")
    now = 301.0
    assert tested.transitions("").due(now).tcp == {address("n1"): {WEB}}
    assert tested.release_fixed("")
    assert tested.fixed("") == fixed("n2")


DIRECT = [backend("n1", direct=True), backend("n2", direct=True)]


@pytest.mark.parametrize("mode", ["auto", "dsr"])
def test_frames_go_to_machines_that_carry_the_address_by_their_macs_unasked(mode: Mode) -> None:
    tested = table(vm("web", "10.0.0.100", SAME, backends=DIRECT, mode=mode))
    assert members(tested) == {MACS["n1"], MACS["n2"]}
    assert tested.plan("").forwards[WEB].mode == "dsr"
    assert tested.modes.followed("") == frozenset()
    assert not tested.is_looking(("t", "web"))
    tested.set_sightings("", Sightings())
    assert members(tested) == {MACS["n1"], MACS["n2"]}
    assert tested.named("", ("t", "web"), MACS["n2"]) == {"n2"}


@pytest.mark.parametrize(
    ("listener", "backends", "why"),
    [
        (PORT, DIRECT, "TCP 80 to 8080"),
        (SAME, [DIRECT[0], VM2], "n2 does not say that the address is on the loopback"),
        (SAME, [DIRECT[0], backend("n2", "10.9.0.12", direct=True)], "10.9.0.12 is not in 10.0.0.0/24"),
    ],
)
def test_where_one_can_t_it_is_nat_or_told(listener: Listener, backends: list[Backend], why: str) -> None:
    tested = table(vm("web", "10.0.0.100", listener, backends=backends, mode="auto"))
    tested.set_facts("", NetworkFacts(own=(ip_interface("10.0.0.5/24"),)))
    assert tested.plan("").forwards[WEB].mode == "nat"
    (choice,) = tested.choices(("t", "web")).values()
    assert why in choice.reason
    tested.set_load_balancer(vm("web", "10.0.0.100", listener, backends=backends, mode="dsr"))
    trouble = tested.trouble(("t", "web"))
    assert trouble is not None
    assert (trouble.reason, why in trouble.message) == ("ModeNotPossible", True)
    assert tested.plan("").forwards == {}
    assert tested.places(("t", "web")) == frozenset()


def test_a_machine_that_takes_up_the_address_is_followed_without_a_cut() -> None:
    tested = table(vm("web", "10.0.0.100", SAME, backends=[VM1]))
    assert tested.plan("").forwards[WEB].mode == "nat"
    tested.set_load_balancer(vm("web", "10.0.0.100", SAME, backends=[DIRECT[0]]))
    forward = tested.plan("").forwards[WEB]
    assert forward.mode == "dsr"
    assert forward.former is not None
    assert forward.former.mode == "nat"
    assert tested.fixed("") == fixed("n1")  # what goes on by nat goes to it


def test_two_load_balancers_for_one_machine_do_not_mind_each_other() -> None:
    tested = table(
        vm("a", "10.0.0.100", PORT, backends=[VM1]),
        vm("b", "10.0.0.101", PORT, backends=[VM1, VM2]),
    )
    tested.remove_load_balancer(("t", "a"))
    tested.release_fixed("")
    assert tested.fixed("") == fixed("n1", "n2")
    assert tested.has_nodes(("t", "b"))


def test_another_tenant_s_claim_to_an_address_moves_nothing() -> None:
    liar = vm("b", "10.0.0.101", PORT, backends=[backend("n1", mac=FORGED)], namespace="rival")
    tested = table(vm("a", "10.0.0.100", PORT, backends=[VM1]), liar)
    assert tested.fixed("") == fixed("n1")
    assert tested.has_nodes(("t", "a"))
    assert not tested.has_nodes(("rival", "b"))
    assert tested.plan("").forwards[key("10.0.0.101")].group == 0
    assert tested.take_concerned() == frozenset()
    tested.remove_load_balancer(("t", "a"))
    assert tested.take_concerned() == {("rival", "b")}
    assert tested.fixed("") == {address("n1"): FORGED}
    assert tested.has_nodes(("rival", "b"))


def test_guests_nodes_are_known_by_their_machines() -> None:
    tested = table(known(cluster("n1", "n2"), "n1"), lb("a", "10.0.0.100", HTTP))
    assert tested.fixed("") == fixed("n1")
    tested.set_load_balancer(lb("a", "10.0.0.100", HTTP, mode="dsr"))
    assert members(tested) == {MACS["n1"]}
    forged = {address("n1"): FORGED, address("n2"): MACS["n2"]}
    tested.set_sightings("", Sightings(forged))
    assert members(tested) == {MACS["n1"], MACS["n2"]}
    assert tested.named("", ("t", "a"), FORGED) == frozenset()


def test_a_machine_that_becomes_known_is_believed_from_then_on() -> None:
    tested = table(cluster("n1"), lb("a", "10.0.0.100", HTTP, mode="dsr"))
    tested.set_sightings("", Sightings({address("n1"): FORGED}))
    assert members(tested) == {FORGED}
    tested.set_cluster(known(cluster("n1"), "n1"))
    assert members(tested) == {MACS["n1"]}
    assert tested.fixed("") == fixed("n1")


def test_probes_of_guests_nodes_are_no_matter_to_machines() -> None:
    tested = table(cluster("n1", "n2"), lb("a", "10.0.0.101", HTTP), vm("web", "10.0.0.100", PORT, backends=[VM1, VM2]))
    tested.set_failing(frozenset({address("n1")}))
    assert members(tested) == {address("n1"), address("n2")}
    tested.set_load_balancer(lb("a", "", HTTP))
    assert tested.modes.node_addresses("") == frozenset()


def test_each_family_goes_to_its_own_addresses() -> None:
    both = vm("web", "10.0.0.100", PORT, backends=[backend("n1", NODES["n1"], "2001:db8::11"), VM2])
    both.status.addresses.append(Address(ip="2001:db8::100", prefix_length=64))
    tested = table(both)
    assert members(tested) == {address("n1"), address("n2")}
    plan = tested.plan("")
    assert plan.groups[plan.forwards[key("2001:db8::100")].group] == Group(frozenset({ip_address("2001:db8::11")}))
    assert tested.fixed("") == {**fixed("n1", "n2"), ip_address("2001:db8::11"): MACS["n1"]}


def test_affinity_sources_and_the_time_to_drain_are_those_of_services() -> None:
    sources = ["192.0.2.0/24"]
    asked = vm(
        "web",
        "10.0.0.100",
        PORT,
        backends=[VM1],
        session_affinity="ClientIP",
        source_ranges=sources,
        drain_seconds=7,
    )
    tested = table(asked)
    forward = tested.plan("").forwards[WEB]
    assert forward.by_client
    assert [str(s) for s in forward.sources] == sources
    want = tested.load_balancer(("t", "web"))
    assert want is not None
    assert want.drain == 7.0


def test_a_cluster_s_name_can_not_be_that_of_machines() -> None:
    """Policy Local, and a label of a cluster, say nothing for machines."""
    odd: LoadBalancer = vm("web", "10.0.0.100", PORT, backends=[VM1], external_traffic_policy="Local")
    odd.metadata.labels["cloudprovider.harvesterhci.io/cluster"] = "c"
    tested = table(cluster("n2"), odd)
    assert members(tested) == {address("n1")}
