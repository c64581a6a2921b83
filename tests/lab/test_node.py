"""The lab's nodes: traffic passes the real kube-proxy to real processes, before any load balancer comes into play."""

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network

import pytest

from tests.lab.client import Object
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.network import Lan, Subnets
from tests.lab.node import GuestNodes
from tests.lab.process import wait_for
from tests.lab.traffic import Answer, Client

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel]

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
SERVICES = "/api/v1/namespaces/default/services"


@dataclass
class Guest:
    plane: ControlPlane
    nodes: GuestNodes
    client: Client


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder = tmp_path_factory.mktemp("guest")
    lan = Lan(Subnets(IPv4Network("192.168.77.0/24")), name="lan-t")
    lan.create()
    lan.join(1)
    settings = Settings(name="guest", address="192.168.77.1", controller_manager=True)
    with ControlPlane(folder, folder / "logs", settings) as plane:
        nodes = GuestNodes(plane, lan, folder / "logs")
        nodes.start()
        nodes.add("node-t1", 21)
        nodes.add("node-t2", 22)
        yield Guest(plane, nodes, Client(lan.station("client-t", 100)))
        nodes.stop()
    lan.remove()


def deployment(name: str, replicas: int) -> Object:
    labels = {"app": name}
    ports = [{"containerPort": 8080}, {"containerPort": 5353, "protocol": "UDP"}]
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "server", "image": "server", "ports": ports}]},
            },
        },
    }


def node_port_service(name: str) -> Object:
    ports = [
        {"name": "http", "port": 80, "targetPort": 8080},
        {"name": "dns", "port": 53, "targetPort": 5353, "protocol": "UDP"},
    ]
    return {"metadata": {"name": name}, "spec": {"type": "NodePort", "selector": {"app": name}, "ports": ports}}


def scale(guest: Guest, name: str, replicas: int) -> None:
    guest.plane.api.patch(f"{DEPLOYMENTS}/{name}", {"spec": {"replicas": replicas}})


def test_node_ports_follow_a_deployment(guest: Guest) -> None:
    guest.plane.api.create(DEPLOYMENTS, deployment("web", 3))
    service = guest.plane.api.create(SERVICES, node_port_service("web"))
    http, dns = (port["nodePort"] for port in service["spec"]["ports"])
    first, second = (guest.nodes.nodes[name].address for name in ("node-t1", "node-t2"))

    def all_three() -> bool:
        return len({ask_tcp(guest, first, http).pod for _ in range(12)}) == 3

    wait_for("three pods behind one node's port", all_three)
    assert ask_tcp(guest, first, http).port == 8080
    assert guest.client.ask(second, dns).port == 5353

    scale(guest, "web", 0)
    wait_for("refusal", lambda: refused(guest, first, http))
    with pytest.raises(ConnectionRefusedError):
        guest.client.ask(second, dns)

    scale(guest, "web", 1)
    wait_for("an answer", lambda: ask_tcp(guest, second, http))


def test_a_pod_reaches_its_neighbour_through_a_service(guest: Guest) -> None:
    guest.plane.api.create(DEPLOYMENTS, deployment("near", 4))
    service = guest.plane.api.create(SERVICES, node_port_service("near"))
    wait_for("four ready", lambda: guest.plane.api.get(f"{DEPLOYMENTS}/near")["status"].get("readyReplicas") == 4)
    pod = next(p for p in guest.plane.api.items("/api/v1/pods") if p["metadata"]["labels"]["app"] == "near")
    inside = Client(guest.nodes.runner.namespace_of(pod["metadata"]["uid"]))

    def all_four() -> bool:
        return len({inside.get(service["spec"]["clusterIP"], 80).pod for _ in range(24)}) == 4

    wait_for("all four, itself among them", all_four)


def test_a_dead_server_is_started_again(guest: Guest) -> None:
    guest.plane.api.create(DEPLOYMENTS, deployment("fragile", 1))
    wait_for("one ready", lambda: guest.plane.api.get(f"{DEPLOYMENTS}/fragile")["status"].get("readyReplicas") == 1)
    pod = next(p for p in guest.plane.api.items("/api/v1/pods") if p["metadata"]["labels"]["app"] == "fragile")
    guest.nodes.runner.kill_server(pod["metadata"]["uid"])

    def restarted() -> bool:
        status = guest.plane.api.get(f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}")["status"]
        container = status["containerStatuses"][0]
        return bool(container["ready"] and container["restartCount"] == 1)

    wait_for("a restart", restarted)


def test_a_removed_nodes_pods_move(guest: Guest) -> None:
    guest.nodes.add("node-t3", 23)
    guest.plane.api.create(DEPLOYMENTS, deployment("moving", 4))

    def ready() -> bool:
        return bool(guest.plane.api.get(f"{DEPLOYMENTS}/moving")["status"].get("readyReplicas") == 4)

    wait_for("four ready", ready)
    guest.nodes.remove("node-t3")

    def settled() -> bool:
        pods = [p for p in guest.plane.api.items("/api/v1/pods") if p["metadata"]["labels"]["app"] == "moving"]
        return len(pods) == 4 and {p["spec"].get("nodeName") for p in pods} <= {"node-t1", "node-t2"} and ready()

    wait_for("four on the other nodes", settled)


def ask_tcp(guest: Guest, address: str, port: int) -> Answer:
    return guest.client.get(address, port)


def refused(guest: Guest, address: str, port: int) -> bool:
    try:
        guest.client.get(address, port)
    except ConnectionRefusedError:
        return True
    return False
