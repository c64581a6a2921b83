"""A virtual machine of the lab: a namespace on a host's bridge with real servers in it, and its instance.

The VirtualMachineInstance is written as KubeVirt writes it: the definition with the interface's MAC, the status with
what libvirt and the guest agent report. What the guest agent says is at the test's will: whoever has root in a machine
may have it say anything.
"""

import socket
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from typing_extensions import override

from tests.lab import netns
from tests.lab.client import Api, Object
from tests.lab.network import Interface, Namespace, Switch, run
from tests.lab.pod import SERVER
from tests.lab.process import Process

ETHERTYPE_IPV4, ETHERTYPE_ARP, ETHERTYPE_RARP = 0x0800, 0x0806, 0x8035
LOOPBACK_ANNOTATION = "loadbalancer.harvesterhci.io/vip-on-loopback"
GUEST_CLUSTER_LABEL = "guestcluster.harvesterhci.io/name"
TCP_PORTS, UDP_PORTS = (80, 8080, 9090), (5353,)


def instances(namespace: str) -> str:
    return f"/apis/kubevirt.io/v1/namespaces/{namespace}/virtualmachineinstances"


def instance(
    name: str,
    labels: Mapping[str, str],
    mac: str,
    addresses: Sequence[str],
    *,
    network: str = "",
    agent: bool = True,
) -> Object:
    """What KubeVirt has of a machine that runs, with one interface. ``network``: "namespace/name" of a definition for
    multus; empty: the management network. ``agent``: whether the guest agent reports (``addresses``, then)."""
    reported: Object = {"name": "nic", "mac": mac, "infoSource": "domain", "queueCount": 1}
    if agent and addresses:
        more = {"ipAddress": addresses[0], "ipAddresses": list(addresses), "interfaceName": "eth0"}
        reported |= {**more, "infoSource": "domain, guest-agent"}
    where: Object = {"multus": {"networkName": network}} if network else {"pod": {}}
    conditions = [{"type": "Ready", "status": "True"}, {"type": "LiveMigratable", "status": "True"}]
    if agent:
        conditions.append({"type": "AgentConnected", "status": "True"})
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "domain": {
                "devices": {"interfaces": [{"name": "nic", "bridge": {}, "macAddress": mac, "model": "virtio"}]}
            },
            "networks": [{"name": "nic", **where}],
        },
        "status": {
            "phase": "Running",
            "nodeName": "host-1",
            "interfaces": [reported],
            "conditions": conditions,
        },
    }


@dataclass
class Instance(ABC):
    """What KubeVirt tells of a machine of a ``namespace`` of the host cluster."""

    api: Api
    namespace: str
    name: str

    @property
    @abstractmethod
    def mac(self) -> str:
        """As its definition has it."""

    @property
    @abstractmethod
    def addresses(self) -> list[str]:
        """Those that it has on the LAN."""

    @property
    def path(self) -> str:
        """Of its object."""
        return f"{instances(self.namespace)}/{self.name}"

    def tell(
        self,
        labels: Mapping[str, str],
        says: Sequence[str] | None = None,
        *,
        network: str = "",
        agent: bool = True,
        direct: bool = False,
    ) -> None:
        """Have KubeVirt make its instance, see :func:`instance`. ``says``: what its guest agent reports as its
        addresses, instead of what is so; ``direct``: it is said to carry load balancers' addresses."""
        addresses = self.addresses if says is None else says
        made = instance(self.name, labels, self.mac, addresses, network=network, agent=agent)
        if direct:
            made["metadata"]["annotations"] = {LOOPBACK_ANNOTATION: "true"}
        self.api.create(instances(self.namespace), made)

    def report(self, *addresses: str) -> None:
        """Have its guest agent report these addresses."""
        said = {"name": "nic", "mac": self.mac, "ipAddress": addresses[0], "ipAddresses": list(addresses)}
        interface = {**said, "interfaceName": "eth0", "infoSource": "domain, guest-agent"}
        self.api.patch(self.path, {"status": {"interfaces": [interface]}})

    def label(self, **labels: str | None) -> None:
        """Set labels of its instance; None: without it."""
        self.api.patch(self.path, {"metadata": {"labels": labels}})

    def delete(self) -> None:
        """Its instance goes, as when the machine is stopped or deleted; what runs in it runs on for a moment."""
        self.api.delete(self.path)


@dataclass
class Machine(Instance):
    """One machine. ``number``: of its addresses on the LAN, and of its MAC."""

    number: int
    interfaces: Sequence[Interface]
    logs: Path
    _processes: list[Process] = field(default_factory=list)
    _switch: Switch | None = None

    @property
    @override
    def mac(self) -> str:
        return f"02:00:00:00:01:{self.number:02x}"

    @property
    @override
    def addresses(self) -> list[str]:
        return [str(interface.ip) for interface in self.interfaces]

    @property
    def wires(self) -> Namespace:
        """Its network namespace."""
        return Namespace(f"vm-{self.name}")

    @property
    def _port(self) -> str:
        """The bridge's end of its link."""
        return f"vm-{self.name}"

    def boot(self, switch: Switch) -> None:
        """Switch it on, plugged into a bridge, its servers listening; KubeVirt has not told of it yet."""
        self.wires.create()
        self._switch = switch
        run(
            *("ip", "link", "add", "name", "eth0", "netns", self.wires.reference, "type", "veth"),
            *("peer", "name", self._port, "netns", switch.namespace.reference),
        )
        switch.namespace.ip(f"link set {self._port} master {switch.device} up")
        addresses = (f"address add {interface} dev eth0" for interface in self.interfaces)
        self.wires.ip(f"link set eth0 address {self.mac} up", *addresses)
        self.serve(self.addresses)

    def stop_serving(self) -> None:
        """End its servers; the machine itself runs on."""
        for process in self._processes:
            process.terminate()
        self._processes.clear()

    def shut_down(self) -> None:
        """Switch it off. KubeVirt is to have told of it."""
        self.stop_serving()
        if self._switch is not None:
            self._switch.namespace.ip(f"link delete {self._port}")  # at once; the namespace's end takes its time
            self._switch = None
        self.wires.remove()

    def serve(self, addresses: Sequence[str]) -> None:
        """Have servers listen on addresses of the machine."""
        where = [word for address in addresses for word in ("--address", address)]
        ports = [word for port in TCP_PORTS for word in ("--tcp", str(port))]
        ports += [word for port in UDP_PORTS for word in ("--udp", str(port))]
        process = Process(
            self.name,
            [sys.executable, "-I", "-S", SERVER, "--name", self.name, *where, *ports],
            log=self.logs / f"vm-{self.name}-{len(self._processes)}.log",
            namespace=self.wires.name,
        )
        self._processes.append(process)
        process.start()
        process.wait_until("listening", lambda: "ready" in process.log_text())

    def carry(self, vip: str) -> None:
        """Have a load balancer's address on the loopback, answer for it to nobody, and serve there."""
        self.wires.sysctl(ipv4__conf__all__arp_ignore=1, ipv4__conf__all__arp_announce=2)
        self.wires.ip(f"address add {vip}/{128 if ':' in vip else 32} dev lo")
        self.serve([vip])

    def migrate(self, switch: Switch) -> None:
        """Move to another host: its port is on another bridge from now on, and it says so, as QEMU does (RARP)."""
        assert self._switch is not None
        self._switch.namespace.ip(f"link set {self._port} netns {switch.namespace.reference}")
        switch.namespace.ip(f"link set {self._port} master {switch.device} up")
        self._switch = switch
        self.api.patch(self.path, {"status": {"nodeName": "host-2", "migrationState": {"completed": True}}})
        mac = bytes.fromhex(self.mac.replace(":", ""))
        body = struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, 3) + mac + bytes(4) + mac + bytes(4)
        send(self.wires, b"\xff" * 6 + mac + struct.pack("!H", ETHERTYPE_RARP) + body)

    def accepted(self) -> int:
        """How many TCP connections, and datagrams, have come to its servers so far."""
        counters = netns.call(self.wires.name, lambda: Path("/proc/thread-self/net/snmp").read_text())
        return _counter(counters, "Tcp:", "PassiveOpens") + _counter(counters, "Udp:", "InDatagrams")


def send(wires: Namespace, frame: bytes) -> None:
    """Put a frame on a station's link."""

    def put() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("eth0", 0))
            link.send(frame.ljust(60, b"\0"))

    wires.call(put)


def announce(wires: Namespace, address: str) -> None:
    """Tell everybody on the LAN that a station has an IPv4 address (gratuitous ARP), whether that is so or not."""
    mac, packed = bytes.fromhex(wires.mac("eth0").replace(":", "")), IPv4Address(address).packed
    body = struct.pack("!HHBBH", 1, ETHERTYPE_IPV4, 6, 4, 2) + mac + packed + mac + packed
    send(wires, b"\xff" * 6 + mac + struct.pack("!H", ETHERTYPE_ARP) + body)


def _counter(text: str, kind: str, name: str) -> int:
    names, values = (line.split() for line in text.splitlines() if line.startswith(kind))
    return int(values[names.index(name)])
