"""The whole: host and guest cluster, a host node with the agent, guest nodes with kube-proxy, a client, on one LAN.

::

    10.77.0.0/16   .0.1 the lab itself and gateway      .0.11 host-1: host's control plane, host program, agent
                   .0.20 guest's control plane and guest program        .0.21 ... guest nodes        .0.100 client
                   .0.9 the agent's own                 .16.0/20 pool "lan"      .64.0/24 pool "reserved"
"""

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Literal, Self

from tests.dhcp.lan import Station
from tests.dhcp.servers import Kea, Server, Terms
from tests.lab import programs
from tests.lab.client import STRATEGIC_MERGE_PATCH, Object
from tests.lab.controlplane import API_SERVER, ControlPlane, Settings
from tests.lab.network import Lan, Namespace, Subnets, require_sandbox, run
from tests.lab.node import GuestNode, GuestNodes, HostNode, ProxyMode
from tests.lab.pod import now
from tests.lab.process import LabError
from tests.lab.programs import BRIDGE_PORT, POOLS_PATH, WEBHOOK_PORT, Outcome, Program
from tests.lab.traffic import Client

ProgramName = Literal["guest", "host", "agent"]
Side = Literal["guest", "host"]

NETWORK = IPv4Network("10.77.0.0/16")
NODE_CIDR = IPv4Network("10.77.0.0/24")
GATEWAY, HOST_NUMBER, AGENT_NUMBER, DHCP_NUMBER, GUEST_NUMBER, CLIENT_NUMBER = 1, 11, 9, 10, 20, 100
INSTANCE = "lab"
TENANT, TENANT_NAMESPACE = "shop", "shops"
HOST_RESERVED = ("10.97.0.0/16", "10.245.0.0/16")


@dataclass(frozen=True)
class Pool:
    """A pool of the lab: the part of the LAN that it hands out, to whom."""

    name: str
    first: str
    last: str
    guest_cluster: str = "*"
    namespace: str = "*"

    def holds(self, address: str) -> bool:
        return IPv4Address(self.first) <= IPv4Address(address) <= IPv4Address(self.last)

    def manifest(self) -> Object:
        addresses = {"subnet": str(NETWORK), "rangeStart": self.first, "rangeEnd": self.last}
        scope = {"project": "*", "namespace": self.namespace, "guestCluster": self.guest_cluster}
        return {
            "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
            "kind": "IPPool",
            "metadata": {"name": self.name},
            "spec": {
                "ranges": [addresses | {"gateway": str(NETWORK[GATEWAY])}],
                "selector": {"network": "", "scope": [scope]},
            },
        }


POOL = Pool("lan", "10.77.16.1", "10.77.47.254", guest_cluster=TENANT, namespace=TENANT_NAMESPACE)
"""Chosen by itself, as its scope names the tenant."""
RESERVED_POOL = Pool("reserved", "10.77.64.1", "10.77.64.254")
"""For everybody, so it comes into play only where it is named."""


DHCP = Terms(first=IPv4Address("10.77.80.1"), last=IPv4Address("10.77.80.50"), subnet=NETWORK, router=NETWORK[GATEWAY])


class DhcpServer:
    """A real one, on a station of the LAN."""

    def __init__(self, server: Server, terms: Terms) -> None:
        self._server = server
        self._terms = terms

    def start(self) -> None:
        self._server.start(self._terms)

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """It is stopped on entry, and answers again on exit; it keeps its leases."""
        self._server.stop()
        yield
        self.start()

    def leases(self) -> set[IPv4Address]:
        """The addresses that are leased now, as it has written them."""
        return self._server.leases()


class Lab:
    """Everything, running; ``folder`` holds keys and data, ``logs`` what the processes say."""

    def __init__(
        self,
        folder: Path,
        logs: Path,
        *,
        proxy_mode: ProxyMode = "nftables",
        node_port_range: str = Settings.node_port_range,
    ) -> None:
        require_sandbox()
        self.folder = folder
        self.logs = logs
        self.certificates = folder / "tenants"
        self._proxy_mode: ProxyMode = proxy_mode
        self._node_port_range = node_port_range
        self._stack = contextlib.ExitStack()
        self.programs: dict[ProgramName, Program] = {}
        self._forbidden: dict[ProgramName, Counter[str]] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[Self]:
        """An empty lab, to be filled step by step; the end takes down what has been started, last first.

        Raises LabError at its end when a program was refused something for want of rights.
        """
        if self.logs.exists():
            shutil.rmtree(self.logs)  # of an earlier run
        with contextlib.ExitStack() as self._stack:
            yield self
            self.check_rights()

    @contextlib.contextmanager
    def running(self) -> Iterator[Self]:
        """The whole lab, up and ready."""
        with self.opened():
            for step in (self.start_network, self.start_control_planes, self.start_nodes, self.start_programs):
                step()
            yield self

    def start_network(self) -> None:
        """The LAN, with the host node's bridge, the guest's control plane and the client on it."""
        self.lan = Lan(Subnets(NETWORK))
        self.lan.create()
        self._stack.callback(self.lan.remove)
        self.lan.join(GATEWAY)
        self.host_node = HostNode.create(self.lan, "host-1", HOST_NUMBER)
        self._stack.callback(self.host_node.remove)
        self.guest_station = self.lan.station("guest", GUEST_NUMBER)
        self.client = Client(self.lan.station("client", CLIENT_NUMBER))

    def start_control_planes(self) -> None:
        """Both clusters, with our definitions and accounts; pools and the tenant on the host."""
        self.host_plane = ControlPlane(
            self.folder / "host",
            self.logs,
            Settings(
                name="host",
                namespace=self.host_node.namespace.name,
                address=self.host_node.address,
                controller_manager=True,
                service_cidr=HOST_RESERVED[0],
                cluster_cidr=HOST_RESERVED[1],
                # Nobody renews the host's Node here.
                controller_manager_flags=("--controllers=*,-node-lifecycle-controller",),
            ),
        )
        self.guest_plane = ControlPlane(
            self.folder / "guest",
            self.logs,
            Settings(
                name="guest",
                namespace=self.guest_station.name,
                address=str(NETWORK[GUEST_NUMBER]),
                controller_manager=True,
                node_port_range=self._node_port_range,
            ),
        )
        for plane in (self.host_plane, self.guest_plane):
            self._stack.callback(plane.api.close)
            self._stack.callback(plane.stop)
            plane.launch()
        for plane in (self.host_plane, self.guest_plane):
            plane.start()
        self._register_host()
        self.host_plane.apply_definitions(programs.MANIFESTS / "crds")
        programs.install(self.host_plane, "host")
        programs.install(self.guest_plane, "guest")
        for pool in (POOL, RESERVED_POOL):
            self.host_plane.api.create(POOLS_PATH, pool.manifest())

    def _register_host(self) -> None:
        node = self.host_node
        self.host_plane.api.create("/api/v1/nodes", {"metadata": {"name": node.name}})
        addresses = [{"type": "InternalIP", "address": node.address}, {"type": "Hostname", "address": node.name}]
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": now(), "lastHeartbeatTime": now()}
        status = {"addresses": addresses, "conditions": [ready]}
        self.host_plane.api.patch(
            f"/api/v1/nodes/{node.name}/status", {"status": status}, content_type=STRATEGIC_MERGE_PATCH
        )

    def start_nodes(self) -> None:
        """Two guest nodes: one a machine on our host's bridge, one elsewhere on the LAN."""
        self.nodes = GuestNodes(self.guest_plane, self.lan, self.logs, proxy_mode=self._proxy_mode)
        self.nodes.start()
        self._stack.callback(self.nodes.stop)
        self.nodes.add("node-1", GUEST_NUMBER + 1, self.host_node.switch)
        self.nodes.add("node-2", GUEST_NUMBER + 2)

    def start_programs(self) -> None:
        """Our three programs, ready; the tenant's certificate issued as an operator would."""
        self.make_programs()
        for name in ("host", "agent", "guest"):
            self._stack.callback(self.programs[name].stop)
            self.programs[name].start(wait=False)
        for program in self.programs.values():
            program.wait_ready()
        programs.wait_judged(self.host_plane)

    def make_programs(self) -> None:
        """Certificates, accounts, settings and the webhook of the three programs; nothing is started."""
        host, bridge = self.host_node.namespace, f"{self.host_node.address}:{BRIDGE_PORT}"
        programs.issue_bridge_certificate(self.certificates, self.host_node.address)
        programs.issue_tenant(
            self.certificates, self.host_plane, TENANT, namespace=TENANT_NAMESPACE, bridge=bridge, node_cidr=NODE_CIDR
        )
        programs.register_webhook(self.host_plane, f"https://{self.host_node.address}:{WEBHOOK_PORT}")
        programs.wait_permitted(self.host_plane, ("host", "agent"))
        programs.wait_permitted(self.guest_plane, ("guest",))
        networks = self.folder / "networks.yaml"
        own = IPv4Interface((NETWORK[AGENT_NUMBER], NETWORK.prefixlen))
        programs.write_networks(networks, self.host_node.switch.device, own, NETWORK[GATEWAY])
        self.programs = {
            "host": programs.host_program(
                host,
                programs.account(self.host_plane, "host"),
                self.certificates,
                reserved=HOST_RESERVED,
                log=self.logs / "program-host.log",
            ),
            "agent": programs.agent_program(
                host,
                programs.account(self.host_plane, "agent"),
                networks,
                node=self.host_node.name,
                instance=INSTANCE,
                log=self.logs / "program-agent.log",
            ),
            "guest": programs.guest_program(
                self.guest_station,
                programs.account(self.guest_plane, "guest"),
                self.certificates,
                tenant=TENANT,
                bridge=bridge,
                log=self.logs / "program-guest.log",
            ),
        }

    # What scenarios do to it.

    def plane(self, side: Side) -> ControlPlane:
        return self.guest_plane if side == "guest" else self.host_plane

    def kill(self, name: ProgramName) -> None:
        """SIGKILL for one of our programs."""
        self.programs[name].kill()

    def start(self, name: ProgramName) -> None:
        """Start one of our programs again and wait until it is ready."""
        if not self.programs[name].process.running:
            self.programs[name].start(wait=False)
        self.programs[name].wait_ready()
        if name == "host":
            programs.wait_judged(self.host_plane)  # it is ready for guests before that

    def check_rights(self) -> None:
        """Raise LabError when a program has asked an API server for what its role does not allow. Told once."""
        told = [
            f"{name}: {request} ({count} times)"
            for name, requests in self._newly_forbidden().items()
            for request, count in sorted(requests.items())
        ]
        if told:
            raise LabError(f"forbidden by an API server, so missing in manifests/: {'; '.join(told)}")

    def _newly_forbidden(self) -> dict[ProgramName, Counter[str]]:
        """What has been forbidden to each program since this was last asked."""
        now = {name: program.forbidden() for name, program in self.programs.items()}
        news = {name: requests - self._forbidden.get(name, Counter()) for name, requests in now.items()}
        self._forbidden = now
        return news

    def leave(self) -> Outcome:
        """Stop the agent and have it remove all that it has made on the host (``cloudprovider agent leave``)."""
        self.programs["agent"].stop()
        return self.programs["agent"].run_action("leave")

    @contextlib.contextmanager
    def api_server_down(self, side: Side) -> Iterator[None]:
        """The API server is killed on entry, and back and ready on exit."""
        self.check_rights()
        plane = self.plane(side)
        plane.kill_component(API_SERVER)
        try:
            yield
        finally:
            plane.start()
            self._newly_forbidden()  # a server answers before it has read the roles, and then forbids everything

    @contextlib.contextmanager
    def bridge_cut(self) -> Iterator[None]:
        """No packet passes between the guest program and the bridge, in neither direction, and nobody is told."""
        table = "table inet cut"
        rules = f"""{table} {{
            chain out {{ type filter hook output priority 0; tcp dport {BRIDGE_PORT} drop; }}
            chain in {{ type filter hook input priority 0; tcp sport {BRIDGE_PORT} drop; }}
        }}"""
        self.guest_station.run("nft", rules)
        try:
            yield
        finally:
            self.guest_station.run("nft", f"delete {table}")

    def add_node(self, name: str, number: int) -> GuestNode:
        """A further guest node, elsewhere on the LAN."""
        return self.nodes.add(name, GUEST_NUMBER + number)

    def remove_node(self, name: str) -> None:
        self.nodes.remove(name)

    @contextlib.contextmanager
    def dhcp_server(self, lease_seconds: int = 3600) -> Iterator["DhcpServer"]:
        """A DHCP server on the LAN, with a range apart from all pools."""
        station = self.lan.station("dhcp", DHCP_NUMBER)
        server = Kea(Station(station.name), self.folder)
        server.forget()
        try:
            made = DhcpServer(server, replace(DHCP, lease=lease_seconds))
            made.start()
            yield made
        finally:
            server.stop()
            self.lan.leave(station)

    @contextlib.contextmanager
    def intruder(self, address: str) -> Iterator[str]:
        """A machine on the LAN that uses an address; its MAC."""
        number = int(IPv4Address(address)) - int(NETWORK.network_address)
        station = self.lan.station("intruder", number)
        try:
            yield str(json.loads(run("ip", "-n", station.name, "-j", "link", "show", "eth0"))[0]["address"])
        finally:
            self.lan.leave(station)

    @property
    def segment(self) -> Namespace:
        """The agent's namespace of the management network."""
        return Namespace(f"lb-{INSTANCE}-mgmt")

    def addresses_on_link(self) -> set[str]:
        """The addresses that the agent's namespace answers for, without its own."""
        if not Path(f"/run/netns/{self.segment.name}").exists():
            return set()
        links = json.loads(run("ip", "-n", self.segment.name, "-j", "address", "show", "scope", "global"))
        # What the scope leaves out (an IPv6 link-local address) is an empty entry.
        found = {entry["local"] for link in links for entry in link.get("addr_info", []) if entry}
        return found - {str(NETWORK[AGENT_NUMBER])}
