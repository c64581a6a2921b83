"""Scenarios of a Service's life, seen from a client on the LAN."""

import pytest

from e2e.scenario import DNS, WEB, Scenario
from tests.lab.workload import MODE_ANNOTATION, POOL_ANNOTATION, Port, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(90)]

SECOND = Port(8081, 9090)


def test_tcp_and_udp_and_two_ports_on_one_address(scenario: Scenario) -> None:
    address = scenario.served("web", [WEB, SECOND, DNS], replicas=3)
    assert scenario.world.pool_holds("lan", address)
    scenario.wait_pods(address, WEB, 3)
    scenario.wait_pods(address, DNS, 3)
    scenario.wait_refused(address, Port(81, 8080))


def test_who_connects_the_moment_the_address_is_shown_is_served(scenario: Scenario) -> None:
    """Before the guest's kube-proxies know it: the first SYN is lost, and with it no more than a second or two."""
    scenario.served("web", mode="dsr")
    scenario.guest.expose(service("late", [WEB], app="web", annotations={MODE_ANNOTATION: "dsr"}))
    address = scenario.guest.wait_address("late")
    with scenario.world.client.connect(address, WEB.port, timeout=15) as connection:
        assert connection.get().pod


def test_a_named_pool(scenario: Scenario) -> None:
    scenario.guest.deploy("web", 1)
    scenario.guest.expose(service("web", [WEB], annotations={POOL_ANNOTATION: "reserved"}))
    address = scenario.guest.wait_address("web")
    assert scenario.world.pool_holds("reserved", address)
    scenario.wait_answer(address, WEB)


def test_a_changed_port(scenario: Scenario) -> None:
    address = scenario.served("web")
    changed = Port(8000, WEB.target)
    scenario.guest.set_ports("web", [changed])
    scenario.wait_answer(address, changed)
    scenario.wait_refused(address, WEB)
    assert scenario.guest.address("web") == address


def test_a_changed_target(scenario: Scenario) -> None:
    address = scenario.served("web")
    changed = Port(WEB.port, 9090)
    scenario.guest.set_ports("web", [changed])
    scenario.wait_answer(address, changed)
    assert scenario.guest.address("web") == address


def test_type_changed_away_and_back(scenario: Scenario) -> None:
    address = scenario.served("web")
    scenario.guest.set_type("web", "ClusterIP")
    scenario.wait_silent(address, WEB)
    scenario.world.wait_until_agreed()  # neither address nor finalizer is left on it
    scenario.guest.set_type("web", "LoadBalancer")
    assert scenario.guest.wait_address("web") == address  # the same owner, and nobody has taken it
    scenario.wait_answer(address, WEB)


def test_deleted(scenario: Scenario) -> None:
    address = scenario.served("web", [WEB, DNS])
    scenario.guest.delete("web")
    scenario.guest.wait_deleted("web")
    scenario.wait_silent(address, WEB)


def test_recreated_under_the_same_name(scenario: Scenario) -> None:
    scenario.served("web")
    uid = scenario.guest.get("web")["metadata"]["uid"]
    scenario.guest.delete("web")
    scenario.guest.wait_deleted("web")
    scenario.guest.expose(service("web", [WEB]))
    scenario.wait_answer(scenario.guest.wait_address("web"), WEB)
    assert scenario.guest.get("web")["metadata"]["uid"] != uid


def test_scaled_to_zero_is_refused_by_the_guest_and_back(scenario: Scenario) -> None:
    """The host goes on forwarding (policy Cluster: every node takes traffic); the refusal of the guest's kube-proxy
    has to find its way back through the host to the client."""
    address = scenario.served("web", [WEB, DNS])
    scenario.guest.scale("web", 0)
    scenario.wait_refused(address, WEB)
    scenario.wait_refused(address, DNS)
    scenario.wait_backends(address, WEB, scenario.world.traffic_nodes())
    scenario.guest.scale("web", 3)
    scenario.wait_pods(address, WEB, 3)
    scenario.wait_answer(address, DNS)


def test_one_connection_lives_through_a_change_of_others(scenario: Scenario) -> None:
    address = scenario.served("web")
    with scenario.world.client.connect(address, WEB.port) as connection:
        pod = connection.get().pod
        other = scenario.served("other")
        scenario.guest.set_ports("web", [WEB, SECOND])
        scenario.wait_answer(address, SECOND)
        scenario.guest.delete("other")
        scenario.wait_silent(other, WEB)
        assert connection.get().pod == pod
