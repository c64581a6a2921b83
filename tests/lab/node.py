"""Nodes of the lab: hosts with a bridge on the LAN, and guest nodes with the real kube-proxy and pods."""

import contextlib
import http.client
import json
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Literal

from tests.lab import netns
from tests.lab.build import find
from tests.lab.client import STRATEGIC_MERGE_PATCH, Api
from tests.lab.controlplane import ControlPlane
from tests.lab.network import Lan, Namespace, Switch
from tests.lab.pod import PodHost
from tests.lab.pods import PodRunner
from tests.lab.process import Process

ProxyMode = Literal["nftables", "iptables"]
HEALTH_PORT = 10256
POD_BRIDGE = "cni0"
START_LIMIT_SECONDS = 30.0


@dataclass
class HostNode:
    """A Harvester host: the bridge ``mgmt-br`` of the management network, with the host's own address on it."""

    name: str
    namespace: Namespace
    switch: Switch
    address: str

    @classmethod
    def create(cls, lan: Lan, name: str, number: int) -> "HostNode":
        """A host whose ``mgmt-br`` is plugged into the LAN, with the ``number``-th address."""
        namespace = Namespace(name)
        namespace.create()
        switch = Switch(namespace, "mgmt-br")
        switch.create()
        lan.switch.plug(namespace, "uplink")
        interfaces = lan.subnets.interfaces(number)
        mac = json.loads(namespace.run("ip", "-j", "link", "show", "uplink"))[0]["address"]
        namespace.ip(
            # Set, because a bridge otherwise takes the lowest of its ports' and changes it as they come and go.
            f"link set mgmt-br address {mac}",
            "link set uplink master mgmt-br",
            *(f"address add {interface} dev mgmt-br" for interface in interfaces),
        )
        return cls(name, namespace, switch, str(interfaces[0].ip))

    def remove(self) -> None:
        self.namespace.remove()


@dataclass
class GuestNode:
    """A node of the guest cluster: kube-proxy as on a real one, pods behind its bridge."""

    name: str
    number: int
    namespace: Namespace
    address: str
    pods: PodHost
    kube_proxy: Process


class GuestNodes:
    """All nodes of one guest cluster; knows the pod network between them."""

    def __init__(self, plane: ControlPlane, lan: Lan, logs: Path, *, proxy_mode: ProxyMode = "nftables") -> None:
        self.nodes: dict[str, GuestNode] = {}
        self.runner = PodRunner(plane.api, logs / "pods")
        self._plane = plane
        self._lan = lan
        self._logs = logs
        self._proxy_mode = proxy_mode
        self._kubeconfig = plane.kubeconfig_for("system:kube-proxy")

    def start(self) -> None:
        self.runner.start()

    def stop(self) -> None:
        self.runner.stop()
        for node in self.nodes.values():
            node.kube_proxy.terminate()
            node.namespace.remove()

    def add(self, name: str, number: int, switch: Switch | None = None) -> GuestNode:
        """A new node with the LAN's ``number``-th address, plugged into the LAN or into a host's bridge; it is
        Ready, and its kube-proxy serves. Its pods get 10.244.NUMBER.0/24."""
        node = self._make(name, number, switch or self._lan.switch)
        self.nodes[name] = node
        self._register(node)
        self.runner.add_host(node.pods)
        node.kube_proxy.start()
        node.kube_proxy.wait_until("in step", lambda: self._healthy(node), timeout=START_LIMIT_SECONDS)
        return node

    def remove(self, name: str) -> None:
        """Switch a node off and delete its object, as when its virtual machine is deleted."""
        node = self.nodes.pop(name)
        self.runner.remove_host(name)
        node.kube_proxy.kill()
        node.namespace.remove()
        self._plane.api.delete(f"/api/v1/nodes/{name}")
        for other in self.nodes.values():
            other.namespace.ip(f"route del {node.pods.pod_cidr}")

    def _make(self, name: str, number: int, switch: Switch) -> GuestNode:
        namespace = Namespace(name)
        namespace.create()
        switch.plug(namespace, "eth0", self._lan.subnets.interfaces(number))
        pod_cidr = IPv4Network(f"10.244.{number}.0/24")
        bridge = Switch(namespace, POD_BRIDGE)
        bridge.create()
        namespace.ip(f"address add {pod_cidr[1]}/24 dev {POD_BRIDGE}")
        namespace.sysctl(
            ipv4__ip_forward=1,
            # kube-proxy refuses by ICMP errors, of which the kernel would send one a second to a client (icmp(7)):
            # who asks again at once must be refused again, not meet silence.
            ipv4__icmp_ratelimit=0,
            # Pods reach their neighbours through the node; it must not tell them of a shorter way.
            ipv4__conf__all__send_redirects=0,
            **{f"ipv4__conf__{POD_BRIDGE}__send_redirects": 0, "ipv4__conf__eth0__send_redirects": 0},
        )
        address = self._lan.subnets.addresses(number)[0]
        for other in self.nodes.values():
            other.namespace.ip(f"route add {pod_cidr} via {address}")
            namespace.ip(f"route add {other.pods.pod_cidr} via {other.address}")
        return GuestNode(
            name=name,
            number=number,
            namespace=namespace,
            address=address,
            pods=PodHost(name, address, namespace, bridge, pod_cidr),
            kube_proxy=self._kube_proxy(name, namespace),
        )

    def _kube_proxy(self, name: str, namespace: Namespace) -> Process:
        return Process(
            f"{name}/kube-proxy",
            [
                find("kube-proxy"),
                f"--kubeconfig={self._kubeconfig}",
                f"--hostname-override={name}",
                f"--proxy-mode={self._proxy_mode}",
                f"--cluster-cidr={self._plane.settings.cluster_cidr}",
                "--conntrack-max-per-core=0",
                f"--healthz-bind-address=0.0.0.0:{HEALTH_PORT}",
            ],
            log=self._logs / f"{name}-kube-proxy.log",
            namespace=namespace.name,
        )

    def _register(self, node: GuestNode) -> None:
        cidr = str(node.pods.pod_cidr)
        api: Api = self._plane.api
        api.create(
            "/api/v1/nodes",
            {
                "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
                "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
            },
        )
        interfaces = self._lan.subnets.interfaces(node.number)
        addresses = [{"type": "InternalIP", "address": str(interface.ip)} for interface in interfaces]
        capacity = {"cpu": "8", "memory": "16Gi", "pods": "110"}
        status = {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "capacity": capacity,
            "allocatable": capacity,
        }
        api.patch(f"/api/v1/nodes/{node.name}/status", {"status": status}, content_type=STRATEGIC_MERGE_PATCH)

    def _healthy(self, node: GuestNode) -> bool:
        def ask() -> bool:
            connection = http.client.HTTPConnection(node.address, HEALTH_PORT, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", "/healthz")
                return connection.getresponse().status == http.client.OK

        return netns.call(node.name, ask)
