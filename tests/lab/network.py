"""The lab's wires: network namespaces, joined by veth to a bridge that is the LAN.

Everything lies inside the sandbox (see sandbox.py), so names need not be unique on the machine, and whatever
happens nothing is left of it.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import TypeVar

from tests.lab import netns
from tests.lab.process import LabError
from tests.lab.sandbox import ENVIRONMENT_MARK

T = TypeVar("T")
Interface = IPv4Interface | IPv6Interface
BRIDGE = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"


def require_sandbox() -> None:
    """Raise LabError outside of the sandbox, where namespaces would stay behind."""
    if os.environ.get(ENVIRONMENT_MARK) != "1":
        raise LabError("the lab makes namespaces and runs in its sandbox only: tests/lab/sandbox COMMAND")


@dataclass(frozen=True)
class Namespace:
    """A network namespace by name; "" is the lab's own, which can neither be made nor removed."""

    name: str

    def create(self) -> None:
        run("ip", "netns", "add", self.name)
        self.ip("link set lo up")
        # Addresses are usable at once: nobody else is on these links (IPv6 would wait a second for DAD).
        with contextlib.suppress(FileNotFoundError):
            netns.set_sysctl(self.name, ipv6__conf__all__accept_dad=0, ipv6__conf__default__accept_dad=0)

    def remove(self) -> None:
        run("ip", "netns", "delete", self.name)

    def ip(self, *lines: str) -> None:
        """Run ``ip`` once with many commands, one a line. Raises LabError with what it complains of."""
        inside = ["-n", self.name] if self.name else []
        run("ip", *inside, "-batch", "-", stdin="".join(f"{line}\n" for line in lines))

    def sysctl(self, **values: int) -> None:
        netns.set_sysctl(self.name, **values)

    def call(self, function: Callable[[], T]) -> T:
        return netns.call(self.name, function)

    def run(self, *command: str) -> str:
        """Run a program in the namespace and return what it prints. Raises LabError when it fails."""
        return run("nsenter", f"--net=/run/netns/{self.name}", "--", *command) if self.name else run(*command)

    def mac(self, device: str) -> str:
        """The hardware address of a link."""
        return str(json.loads(self.run("ip", "-j", "link", "show", device))[0]["address"])

    @property
    def reference(self) -> str:
        """How ``ip link`` names it: by name, or by a process in it (PID 1 of the sandbox)."""
        return self.name or "1"


def run(*command: str, stdin: str = "") -> str:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        what = " ".join(command) + (f" <<< {stdin.strip()!r}" if stdin else "")
        raise LabError(f"{what}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


class Switch:
    """A bridge that namespaces can be plugged into: the LAN, or the bridge of a host node."""

    def __init__(self, namespace: Namespace, device: str) -> None:
        self.namespace = namespace
        self.device = device
        self._ports = 0

    def create(self) -> None:
        # Where the machine has br_netfilter loaded, it would translate frames inside of the bridge as well.
        with contextlib.suppress(FileNotFoundError):
            self.namespace.sysctl(**{"bridge__bridge-nf-call-iptables": 0, "bridge__bridge-nf-call-ip6tables": 0})
        self.namespace.ip(f"link add {self.device} {BRIDGE}", f"link set {self.device} up")

    def plug(self, member: Namespace, device: str, addresses: Sequence[Interface] = ()) -> None:
        """Give ``member`` a link named ``device`` to this bridge, with addresses."""
        self._ports += 1
        port = f"port{self._ports}"
        run(
            *("ip", "link", "add", "name", device, "netns", member.reference, "type", "veth"),
            *("peer", "name", port, "netns", self.namespace.reference),
        )
        self.namespace.ip(f"link set {port} master {self.device}", f"link set {port} up")
        member.ip(f"link set {device} up", *(f"address add {address} dev {device}" for address in addresses))


@dataclass(frozen=True)
class Subnets:
    """The address plan of a link: the n-th address of each family in use."""

    ipv4: IPv4Network
    ipv6: IPv6Network | None = None

    def interfaces(self, number: int) -> list[Interface]:
        interfaces: list[Interface] = [IPv4Interface((self.ipv4[number], self.ipv4.prefixlen))]
        if self.ipv6 is not None:
            interfaces.append(IPv6Interface((self.ipv6[number], self.ipv6.prefixlen)))
        return interfaces

    def addresses(self, number: int) -> list[str]:
        return [str(interface.ip) for interface in self.interfaces(number)]


class Lan:
    """A bridge in a namespace of its own; the lab itself may join as one more station."""

    def __init__(self, subnets: Subnets, *, name: str = "lan") -> None:
        self.subnets = subnets
        self.name = name
        self.switch = Switch(Namespace(name), "br0")
        self._stations: list[Namespace] = []
        self._joined: list[str] = []

    def create(self) -> None:
        require_sandbox()
        self.switch.namespace.create()
        self.switch.create()

    def remove(self) -> None:
        """Remove the stations and the bridge; the links to it go with it."""
        for device in self._joined:  # at once: what a namespace's end takes along goes in the kernel's own time
            run("ip", "link", "delete", device)
        self._joined.clear()
        for station in self._stations:
            station.remove()
        self.switch.namespace.remove()

    def station(self, name: str, number: int) -> Namespace:
        """A new namespace with the ``number``-th addresses on ``eth0``."""
        namespace = Namespace(name)
        namespace.create()
        self._stations.append(namespace)
        self.switch.plug(namespace, "eth0", self.subnets.interfaces(number))
        return namespace

    def leave(self, station: Namespace) -> None:
        """Take one station away."""
        self._stations.remove(station)
        station.remove()

    def join(self, number: int, *, device: str = "") -> None:
        """Put the lab's own namespace on the LAN too."""
        self.switch.plug(Namespace(""), device or self.name, self.subnets.interfaces(number))
        self._joined.append(device or self.name)
