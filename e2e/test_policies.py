"""Scenarios of externalTrafficPolicy, and of a Service as large and as long in its names as one may be."""

import pytest

from e2e.scenario import DNS, WEB, Scenario
from tests.lab.workload import Port, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

READY = "loadbalancer.harvesterhci.io/Ready"
LONGEST = 63
"""Characters of a DNS label (RFC 1123 section 2.1), which names of Services, namespaces and ports are."""
PORTS = 100


def test_policy_local_sends_to_where_the_pod_is(scenario: Scenario) -> None:
    """kube-proxy drops what comes to a node without endpoints: a host that still sends there loses connections."""
    first, second = sorted(scenario.nodes())
    at = {name: frozenset({address}) for name, address in scenario.nodes().items()}
    scenario.guest.deploy("web", 1, node=first)
    scenario.guest.expose(service("web", [WEB, DNS], externalTrafficPolicy="Local"))
    address = scenario.guest.wait_address("web")
    for port in (WEB, DNS):
        scenario.wait_backends(address, port, at[first])
        scenario.wait_pods(address, port, 1)
    scenario.guest.move("web", second)
    for port in (WEB, DNS):
        scenario.wait_backends(address, port, at[second])
        scenario.wait_pods(address, port, 1)
    scenario.guest.scale("web", 0)
    scenario.wait_backends(address, WEB, frozenset())
    scenario.wait_refused(address, WEB)
    scenario.guest.scale("web", 1)
    scenario.wait_backends(address, WEB, at[second])
    scenario.guest.set_field("web", "externalTrafficPolicy", "Cluster")
    scenario.wait_backends(address, WEB, scenario.world.node_addresses())
    scenario.wait_pods(address, WEB, 1)
    assert scenario.guest.address("web") == address


def test_pods_see_the_client_or_the_service_says_that_they_do_not(scenario: Scenario) -> None:
    scenario.guest.deploy("web", 1)
    scenario.guest.expose(service("web", [WEB], externalTrafficPolicy="Local"))
    address = scenario.guest.wait_address("web")
    seen = scenario.wait_answer(address, WEB).client
    lost = "clients' addresses are not preserved" in scenario.guest.condition("web", READY)["message"]
    assert (seen != scenario.world.client.own_address(address)) == lost


def test_a_hundred_ports_and_the_longest_names(scenario: Scenario) -> None:
    ports = [
        Port(1000 + number, target, protocol, f"port-{number:03}-".ljust(LONGEST, "p"))
        for number, (target, protocol) in enumerate([(8080, "TCP"), (9090, "TCP"), (9090, "TCP"), (5353, "UDP")] * 25)
    ]
    assert len(ports) == PORTS
    name = "service-".ljust(LONGEST, "s")
    wide = Scenario(scenario.world, f"{scenario.guest.namespace}-".ljust(LONGEST, "n"))
    wide.guest.create()
    try:
        wide.guest.deploy("web", 2)
        wide.guest.expose(service(name, ports, app="web"))
        address = wide.guest.wait_address(name)
        for port in (ports[0], ports[-1]):
            wide.wait_answer(address, port)
            wide.wait_pods(address, port, 2)
        wide.wait_refused(address, Port(ports[-1].port + 1, 8080))
        wide.world.wait_until_agreed()
        wide.guest.set_ports(name, ports[:-1])
        wide.wait_refused(address, ports[-1])
        wide.wait_answer(address, ports[-2])
    finally:
        wide.guest.remove()
    wide.wait_silent(address, ports[0])
