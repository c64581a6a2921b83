"""The network of the measurements, in namespaces inside the sandbox, with everything on one LAN::

    client ── br0 ── balancers (each in a namespace of its own, one link: what comes in goes out there again)
               └──── nodes (each serves TCP and UDP on one port, see load/main.go)

The limit of a balancer that translates is plain routing through such a namespace, there and back: the client's second
address and the nodes' second ones are reached by way of it only. The limit of one that passes frames on is the direct
path from client to node.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any, Final

from cloudprovider.core.mac import MACAddress
from tests.bench.dataplane.prepare import LOAD
from tests.lab import netns
from tests.lab.network import Namespace, Switch, require_sandbox
from tests.lab.process import Process

BRIDGE: Final = "benbr"
LAN: Final = IPv4Network("10.200.0.0/16")
HOST: Final = LAN[1]
CLIENT: Final = LAN[2]
PORT: Final = 7000
NODES: Final = 10


@dataclass(frozen=True)
class Route:
    """A way through a router: the client's and the nodes' addresses that are reached by way of it. ``back``: by whom
    the nodes' answers go, the router or the client itself."""

    name: str
    router: IPv4Address
    back: IPv4Address
    client: IPv4Address
    nodes: IPv4Address

    def node(self, number: int) -> IPv4Address:
        """The ``number``-th node's address."""
        return self.nodes + number


PLAIN: Final = Route("benrouter", LAN[3], LAN[3], IPv4Address("10.202.0.1"), IPv4Address("10.201.0.1"))
TRACKED: Final = Route("bentracker", LAN[4], LAN[4], IPv4Address("10.204.0.1"), IPv4Address("10.203.0.1"))
"""Its router looks at the state of connections, which is what lets the kernel track them, and at nothing else."""
ONE_WAY: Final = Route("benoneway", LAN[5], CLIENT, IPv4Address("10.206.0.1"), IPv4Address("10.205.0.1"))
"""What passing frames on costs at the least: the hop alone, without a choice of nodes."""
_TRACKING: Final = (
    "add table ip tracking; "
    "add chain ip tracking forward { type filter hook forward priority filter; policy accept; }; "
    "add rule ip tracking forward ct state invalid drop"
)


@dataclass(frozen=True)
class Node:
    """A server, with its ``address`` on the LAN."""

    namespace: Namespace
    name: str
    address: IPv4Address
    mac: MACAddress

    def datagrams(self) -> int:
        """Those that have come so far; also what its server was too slow to read."""

        def read() -> int:
            lines = [
                line.split()
                for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
                if line.startswith("Udp:")
            ]
            counters = dict(zip(*lines, strict=True))
            return int(counters["InDatagrams"]) + int(counters["RcvbufErrors"])

        return self.namespace.call(read)


@dataclass(frozen=True)
class Topology:
    """All of it, up. ``folder``, ``logs``: where programs on it find their files and leave their logs."""

    switch: Switch
    client: Namespace
    nodes: Sequence[Node]
    folder: Path
    logs: Path

    def station(self, name: str, number: int) -> Namespace:
        """A balancer's namespace: it forwards; ``number`` is its place in the LAN."""
        namespace = Namespace(name)
        namespace.create()
        self.switch.plug(namespace, "eth0", [IPv4Interface((LAN[number], LAN.prefixlen))])
        forwarding(namespace)
        return namespace

    def load(self, what: str, seconds: float, count: int, targets: Sequence[str]) -> dict[str, Any]:
        """Run the load's client, and return what it tells."""
        told = self.client.run(str(LOAD.resolve()), what, str(seconds), str(count), ",".join(targets))
        found: dict[str, Any] = json.loads(told)
        return found

    def datagrams(self) -> int:
        """Those that have come to all nodes so far."""
        return sum(node.datagrams() for node in self.nodes)


def forwarding(namespace: Namespace) -> None:
    """Let it pass on what is not its own, back through the same link and without telling anybody of a shorter way."""
    namespace.sysctl(ipv4__ip_forward=1, ipv4__conf__all__rp_filter=0, ipv4__conf__eth0__rp_filter=0)
    namespace.sysctl(ipv4__conf__all__send_redirects=0, ipv4__conf__eth0__send_redirects=0)


def target(address: object, port: int = PORT) -> str:
    return f"{address}:{port}"


@contextlib.contextmanager
def topology(folder: Path, logs: Path) -> Iterator[Topology]:
    """Client, router and nodes, for as long as the block lasts; then nothing of them is left."""
    require_sandbox()
    with contextlib.ExitStack() as stack:
        switch = Switch(Namespace(""), BRIDGE)
        switch.create()
        stack.callback(Namespace("").ip, f"link delete {BRIDGE}")
        Namespace("").ip(f"address add {HOST}/{LAN.prefixlen} dev {BRIDGE}")
        client = Namespace("benclient")
        client.create()
        stack.callback(client.remove)
        switch.plug(client, "eth0", [IPv4Interface((CLIENT, LAN.prefixlen))])
        # So many connections from one address: more ports, and those that are closed are used again.
        netns.call(client.name, lambda: Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("1024 65535"))
        client.sysctl(ipv4__tcp_tw_reuse=1)
        made = Topology(
            switch, client, [stack.enter_context(_node(switch, i, logs)) for i in range(NODES)], folder, logs
        )
        for route in (PLAIN, TRACKED, ONE_WAY):
            router = made.station(route.name, int(route.router) - int(LAN[0]))
            stack.callback(router.remove)
            _lay(made, route, router)
        Namespace(TRACKED.name).run("nft", _TRACKING)
        yield made


def _lay(made: Topology, route: Route, router: Namespace) -> None:
    """Give client and nodes their addresses of a route, and let each reach the other's by way of the router."""
    made.client.ip(f"address add {route.client}/32 dev lo")
    router.ip(f"route add {route.client}/32 via {CLIENT}")
    for i, node in enumerate(made.nodes):
        node.namespace.ip(f"address add {route.node(i)}/32 dev lo", f"route add {route.client}/32 via {route.back}")
        router.ip(f"route add {route.node(i)}/32 via {node.address}")
        made.client.ip(f"route add {route.node(i)}/32 via {route.router} src {route.client}")


@contextlib.contextmanager
def _node(switch: Switch, number: int, logs: Path) -> Iterator[Node]:
    name = chr(ord("a") + number)
    address = LAN[256 + 1 + number]
    namespace = Namespace(f"bennode{name}")
    namespace.create()
    server = Process(
        f"server {name}",
        [LOAD.resolve(), "serve", str(PORT), name],
        log=logs / f"server-{name}.log",
        namespace=namespace.name,
    )
    try:
        switch.plug(namespace, "eth0", [IPv4Interface((address, LAN.prefixlen))])
        # An address on its loopback is the node's own matter: it neither answers ARP for it nor asks by it.
        namespace.sysctl(ipv4__conf__all__arp_ignore=1, ipv4__conf__all__arp_announce=2)
        mac = json.loads(namespace.run("ip", "-j", "link", "show", "eth0"))[0]["address"]
        server.start()
        yield Node(namespace, name, address, MACAddress.parse(mac))
    finally:
        server.kill()
        namespace.remove()
