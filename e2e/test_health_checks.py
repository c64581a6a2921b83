"""Scenarios in which a Service's own check of its nodes decides."""

import pytest

from e2e.scenario import DNS, MODES, WEB, Mode, Scenario
from tests.lab.process import wait_for
from tests.lab.workload import MODE_ANNOTATION, PREFIX, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

FOUND = "HTTP status 200, expected 500"
CHECK = {"port": "80", "protocol": "HTTP", "periodseconds": "1", "timeoutseconds": "1"}


@MODES
def test_a_check_that_nobody_passes_refuses_and_one_that_all_pass_serves(scenario: Scenario, mode: Mode) -> None:
    """By the node port of the Service's port 80, which the pods answer with 200; UDP is checked by it too."""
    scenario.guest.deploy("web", 2)
    annotations = {f"{PREFIX}healthcheck-{key}": value for key, value in CHECK.items()}
    annotations |= {f"{PREFIX}healthcheck-expected-codes": "500", MODE_ANNOTATION: mode}
    scenario.guest.expose(service("web", [WEB, DNS], annotations=annotations))
    address = scenario.guest.wait_address("web")
    scenario.wait_refused(address, WEB)
    scenario.wait_refused(address, DNS)
    wait_for("what was found", lambda: FOUND in scenario.wait_said("web", "NoHealthyBackends"))
    scenario.guest.annotate("web", healthcheck_expected_codes="200")
    scenario.wait_backends(address, WEB, scenario.world.traffic_nodes())
    scenario.wait_answer(address, WEB)
    scenario.wait_answer(address, DNS)
    scenario.guest.annotate("web", healthcheck_port="http")
    assert '"http" is not a number' in scenario.wait_said("web", "OutOfRange")
    scenario.wait_answer(address, WEB)
    scenario.guest.annotate("web", healthcheck_port=CHECK["port"])
