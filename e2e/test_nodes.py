"""Scenarios in which the guest's nodes come and go."""

import pytest

from e2e.scenario import DNS, WEB, Scenario
from tests.lab.process import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"


def test_a_node_added_and_removed(scenario: Scenario) -> None:
    address = scenario.served("web", replicas=3)
    before = scenario.world.node_addresses()
    added = scenario.world.add_node("node-new")
    scenario.wait_backends(address, WEB, before | {added})
    scenario.wait_pods(address, WEB, 3)
    scenario.world.remove_node("node-new")
    scenario.wait_backends(address, WEB, before)
    scenario.guest.wait_replicas("web", 3)
    scenario.wait_pods(address, WEB, 3)


def test_with_no_node_left_the_host_refuses(scenario: Scenario) -> None:
    address = scenario.served("web", [WEB, DNS])
    before = scenario.world.node_addresses()
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


def exclude(scenario: Scenario, *, excluded: bool) -> None:
    """Take all nodes of the guest out of load balancing, or back in."""
    api = scenario.world.api("guest")
    for node in api.items("/api/v1/nodes"):
        labels = {EXCLUDED: "true" if excluded else None}
        api.patch(f"/api/v1/nodes/{node['metadata']['name']}", {"metadata": {"labels": labels}})
    wait_for("the labels", lambda: bool(scenario.world.node_addresses()) != excluded, timeout=5)
