"""What ``kubectl lb`` tells of a system that really runs."""

import json
from typing import Any

import pytest

from e2e.machines import owners
from e2e.scenario import MODES, WEB, Scenario
from tests.lab.process import wait_for
from tests.lab.workload import POOL_ANNOTATION, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(90)]


def found(scenario: Scenario, *arguments: str) -> list[dict[str, Any]]:
    """The items that a command finds on the host."""
    printed = scenario.world.lb("host", *arguments, "-o", "json")[1]
    items: list[dict[str, Any]] = json.loads(printed[printed.index("{") :])["items"]
    return items


def host_object(scenario: Scenario, name: str) -> dict[str, Any]:
    """A Service's line of ``list`` on the host."""
    (item,) = (x for x in found(scenario, "list") if x["service"].endswith(f": {scenario.guest.namespace}/{name}"))
    return item


@MODES
def test_what_is_served_is_fine_from_both_sides(scenario: Scenario, mode: str) -> None:
    address = scenario.served("web", mode=mode)
    code, text = scenario.world.lb("guest", "explain", f"{scenario.guest.namespace}/web")
    assert (code, text.splitlines()[-1]) == (0, "All is fine."), text
    item = host_object(scenario, "web")
    assert (item["ready"], item["addresses"], item["healthy"]) == ("True", [address], item["backends"])
    assert item["backends"] == len(scenario.world.traffic_nodes())
    code, text = scenario.world.lb("host", "explain", f"{item['namespace']}/{item['name']}")
    assert (code, text.splitlines()[-1]) == (0, "All is fine."), text
    (trace,) = found(scenario, "trace", f"{address}:80")
    assert (trace["owner"], trace["mode"], trace["problem"]) == (f"{item['namespace']}/{item['name']}", mode, "")
    assert frozenset(b["name"] for b in trace["backends"]) == scenario.world.backends(address, "TCP", 80)
    pool = next(p for p in found(scenario, "pools") if p["name"] == "lan")
    assert pool["total"] - pool["free"] >= 1


def test_why_there_is_no_address_is_told_from_both_sides(scenario: Scenario) -> None:
    scenario.guest.deploy("web", 1)
    scenario.guest.expose(service("web", [WEB], annotations={POOL_ANNOTATION: "none-such"}))
    scenario.wait_said("web", "PoolNotFound")
    code, text = scenario.world.lb("guest", "explain", f"{scenario.guest.namespace}/web")
    assert (code, text.splitlines()[-1]) == (1, "The first step that is not fine: pool chosen (PoolNotFound)."), text
    item = host_object(scenario, "web")
    code, text = scenario.world.lb("host", "explain", f"{item['namespace']}/{item['name']}")
    assert (code, text.splitlines()[-1]) == (1, "The first step that is not fine: pool chosen (PoolNotFound)."), text


@pytest.mark.lab("virtual machines on a host's bridge")
def test_a_machine_is_drained_and_put_back(scenario: Scenario) -> None:
    with owners(scenario) as (ours, _):
        for name in ("one", "two"):
            ours.machine(name)
        ours.balance("web", [WEB], ipPool="machines")
        (address,) = ours.addresses("web")
        ours.wait_served(address, [WEB], {"one", "two"})
        ours.wait_said("web", "Ready", "Ready")
        code, text = scenario.world.lb("host", "explain", f"{ours.namespace}/web")
        assert (code, text.splitlines()[-1]) == (0, "All is fine."), text
        assert "2 of 2 machines take traffic" in text
        assert scenario.world.lb("host", "drain", f"{ours.namespace}/one")[0] == 0
        ours.wait_served(address, [WEB], {"two"})
        assert scenario.world.lb("host", "drain", f"{ours.namespace}/one", "--back")[0] == 0
        ours.wait_served(address, [WEB], {"one", "two"})


def test_a_node_is_drained_and_put_back(scenario: Scenario) -> None:
    address = scenario.served("web", mode="nat")
    node = scenario.nodes()[0]

    def behind() -> frozenset[str]:
        return scenario.world.backends(address, "TCP", 80) or frozenset()

    assert node in behind()
    try:
        assert scenario.world.lb("guest", "drain", node)[0] == 0
        wait_for(f"{node} to take no traffic", lambda: node not in behind(), timeout=20)
    finally:
        assert scenario.world.lb("guest", "drain", node, "--back")[0] == 0
    wait_for(f"{node} to take traffic again", lambda: node in behind(), timeout=30)
