"""Scenarios in which something dies, or can't be reached, while Services come and go."""

import time

import pytest

from e2e.scenario import WEB, Scenario
from e2e.world import ProgramName, Side
from tests.lab.workload import Port, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel]

CUT_SECONDS = 30.0


@pytest.mark.timeout(120)
@pytest.mark.parametrize("program", ["guest", "host", "agent"])
def test_a_program_killed_in_mid_flight(scenario: Scenario, program: ProgramName) -> None:
    """Nothing moves, doubles or leaks, and what runs goes on running while the program is away."""
    kept = scenario.served("kept")
    scenario.served("doomed")
    with scenario.world.client.connect(kept, WEB.port) as connection:
        assert connection.get().pod
        for number in range(5):
            scenario.guest.expose(service(f"before-{number}", [WEB], app="kept"))
        scenario.world.kill(program)
        scenario.guest.expose(service("meanwhile", [WEB], app="kept"))
        scenario.guest.delete("doomed")
        scenario.guest.set_ports("before-0", [WEB, Port(81, 9090)])
        assert connection.get().pod
        assert scenario.ask(kept, WEB).pod
        scenario.world.start(program)
        for name in (*(f"before-{number}" for number in range(5)), "meanwhile"):
            scenario.wait_answer(scenario.guest.wait_address(name), WEB)
        scenario.wait_answer(scenario.guest.address("before-0"), Port(81, 9090))
        scenario.guest.wait_deleted("doomed")
        assert scenario.guest.address("kept") == kept
        assert connection.get().pod


@pytest.mark.lab("an API server apart from its node")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("side", ["guest", "host"])
def test_an_api_server_restarted(scenario: Scenario, side: Side) -> None:
    kept = scenario.served("kept")
    scenario.guest.deploy("web", 1)
    if side == "host":
        with scenario.world.api_server_down("host"):
            scenario.guest.expose(service("web", [WEB]))
            assert scenario.ask(kept, WEB).pod
    else:
        scenario.guest.expose(service("web", [WEB]))
        with scenario.world.api_server_down("guest"):
            assert scenario.ask(kept, WEB).pod
    scenario.wait_answer(scenario.guest.wait_address("web", timeout=60), WEB)
    assert scenario.guest.address("kept") == kept
    scenario.guest.delete("web")
    scenario.guest.wait_deleted("web", timeout=60)


@pytest.mark.lab("a cut of the bridge alone")
@pytest.mark.timeout(180)
def test_the_bridge_cut_while_services_come_and_go(scenario: Scenario) -> None:
    kept = scenario.served("kept")
    scenario.served("doomed")
    with scenario.world.bridge_cut():
        began = time.monotonic()
        scenario.guest.expose(service("new", [WEB], app="kept"))
        scenario.guest.delete("doomed")
        scenario.guest.expose(service("brief", [WEB], app="kept"))
        assert scenario.has_no_address("new", within=CUT_SECONDS / 2)
        scenario.guest.delete("brief")
        while (left := CUT_SECONDS - (time.monotonic() - began)) > 0:
            assert scenario.ask(kept, WEB).pod
            time.sleep(min(left, 1.0))  # the cut has a length; traffic is looked at all through it
    scenario.wait_answer(scenario.guest.wait_address("new", timeout=60), WEB)
    scenario.guest.wait_deleted("doomed", timeout=60)
    scenario.guest.wait_deleted("brief", timeout=60)
    assert scenario.guest.address("kept") == kept


@pytest.mark.timeout(90)
def test_without_an_agent_a_scenario_fails(scenario: Scenario) -> None:
    """A negative control: a Service shows no address that nobody forwards."""
    scenario.guest.deploy("web", 1)
    scenario.world.kill("agent")
    scenario.guest.expose(service("web", [WEB]))
    assert scenario.has_no_address("web", within=8)
    scenario.world.start("agent")
    scenario.wait_answer(scenario.guest.wait_address("web"), WEB)


@pytest.mark.timeout(90)
def test_without_the_agents_rules_nobody_answers(scenario: Scenario) -> None:
    """The negative control by traffic: were something else than the agent's rules answering, or the checker blind, the
    other scenarios would prove nothing."""
    address = scenario.served("web")
    scenario.world.wait_until_agreed()
    scenario.world.leave()
    scenario.wait_silent(address, WEB)
    told = scenario.world.differences()
    assert any(sentence.startswith("link: ") and address in sentence for sentence in told), told
    assert any(sentence.startswith("kernel: ") and address in sentence for sentence in told), told
    assert scenario.guest.address("web") == address
    scenario.world.start("agent")
    scenario.wait_answer(address, WEB)
