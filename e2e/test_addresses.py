"""Scenarios of a Service's addresses: moved, shared, leased, limited, and somebody else's."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from e2e.load import load
from e2e.scenario import DNS, WEB, Scenario
from tests.lab.lab import RESERVED_POOL, TENANT, TENANT_NAMESPACE, Pool
from tests.lab.process import wait_for
from tests.lab.programs import POOLS_PATH
from tests.lab.workload import POOL_ANNOTATION, PREFIX, Port, service

pytestmark = [pytest.mark.e2e, pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

SMALL = Pool("small", "10.77.96.1", "10.77.96.2", guest_cluster=TENANT, namespace=TENANT_NAMESPACE)
"""Behind "lan" by name, so it comes into play only where it is named."""


@contextmanager
def small_pool(scenario: Scenario) -> Iterator[Pool]:
    """A pool of two addresses for who names it."""
    api, pool = scenario.world.api("host"), SMALL.on(scenario.world.network)
    api.create(POOLS_PATH, pool.manifest())
    try:
        yield pool
    finally:
        scenario.guest.empty()
        api.delete(f"{POOLS_PATH}/{pool.name}")


def test_a_move_lets_nobody_find_a_closed_door(scenario: Scenario) -> None:
    old = scenario.served("web")
    host = scenario.world.api("host")
    shown = {old}
    still_old = 0.0
    with load(lambda: scenario.ask(old, WEB)) as requests:
        scenario.guest.annotate("web", ip_pool=RESERVED_POOL.name)

        def moved() -> str:
            nonlocal still_old
            asked = time.monotonic()
            balancers = host.items("/apis/loadbalancer.harvesterhci.io/v1beta1/loadbalancers")
            if any(b["status"].get("address") == old for b in balancers):
                still_old = asked
            now = scenario.guest.address("web")
            shown.add(now)
            return now if now != old else ""

        new = wait_for("the move", moved)
    assert not [failure for failure in requests.failures if failure.began < still_old]
    assert shown == {old, new}  # never without one
    assert scenario.world.pool_holds("reserved", new)
    scenario.ask(new, WEB)  # at once: it was up before it was shown
    scenario.wait_silent(old, WEB)
    fixed = str(IPv4Address(RESERVED_POOL.on(scenario.world.network).first) + 77)
    scenario.guest.annotate("web", load_balancer_ips=fixed)
    wait_for("the address asked for", lambda: scenario.guest.address("web") == fixed)
    scenario.wait_answer(fixed, WEB)


def test_two_services_share_an_address_until_the_last_is_gone(scenario: Scenario) -> None:
    address = scenario.served("web")
    guest = scenario.guest
    shared = {f"{PREFIX}primary-service": "web"}
    guest.expose(service("dns", [DNS, Port(80, 5353, "UDP")], app="web", annotations=shared))
    guest.expose(service("thief", [WEB], app="web", annotations=shared))
    assert guest.wait_address("dns") == address
    scenario.wait_answer(address, DNS)
    scenario.wait_answer(address, Port(80, 5353, "UDP"))
    assert f"has TCP 80 of {address} already" in scenario.wait_said("thief", "PortConflict")
    guest.delete("web")
    guest.wait_deleted("web")
    scenario.wait_answer(address, DNS)
    assert guest.wait_address("thief") == address  # the port is free now
    scenario.wait_answer(address, WEB)
    guest.delete("dns")
    guest.wait_deleted("dns")
    scenario.wait_answer(address, WEB)


@pytest.mark.lab("a DHCP server")
def test_an_address_by_dhcp(scenario: Scenario) -> None:
    guest = scenario.guest
    with scenario.world.dhcp() as server:
        guest.deploy("web", 2)
        guest.expose(service("web", [WEB], annotations={f"{PREFIX}ipam": "dhcp"}))
        address = guest.wait_address("web")
        assert server.leases() == {IPv4Address(address)}
        scenario.wait_answer(address, WEB)
        scenario.world.kill("agent")
        scenario.world.start("agent")
        scenario.wait_answer(address, WEB)
        assert guest.address("web") == address
        scenario.guest.annotate("web", ipam="pool")
        wait_for("the move", lambda: guest.address("web") != address)
        scenario.wait_answer(guest.address("web"), WEB)
        wait_for("the lease to be given back", lambda: not server.leases())
        scenario.guest.annotate("web", ipam="dhcp")
        wait_for("the move back", lambda: IPv4Address(guest.address("web")) in server.leases())
        guest.delete("web")
        guest.wait_deleted("web")
        wait_for("the lease to be given back", lambda: not server.leases())


@pytest.mark.lab("a DHCP server")
def test_a_lease_that_ends_is_taken_away_told_and_replaced(scenario: Scenario) -> None:
    guest, host = scenario.guest, scenario.world.api("host")
    with scenario.world.dhcp(lease_seconds=20) as server:
        guest.deploy("web", 1)
        guest.expose(service("web", [WEB], annotations={f"{PREFIX}ipam": "dhcp"}))
        address = guest.wait_address("web")
        scenario.wait_answer(address, WEB)
        with server.down():
            wait_for("the Service to show nothing", lambda: not guest.address("web"))
            scenario.wait_silent(address, WEB)
            assert "has expired" in scenario.wait_said("web", "DHCPLeaseExpired")

            def told() -> bool:
                events = host.items(f"/api/v1/namespaces/{TENANT_NAMESPACE}/events")
                return any(e["reason"] == "LeaseLost" and address in e["message"] for e in events)

            wait_for("an event", told)
        scenario.wait_answer(guest.wait_address("web", timeout=60), WEB)


def test_an_address_that_somebody_took_while_no_host_had_it(scenario: Scenario) -> None:
    """After a takeover it is asked for again before it is used: another one is taken, and it is said who has it."""
    with small_pool(scenario) as pool:
        scenario.guest.deploy("web", 1)
        scenario.guest.expose(service("web", [WEB], annotations={POOL_ANNOTATION: pool.name}))
        address = scenario.guest.wait_address("web")
        scenario.world.leave()
        with scenario.world.intruder(address) as mac:
            scenario.world.start("agent")
            other = pool.last if address == pool.first else pool.first
            wait_for("the other address", lambda: scenario.guest.address("web") == other)
            scenario.wait_answer(other, WEB)
            events = scenario.world.api("host").items(f"/api/v1/namespaces/{TENANT_NAMESPACE}/events")
            told = [e["message"] for e in events if e["reason"] == "AddressConflict"]
            assert any(address in message and mac in message for message in told)


def test_an_address_of_somebody_else(scenario: Scenario) -> None:
    with small_pool(scenario) as pool, scenario.world.intruder(pool.first) as mac:
        scenario.guest.deploy("web", 1)
        scenario.guest.expose(service("web", [WEB], annotations={POOL_ANNOTATION: pool.name}))
        assert scenario.guest.wait_address("web") == pool.last
        scenario.wait_answer(pool.last, WEB)
        host = scenario.world.api("host")
        events = host.items(f"/api/v1/namespaces/{TENANT_NAMESPACE}/events")
        told = [e["message"] for e in events if e["reason"] == "AddressConflict"]
        assert any(pool.first in message and mac in message for message in told)


def test_a_quota_of_addresses(scenario: Scenario) -> None:
    guest, host = scenario.guest, scenario.world.api("host")
    tenants = "/apis/cloudprovider.harvesterhci.io/v1beta1/namespaces"
    path = f"{tenants}/{TENANT_NAMESPACE}/guestclusters/{TENANT}"
    host.patch(path, {"spec": {"quota": {"addresses": 1}}})
    try:
        guest.expose(service("one", [WEB]))
        guest.wait_address("one")
        guest.expose(service("two", [WEB]))
        assert "its limit is 1" in scenario.wait_said("two", "QuotaExceeded")
        guest.delete("one")
        guest.wait_address("two", timeout=10)
    finally:
        host.patch(path, {"spec": {"quota": {"addresses": 10000}}})
