"""Scenarios in which the guest's nodes come and go."""

import pytest

from e2e.load import load
from e2e.scenario import DNS, WEB, Scenario
from tests.lab.process import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"


@pytest.mark.lab("nodes by a name; k3d/test_machines.py has its own")
def test_a_node_added_and_removed(scenario: Scenario) -> None:
    address = scenario.served("web", replicas=3)
    before = scenario.world.traffic_nodes()
    scenario.world.add_node("node-new")
    scenario.wait_backends(address, WEB, before | {"node-new"})
    scenario.wait_pods(address, WEB, 3)
    scenario.world.remove_node("node-new")
    scenario.wait_backends(address, WEB, before)
    scenario.guest.wait_replicas("web", 3)
    scenario.wait_pods(address, WEB, 3)


def test_with_no_node_left_the_host_refuses(scenario: Scenario) -> None:
    address = scenario.served("web", [WEB, DNS])
    before = scenario.world.traffic_nodes()
    exclude(scenario, excluded=True)
    try:
        scenario.wait_backends(address, WEB, frozenset())
        scenario.wait_refused(address, WEB)
        scenario.wait_refused(address, DNS)
        assert scenario.guest.address("web") == address
    finally:
        exclude(scenario, excluded=False)
    scenario.wait_backends(address, WEB, before)
    scenario.wait_answer(address, WEB)
    scenario.wait_answer(address, DNS)


@pytest.mark.lab("a kube-proxy apart from its node")
@pytest.mark.timeout(200)
def test_a_node_that_does_not_accept_the_address_is_left_out(scenario: Scenario) -> None:
    """It has lost kube-proxy's rules, and nobody can ask for its health, as with k3s and RKE2: it routes the frames
    back."""
    deaf = "node-2"
    scenario.guest.deploy("web", 2, node="node-1")
    address = scenario.exposed("web", mode="dsr", pods=2)
    everywhere = scenario.world.traffic_nodes()
    scenario.wait_backends(address, WEB, everywhere)
    with scenario.world.without_kube_proxy(deaf):
        with load(lambda: scenario.world.client.get(address, WEB.port, timeout=0.5), pause=0.05):
            # An address that has just come is given 30 s, in which nodes may not know it yet.
            scenario.wait_backends(address, WEB, everywhere - {deaf}, timeout=60)
        scenario.wait_pods(address, WEB, 2)
    scenario.wait_backends(address, WEB, everywhere, timeout=60)
    scenario.wait_pods(address, WEB, 2)


def exclude(scenario: Scenario, *, excluded: bool) -> None:
    """Take all nodes of the guest out of load balancing, or back in."""
    api = scenario.world.api("guest")
    for node in api.items("/api/v1/nodes"):
        labels = {EXCLUDED: "true" if excluded else None}
        api.patch(f"/api/v1/nodes/{node['metadata']['name']}", {"metadata": {"labels": labels}})
    wait_for("the labels", lambda: bool(scenario.world.traffic_nodes()) != excluded, timeout=5)
