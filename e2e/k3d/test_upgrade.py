"""From the version before to this one, in place and under traffic; it begins from nothing."""

import contextlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from cloudprovider.core.standing import MAX_WEIGHT
from e2e.k3d import kernel, previous, remains
from e2e.k3d.installation import SYSTEM, Installation
from e2e.k3d.machines import Cluster
from e2e.k3d_lane import K3dWorld
from e2e.load import load
from e2e.scenario import WEB, Mode, Scenario
from tests.lab.process import wait_for
from tests.lab.workload import PREFIX, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CONNECTIONS = 4


def images(cluster: Cluster) -> set[str]:
    """Those that our pods run."""
    pods = json.loads(cluster.kubectl("get", "pods", SYSTEM, "--output=json"))["items"]
    there = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return {container["image"] for pod in there for container in pod["spec"]["containers"]}


def has_one_each(k3d: K3dWorld, addresses: Iterable[str]) -> bool:
    """Whether every host has one of these."""
    return sorted(kernel.holder(k3d.host, address) for address in addresses) == k3d.host.nodes()


def test_an_upgrade_cuts_nobody_off(k3d: K3dWorld, tmp_path: Path) -> None:
    """Kinds, host, agents and guest: addresses stay, connections stay, no request is lost, and what is new is there.

    Before, one host had all addresses. It has them as long as its weight says so; when they are spread, connections go
    on by the host before.
    """
    remains.clear(k3d.installation, k3d.guest)
    new = Installation(tmp_path / "new", k3d.installation.image, k3d.host, k3d.network)
    tree = previous.unpack(tmp_path / "tree")
    image = previous.build(k3d.machines, tree)
    k3d.machines.import_images([k3d.host, k3d.guest], image)
    old = Installation(tmp_path / "old", image, k3d.host, k3d.network, tree=tree)
    k3d.installation = old
    old.install_host()
    old.install_guest(k3d.guest)
    scenario = Scenario(k3d, "upgrade")
    scenario.guest.create()
    scenario.guest.deploy("web", 2)
    addresses = {mode: scenario.exposed(mode, mode=mode, app="web", pods=2) for mode in get_args(Mode)}
    k3d.installation = new
    (first,) = {kernel.holder(k3d.host, address) for address in addresses.values()}
    with contextlib.ExitStack() as stack:
        spreading = stack.enter_context(contextlib.ExitStack())
        spreading.enter_context(k3d.weighing(first, MAX_WEIGHT))
        connections = {
            mode: [stack.enter_context(k3d.client.connect(address, WEB.port)) for _ in range(CONNECTIONS)]
            for mode, address in addresses.items()
        }
        pods = {mode: [connection.get().pod for connection in flows] for mode, flows in connections.items()}
        asked = {
            mode: stack.enter_context(load(partial(scenario.ask, address, WEB), pause=0.02))
            for mode, address in addresses.items()
        }
        new.upgrade(old, k3d.guest)
        assert images(k3d.host) == images(k3d.guest) == {new.image}
        k3d.wait_until_agreed()
        assert {mode: [connection.get().pod for connection in flows] for mode, flows in connections.items()} == pods
        assert {kernel.holder(k3d.host, address) for address in addresses.values()} == {first}
        spreading.close()
        wait_for("both hosts to have one", lambda: has_one_each(k3d, addresses.values()), timeout=60)
        k3d.wait_until_agreed()
        assert {mode: [connection.get().pod for connection in flows] for mode, flows in connections.items()} == pods
    assert {mode: scenario.guest.address(mode) for mode in addresses} == addresses
    for mode, requests in asked.items():
        print(f"{mode}: {requests.count} requests, {len(requests.failures)} failed")
        assert not requests.failures, mode
    # What the version before had no field for, in the kind or on the bridge.
    checked = {f"{PREFIX}healthcheck-port": str(WEB.port), f"{PREFIX}healthcheck-protocol": "TCP"}
    scenario.guest.expose(service("new", [WEB], app="web", annotations=checked))
    scenario.wait_answer(scenario.guest.wait_address("new"), WEB)
    scenario.guest.remove()
    k3d.wait_until_agreed()
    k3d.check_rights()
    remains.clear(new, k3d.guest)
    remains.assert_none(new, k3d.guest)
