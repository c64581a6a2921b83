from ipaddress import ip_address, ip_network

import pytest

from cloudprovider.core.exchange import Mode
from cloudprovider.core.modes import Choice, NetworkFacts, choose

LAN = ip_network("10.0.0.0/24")
INSIDE = [ip_address("10.0.0.11"), ip_address("10.0.0.12")]
OUTSIDE = [*INSIDE, ip_address("10.1.0.11")]
FACTS = NetworkFacts()
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
    ],
)
def test_choices(asked: Mode, nodes: list[object], facts: NetworkFacts, expected: Choice) -> None:
    assert choose(asked, LAN, nodes, facts) == expected  # type: ignore[arg-type]


def test_where_nodes_answer_for_addresses_themselves_auto_is_nat_if_that_can_work() -> None:
    one = choose("auto", LAN, INSIDE, FACTS, ["n1"])
    assert one == Choice("nat", "n1 answers for the cluster's addresses, as kube-proxy in mode ipvs makes it")
    assert choose("dsr", LAN, INSIDE, FACTS, ["n2", "n1"]).reason.startswith("asked for; beware: n1, n2 answer for")
    assert choose("auto", LAN, INSIDE, NetworkFacts(nat_families=frozenset({6})), ["n1"]).mode == "dsr"


def test_many_nodes_elsewhere_are_counted_and_the_other_family_is_no_matter() -> None:
    nodes = [ip_address("10.9.0.1") + i for i in range(5)]
    assert choose("auto", LAN, nodes, FACTS).reason.startswith("10.9.0.1, 10.9.0.2, 10.9.0.3 and 2 more are not in")
    assert choose("auto", LAN, [*INSIDE, ip_address("fd00::1")], FACTS).mode == "dsr"


@pytest.mark.parametrize(("subnet", "key"), [("10.0.0.0/24", "(address)"), ("fd00::/64", "(address6)")])
def test_nat_needs_an_address_of_the_host(subnet: str, key: str) -> None:
    facts = NetworkFacts(nat_families=frozenset())
    assert key in choose("nat", ip_network(subnet), INSIDE, facts).trouble
