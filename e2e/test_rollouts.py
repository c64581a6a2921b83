"""Scenarios of backends that leave while traffic goes on."""

import contextlib
import time
from collections.abc import Iterator
from functools import partial

import pytest

from e2e.lab_lane import LabWorld
from e2e.load import Load, load
from e2e.scenario import DNS, MODES, WEB, Mode, Scenario
from e2e.test_nodes import EXCLUDED
from tests.lab.process import wait_for
from tests.lab.traffic import Connection
from tests.lab.workload import MODE_ANNOTATION, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

ROLLOUTS, REPLICAS = 5, 2
ENOUGH = 0.999
"""The part of the requests that has to be answered."""
LINGER_SECONDS = 2
"""For how long pods go on serving, as their deployments are told to do (the hook preStop)."""
SECONDS_TO_ANOTHER_POD = 1.0
CONNECTIONS = 8
"""Of which all go through the same one of two nodes by chance in one of 128."""


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_rolling_updates_lose_nothing(scenario: Scenario, policy: str) -> None:
    """Both modes at once, before the same pods."""
    scenario.guest.deploy("web", REPLICAS, linger=LINGER_SECONDS)
    addresses = [
        scenario.exposed(f"web-{mode}", mode=mode, app="web", pods=REPLICAS, externalTrafficPolicy=policy)
        for mode in ("nat", "dsr")
    ]
    with contextlib.ExitStack() as stack:
        loads = [stack.enter_context(load(partial(scenario.ask, a, WEB))) for a in addresses]
        for number in range(ROLLOUTS):  # the pods of one are still on their way out when the next one begins
            scenario.guest.roll_out("web", str(number))
        wait_for("the old pods' end", lambda: len(scenario.guest.pods("web")) == REPLICAS)
    for address, requests in zip(addresses, loads, strict=True):
        print(f"{address}: {requests.count} requests, {len(requests.failures)} failed")
        assert requests.count * (1 - ENOUGH) >= 1
        assert requests.ratio >= ENOUGH, requests.failures[:20]


@MODES
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_datagrams_from_one_port_reach_a_new_pod_soon(scenario: Scenario, mode: Mode, policy: str) -> None:
    """Kube-proxy looks at changes once a second (minSyncPeriod), which is none of ours: flows past the balancer, to the
    NodePort of each node that this one may go to, show when it has done its part."""
    first, second = scenario.nodes()
    scenario.guest.deploy("dns", 1, node=first)
    address = scenario.exposed("dns", [DNS], mode=mode, pods=1, externalTrafficPolicy=policy)
    beside = [second] if policy == "Local" else [first, second]
    ways = [(address, DNS.port), *((scenario.node_address(name), scenario.node_port("dns")) for name in beside)]
    with contextlib.ExitStack() as stack:
        questions, *past = [stack.enter_context(_datagrams(scenario, *way)) for way in ways]
        old = wait_for("an answer", lambda: _pod(questions))
        scenario.guest.move("dns", second)

        def another() -> bool:
            return all(flow.successes and flow.successes[-1].pod != old for flow in (questions, *past))

        wait_for("answers by the new pod", another, period=0.02)
    last, (reached, *served) = _last(questions, old), [_first_other(flow, old) for flow in (questions, *past)]
    ours = reached - max(last, *served)
    print(f"{reached - last:.2f} s after the old pod's last answer, {ours:.2f} s of them not kube-proxy's")
    assert ours < SECONDS_TO_ANOTHER_POD


@MODES
def test_datagrams_from_one_port_leave_a_node_without_pods_soon(scenario: Scenario, mode: Mode) -> None:
    """The other node has served all the time: nobody but us has anything to do."""
    address = scenario.served("dns", [DNS], mode=mode, externalTrafficPolicy="Local")
    with _datagrams(scenario, address, DNS.port) as questions:
        old = wait_for("an answer", lambda: _pod(questions))
        scenario.guest.scale_down("dns", 1, first=old)
        wait_for("an answer by the other pod", lambda: questions.successes[-1].pod != old, period=0.02)
    after = _first_other(questions, old) - _last(questions, old)
    print(f"{after:.2f} s after the old pod's last answer")
    assert after < SECONDS_TO_ANOTHER_POD


@contextlib.contextmanager
def _datagrams(scenario: Scenario, address: str, port: int) -> Iterator[Load]:
    """Questions from one source port, each as soon as the one before is answered or 20 ms old."""
    with (
        scenario.world.client.datagrams(address, port, timeout=0.02) as link,
        load(link.ask, pause=0.002) as questions,
    ):
        yield questions


def _pod(flow: Load) -> str:
    """Which pod has answered first; "" while none has."""
    return flow.successes[0].pod if flow.successes else ""


def _last(flow: Load, pod: str) -> float:
    """When a pod answered last."""
    return max(answer.ended for answer in flow.successes if answer.pod == pod)


def _first_other(flow: Load, pod: str) -> float:
    """When another pod answered first."""
    return min(answer.ended for answer in flow.successes if answer.pod != pod)


@MODES
def test_connections_go_on_while_their_node_drains(scenario: Scenario, mode: Mode) -> None:
    """What a node has keeps it until the drain time is over; new ones go elsewhere at once."""
    first, second = scenario.nodes()
    address = scenario.served("web", replicas=4, mode=mode)
    api = scenario.world.api("guest")
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(scenario.world.client.connect(address, WEB.port)) for _ in range(CONNECTIONS)
        ]
        pods = [connection.get().pod for connection in connections]
        api.patch(f"/api/v1/nodes/{first}", {"metadata": {"labels": {EXCLUDED: "true"}}})
        try:
            scenario.wait_backends(address, WEB, frozenset({second}))
            assert [connection.get().pod for connection in connections] == pods
            scenario.ask(address, WEB)
            late = stack.enter_context(scenario.world.client.connect(address, WEB.port))
            late_pod = late.get().pod
        finally:
            api.patch(f"/api/v1/nodes/{first}", {"metadata": {"labels": {EXCLUDED: None}}})
        scenario.wait_backends(address, WEB, frozenset({first, second}))
        assert [connection.get().pod for connection in connections] == pods
        assert late.get().pod == late_pod


@MODES
def test_a_pod_that_ends_serves_while_there_is_no_other(scenario: Scenario, mode: Mode) -> None:
    """KEP-1669: policy Local, and the last endpoint is on its way out."""
    first, _ = scenario.nodes()
    scenario.guest.deploy("web", 1, node=first, linger=4)
    address = scenario.exposed("web", mode=mode, pods=1, externalTrafficPolicy="Local")
    with scenario.world.client.connect(address, WEB.port) as connection:
        pod = connection.get().pod
        scenario.guest.scale("web", 0)

        def ending() -> bool:
            (found,) = scenario.guest.pods("web")
            return "deletionTimestamp" in found["metadata"]

        wait_for("the pod's end to begin", ending)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert scenario.ask(address, WEB).pod == pod
            assert connection.get().pod == pod
    scenario.wait_refused(address, WEB)


def test_a_mode_changed_in_place_cuts_nobody(scenario: Scenario) -> None:
    address = scenario.served("web", [WEB, DNS], mode="nat", replicas=4)
    with contextlib.ExitStack() as stack:
        connections: list[Connection] = []
        pods: list[str] = []
        for mode in ("nat", "dsr", "nat", "dsr"):
            scenario.guest.annotate("web", mode=mode)
            scenario.wait_mode(address, WEB, mode)
            assert [connection.get().pod for connection in connections] == pods
            # A kube-proxy that has not yet heard of the address sends what begins back, and its conntrack then sends
            # back all of that connection: what is counted on begins when all nodes know it.
            scenario.wait_pods(address, WEB, 4)
            more = [stack.enter_context(scenario.world.client.connect(address, WEB.port)) for _ in range(CONNECTIONS)]
            connections += more
            pods += [connection.get().pod for connection in more]
            scenario.wait_answer(address, DNS)
        assert scenario.guest.address("web") == address


@pytest.mark.lab("nodes by a name")
def test_an_unhealthy_kube_proxy_gets_nothing_new(scenario: Scenario) -> None:
    """A node about to be deleted says so by its kube-proxy's health (KEP-3836), also while the guest program, which
    would tell of the taint, is away."""
    api = scenario.world.api("guest")
    scenario.world.add_node("node-ends")
    address = scenario.served("web")
    everywhere = scenario.world.traffic_nodes()
    scenario.wait_backends(address, WEB, everywhere)
    wait_all_probed(scenario)  # kube-proxy's word counts once it has said that all is well
    scenario.world.kill("guest")
    with load(lambda: scenario.ask(address, WEB), pause=0.01) as requests:
        taint = {"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}
        api.patch("/api/v1/nodes/node-ends", {"spec": {"taints": [taint]}})
        scenario.wait_backends(address, WEB, everywhere - {"node-ends"})
        scenario.world.remove_node("node-ends")
        scenario.wait_pods(address, WEB, 2)
    assert not requests.failures
    scenario.world.start("guest")


def wait_all_probed(scenario: Scenario) -> None:
    """Wait until the agent has probed each node there is: in a period it asks each of their addresses once."""
    assert isinstance(scenario.world, LabWorld)
    agent = scenario.world.lab.programs["agent"]
    nodes = scenario.world.api("guest").items("/api/v1/nodes")
    addresses = sum(a["type"] == "InternalIP" for node in nodes for a in node["status"]["addresses"])

    def passed() -> float:
        counted: dict[str, float] = agent.metrics()
        return sum(n for name, n in counted.items() if 'kind="node"' in name and 'result="passed"' in name)

    begin = passed()
    wait_for("each node to be probed", lambda: passed() >= begin + 2 * addresses)


@pytest.mark.lab("nodes by a name")
def test_a_node_that_falls_silent_gets_nothing_new(scenario: Scenario) -> None:
    """Its object stays, and nobody tells of it but that it answers no more."""
    scenario.world.add_node("node-dies")
    scenario.guest.deploy("web", 2)
    scenario.guest.expose(service("web", [WEB], annotations={MODE_ANNOTATION: "auto"}))
    address = scenario.guest.wait_address("web")
    scenario.wait_backends(address, WEB, scenario.world.traffic_nodes())
    left = scenario.world.traffic_nodes() - {"node-dies"}
    scenario.world.cut_node("node-dies")
    scenario.wait_backends(address, WEB, left)
    scenario.wait_pods(address, WEB, 2)
