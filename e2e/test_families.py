"""Scenarios of IPv6, alone and beside IPv4."""

import pytest

from e2e.scenario import DNS, MODES, WEB, Mode, Scenario
from tests.lab.process import wait_for
from tests.lab.workload import MODE_ANNOTATION, service

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.apiserver,
    pytest.mark.kernel,
    pytest.mark.timeout(90),
    pytest.mark.lab("IPv6"),
]


@MODES
def test_ipv6_alone(scenario: Scenario, mode: Mode) -> None:
    address = scenario.served("web", [WEB, DNS], mode=mode, ipFamilies=["IPv6"])
    assert scenario.world.pool_holds("lan", address)
    assert ":" in address
    assert scenario.world.client.ping(address)
    scenario.wait_backends(address, WEB, scenario.world.traffic_nodes())
    scenario.guest.scale("web", 0)
    scenario.wait_refused(address, WEB)
    scenario.wait_refused(address, DNS)
    scenario.guest.delete("web")
    scenario.wait_silent(address, WEB)


@MODES
def test_both_families(scenario: Scenario, mode: Mode) -> None:
    scenario.guest.deploy("web", 2)
    annotations = {MODE_ANNOTATION: mode}
    scenario.guest.expose(service("web", [WEB, DNS], annotations=annotations, ipFamilyPolicy="RequireDualStack"))
    addresses = wait_for("two addresses", lambda: found if len(found := scenario.guest.addresses("web")) == 2 else [])
    assert [":" in address for address in addresses] == [False, True]
    for address in addresses:
        for port in (WEB, DNS):
            scenario.wait_answer(address, port)
            scenario.wait_pods(address, port, 2)
        assert scenario.world.mode(address, "TCP", WEB.port) == mode


@MODES
def test_ipv6_rules_of_a_service(scenario: Scenario, mode: Mode) -> None:
    """Policy Local, source ranges and affinity, as in IPv4."""
    first, second = scenario.nodes()
    scenario.guest.deploy("web", 2, node=first)
    address = scenario.exposed("web", mode=mode, pods=2, ipFamilies=["IPv6"], externalTrafficPolicy="Local")
    own = scenario.world.client.own_address(address)
    scenario.wait_backends(address, WEB, frozenset({first}))
    assert (scenario.ask(address, WEB).client == own) == (mode == "dsr")
    scenario.guest.set_field("web", "loadBalancerSourceRanges", ["fd00:77:0:1::/64"])
    scenario.wait_dropped(address, WEB)
    scenario.guest.set_field("web", "loadBalancerSourceRanges", ["::/1", "8000::/1"])
    scenario.wait_answer(address, WEB)
    scenario.guest.move("web", second)
    scenario.wait_backends(address, WEB, frozenset({second}))
    scenario.wait_pods(address, WEB, 2)
    scenario.guest.set_field("web", "sessionAffinity", "ClientIP")
    scenario.wait_pods(address, WEB, 1)


@MODES
def test_ipv6_on_narrow_links_and_in_fragments(scenario: Scenario, mode: Mode) -> None:
    address = scenario.served("web", [WEB, DNS], mode=mode, ipFamilies=["IPv6"])
    for _ in range(8):
        assert scenario.world.client.ask(address, DNS.port, size=4000).port == DNS.target
    with scenario.world.far_client(1300) as far:
        for _ in range(8):
            with far.connect(address, WEB.port) as connection:
                assert connection.get("/200000").pod
