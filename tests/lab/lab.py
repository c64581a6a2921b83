"""The whole: host and guest cluster, a host node with the agent, guest nodes with kube-proxy, a client, on one LAN.

::

    10.77.0.0/16   .0.1 the lab itself and gateway      .0.11 host-1: host's control plane, host program, agent
                   .0.20 guest's control plane and guest program        .0.21 ... guest nodes        .0.100 client
                   .0.9 the agent's own   .0.120 ... virtual machines on host-1
                   .16.0/20 pool "lan"    .64.0/24 pool "reserved"
    fd00:77::/64   the same numbers for the same machines; ::1000 to ::1fff pool "lan"
    10.79.0.0/24   .0.1 the gateway too      .0.23 ... guest nodes that stand elsewhere      fd00:79::/64 likewise

node-1's kube-proxy runs in nftables mode and is open about its health, node-2's in iptables mode with health on
loopback, as k3s and RKE2 have it: a rule of a Service is seen to hold behind both.
"""

import contextlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Literal, Self

from tests.dhcp.lan import Station
from tests.dhcp.servers import Kea, Server, Terms
from tests.lab import programs
from tests.lab.client import STRATEGIC_MERGE_PATCH, Object
from tests.lab.controlplane import API_SERVER, ControlPlane, Settings
from tests.lab.far import behind_gateway
from tests.lab.machine import Machine
from tests.lab.network import Lan, Namespace, Subnets, Switch, require_sandbox, run
from tests.lab.node import OPEN, RANCHER, GuestNode, GuestNodes, HostNode, Proxy
from tests.lab.pod import now
from tests.lab.process import LabError
from tests.lab.programs import BRIDGE_PORT, POOLS_PATH, WEBHOOK_PORT, Outcome, Program
from tests.lab.traffic import Client

ProgramName = Literal["guest", "host", "agent"]
Side = Literal["guest", "host"]

NETWORK = IPv4Network("10.77.0.0/16")
NETWORK6 = IPv6Network("fd00:77::/64")
ELSEWHERE = Subnets(IPv4Network("10.79.0.0/24"), IPv6Network("fd00:79::/64"))
"""Another network than that of the addresses: to there and back the gateway routes."""
NODE_CIDRS = (
    IPv4Network("10.77.0.0/24"),
    IPv6Network("fd00:77::/120"),
    IPv4Network("10.79.0.0/24"),
    IPv6Network("fd00:79::/64"),
)
GATEWAY, HOST_NUMBER, AGENT_NUMBER, DHCP_NUMBER, GUEST_NUMBER, CLIENT_NUMBER = 1, 11, 9, 10, 20, 100
MACHINE_NUMBERS = range(120, 200)
INSTANCE = "lab"
TENANT, TENANT_NAMESPACE = "shop", "shops"
HOST_RESERVED = ("10.97.0.0/16", "10.245.0.0/16")
KUBEVIRT = Path(__file__).parent / "kubevirt"
GUEST_SERVICES, GUEST_PODS = "10.96.0.0/16,fd00:96::/112", "10.244.0.0/16,fd00:244::/48"


@dataclass(frozen=True)
class Pool:
    """A pool of the lab: the part of the LAN that it hands out, to whom."""

    name: str
    first: str
    last: str
    guest_cluster: str = "*"
    namespace: str = "*"
    first6: str = ""
    last6: str = ""
    network: IPv4Network = NETWORK

    def on(self, network: IPv4Network) -> Self:
        """The same part of another network of that size."""
        offset = int(network.network_address) - int(self.network.network_address)
        first, last = (str(IPv4Address(one) + offset) for one in (self.first, self.last))
        return replace(self, first=first, last=last, network=network)

    def holds(self, address: str) -> bool:
        first, last = (self.first6, self.last6) if ":" in address else (self.first, self.last)
        return bool(first) and int(ip_address(first)) <= int(ip_address(address)) <= int(ip_address(last))

    def manifest(self) -> Object:
        subnet = {"subnet": str(self.network), "gateway": str(self.network[GATEWAY])}
        ranges = [{**subnet, "rangeStart": self.first, "rangeEnd": self.last}]
        if self.first6:
            ranges.append({"subnet": str(NETWORK6), "rangeStart": self.first6, "rangeEnd": self.last6})
        scope = {"project": "*", "namespace": self.namespace, "guestCluster": self.guest_cluster}
        return {
            "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
            "kind": "IPPool",
            "metadata": {"name": self.name},
            "spec": {
                "ranges": ranges,
                "selector": {"network": "", "scope": [scope]},
            },
        }


POOL = Pool(
    "lan",
    "10.77.16.1",
    "10.77.47.254",
    guest_cluster=TENANT,
    namespace=TENANT_NAMESPACE,
    first6="fd00:77::1000",
    last6="fd00:77::1fff",
)
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
        node_port_range: str = Settings.node_port_range,
        second_proxy: Proxy = RANCHER,
        source: Path = programs.ROOT,
    ) -> None:
        """``source``: the checkout whose programs, definitions and roles it begins with."""
        require_sandbox()
        self._source = source
        self._second_proxy = second_proxy
        self.folder = folder
        self.logs = logs
        self.certificates = folder / "tenants"
        self._node_port_range = node_port_range
        self._stack = contextlib.ExitStack()
        self.programs: dict[ProgramName, Program] = {}
        self.machines: dict[str, Machine] = {}
        """Virtual machines that are switched on, by name."""
        self._machine_numbers = itertools.cycle(MACHINE_NUMBERS)
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
        self.lan = Lan(Subnets(NETWORK, NETWORK6))
        self.lan.create()
        self._stack.callback(self.lan.remove)
        self.lan.join(GATEWAY)
        self.host_node = HostNode.create(self.lan, "host-1", HOST_NUMBER)
        self._stack.callback(self._forget_segment)
        self._stack.callback(self.host_node.remove)
        self.guest_station = self.lan.station("guest", GUEST_NUMBER)
        self.client = Client(self.lan.station("client", CLIENT_NUMBER))
        self._route_elsewhere()

    def _forget_segment(self) -> None:
        """An agent leaves its namespace to the next one; the next lab's has nothing to do with it."""
        if Path(f"/run/netns/{self.segment.name}").exists():
            self.segment.remove()

    def _route_elsewhere(self) -> None:
        """The gateway stands on that network too, and the guest's control plane finds its way there."""
        here = Namespace("")
        here.ip(*(f"address add {interface} dev {self.lan.name} nodad" for interface in ELSEWHERE.interfaces(GATEWAY)))
        here.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__conf__all__send_redirects=0)
        here.sysctl(**{f"ipv4__conf__{self.lan.name}__send_redirects": 0})
        gateways = self.lan.subnets.addresses(GATEWAY)
        self.guest_station.ip(*(f"route add default via {gateway}" for gateway in gateways))

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
                service_cidr=GUEST_SERVICES,
                cluster_cidr=GUEST_PODS,
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
        manifests = self._source / "manifests"
        self.host_plane.apply_definitions(manifests / "crds")
        self.host_plane.apply_definitions(KUBEVIRT)
        programs.install(self.host_plane, "host", manifests=manifests)
        programs.install(self.guest_plane, "guest", manifests=manifests)
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
        self.nodes = GuestNodes(self.guest_plane, self.lan, self.logs)
        self.nodes.start()
        self._stack.callback(self.nodes.stop)
        self.add_node("node-1", 1, self.host_node.switch)
        self.add_node("node-2", 2, proxy=self._second_proxy)

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
            self.certificates, self.host_plane, TENANT, namespace=TENANT_NAMESPACE, bridge=bridge, node_cidrs=NODE_CIDRS
        )
        programs.register_webhook(self.host_plane, f"https://{self.host_node.address}:{WEBHOOK_PORT}")
        programs.wait_permitted(self.host_plane, ("host", "agent"))
        programs.wait_permitted(self.guest_plane, ("guest",))
        networks = self.folder / "networks.yaml"
        subnets = self.lan.subnets
        programs.write_networks(
            networks, self.host_node.switch.device, subnets.interfaces(AGENT_NUMBER), subnets.addresses(GATEWAY)
        )
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
        for program in self.programs.values():
            program.run_from(self._source)

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

    def replace(self, name: ProgramName, source: Path) -> None:
        """Stop a program and start that of another checkout in its place, whose roles have come before it."""
        side: Side = "guest" if name == "guest" else "host"
        programs.install(self.plane(side), side, manifests=source / "manifests", only=name)
        self.programs[name].stop()
        self.programs[name].run_from(source)
        self.start(name)

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

    def add_node(
        self,
        name: str,
        number: int,
        switch: Switch | None = None,
        *,
        proxy: Proxy = OPEN,
        subnets: Subnets | None = None,
    ) -> GuestNode:
        """A further guest node, on the LAN or on a host's bridge; with addresses of other ``subnets`` it stands on
        neither, and the gateway is on the way to it."""
        where = subnets or self.lan.subnets
        return self.nodes.add(
            name, GUEST_NUMBER + number, switch, proxy=proxy, subnets=where, gateways=where.addresses(GATEWAY)
        )

    def remove_node(self, name: str) -> None:
        self.nodes.remove(name)

    def add_machine(self, namespace: str, name: str) -> Machine:
        """Switch on a virtual machine on the host's bridge; its servers listen, and KubeVirt has not told of it yet."""
        number = next(self._machine_numbers)
        interfaces = self.lan.subnets.interfaces(number)
        machine = Machine(self.host_plane.api, namespace, name, number, interfaces, self.logs)
        self.machines[name] = machine
        machine.boot(self.host_node.switch)
        return machine

    def remove_machine(self, name: str) -> None:
        """Switch a virtual machine off."""
        self.machines.pop(name).shut_down()

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
        with self.visitor(address) as visitor:
            yield visitor.namespace.mac("eth0")

    @contextlib.contextmanager
    def visitor(self, address: str) -> Iterator[Client]:
        """Another client on the LAN, with an address there."""
        station = self.lan.station("visitor", int(IPv4Address(address)) - int(NETWORK.network_address))
        try:
            yield Client(station)
        finally:
            self.lan.leave(station)

    @contextlib.contextmanager
    def far_client(self, mtu: int) -> Iterator[Client]:
        """A client behind the LAN's gateway and a link of ``mtu`` bytes."""
        with behind_gateway(mtu) as far:
            yield Client(far)

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
        return found - {str(NETWORK[AGENT_NUMBER]), str(NETWORK6[AGENT_NUMBER])}
