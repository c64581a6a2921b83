"""Machines that stop, start, come and go under an installation."""

import pytest

from e2e.k3d.installation import SYSTEM
from e2e.k3d_lane import K3dWorld
from e2e.scenario import WEB, Scenario
from tests.lab.process import LabError, wait_for
from tests.lab.workload import SERVER_IMAGE

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]


def test_a_guests_node_stopped_and_started(k3d: K3dWorld, scenario: Scenario) -> None:
    """Its object stays: the host notices by itself that nobody is there, and that it is back."""
    both = k3d.traffic_nodes()
    node = next(name for name in sorted(both) if name != k3d.guest.server)
    scenario.guest.deploy("web", 2, node=k3d.guest.server)
    address = scenario.exposed("web", pods=2)
    scenario.wait_backends(address, WEB, both)
    with k3d.stopped(node, "k3d", "node", "stop"):
        scenario.wait_backends(address, WEB, both - {node}, timeout=60)
        scenario.wait_pods(address, WEB, 2)
        assert scenario.guest.address("web") == address
    wait_serving(scenario, node)
    scenario.wait_backends(address, WEB, both, timeout=90)
    scenario.wait_pods(address, WEB, 2, timeout=60)


def test_a_guests_node_added_and_removed(k3d: K3dWorld, scenario: Scenario) -> None:
    before = k3d.traffic_nodes()
    scenario.guest.deploy("web", 2)
    address = scenario.exposed("web", pods=2)
    scenario.wait_backends(address, WEB, before)
    node = k3d.machines.add_node(k3d.guest, "more")
    try:
        k3d.machines.import_images([k3d.guest], SERVER_IMAGE)
        k3d.guest.wait_nodes(len(before) + 1)
        wait_serving(scenario, node)
        scenario.wait_backends(address, WEB, before | {node}, timeout=90)
        scenario.wait_pods(address, WEB, 2, timeout=60)
    finally:
        k3d.machines.remove_node(k3d.guest, node)
    scenario.wait_backends(address, WEB, before, timeout=60)
    scenario.wait_pods(address, WEB, 2, timeout=60)


def wait_serving(scenario: Scenario, node: str) -> None:
    """Wait until the node's kube-proxy serves the Service "web" at its NodePort: the machine itself is well.

    It gets a pod of its own before: with some node images a node routes for others from its first pod on only.
    """
    scenario.guest.deploy("first", 1, node=node)
    target = scenario.node_address(node), scenario.node_port("web")
    wait_for(f"{node} to serve a NodePort", lambda: scenario.world.client.get(*target), timeout=60)


def test_a_hosts_agent_without_its_networks_file_says_so(k3d: K3dWorld) -> None:
    """A node that the operator has not described yet: its agent ends with a sentence, others go on."""
    command = ("cloudprovider", "agent", "--node-name=new", "--networks=/etc/cloudprovider/new.yaml")
    with pytest.raises(LabError, match=r'networks.*"/etc/cloudprovider/new.yaml" is not a file'):
        k3d.host.kubectl("exec", SYSTEM, "daemonset/cloudprovider-agent", "--", *command)
