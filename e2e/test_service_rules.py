"""Scenarios of the rules of a Service, in each mode in which they hold."""

import contextlib
from functools import partial

import pytest

from e2e.scenario import DNS, MODES, WEB, Mode, Scenario
from tests.lab.process import wait_for
from tests.lab.traffic import Answer
from tests.lab.workload import MODE_ANNOTATION, PREFIX, Port, deployment, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(90)]

ELSEWHERE = 200
"""Of the LAN's addresses one that no pool has and no machine."""
EVERYBODY = ["0.0.0.0/1", "128.0.0.0/1"]
BOTH_ON_53 = (Port(53, 8080), DNS)
AFFINITY_SECONDS = 2
REQUESTS = 16
"""Of which all reach the same one of two pods by chance in one of 32,768."""


def pods_of(scenario: Scenario, address: str, port: Port = WEB) -> set[str]:
    return {scenario.ask(address, port).pod for _ in range(REQUESTS)}


def wait_count(scenario: Scenario, address: str, count: int) -> set[str]:
    """Wait until that many pods answer the client."""

    def seen() -> set[str]:
        pods = pods_of(scenario, address)
        assert len(pods) == count, f"{sorted(pods)} answered"
        return pods

    return wait_for(f"{count} pods to answer", seen)


@MODES
def test_tcp_and_udp_on_one_port(scenario: Scenario, mode: Mode) -> None:
    address = scenario.served("dns", BOTH_ON_53, mode=mode)
    assert scenario.ask(address, BOTH_ON_53[0]).port == 8080
    assert scenario.ask(address, DNS).port == DNS.target
    scenario.guest.set_ports("dns", BOTH_ON_53[:1])
    scenario.wait_refused(address, DNS)
    assert scenario.ask(address, BOTH_ON_53[0]).port == 8080


@MODES
def test_affinity_to_the_client_switched_on_and_off(scenario: Scenario, mode: Mode) -> None:
    """kube-proxy keeps a client at its pod; the balancer has to keep it at its kube-proxy."""
    address = scenario.served("web", replicas=4, mode=mode)
    with contextlib.ExitStack() as stack:
        open_before = [stack.enter_context(scenario.world.client.connect(address, WEB.port)) for _ in range(4)]
        before = [connection.get().pod for connection in open_before]
        scenario.guest.set_field("web", "sessionAffinity", "ClientIP")
        wait_count(scenario, address, 1)
        assert [connection.get().pod for connection in open_before] == before
        open_sticky = stack.enter_context(scenario.world.client.connect(address, WEB.port))
        sticky = open_sticky.get().pod
        scenario.guest.set_field("web", "sessionAffinity", "None")
        scenario.wait_pods(address, WEB, 4)
        assert [connection.get().pod for connection in open_before] == before
        assert open_sticky.get().pod == sticky


@MODES
def test_affinity_ends_with_its_time(scenario: Scenario, mode: Mode) -> None:
    scenario.guest.deploy("web", 4)
    timed = {"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}
    scenario.guest.expose(
        service(
            "web",
            [WEB],
            annotations={MODE_ANNOTATION: mode},
            sessionAffinity="ClientIP",
            sessionAffinityConfig=timed,
        )
    )
    address = scenario.guest.wait_address("web")
    (first,) = wait_count(scenario, address, 1)

    def another() -> bool:
        return scenario.ask(address, WEB).pod != first

    wait_for("another pod after a pause", another, timeout=40, period=AFFINITY_SECONDS + 0.5)


@MODES
def test_source_ranges_set_changed_and_cleared(scenario: Scenario, mode: Mode) -> None:
    address = scenario.served("web", [WEB, DNS], mode=mode)
    own = scenario.world.client.own_address(address)
    ranges, elsewhere = "loadBalancerSourceRanges", str(scenario.world.network[ELSEWHERE])
    with scenario.world.visitor(elsewhere) as visitor, scenario.world.client.connect(address, WEB.port) as connection:
        assert visitor.get(address, WEB.port).pod
        scenario.guest.set_field("web", ranges, [f"{elsewhere}/32"])
        scenario.wait_dropped(address, WEB)
        scenario.wait_dropped(address, DNS)
        assert visitor.get(address, WEB.port).pod
        assert visitor.ask(address, DNS.port).pod
        scenario.guest.set_field("web", ranges, [f"{own}/32", "192.0.2.0/24"])
        scenario.wait_answer(address, WEB)
        scenario.wait_answer(address, DNS)
        with pytest.raises(TimeoutError):
            visitor.get(address, WEB.port, timeout=0.5)
        scenario.guest.set_field("web", ranges, None)
        wait_for("everybody", lambda: visitor.get(address, WEB.port))
        assert connection.get().pod


@MODES
def test_source_ranges_that_hold_everybody_or_nobody(scenario: Scenario, mode: Mode) -> None:
    """Two /1 are the whole of IPv4; a range of IPv6 holds no client of an IPv4 address, and is not as good as none."""
    scenario.guest.deploy("web", 2)
    address = scenario.exposed("web", mode=mode, pods=2, loadBalancerSourceRanges=EVERYBODY)
    scenario.guest.set_field("web", "loadBalancerSourceRanges", ["fd00:77::/64"])
    scenario.wait_dropped(address, WEB)
    scenario.guest.set_field("web", "loadBalancerSourceRanges", EVERYBODY)
    scenario.wait_answer(address, WEB)
    scenario.wait_pods(address, WEB, 2)


def test_dsr_needs_no_node_ports(scenario: Scenario) -> None:
    scenario.served("web", mode="dsr", allocateLoadBalancerNodePorts=False)
    assert not any("nodePort" in port for port in scenario.guest.get("web")["spec"]["ports"])


def test_nat_without_node_ports_is_told(scenario: Scenario) -> None:
    scenario.guest.deploy("web", 1)
    body = service("web", [WEB], annotations={MODE_ANNOTATION: "nat"}, allocateLoadBalancerNodePorts=False)
    scenario.guest.expose(body)
    message = scenario.wait_said("web", "Required")
    assert "spec.ports[0].nodePort" in message
    assert "allocateLoadBalancerNodePorts to true" in message
    scenario.guest.set_field("web", "allocateLoadBalancerNodePorts", value=True)
    scenario.wait_answer(scenario.guest.wait_address("web"), WEB)


@MODES
def test_unready_pods_answer_where_the_service_wants_it(scenario: Scenario, mode: Mode) -> None:
    scenario.guest.api.create(scenario.guest.deployments, deployment("web", 2, ready=False))
    scenario.guest.expose(service("web", [WEB], annotations={MODE_ANNOTATION: mode}, externalTrafficPolicy="Local"))
    address = scenario.guest.wait_address("web")
    scenario.wait_refused(address, WEB)
    scenario.guest.set_field("web", "publishNotReadyAddresses", value=True)
    scenario.wait_answer(address, WEB)
    scenario.wait_pods(address, WEB, 2)
    scenario.wait_backends(address, WEB, scenario.world.traffic_nodes())


@pytest.mark.lab("a client on a node")
@MODES
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_nodes_and_pods_reach_their_own_load_balancer(scenario: Scenario, mode: Mode, policy: str) -> None:
    """To a pod of the cluster kube-proxy treats the address as the Service's own, whatever the policy, and the pod
    that answers sees the one that asks, unless it asks itself."""
    scenario.guest.deploy("web", 2)
    address = scenario.exposed("web", mode=mode, pods=2, externalTrafficPolicy=policy)
    asking = scenario.guest.pods("web")[0]
    inside = scenario.world.in_pod(asking["metadata"]["uid"])
    pods = {pod["metadata"]["name"] for pod in scenario.guest.pods("web")}

    def all_answer() -> list[Answer]:  # each kube-proxy follows in its own time
        answers = [inside.get(address, WEB.port) for _ in range(REQUESTS)]
        assert {answer.pod for answer in answers} == pods
        return answers

    seen = wait_for("all pods to answer one of them", all_answer)
    if policy == "Local":
        assert {a.client for a in seen if a.pod != asking["metadata"]["name"]} == {asking["status"]["podIP"]}
    for node in scenario.nodes():
        wait_for(f"an answer to {node}", partial(scenario.world.on_node(node).get, address, WEB.port))


def test_two_services_of_different_modes_on_one_address(scenario: Scenario) -> None:
    address = scenario.served("web", mode="dsr")
    scenario.guest.deploy("dns", 2)
    shared = {MODE_ANNOTATION: "nat", f"{PREFIX}primary-service": "web"}
    scenario.guest.expose(service("dns", [DNS, Port(81, 9090)], annotations=shared))
    assert scenario.guest.wait_address("dns") == address
    for port in (DNS, Port(81, 9090), WEB):
        scenario.wait_answer(address, port)
        scenario.wait_pods(address, port, 2)
    scenario.wait_refused(address, Port(82, 80))
    scenario.guest.delete("web")
    scenario.wait_refused(address, WEB)
    scenario.wait_answer(address, DNS)
