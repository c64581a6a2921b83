from ipaddress import ip_address, ip_interface, ip_network

import pytest

from cloudprovider.core.api.loadbalancer import Backend, Listener
from cloudprovider.core.exchange import Mode
from cloudprovider.core.modes import Choice, NetworkFacts, choose, choose_for_machines, why_not_direct

LAN = ip_network("10.0.0.0/24")
INSIDE = [ip_address("10.0.0.11"), ip_address("10.0.0.12")]
OUTSIDE = [*INSIDE, ip_address("10.1.0.11")]
FACTS = NetworkFacts(own=(ip_interface("10.0.0.5/24"), ip_interface("fd00::5/64")))
NEAR = NetworkFacts(own=(ip_interface("10.1.0.5/24"),))
BRIDGED = NetworkFacts(dsr_obstacle="bridge-nf-call-iptables is 1 on this host")


@pytest.mark.parametrize(
    ("asked", "nodes", "facts", "expected"),
    [
        ("auto", INSIDE, FACTS, Choice("dsr", "all nodes stand in 10.0.0.0/24")),
        ("auto", [], FACTS, Choice("nat", "the cluster has no node yet")),
        ("auto", OUTSIDE, FACTS, Choice("nat", "10.1.0.11 is not in 10.0.0.0/24, the network of the address")),
        ("auto", INSIDE, BRIDGED, Choice("nat", "bridge-nf-call-iptables is 1 on this host")),
        ("nat", INSIDE, FACTS, Choice("nat", "asked for")),
        ("dsr", INSIDE, FACTS, Choice("dsr", "asked for")),
        ("dsr", INSIDE, BRIDGED, Choice("dsr", "asked for; beware: bridge-nf-call-iptables is 1 on this host")),
        (
            "dsr",
            OUTSIDE,
            FACTS,
            Choice(
                "dsr",
                "asked for",
                "Mode dsr can't work: 10.1.0.11 is not in 10.0.0.0/24, the network of the address.",
            ),
        ),
        ("dsr", OUTSIDE, NEAR, Choice("dsr", "asked for")),
        ("auto", OUTSIDE, NEAR, Choice("nat", "10.1.0.11 is not in 10.0.0.0/24, the network of the address")),
    ],
)
def test_choices(asked: Mode, nodes: list[object], facts: NetworkFacts, expected: Choice) -> None:
    assert choose(asked, LAN, nodes, facts) == expected  # type: ignore[arg-type]


def test_where_nodes_answer_for_addresses_themselves_auto_is_nat_if_that_can_work() -> None:
    one = choose("auto", LAN, INSIDE, FACTS, ["n1"])
    assert one == Choice("nat", "n1 answers for the cluster's addresses, as kube-proxy in mode ipvs makes it")
    assert choose("dsr", LAN, INSIDE, FACTS, ["n2", "n1"]).reason.startswith("asked for; beware: n1, n2 answer for")
    assert choose("auto", LAN, INSIDE, NetworkFacts(own=(ip_interface("fd00::5/64"),)), ["n1"]).mode == "dsr"


def test_many_nodes_elsewhere_are_counted_and_the_other_family_is_no_matter() -> None:
    nodes = [ip_address("10.9.0.1") + i for i in range(5)]
    assert choose("auto", LAN, nodes, FACTS).reason.startswith("10.9.0.1, 10.9.0.2, 10.9.0.3 and 2 more are not in")
    assert choose("auto", LAN, [*INSIDE, ip_address("fd00::1")], FACTS).mode == "dsr"


@pytest.mark.parametrize(("subnet", "key"), [("10.0.0.0/24", "(address)"), ("fd00::/64", "(address6)")])
def test_nat_needs_an_address_of_the_host(subnet: str, key: str) -> None:
    facts = NetworkFacts(own=())
    assert key in choose("nat", ip_network(subnet), INSIDE, facts).trouble


SAME, MOVED = Listener(port=80, backend_port=80), Listener(port=443, backend_port=8443)
DIRECT, PLAIN = Backend(name="vm-1", direct=True), Backend(name="vm-2")


@pytest.mark.parametrize(
    ("asked", "machines", "facts", "obstacle", "expected"),
    [
        (
            "auto",
            INSIDE,
            FACTS,
            "",
            Choice("dsr", "all virtual machines stand in 10.0.0.0/24 and carry the address"),
        ),
        ("auto", INSIDE, FACTS, "vm-1 does not", Choice("nat", "vm-1 does not")),
        ("auto", INSIDE, BRIDGED, "", Choice("nat", "bridge-nf-call-iptables is 1 on this host")),
        ("auto", OUTSIDE, FACTS, "", Choice("nat", "10.1.0.11 is not in 10.0.0.0/24, the network of the address")),
        ("auto", [], FACTS, "", Choice("nat", "no virtual machine takes traffic yet")),
        ("nat", INSIDE, FACTS, "", Choice("nat", "asked for")),
        ("dsr", INSIDE, FACTS, "", Choice("dsr", "asked for")),
        ("dsr", [], FACTS, "", Choice("dsr", "asked for")),
        ("dsr", INSIDE, FACTS, "no", Choice("dsr", "asked for", "Mode dsr can't work: no.")),
    ],
)
def test_choices_for_machines(
    asked: Mode, machines: list[object], facts: NetworkFacts, obstacle: str, expected: Choice
) -> None:
    assert choose_for_machines(asked, LAN, machines, facts, obstacle) == expected  # type: ignore[arg-type]


def test_machines_get_frames_only_where_port_and_address_are_theirs() -> None:
    assert why_not_direct([SAME, Listener(port=53)], [DIRECT]) == ""
    assert why_not_direct([SAME], []) == ""
    assert why_not_direct([SAME, MOVED], [DIRECT]).endswith("not those of backendPort (TCP 443 to 8443)")
    assert why_not_direct([SAME], [DIRECT, PLAIN]) == (
        "vm-2 does not say that the address is on the loopback there"
        ' (annotation loadbalancer.harvesterhci.io/vip-on-loopback: "true")'
    )


def test_a_neighbour_is_neither_the_host_nor_a_gateway_nor_everybody() -> None:
    own = (ip_interface("10.0.0.2/24"), ip_interface("fd00::2/64"))
    facts = NetworkFacts(own, frozenset({ip_address("10.0.0.1")}))
    assert [a for a in ("10.0.0.11", "fd00::11") if facts.is_neighbour(ip_address(a))] == ["10.0.0.11", "fd00::11"]
    for address in ("10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.255", "10.0.1.1", "fd00::2", "fd00::", "fd01::1"):
        assert not facts.is_neighbour(ip_address(address)), address
    assert facts.nat_families == {4, 6}
