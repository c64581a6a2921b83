"""Ways from the client to the nodes, each up for as long as its block lasts: the two limits, and the peers.

All peers are programs as Debian (or, for kube-proxy, Kubernetes) ships them, with the least configuration that
forwards TCP and UDP of one address to all nodes.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, Literal

from tests.bench.dataplane.prepare import environment, peer
from tests.bench.dataplane.topology import HOST, LAN, PLAIN, PORT, Route, Topology, target
from tests.lab.build import find
from tests.lab.client import STRATEGIC_MERGE_PATCH
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.network import Namespace
from tests.lab.process import Process

Limit = Literal["routing", "direct"]
_SERVICES: Final = "/api/v1/namespaces/default/services"
_SLICES: Final = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


@dataclass(frozen=True)
class Way:
    """``targets``: where the client sends to, in turn; ``limit``: the way that this one is compared with."""

    name: str
    targets: tuple[str, ...]
    limit: Limit
    udp: bool = True


def vip(number: int) -> IPv4Address:
    """The ``number``-th balancer's address for clients."""
    return LAN[3 * 256 + number]


def own(number: int) -> int:
    """The place in the LAN of the ``number``-th balancer's own address."""
    return 2 * 256 + number


def routing(topology: Topology, name: str = "routing", route: Route = PLAIN, limit: Limit = "routing") -> Way:
    """Under another ``name`` a control: how far from 1 the plain route's ratio to itself is tells what this run's
    ratios are worth; the tracked one's tells what conntrack takes of what translation costs,
    and that of the one way to the direct path what the hop takes of what passing frames on costs."""
    return Way(name, tuple(target(route.node(i)) for i in range(len(topology.nodes))), limit)


def direct(topology: Topology) -> Way:
    return Way("direct", tuple(target(node.address) for node in topology.nodes), "direct")


@contextlib.contextmanager
def _balancer(topology: Topology, name: str, number: int) -> Iterator[tuple[Namespace, IPv4Address]]:
    """A peer's namespace, and the address that it forwards."""
    station = topology.station(name, own(number))
    try:
        station.ip(f"address add {vip(number)}/32 dev eth0")
        yield station, vip(number)
    finally:
        station.remove()


@contextlib.contextmanager
def nftlb(topology: Topology, number: int) -> Iterator[Way]:
    """Its rules stay when it has loaded them; mode ``snat`` masquerades, as ours does."""
    with _balancer(topology, "bennftlb", number) as (station, address):
        backends = [
            {"name": node.name, "ip-addr": str(node.address), "port": str(PORT), "state": "up"}
            for node in topology.nodes
        ]
        farm = {"family": "ipv4", "virtual-addr": str(address), "virtual-ports": str(PORT), "mode": "snat"}
        farms = [
            # It reads them in order: a farm begins with its name.
            {"name": protocol, **farm, "protocol": protocol, "scheduler": "weight", "state": "up", "backends": backends}
            for protocol in ("tcp", "udp")
        ]
        path = topology.folder / "nftlb.json"
        path.write_text(json.dumps({"farms": farms}))
        settings = [f"{name}={value}" for name, value in environment().items()]
        station.run("env", *settings, str(peer("nftlb")), "-L", "stdout", "-e", "-c", str(path))
        yield Way("nftlb", (target(address),), "routing")


@contextlib.contextmanager
def haproxy(topology: Topology, number: int) -> Iterator[Way]:
    """TCP mode, as many threads as there are processors (its default), no checks; it forwards no UDP."""
    with _balancer(topology, "benhaproxy", number) as (station, address):
        path = topology.folder / "haproxy.cfg"
        servers = "".join(f"  server {node.name} {node.address}:{PORT}\n" for node in topology.nodes)
        path.write_text(
            "defaults\n  mode tcp\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n"
            f"listen bench\n  bind {address}:{PORT}\n  balance roundrobin\n{servers}"
        )
        process = Process(
            "haproxy",
            [peer("haproxy"), "-db", "-f", path],
            log=topology.logs / "haproxy.log",
            namespace=station.name,
            environment=environment(),
        )
        process.start()
        try:
            process.wait_until("listening", lambda: str(PORT) in station.run("ss", "-ltnH"))
            yield Way("haproxy", (target(address),), "routing", udp=False)
        finally:
            process.kill()


@contextlib.contextmanager
def kube_proxy(topology: Topology, number: int) -> Iterator[Way]:
    """Mode nftables, before a Service of type LoadBalancer whose endpoints are the nodes."""
    settings = Settings(name="bench", address=str(HOST))
    with (
        ControlPlane(topology.folder / "kubernetes", topology.logs, settings) as plane,
        _balancer(topology, "benkubeproxy", number) as (station, address),
    ):
        place = str(LAN[own(number)])
        plane.api.create("/api/v1/nodes", {"metadata": {"name": "balancer"}, "spec": {}})
        status = {"addresses": [{"type": "InternalIP", "address": place}]}
        plane.api.patch("/api/v1/nodes/balancer/status", {"status": status}, content_type=STRATEGIC_MERGE_PATCH)
        _service(plane, topology, address)
        process = Process(
            "kube-proxy",
            [
                find("kube-proxy"),
                f"--kubeconfig={plane.kubeconfig_for('system:kube-proxy')}",
                "--hostname-override=balancer",
                "--proxy-mode=nftables",
                f"--cluster-cidr={settings.cluster_cidr}",
                "--conntrack-max-per-core=0",
            ],
            log=topology.logs / "kube-proxy.log",
            namespace=station.name,
        )
        process.start()
        try:
            # Both protocols stand in one map of its table: element by element, address and port.
            process.wait_until("in step", lambda: station.run("nft", "list", "ruleset").count(f"{address} . ") >= 2)
            yield Way("kube-proxy", (target(address),), "routing")
        finally:
            process.kill()


def _service(plane: ControlPlane, topology: Topology, address: IPv4Address) -> None:
    ports = [{"name": p.lower(), "protocol": p, "port": PORT} for p in ("TCP", "UDP")]
    meta = {"name": "bench"}
    spec = {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False, "ports": ports}
    plane.api.create(_SERVICES, {"metadata": meta, "spec": spec})
    told = {"loadBalancer": {"ingress": [{"ip": str(address), "ipMode": "VIP"}]}}
    plane.api.patch(f"{_SERVICES}/bench/status", {"status": told}, content_type=STRATEGIC_MERGE_PATCH)
    endpoints = [{"addresses": [str(node.address)], "conditions": {"ready": True}} for node in topology.nodes]
    plane.api.create(
        _SLICES,
        {
            "metadata": {"name": "bench", "labels": {"kubernetes.io/service-name": "bench"}},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        },
    )
