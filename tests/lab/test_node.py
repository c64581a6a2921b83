"""The lab's nodes: traffic passes the real kube-proxy to real processes, before any load balancer comes into play."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network, IPv6Network

import pytest

from tests.lab.client import Object
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.lab import GUEST_PODS, GUEST_SERVICES
from tests.lab.network import Lan, Subnets
from tests.lab.node import HEALTH_PORT, RANCHER, GuestNodes
from tests.lab.process import wait_for
from tests.lab.traffic import Client
from tests.lab.workload import Port, Workspace, service

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel]

HTTP, DNS = Port(80, 8080), Port(53, 5353, "UDP")


@dataclass
class Guest:
    plane: ControlPlane
    nodes: GuestNodes
    client: Client
    work: Workspace

    def pods(self, app: str) -> list[Object]:
        return [pod for pod in self.plane.api.items("/api/v1/pods") if pod["metadata"]["labels"]["app"] == app]

    def refused(self, address: str, port: int) -> bool:
        try:
            self.client.connect(address, port).close()
        except ConnectionRefusedError:
            return True
        return False


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("guest")
    lan = Lan(Subnets(IPv4Network("192.168.77.0/24"), IPv6Network("fd00:7::/64")), name="lan-t")
    lan.create()
    lan.join(1)
    settings = Settings(
        name="guest",
        address="192.168.77.1",
        controller_manager=True,
        service_cidr=GUEST_SERVICES,
        cluster_cidr=GUEST_PODS,
    )
    with ControlPlane(folder, folder / "logs", settings) as plane:
        nodes = GuestNodes(plane, lan, folder / "logs")
        nodes.start()
        nodes.add("node-t1", 21)
        nodes.add("node-t2", 22, proxy=RANCHER)
        client = Client(lan.station("client-t", 100))
        yield Guest(plane, nodes, client, Workspace(plane.api, "default"))
        nodes.stop()
    lan.remove()


def test_node_ports_follow_a_deployment(guest: Guest) -> None:
    guest.work.deploy("web", 3)
    guest.work.expose(service("web", [HTTP, DNS], kind="NodePort"))
    http, dns = (port["nodePort"] for port in guest.work.get("web")["spec"]["ports"])
    first, second = (guest.nodes.nodes[name].address for name in ("node-t1", "node-t2"))

    def all_three() -> bool:
        return len({guest.client.get(first, http).pod for _ in range(12)}) == 3

    wait_for("three pods behind one node's port", all_three)
    assert guest.client.get(first, http).port == HTTP.target
    assert wait_for("the other node", partial(guest.client.ask, second, dns)).port == DNS.target

    guest.work.scale("web", 0)
    wait_for("refusal", lambda: guest.refused(first, http))

    def the_other_too() -> bool:  # each kube-proxy follows in its own time
        try:
            guest.client.ask(second, dns)
        except ConnectionRefusedError:
            return True
        return False

    wait_for("refusal by the other node", the_other_too)

    guest.work.scale("web", 1)
    wait_for("an answer", lambda: guest.client.get(second, http))


def test_node_ports_of_both_families_behind_kube_proxies_of_both_modes(guest: Guest) -> None:
    guest.work.deploy("dual", 2)
    guest.work.expose(service("dual", [HTTP, DNS], kind="NodePort", ipFamilyPolicy="RequireDualStack"))
    http, dns = (port["nodePort"] for port in guest.work.get("dual")["spec"]["ports"])
    for node in guest.nodes.nodes.values():
        for address in node.pods.addresses:

            def both(address: str = address) -> bool:
                return len({guest.client.get(address, http).pod for _ in range(12)}) == 2

            wait_for(f"two pods behind {address}", both)
            wait_for("an answer by UDP", partial(guest.client.ask, address, dns))


def test_only_an_open_nodes_health_is_told_to_others(guest: Guest) -> None:
    assert not guest.refused(guest.nodes.nodes["node-t1"].address, HEALTH_PORT)
    assert guest.refused(guest.nodes.nodes["node-t2"].address, HEALTH_PORT)


def test_a_pod_reaches_its_neighbours_and_itself_through_a_service(guest: Guest) -> None:
    guest.work.deploy("near", 4)
    guest.work.expose(service("near", [HTTP], kind="ClusterIP"))
    address = guest.work.get("near")["spec"]["clusterIP"]
    inside = Client(guest.nodes.runner.namespace_of(guest.pods("near")[0]["metadata"]["uid"]))

    def all_four() -> bool:
        return len({inside.get(address, HTTP.port).pod for _ in range(24)}) == 4

    wait_for("all four, itself among them", all_four)


def test_a_dead_server_is_started_again(guest: Guest) -> None:
    guest.work.deploy("fragile", 1)
    guest.nodes.runner.kill_server(guest.pods("fragile")[0]["metadata"]["uid"])

    def restarted() -> bool:
        (pod,) = guest.pods("fragile")
        container = pod["status"]["containerStatuses"][0]
        return bool(container["ready"] and container["restartCount"] == 1)

    wait_for("a restart", restarted)


def test_a_removed_nodes_pods_move(guest: Guest) -> None:
    guest.nodes.add("node-t3", 23)
    guest.work.deploy("moving", 4)
    assert "node-t3" in {pod["spec"]["nodeName"] for pod in guest.pods("moving")}
    guest.nodes.remove("node-t3")

    def settled() -> bool:
        pods = guest.pods("moving")
        return len(pods) == 4 and {pod["spec"].get("nodeName") for pod in pods} == {"node-t1", "node-t2"}

    wait_for("four on the other nodes", settled)
    guest.work.wait_replicas("moving", 4)
