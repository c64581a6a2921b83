"""The lab as a lane: a World out of namespaces and processes on this machine."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from ipaddress import IPv4Network

from e2e.world import Leases, ProgramName, Side
from tests.lab import checker, programs, snapshot
from tests.lab.client import Api, ApiError
from tests.lab.lab import ELSEWHERE, NETWORK, POOL, RESERVED_POOL, Lab
from tests.lab.machine import Machine
from tests.lab.network import Namespace
from tests.lab.process import LabError
from tests.lab.traffic import Client

FIRST_SPARE_NODE = 3


class LabWorld:
    """Meets :class:`e2e.world.World`."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._first_nodes = frozenset(lab.nodes.nodes)
        self._numbers = self._spare_numbers()

    @staticmethod
    def _spare_numbers() -> Iterator[int]:
        yield from range(FIRST_SPARE_NODE, 60)

    @property
    def network(self) -> IPv4Network:
        return NETWORK

    @property
    def client(self) -> Client:
        return self.lab.client

    def api(self, side: Side) -> Api:
        return self.lab.plane(side).api

    def kubectl(self, side: Side, *arguments: str) -> str:
        return self.lab.plane(side).kubectl(*arguments)

    def lb(self, side: Side, *arguments: str) -> tuple[int, str]:
        return programs.kubectl_lb(self.lab.plane(side).kubeconfig, *arguments)

    def pool_holds(self, pool: str, address: str) -> bool:
        return next(p for p in (POOL, RESERVED_POOL) if p.name == pool).holds(address)

    def dhcp(self, *, lease_seconds: int = 3600) -> AbstractContextManager[Leases]:
        return self.lab.dhcp_server(lease_seconds)

    def intruder(self, address: str) -> AbstractContextManager[str]:
        return self.lab.intruder(address)

    def visitor(self, address: str) -> AbstractContextManager[Client]:
        return self.lab.visitor(address)

    def far_client(self, mtu: int) -> AbstractContextManager[Client]:
        return self.lab.far_client(mtu)

    def on_node(self, name: str) -> Client:
        return Client(self.lab.nodes.nodes[name].namespace)

    def in_pod(self, uid: str) -> Client:
        return Client(self.lab.nodes.runner.namespace_of(uid))

    def backends(self, address: str, protocol: str, port: int) -> frozenset[str] | None:
        return snapshot.nodes_behind(self.lab, (address, protocol.lower(), port))

    def mode(self, address: str, protocol: str, port: int) -> str:
        kernel, listener = snapshot.read_kernel(self.lab), (address, protocol.lower(), port)
        return kernel.mode(listener)

    def fixed_neighbours(self) -> dict[str, str]:
        return snapshot.fixed_neighbours(self.lab)

    def add_machine(self, namespace: str, name: str) -> Machine:
        return self.lab.add_machine(namespace, name)

    def remove_machine(self, name: str) -> None:
        self.lab.remove_machine(name)

    def migrate_machine(self, name: str) -> None:
        self.lab.machines[name].migrate(self.lab.lan.switch)

    def traffic_nodes(self) -> frozenset[str]:
        return frozenset(checker.traffic_nodes(self.lab.guest_plane.api.items("/api/v1/nodes")))

    def kill(self, name: ProgramName) -> None:
        self.lab.kill(name)

    def start(self, name: ProgramName) -> None:
        self.lab.start(name)

    def leave(self) -> None:
        outcome = self.lab.leave()
        if outcome.exit_code != 0:
            raise LabError(f"agent leave ended with {outcome.exit_code}:\n{outcome.log}")

    def api_server_down(self, side: Side) -> AbstractContextManager[None]:
        return self.lab.api_server_down(side)

    def bridge_cut(self) -> AbstractContextManager[None]:
        return self.lab.bridge_cut()

    def restore(self) -> None:
        for plane in (self.lab.host_plane, self.lab.guest_plane):
            plane.start()
        for name in self.lab.nodes.nodes.keys() - self._first_nodes:
            self.lab.remove_node(name)
        for name in list(self.lab.machines):
            self.lab.remove_machine(name)
        for program in ("host", "agent", "guest"):
            self.lab.start(program)

    def add_node(self, name: str, *, elsewhere: bool = False) -> None:
        self.lab.add_node(name, next(self._numbers), subnets=ELSEWHERE if elsewhere else None)

    def without_kube_proxy(self, name: str) -> AbstractContextManager[None]:
        return self.lab.nodes.without_kube_proxy(name)

    def cut_node(self, name: str) -> None:
        self.lab.nodes.nodes[name].namespace.ip("link set eth0 down")

    def remove_node(self, name: str) -> None:
        self.lab.remove_node(name)

    def wait_until_agreed(self) -> None:
        checker.wait_until_agreed(self.lab)

    def differences(self) -> list[str]:
        return checker.differences(self.lab)

    def check_rights(self) -> None:
        self.lab.check_rights()

    def describe(self) -> str:
        lab = self.lab
        sections: dict[str, Callable[[], str]] = {
            "guest": partial(
                lab.guest_plane.kubectl, "get", "nodes,services,pods,endpointslices,events", "-A", "-o", "wide"
            ),
            "host": partial(
                lab.host_plane.kubectl, "get", "loadbalancers,ippools,ipblocks,guestclusters,vmis", "-A", "-o", "yaml"
            ),
            "kernel": lambda: str(snapshot.read_kernel(lab)),
        }
        for name in (lab.segment.name, lab.client.namespace.name, *lab.nodes.nodes):
            namespace = Namespace(name)
            sections[f"{name}: neighbours"] = partial(namespace.run, "ip", "neighbour")
            sections[f"{name}: connections"] = partial(namespace.run, "conntrack", "-L")
        return "\n".join(f"===== {title}\n{_text(section)}" for title, section in sections.items())


def _text(section: Callable[[], str]) -> str:
    try:
        return section()
    except (OSError, LabError, ApiError) as error:
        return f"can't be told: {error}"
