"""Scenarios of what happens to packets beside requests and answers: ICMP, fragments, big ones on narrow links."""

import pytest

from e2e.scenario import DNS, MODES, WEB, Mode, Scenario

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(90)]

NARROW = 1300
"""Bytes of a tunnel's link."""
MUCH = 200_000
"""Bytes that fill many packets of any size."""
FRAGMENTED = 4000
"""Bytes of a datagram in three fragments."""


@MODES
def test_the_address_answers_ping(scenario: Scenario, mode: Mode) -> None:
    address = scenario.served("web", mode=mode)
    assert scenario.world.client.ping(address)
    scenario.guest.scale("web", 0)
    scenario.wait_refused(address, WEB)
    assert scenario.world.client.ping(address)
    scenario.guest.delete("web")
    scenario.wait_silent(address, WEB)
    assert not scenario.world.client.ping(address)


@pytest.mark.lab("a gateway of the lane's own")
@MODES
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_narrow_link_on_the_way(scenario: Scenario, mode: Mode, policy: str) -> None:
    """The gateway before the link tells the address how much goes through; who sent too much has to hear of it."""
    scenario.guest.deploy("web", 4)
    address = scenario.exposed("web", mode=mode, pods=4, externalTrafficPolicy=policy)
    with scenario.world.far_client(NARROW) as far:
        pods = set()
        for _ in range(24):
            with far.connect(address, WEB.port) as connection:
                pods.add(connection.get(f"/{MUCH}").pod)
                connection.get(body=bytes(MUCH))
        assert len(pods) == 4  # each has learnt of it, or it would have answered nobody


@MODES
def test_datagrams_in_fragments(scenario: Scenario, mode: Mode) -> None:
    address = scenario.served("dns", [DNS], mode=mode)
    for _ in range(16):
        assert scenario.world.client.ask(address, DNS.port, size=FRAGMENTED).port == DNS.target
