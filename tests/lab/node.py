"""Nodes of the lab: hosts with a bridge on the LAN, and guest nodes with the real kube-proxy and pods."""

import contextlib
import http.client
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal

from tests.lab import netns
from tests.lab.build import find
from tests.lab.client import STRATEGIC_MERGE_PATCH, Api
from tests.lab.controlplane import ControlPlane
from tests.lab.network import Lan, Namespace, Subnets, Switch
from tests.lab.pod import PodHost
from tests.lab.pods import PodRunner
from tests.lab.process import Process

HEALTH_PORT = 10256
POD_BRIDGE = "cni0"
START_LIMIT_SECONDS = 30.0


@dataclass(frozen=True)
class Proxy:
    """How a node's kube-proxy runs; ``health`` is the address that its health endpoint listens on."""

    mode: Literal["nftables", "iptables"]
    health: str


OPEN = Proxy("nftables", "0.0.0.0")
"""Kubernetes' newest mode; health as Kubernetes has it by itself."""
RANCHER = Proxy("iptables", "127.0.0.1")
"""As k3s and RKE2 start it."""


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
        namespace.ip(
            # Set, because a bridge otherwise takes the lowest of its ports' and changes it as they come and go.
            f"link set mgmt-br address {namespace.mac('uplink')}",
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
    mac: str
    pods: PodHost
    proxy: Proxy
    kube_proxy: Process


class GuestNodes:
    """All nodes of one guest cluster; knows the pod network between them."""

    def __init__(self, plane: ControlPlane, lan: Lan, logs: Path) -> None:
        self.nodes: dict[str, GuestNode] = {}
        self.runner = PodRunner(plane.api, logs / "pods")
        self._plane = plane
        self._lan = lan
        self._logs = logs
        self._kubeconfig = plane.kubeconfig_for("system:kube-proxy")

    def start(self) -> None:
        self.runner.start()

    def stop(self) -> None:
        self.runner.stop()
        for node in self.nodes.values():
            node.kube_proxy.terminate()
            node.namespace.remove()

    def add(
        self,
        name: str,
        number: int,
        switch: Switch | None = None,
        *,
        proxy: Proxy = OPEN,
        subnets: Subnets | None = None,
        gateways: Sequence[str] = (),
    ) -> GuestNode:
        """A new node with the ``number``-th addresses of the LAN or of other ``subnets``, plugged into the LAN or into
        a host's bridge; it is Ready, and its kube-proxy serves. Its pods get 10.244.NUMBER.0/24, and
        fd00:244:0:NUMBER::/64 in a cluster of both families."""
        node = self._make(name, number, switch or self._lan.switch, proxy, subnets or self._lan.subnets)
        node.namespace.ip(*(f"route add default via {gateway}" for gateway in gateways))
        self.nodes[name] = node
        self._register(node)
        self.runner.add_host(node.pods)
        self._start_kube_proxy(node)
        return node

    def _start_kube_proxy(self, node: GuestNode) -> None:
        node.kube_proxy.start()
        node.kube_proxy.wait_until("in step", lambda: self._healthy(node), timeout=START_LIMIT_SECONDS)

    @contextlib.contextmanager
    def without_kube_proxy(self, name: str) -> Iterator[None]:
        """A node's kube-proxy and all of its rules are gone on entry, and back and in step on exit."""
        node = self.nodes[name]
        node.kube_proxy.kill()
        node.namespace.run("nft", "flush", "ruleset")
        try:
            yield
        finally:
            self._start_kube_proxy(node)

    def remove(self, name: str) -> None:
        """Switch a node off and delete its object, as when its virtual machine is deleted."""
        node = self.nodes.pop(name)
        self.runner.remove_host(name)
        node.kube_proxy.kill()
        node.namespace.remove()
        self._plane.api.delete(f"/api/v1/nodes/{name}")
        for other in self.nodes.values():
            other.namespace.ip(*(f"route del {cidr}" for cidr in node.pods.cidrs))

    def _make(self, name: str, number: int, switch: Switch, proxy: Proxy, subnets: Subnets) -> GuestNode:
        namespace = Namespace(name)
        namespace.create()
        switch.plug(namespace, "eth0", subnets.interfaces(number))
        cidrs = tuple(_pod_cidr(whole, number) for whole in self._plane.settings.cluster_cidr.split(","))
        bridge = Switch(namespace, POD_BRIDGE)
        bridge.create()
        namespace.ip(*(f"address add {cidr[1]}/{cidr.prefixlen} dev {POD_BRIDGE}" for cidr in cidrs))
        namespace.sysctl(
            ipv4__ip_forward=1,
            # kube-proxy refuses by ICMP errors, of which the kernel would send one a second to a client (icmp(7)):
            # who asks again at once must be refused again, not meet silence.
            ipv4__icmp_ratelimit=0,
            ipv6__conf__all__forwarding=1,
            ipv6__icmp__ratelimit=0,
            # Pods reach their neighbours through the node; it must not tell them of a shorter way.
            ipv4__conf__all__send_redirects=0,
            **{f"ipv4__conf__{POD_BRIDGE}__send_redirects": 0, "ipv4__conf__eth0__send_redirects": 0},
        )
        addresses = subnets.addresses(number)
        pods = PodHost(name, addresses, namespace, bridge, cidrs)
        for other in self.nodes.values():
            other.namespace.ip(*_routes_to(pods))
            namespace.ip(*_routes_to(other.pods))
        return GuestNode(
            name=name,
            number=number,
            namespace=namespace,
            address=addresses[0],
            mac=namespace.mac("eth0"),
            pods=pods,
            proxy=proxy,
            kube_proxy=self._kube_proxy(name, namespace, proxy),
        )

    def _kube_proxy(self, name: str, namespace: Namespace, proxy: Proxy) -> Process:
        return Process(
            f"{name}/kube-proxy",
            [
                find("kube-proxy"),
                f"--kubeconfig={self._kubeconfig}",
                f"--hostname-override={name}",
                f"--proxy-mode={proxy.mode}",
                f"--cluster-cidr={self._plane.settings.cluster_cidr}",
                "--conntrack-max-per-core=0",
                f"--healthz-bind-address={proxy.health}:{HEALTH_PORT}",
            ],
            log=self._logs / f"{name}-kube-proxy.log",
            namespace=namespace.name,
        )

    def _register(self, node: GuestNode) -> None:
        cidrs = [str(cidr) for cidr in node.pods.cidrs]
        api: Api = self._plane.api
        api.create(
            "/api/v1/nodes",
            {
                "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
                "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            },
        )
        addresses = [{"type": "InternalIP", "address": address} for address in node.pods.addresses]
        capacity = {"cpu": "8", "memory": "16Gi", "pods": "110"}
        status = {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "capacity": capacity,
            "allocatable": capacity,
        }
        api.patch(f"/api/v1/nodes/{node.name}/status", {"status": status}, content_type=STRATEGIC_MERGE_PATCH)

    def _healthy(self, node: GuestNode) -> bool:
        def ask() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", HEALTH_PORT, timeout=2)
            with contextlib.closing(connection):
                connection.request("GET", "/healthz")
                return connection.getresponse().status == http.client.OK

        return netns.call(node.name, ask)


def _pod_cidr(whole: str, number: int) -> IPv4Network | IPv6Network:
    """The ``number``-th node's part of a cluster's pod network."""
    network = ip_network(whole)
    length = 24 if network.version == 4 else 64
    first = int(network.network_address) + number * 2 ** (network.max_prefixlen - length)
    return type(network)((first, length))


def _routes_to(pods: PodHost) -> list[str]:
    ways = zip(pods.cidrs, pods.addresses, strict=True)
    return [f"route add {cidr} via {via} dev eth0 onlink" for cidr, via in ways]
