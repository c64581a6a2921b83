"""The host's nodes under traffic: one dies and comes back, one is drained."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import get_args

import pytest

from e2e.k3d import kernel
from e2e.k3d_lane import K3dWorld
from e2e.load import Load, load
from e2e.scenario import WEB, Mode, Scenario
from tests.lab.process import wait_for
from tests.lab.traffic import Answer
from tests.lab.workload import service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

TAKEOVER_LIMIT_SECONDS = 2.0
"""From the moment that a host's death is known to the other one until it answers."""
LEADER_LIMIT_SECONDS = 2.0
"""From the same moment until the other copy of the host program leads."""
RECONNECTED_LIMIT_SECONDS = 60
"""The guest finds out within 25 s that its connection has died, and tries again with growing pauses."""
SHARE_LIMIT_SECONDS = 90
"""A host that has come gets its share after 10 s, or what others have taken over after a minute."""
PAUSE_SECONDS = 0.02
HASTE_SECONDS = 0.2
"""A client that looks for the end of an outage does not wait longer for an answer."""


def test_a_host_cordoned_under_traffic_and_back(k3d: K3dWorld, scenario: Scenario) -> None:
    """All its addresses move, no new connection fails on the way; uncordoned, it gets its share again, the same way."""
    leaving = next(name for name in k3d.host.nodes() if name != k3d.host.server)
    scenario.guest.deploy("web", 2)
    names = [f"{mode}-{number}" for mode in get_args(Mode) for number in (1, 2)]
    addresses = {name: scenario.exposed(name, mode=name.partition("-")[0], app="web", pods=2) for name in names}
    even = Counter(dict.fromkeys(k3d.host.nodes(), len(names) // 2))
    wait_spread(k3d, addresses, even)
    with under_traffic(addresses, partial(scenario.ask, port=WEB)) as asked:
        try:
            began = time.monotonic()
            k3d.host.kubectl("cordon", leaving)
            wait_spread(k3d, addresses, Counter({k3d.host.server: len(names)}))
            print(f"all addresses had moved after {time.monotonic() - began:.1f} s")
            k3d.wait_until_agreed()
        finally:
            k3d.host.kubectl("uncordon", leaving)
        began = time.monotonic()
        wait_spread(k3d, addresses, even)
        print(f"its share was back after {time.monotonic() - began:.1f} s")
        k3d.wait_until_agreed()
    check(asked)
    assert {name: scenario.guest.address(name) for name in names} == addresses


def test_a_host_killed_while_it_serves(k3d: K3dWorld, scenario: Scenario) -> None:
    """Another host takes the addresses over; when the dead one comes back there are not two of them, and nothing is
    lost while it gets them again."""
    doomed = next(name for name in k3d.host.nodes() if name != k3d.host.server)
    with k3d.weighing(k3d.host.server, 0), contextlib.ExitStack() as stack:
        scenario.guest.deploy("web", 2)
        addresses = {mode: scenario.exposed(mode, mode=mode, app="web", pods=2) for mode in get_args(Mode)}
        wait_spread(k3d, addresses, Counter({doomed: len(addresses)}))
        kept = stack.enter_context(k3d.client.connect(addresses["dsr"], WEB.port))
        pod = kept.get().pod
        hasty = partial(k3d.client.get, port=WEB.port, timeout=HASTE_SECONDS)
        with under_traffic(addresses, hasty) as asked:
            k3d.lead_from(doomed)
            killed, clock = time.time(), time.time() - time.monotonic()
            stack.enter_context(stopped := contextlib.ExitStack())
            stopped.enter_context(k3d.stopped(doomed, "docker", "kill"))
            known = wait_for(
                "the other host to know", lambda: kernel.death_known_at(k3d.host, k3d.host.server, doomed, killed)
            )
            for mode, requests in asked.items():
                back = wait_for(f"{mode} to be answered", partial(answered_after, requests, known - clock)) + clock
                print(
                    f"{mode}: known {known - killed:.2f} s after the order to kill, answered {back - known:.2f} s later"
                )
                assert back - known < TAKEOVER_LIMIT_SECONDS
            leading = wait_for("the other copy to lead", lambda: k3d.leads_since(k3d.host.server))
            print(f"the other copy led {leading - known:.2f} s after it was known")
            assert leading - known < LEADER_LIMIT_SECONDS
        assert kept.get().pod == pod, "a connection that the host only passes on goes on"
        wait_spread(k3d, addresses, Counter({k3d.host.server: len(addresses)}))
        assert {mode: scenario.guest.address(mode) for mode in addresses} == addresses
        scenario.guest.expose(service("other", [WEB], app="web"))
        other = scenario.guest.wait_address("other", timeout=RECONNECTED_LIMIT_SECONDS)
        print(f"a new Service had its address {time.time() - known:.1f} s after it was known")
        scenario.wait_answer(other, WEB)
        again = stack.enter_context(under_traffic(addresses, partial(scenario.ask, port=WEB)))
        stopped.close()
        k3d.installation.wait_ready(k3d.host, "host")
        wait_spread(k3d, addresses, Counter({doomed: len(addresses)}))
        k3d.wait_until_agreed()
        check(again)
        assert kept.get().pod == pod
    scenario.wait_pods(other, WEB, 2)


@contextlib.contextmanager
def under_traffic(addresses: Mapping[str, str], ask: Callable[[str], Answer]) -> Iterator[dict[str, Load]]:
    """Meanwhile each of the addresses is asked over and over."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(load(partial(ask, address), pause=PAUSE_SECONDS))
            for name, address in addresses.items()
        }


def check(asked: Mapping[str, Load]) -> None:
    """No request has failed so far, though addresses have moved."""
    for name, requests in asked.items():
        print(f"{name}: {requests.count} requests, {len(requests.failures)} failed")
    failed = {name: requests.failures for name, requests in asked.items() if requests.failures}
    assert not failed, failed


def answered_after(requests: Load, moment: float) -> float:
    """When the first request was answered after a moment (both of time.monotonic()); 0 while none was."""
    return next((success.ended for success in requests.successes if success.ended > moment), 0.0)


def wait_spread(k3d: K3dWorld, addresses: Mapping[str, str], counts: Counter[str]) -> None:
    """Wait until each host has so many of these addresses."""

    def spread() -> bool:
        found = Counter(kernel.holder(k3d.host, address) for address in addresses.values())
        assert found == counts, f"they are at {dict(found)}"
        return True

    wait_for(f"addresses to be at {dict(counts)}", spread, timeout=SHARE_LIMIT_SECONDS, period=0.2)
