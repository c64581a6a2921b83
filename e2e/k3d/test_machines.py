"""Machines that stop, start, come, go and die under an installation."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cloudprovider.core.standing import WEIGHT_ANNOTATION
from e2e.k3d import kernel
from e2e.k3d.commands import run
from e2e.k3d.installation import SYSTEM
from e2e.k3d_lane import K3dWorld
from e2e.scenario import WEB, Scenario
from tests.lab.process import LabError, wait_for
from tests.lab.workload import SERVER_IMAGE, service

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

MOVE_LIMIT_SECONDS = 180
"""Kubernetes waits for 50 s until it holds a silent node for lost, and then for what the pods' tolerations say."""


@contextmanager
def stopped(k3d: K3dWorld, node: str, *command: str) -> Iterator[None]:
    """A node's machine is off on entry, and back and ready on exit."""
    run(*command, node)
    try:
        yield
    finally:
        run("k3d", "node", "start", node)
        cluster = k3d.guest if k3d.guest.name in node else k3d.host
        cluster.wait_nodes(len(cluster.nodes()))


def test_a_guests_node_stopped_and_started(k3d: K3dWorld, scenario: Scenario) -> None:
    """Its object stays: the host notices by itself that nobody is there, and that it is back."""
    both = k3d.traffic_nodes()
    node = next(name for name in sorted(both) if name != k3d.guest.server)
    scenario.guest.deploy("web", 2, node=k3d.guest.server)
    address = scenario.exposed("web", pods=2)
    scenario.wait_backends(address, WEB, both)
    with stopped(k3d, node, "k3d", "node", "stop"):
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


def test_a_host_killed_while_it_serves(k3d: K3dWorld, scenario: Scenario) -> None:
    """Another host takes the addresses over, and when the dead one comes back there are not two of them."""
    doomed = next(name for name in k3d.host.nodes() if name != k3d.host.server)
    with weightless(k3d, k3d.host.server):
        address = scenario.served("web")
        wait_for(f"{doomed} to have {address}", lambda: kernel.holder(k3d.host, address) == doomed)
        with stopped(k3d, doomed, "docker", "kill"):
            scenario.wait_answer(address, WEB, timeout=30)
            wait_for("the record", lambda: kernel.holder(k3d.host, address) == k3d.host.server, timeout=60)
            assert scenario.guest.address("web") == address
            # The host program may have been there: it moves to another node in its own time.
            scenario.guest.expose(service("other", [WEB], app="web"))
            other = scenario.guest.wait_address("other", timeout=MOVE_LIMIT_SECONDS)
            scenario.wait_answer(other, WEB)
        k3d.installation.wait_ready(k3d.host, "host")
    scenario.wait_pods(address, WEB, 2)


def wait_serving(scenario: Scenario, node: str) -> None:
    """Wait until the node's kube-proxy serves the Service "web" at its NodePort: the machine itself is well.

    It gets a pod of its own before: with some node images a node routes for others from its first pod on only.
    """
    scenario.guest.deploy("first", 1, node=node)
    target = scenario.node_address(node), scenario.node_port("web")
    wait_for(f"{node} to serve a NodePort", lambda: scenario.world.client.get(*target), timeout=60)


@contextmanager
def weightless(k3d: K3dWorld, node: str) -> Iterator[None]:
    """Meanwhile the controller gives this host no load balancer; others may still leave it theirs by dying."""
    path = f"/api/v1/nodes/{node}"
    k3d.host.api.patch(path, {"metadata": {"annotations": {WEIGHT_ANNOTATION: "0"}}})
    try:
        yield
    finally:
        k3d.host.api.patch(path, {"metadata": {"annotations": {WEIGHT_ANNOTATION: None}}})


def test_a_hosts_agent_without_its_networks_file_says_so(k3d: K3dWorld) -> None:
    """A node that the operator has not described yet: its agent ends with a sentence, others go on."""
    command = ("cloudprovider", "agent", "--node-name=new", "--networks=/etc/cloudprovider/new.yaml")
    with pytest.raises(LabError, match=r'networks.*"/etc/cloudprovider/new.yaml" is not a file'):
        k3d.host.kubectl("exec", SYSTEM, "daemonset/cloudprovider-agent", "--", *command)
