"""From the version before to this one, in place and under traffic; it begins from nothing."""

import contextlib
import json
from functools import partial
from pathlib import Path
from typing import get_args

import pytest

from e2e.k3d import previous, remains
from e2e.k3d.installation import SYSTEM, Installation
from e2e.k3d.machines import Cluster
from e2e.k3d_lane import K3dWorld
from e2e.load import load
from e2e.scenario import WEB, Mode, Scenario
from tests.lab.workload import PREFIX, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CONNECTIONS = 4


def images(cluster: Cluster) -> set[str]:
    """Those that our pods run."""
    pods = json.loads(cluster.kubectl("get", "pods", SYSTEM, "--output=json"))["items"]
    there = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    return {container["image"] for pod in there for container in pod["spec"]["containers"]}


def test_an_upgrade_cuts_nobody_off(k3d: K3dWorld, tmp_path: Path) -> None:
    """Kinds, host, agents and guest: addresses stay, connections stay, no request is lost, and what is new is there."""
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
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(k3d.client.connect(address, WEB.port))
            for address in addresses.values()
            for _ in range(CONNECTIONS)
        ]
        pods = [connection.get().pod for connection in connections]
        asked = {
            mode: stack.enter_context(load(partial(scenario.ask, address, WEB), pause=0.02))
            for mode, address in addresses.items()
        }
        new.upgrade(old, k3d.guest)
        assert images(k3d.host) == images(k3d.guest) == {new.image}
        k3d.wait_until_agreed()
        assert [connection.get().pod for connection in connections] == pods
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
