"""Scenarios of externalTrafficPolicy, and of a Service as large and as long in its names as one may be."""

import contextlib

import pytest

from e2e.scenario import DNS, MODES, READY, WEB, Mode, Scenario
from e2e.test_nodes import EXCLUDED
from tests.lab.process import wait_for
from tests.lab.traffic import Connection
from tests.lab.workload import Port, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

LONGEST = 63
"""Characters of a DNS label (RFC 1123 section 2.1), which names of Services, namespaces and ports are."""
PORTS = 100
CONNECTIONS = 8


def test_policy_local_sends_to_where_the_pod_is(scenario: Scenario) -> None:
    """kube-proxy drops what comes to a node without endpoints: a host that still sends there loses connections."""
    first, second = scenario.nodes()
    scenario.guest.deploy("web", 1, node=first)
    scenario.guest.expose(service("web", [WEB, DNS], externalTrafficPolicy="Local"))
    address = scenario.guest.wait_address("web")
    for port in (WEB, DNS):
        scenario.wait_backends(address, port, frozenset({first}))
        scenario.wait_pods(address, port, 1)
    scenario.guest.move("web", second)
    for port in (WEB, DNS):
        scenario.wait_backends(address, port, frozenset({second}))
        scenario.wait_pods(address, port, 1)
    scenario.guest.scale("web", 0)
    scenario.wait_backends(address, WEB, frozenset())
    scenario.wait_refused(address, WEB)
    scenario.guest.scale("web", 1)
    scenario.wait_backends(address, WEB, frozenset({second}))
    scenario.guest.set_field("web", "externalTrafficPolicy", "Cluster")
    scenario.wait_backends(address, WEB, scenario.world.traffic_nodes())
    scenario.wait_pods(address, WEB, 1)
    assert scenario.guest.address("web") == address


@MODES
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_whom_the_pods_see(scenario: Scenario, mode: Mode, policy: str) -> None:
    """The client, with policy Local and in mode dsr; with Cluster a node (Kubernetes' own rule: the node that took the
    connection masquerades); in mode nat nobody but the host, and the Service says so."""
    scenario.guest.deploy("web", 2)
    address = scenario.exposed("web", mode=mode, pods=2, externalTrafficPolicy=policy)
    seen = {scenario.ask(address, WEB).client for _ in range(16)}
    client = scenario.world.client.own_address(address)
    assert (seen == {client}) == (mode == "dsr" and policy == "Local")
    assert (client in seen) == (mode == "dsr" and policy == "Local")
    lost = "clients' addresses are not preserved" in scenario.guest.condition("web", READY)["message"]
    assert lost == (mode == "nat")


def test_auto_passes_frames_on_where_all_nodes_stand_on_the_network(scenario: Scenario) -> None:
    address = scenario.served("web", mode="auto")
    assert scenario.world.mode(address, "TCP", WEB.port) == "dsr"
    events = scenario.guest.api.items(f"/api/v1/namespaces/{scenario.guest.namespace}/events")
    assert any(event["message"].endswith("mode dsr") for event in events if event["reason"] == "AddressAssigned")


@pytest.mark.lab("a node on another network")
def test_auto_translates_while_a_node_stands_elsewhere(scenario: Scenario) -> None:
    """And goes back once that node is taken out. Who is connected stays so, by that node too."""
    network, address = "10.77.0.0/16", scenario.served("web", mode="auto", replicas=3)
    scenario.wait_mode(address, WEB, "dsr")
    with contextlib.ExitStack() as stack:

        def connect() -> dict[Connection, str]:
            made = [stack.enter_context(scenario.world.client.connect(address, WEB.port)) for _ in range(CONNECTIONS)]
            return {connection: connection.get().pod for connection in made}

        def forwarded(mode: Mode, why: str) -> dict[Connection, str]:
            scenario.wait_mode(address, WEB, mode)
            scenario.wait_backends(address, WEB, scenario.world.traffic_nodes())
            assert {connection: connection.get().pod for connection in connected} == connected
            wait_for("the reason", lambda: f"Mode {mode} ({why})" in scenario.programmed("web"))
            wait_for("the mode", lambda: f"mode {mode}" in scenario.guest.condition("web", READY)["message"])
            scenario.wait_pods(address, WEB, 3)
            return connected | connect()

        connected = connect()
        scenario.world.add_node("node-away", elsewhere=True)
        outside = scenario.node_address("node-away")
        connected = forwarded("nat", f"{outside} is not in {network}, the network of the address")
        scenario.label_node("node-away", EXCLUDED, "true")
        connected = forwarded("dsr", f"all nodes stand in {network}")
    assert scenario.guest.address("web") == address


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
