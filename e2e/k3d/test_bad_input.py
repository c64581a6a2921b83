"""What an operator does wrong where only a real network shows it."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from e2e.k3d.commands import run
from e2e.k3d_lane import K3dWorld
from e2e.scenario import WEB, Scenario
from tests.lab.lab import POOL, TENANT_NAMESPACE
from tests.lab.process import wait_for
from tests.lab.programs import POOLS_PATH
from tests.lab.workload import POOL_ANNOTATION, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]


def docker_addresses(k3d: K3dWorld) -> set[IPv4Address]:
    """Those that Docker has given to containers of the network, and its own."""
    form = "{{range .Containers}}{{.IPv4Address}} {{end}}"
    told = run("docker", "network", "inspect", "--format", form, k3d.machines.network).split()
    return {k3d.network[1], *(IPv4Address(one.partition("/")[0]) for one in told)}


def test_a_pool_over_dockers_own_addresses_takes_nobodys(k3d: K3dWorld, scenario: Scenario) -> None:
    """Whoever has an address already is found by ARP: it is told who that is, and another one is taken."""
    taken = docker_addresses(k3d)
    pool = replace(POOL.on(k3d.network), name="over", first=str(k3d.network[1]), last=str(max(taken) + 1))
    host = k3d.host.api
    host.create(POOLS_PATH, replace(pool, first6="", last6="").manifest())
    try:
        scenario.guest.deploy("web", 1)
        scenario.guest.expose(service("web", [WEB], annotations={POOL_ANNOTATION: pool.name}))
        address = scenario.guest.wait_address("web", timeout=60)
        assert IPv4Address(address) not in taken
        scenario.wait_answer(address, WEB)

        def told() -> bool:
            events = host.items(f"/api/v1/namespaces/{TENANT_NAMESPACE}/events")
            said = [e["message"] for e in events if e["reason"] == "AddressConflict"]
            client = f"{k3d.machines.prefix}-client"
            return any(k3d.machines.address(client) in m and k3d.machines.mac(client) in m for m in said)

        wait_for("an event that names whose it is", told)
    finally:
        scenario.guest.empty()
        host.delete(f"{POOLS_PATH}/{pool.name}")
