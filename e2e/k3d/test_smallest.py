"""The smallest whole: installed, one Service, traffic, deleted."""

import pytest

from e2e.scenario import WEB, Scenario

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_a_service_is_served_and_goes(scenario: Scenario) -> None:
    address = scenario.served("web")
    assert scenario.world.pool_holds("lan", address)
    scenario.guest.delete("web")
    scenario.guest.wait_deleted("web")
    scenario.wait_silent(address, WEB)
