from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import (
    MAX_BACKENDS,
    NETWORK_ANNOTATION,
    VIP_ON_LOOPBACK_ANNOTATION,
    Address,
    Backend,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
)
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.backends import Chosen, why_none
from cloudprovider.core.machines import (
    MAX_MESSAGE,
    Side,
    choose,
    claims_of,
    interfaces_of,
    matches,
    side_of,
    standing,
    takes_part,
)
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.wanted import Problem
from tests.core.instances import MAC, VLAN, Nic, instance, nic, reported

ON_VLAN = Side(VLAN, (4,))
IN_USE = Problem("AddressInUse", "Another machine has it.")


def load_balancer(annotations: dict[str, str] | None = None, **spec: object) -> LoadBalancer:
    fields = {"backend_server_selector": {"app": ["web"]}, **spec}
    return LoadBalancer(
        metadata=ObjectMeta(name="lb", namespace="shop", annotations=annotations or {}),
        spec=LoadBalancerSpec(**fields),  # type: ignore[arg-type]
    )


def chosen(*machines: VirtualMachineInstance, side: Side = ON_VLAN, lb: LoadBalancer | None = None) -> Chosen:
    return choose(lb or load_balancer(), machines, side, lambda vmi, address: None)


def only(*machines: VirtualMachineInstance, side: Side = ON_VLAN) -> Backend:
    (found,) = chosen(*machines, side=side).backends
    return found


# --- which machines -------------------------------------------------------------------------------------

LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("xyz"))
SELECTORS = st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from("xyz"), max_size=3))


@given(SELECTORS, LABELS)
def test_a_machine_matches_when_each_keys_label_has_one_of_its_values(
    selector: dict[str, list[str]], labels: dict[str, str]
) -> None:
    expected = bool(selector) and all(key in labels and labels[key] in selector[key] for key in selector)
    assert matches(selector, labels) == expected


@given(SELECTORS, LABELS, st.sampled_from("abc"))
def test_a_further_key_never_matches_more(selector: dict[str, list[str]], labels: dict[str, str], key: str) -> None:
    if selector:
        narrower = {key: ["x"], **selector}
        assert matches(selector, labels) or not matches(narrower, labels)


def test_labels_of_63_characters() -> None:
    assert matches({"k" * 63: ["v" * 63]}, {"k" * 63: "v" * 63})
    assert not matches({"k" * 63: ["v" * 62]}, {"k" * 63: "v" * 63})


@pytest.mark.parametrize("phase", ["", "Pending", "Scheduling", "Scheduled", "Succeeded", "Failed", "Unknown"])
def test_what_does_not_run_takes_no_part(phase: str) -> None:
    assert not takes_part(instance(phase=phase))
    assert chosen(instance("web", "10.0.8.5", phase=phase)).backends == ()


def test_what_is_being_deleted_takes_no_part() -> None:
    assert chosen(instance("web", "10.0.8.5", deletion_timestamp="2026-01-01T00:00:00Z")).backends == ()


@given(st.permutations([f"web-{i}" for i in range(12)]))
def test_backends_are_by_name_whatever_the_order_of_the_machines(names: list[str]) -> None:
    found = chosen(*(instance(name, f"10.0.8.{i + 1}") for i, name in enumerate(names))).backends
    assert [b.name for b in found] == sorted(names)


def test_of_more_machines_than_there_is_room_for_the_first_by_name_are_taken_and_it_says_so() -> None:
    count = MAX_BACKENDS + 2
    found = chosen(*(instance(f"web-{i:04}", "10.0.8.5") for i in reversed(range(count))))
    assert len(found.backends) == MAX_BACKENDS
    assert found.backends[-1].name == f"web-{MAX_BACKENDS - 1:04}"
    assert "2 more match, and are left out" in found.condition.message


# --- where they stand -----------------------------------------------------------------------------------


def test_a_machine_is_reached_at_its_first_address_and_told_by_the_mac_of_its_definition() -> None:
    lying = instance("web", status=(reported("10.0.8.5", "10.0.8.6", mac="02:00:00:00:00:99"),))
    found = only(lying)
    assert found == Backend(name="web", addresses=["10.0.8.5"], mac_address=MAC)
    assert msgspec.to_builtins(found) == {"name": "web", "addresses": ["10.0.8.5"], "macAddress": MAC}


def test_where_the_definition_names_no_mac_libvirts_word_counts_and_the_guest_agents_does_not() -> None:
    nics = (nic(mac=""),)
    assert only(instance(nics=nics, status=(reported("10.0.8.5"),))).mac_address == MAC
    by_agent = only(instance(nics=nics, status=(reported("10.0.8.5", source="guest-agent, multus-status"),)))
    assert (by_agent.reason, by_agent.addresses, by_agent.mac_address) == ("NoMACAddress", [], "")


@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00", "nonsense"])
def test_a_mac_that_is_no_stations_vouches_for_nobody(mac: str) -> None:
    assert only(instance("web", "10.0.8.5", nics=(nic(mac=mac),))).reason == "NoMACAddress"


def test_a_mac_is_written_in_one_way() -> None:
    assert only(instance("web", "10.0.8.5", nics=(nic(mac="02-AB-00-00-00-05"),))).mac_address == "02:ab:00:00:00:05"


@pytest.mark.parametrize(
    ("network", "namespace", "named"),
    [("vlan8", "default", VLAN), (VLAN, "shop", VLAN), ("vlan8", "shop", "shop/vlan8"), (None, "shop", "")],
)
def test_the_networks_name_is_that_of_its_attachment_definition(
    network: str | None, namespace: str, named: str
) -> None:
    vmi = instance("web", "10.0.8.5", namespace=namespace, nics=(nic(network=network),))
    assert standing(vmi, named) is not None
    assert only(vmi, side=Side(named, (4,))).addresses == ["10.0.8.5"]


def several() -> tuple[Nic, ...]:
    return (nic("mgmt", None, masquerade=True, mac=""), nic("a", "default/vlan7"), nic("b", "default/vlan9"))


def test_a_machine_with_several_interfaces_and_none_on_the_network_is_told_where_it_is() -> None:
    found = only(instance(nics=several(), status=(reported("10.0.7.5", name="a"),)))
    assert found.reason == "NotOnNetwork"
    assert 'no interface on the network "default/vlan8"' in found.message
    assert 'the management network, the network "default/vlan7", the network "default/vlan9"' in found.message


def test_each_interface_is_known_by_its_own_network() -> None:
    status = (reported("10.0.2.2", name="mgmt"), reported("10.0.7.5", name="a"), reported("10.0.9.5", name="b"))
    vmi = instance(nics=several(), status=status)
    assert only(vmi, side=Side("default/vlan9", (4,))).addresses == ["10.0.9.5"]
    assert only(vmi, side=Side("", (4,))).reason == "BehindMasquerade"
    assert list(claims_of(vmi)) == [
        ("default/vlan7", ip_address("10.0.7.5")),
        ("default/vlan9", ip_address("10.0.9.5")),
    ]
    assert [(i.network, i.mac_address) for i in interfaces_of(vmi)] == [("default/vlan7", MAC), ("default/vlan9", MAC)]


def test_of_two_interfaces_on_one_network_the_first_with_an_address_counts() -> None:
    second = "02:00:00:00:00:06"
    vmi = instance(nics=(nic("a"), nic("b", mac=second)), status=(reported(name="a"), reported("10.0.8.6", name="b")))
    assert only(vmi) == Backend(name="web", addresses=["10.0.8.6"], mac_address=second)


def test_what_only_the_guest_agent_knows_of_is_no_interface() -> None:
    vmi = instance(status=(reported("172.17.0.1", name=""), reported("10.0.8.5")))
    assert only(vmi).addresses == ["10.0.8.5"]


# --- its addresses --------------------------------------------------------------------------------------


def test_without_a_guest_agent_it_says_what_to_install() -> None:
    found = only(instance("web", connected=False))
    assert found.reason == "AgentNotConnected"
    assert "qemu-guest-agent" in found.message


def test_an_address_that_kubevirt_knows_without_a_guest_agent_will_do() -> None:
    assert only(instance("web", "10.0.8.5", connected=False)).addresses == ["10.0.8.5"]


def test_a_guest_agent_that_reports_no_address_is_told_from_one_that_is_missing() -> None:
    found = only(instance("web", "fe80::1", "169.254.1.1", "127.0.0.1", "fd00::5"))
    assert found.reason == "NoAddress"
    assert "no IPv4 address" in found.message


@given(st.lists(st.text(max_size=50) | st.ip_addresses().map(str), max_size=12))
def test_whatever_a_guest_agent_says_at_most_one_sound_address_a_family_comes_of_it(said: list[str]) -> None:
    found = only(instance(status=(reported(*said),)), side=Side(VLAN, (4, 6)))
    parsed = [ip_address(a) for a in found.addresses]
    assert len({a.version for a in parsed}) == len(parsed)
    assert not any(a.is_loopback or a.is_multicast or a.is_link_local or a.is_unspecified for a in parsed)
    assert bool(found.reason) == (not parsed)
    assert len(found.message) <= MAX_MESSAGE


def test_both_families_where_the_load_balancer_has_both() -> None:
    vmi = instance("web", "fe80::5", "fd00::5", "10.0.8.5")
    assert only(vmi, side=Side(VLAN, (4, 6))).addresses == ["10.0.8.5", "fd00::5"]
    assert only(vmi, side=Side(VLAN, (6,))).addresses == ["fd00::5"]


def test_a_load_balancers_own_address_on_the_machine_is_not_where_it_is_reached() -> None:
    side = Side(VLAN, (4,), frozenset({ip_address("10.0.8.100")}))
    assert only(instance("web", "10.0.8.100", "10.0.8.5"), side=side).addresses == ["10.0.8.5"]


def test_a_machine_that_carries_the_address_says_so() -> None:
    vmi = instance("web", "10.0.8.5", annotations={VIP_ON_LOOPBACK_ANNOTATION: "true"})
    assert only(vmi).direct
    assert not only(instance("web", "10.0.8.5", annotations={VIP_ON_LOOPBACK_ANNOTATION: "no"})).direct


def test_an_address_that_somebody_else_has_is_not_sent_to() -> None:
    def judge(vmi: VirtualMachineInstance, address: IPAddress) -> Problem | None:
        return IN_USE if address == ip_address("10.0.8.5") else None

    machines = [instance("api", "10.0.8.5", "fd00::5"), instance("web", "10.0.8.5")]
    found = choose(load_balancer(), machines, Side(VLAN, (4, 6)), judge)
    assert found.backends == (
        Backend(name="api", addresses=["fd00::5"], mac_address=MAC),
        Backend(name="web", reason="AddressInUse", message="Another machine has it."),
    )
    assert found.addresses == ["fd00::5"]


def test_a_machine_that_migrates_stays_as_it_is() -> None:
    before = instance("web", "10.0.8.5")
    moved = msgspec.structs.replace(before, status=msgspec.structs.replace(before.status, node_name="host-2"))
    assert chosen(moved) == chosen(before)


# --- what is said ---------------------------------------------------------------------------------------


def test_the_condition_says_how_many_and_who_is_left_out() -> None:
    found = chosen(instance("api", connected=False), instance("web", "10.0.8.5")).condition
    assert (found.type, found.status, found.reason) == ("BackendsFound", "True", "BackendsFound")
    assert found.message.startswith("1 of 2 virtual machines that match are sent to. Left out: api: Its IPv4 address")


def test_the_condition_says_why_none_is_there_as_the_status_alone_would() -> None:
    for machines in ((), (instance("api", connected=False),)):
        found = chosen(*machines)
        assert found.condition.status == "False"
        status = LoadBalancerStatus(backends=list(found.backends))
        problem = why_none(msgspec.structs.replace(load_balancer(), status=status))
        assert problem is not None
        assert (found.condition.reason, found.condition.message) == (problem.reason, problem.message)


# --- where a load balancer meets them -------------------------------------------------------------------


def address(ip: str, network: str = VLAN) -> Address:
    return Address(ip=ip, prefix_length=24, network=network)


def test_a_load_balancers_addresses_say_where() -> None:
    lb = load_balancer(annotations={NETWORK_ANNOTATION: "default/other"})
    own = frozenset({ip_address("10.0.8.100"), ip_address("fd00::100")})
    given = (address("10.0.8.100"), address("fd00::100"))
    assert side_of(lb, given, "default/third") == Side(VLAN, (4, 6), own)


@pytest.mark.parametrize(
    ("lb", "pool", "expected"),
    [
        (load_balancer(), None, Side("", (4, 6))),
        (load_balancer(annotations={NETWORK_ANNOTATION: VLAN}), None, Side(VLAN, (4, 6))),
        (load_balancer(), VLAN, Side(VLAN, (4, 6))),
        (load_balancer(ip_families=["IPv6"]), VLAN, Side(VLAN, (6,))),
        (load_balancer(ip_families=["IPv6"], ip_family_policy="PreferDualStack"), VLAN, Side(VLAN, (6, 4))),
    ],
)
def test_without_an_address_what_is_asked_for_says_where(lb: LoadBalancer, pool: str | None, expected: Side) -> None:
    assert side_of(lb, (), pool) == expected
