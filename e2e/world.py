"""The seam between scenarios and a lane: all that a scenario may know of where it runs.

The lane here is the lab (tests/lab: namespaces, real control planes, our programs as processes). Another lane brings
a World of its own and runs the same scenarios.
"""

from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv4Network
from typing import Literal, Protocol

from tests.lab.client import Api
from tests.lab.machine import Machine
from tests.lab.traffic import Client

ProgramName = Literal["guest", "host", "agent"]
Side = Literal["guest", "host"]


class Leases(Protocol):
    """A DHCP server's own view."""

    def leases(self) -> set[IPv4Address]:
        """The addresses that are leased now."""
        ...

    def down(self) -> AbstractContextManager[None]:
        """The server is stopped meanwhile; it keeps its leases."""
        ...


class World(Protocol):
    """Host and guest cluster, our programs, and a client on the LAN."""

    @property
    def network(self) -> IPv4Network:
        """The LAN's addresses of IPv4, 65,536 of them; a scenario puts its pools there by :meth:`Pool.on`."""
        ...

    @property
    def client(self) -> Client:
        """A machine on the LAN that is no part of either cluster."""
        ...

    def api(self, side: Side) -> Api:
        """A cluster's API server, as its administrator."""
        ...

    def kubectl(self, side: Side, *arguments: str) -> str:
        """What kubectl shows to a cluster's administrator."""
        ...

    def lb(self, side: Side, *arguments: str) -> tuple[int, str]:
        """``kubectl lb`` as a cluster's administrator: its exit code, and all that it prints."""
        ...

    def pool_holds(self, pool: str, address: str) -> bool:
        """Whether the address is one of the pool's; pools are "lan" (chosen by itself) and "reserved" (by name)."""
        ...

    def dhcp(self, *, lease_seconds: int = 3600) -> AbstractContextManager[Leases]:
        """A DHCP server on the LAN, with a range apart from all pools."""
        ...

    def intruder(self, address: str) -> AbstractContextManager[str]:
        """A machine on the LAN that uses an address; its MAC."""
        ...

    def visitor(self, address: str) -> AbstractContextManager[Client]:
        """Another client on the LAN, with an IPv4 address there."""
        ...

    def far_client(self, mtu: int) -> AbstractContextManager[Client]:
        """A client behind the LAN's gateway and a link of ``mtu`` bytes, which only the gateway knows of."""
        ...

    def on_node(self, name: str) -> Client:
        """Whoever asks from a guest's node itself."""
        ...

    def in_pod(self, uid: str) -> Client:
        """Whoever asks from within a pod. Raises KeyError when it does not run."""
        ...

    def backends(self, address: str, protocol: str, port: int) -> frozenset[str] | None:
        """The names of the nodes that the host's kernel sends a listener to now; None: it knows no such listener."""
        ...

    def mode(self, address: str, protocol: str, port: int) -> str:
        """How the host's kernel forwards a listener now: "nat", "dsr", or "" where it knows no such listener."""
        ...

    def fixed_neighbours(self) -> dict[str, str]:
        """The addresses that the host's kernel sends to one MAC, whoever answers for them."""
        ...

    def add_machine(self, namespace: str, name: str) -> Machine:
        """Switch on a virtual machine on the host's network, of a namespace of the host cluster; KubeVirt has not told
        of it yet."""
        ...

    def remove_machine(self, name: str) -> None:
        """Switch it off; its object is the scenario's matter."""
        ...

    def migrate_machine(self, name: str) -> None:
        """Move a virtual machine to another host of the LAN."""
        ...

    def traffic_nodes(self) -> frozenset[str]:
        """The names of the guest's nodes that take traffic."""
        ...

    def kill(self, name: ProgramName) -> None:
        """SIGKILL for one of our programs; nothing restarts it until :meth:`start`."""
        ...

    def start(self, name: ProgramName) -> None:
        """Start one of our programs if it does not run, and wait until it is ready."""
        ...

    def leave(self) -> None:
        """Stop the agent, and have it remove from its host all that it has made there. Raises LabError."""
        ...

    def api_server_down(self, side: Side) -> AbstractContextManager[None]:
        """A cluster's API server is killed on entry, and ready again on exit."""
        ...

    def bridge_cut(self) -> AbstractContextManager[None]:
        """No packet passes between guest program and bridge, and nobody is told."""
        ...

    def restore(self) -> None:
        """Bring back what every scenario begins with: both clusters and all programs run, just the first nodes."""
        ...

    def add_node(self, name: str, *, elsewhere: bool = False) -> None:
        """Add a node to the guest cluster, whose kube-proxy is open about its health; ``elsewhere``: on another
        network than the addresses, behind their gateway."""
        ...

    def without_kube_proxy(self, name: str) -> AbstractContextManager[None]:
        """A node's kube-proxy and all of its rules are gone on entry, and back and in step on exit."""
        ...

    def cut_node(self, name: str) -> None:
        """Cut a guest node off the LAN, for good; its object stays until it is removed."""
        ...

    def remove_node(self, name: str) -> None:
        """Take a guest node away with everything on it."""
        ...

    def wait_until_agreed(self) -> None:
        """Wait until Services, LoadBalancers, pools, kernel rules and addresses agree exactly. Raises LabError with
        every difference."""
        ...

    def differences(self) -> list[str]:
        """On what Services, LoadBalancers, pools, kernel rules and addresses disagree at this moment."""
        ...

    def check_rights(self) -> None:
        """Raise LabError when one of our programs has asked an API server for what its role does not allow."""
        ...

    def describe(self) -> str:
        """All that helps to understand a failure, as text: objects, kernel, connections, who is reached how."""
        ...
