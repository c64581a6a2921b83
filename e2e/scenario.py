"""The words that scenarios are written in: a user of the guest cluster, and a client that looks from outside."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import pytest

from e2e.world import World
from tests.lab.process import LabError, wait_for
from tests.lab.traffic import Answer
from tests.lab.workload import MODE_ANNOTATION, Port, Workspace, service

READY = "loadbalancer.harvesterhci.io/Ready"
"""The condition that a Service shows."""
Mode = Literal["nat", "dsr"]
MODES = pytest.mark.parametrize("mode", get_args(Mode))
"""For what holds whichever way the host forwards."""

WEB = Port(80, 8080)
DNS = Port(53, 5353, "UDP")
SAMPLES = 24
"""Requests that show every one of three pods but with a probability of 2 in 10,000; whoever asks repeats."""


class Scenario:
    """One scenario's namespace, and what can be seen of its Services from the LAN."""

    def __init__(self, world: World, namespace: str) -> None:
        self.world = world
        self.guest = Workspace(world.api("guest"), namespace)

    def served(
        self, name: str, ports: Sequence[Port] = (WEB,), *, replicas: int = 2, mode: str = "auto", **spec: Any
    ) -> str:
        """A deployment with a Service before it; return its address once every pod answers at every port."""
        self.guest.deploy(name, replicas)
        return self.exposed(name, ports, mode=mode, pods=replicas, **spec)

    def exposed(
        self, name: str, ports: Sequence[Port] = (WEB,), *, mode: str = "auto", app: str = "", pods: int, **spec: Any
    ) -> str:
        """A Service before what is deployed; return its address once every pod answers at every port.

        One answer would not do: it says nothing of the other nodes, whose kube-proxies may follow seconds later.
        """
        self.guest.expose(service(name, ports, app=app, annotations={MODE_ANNOTATION: mode}, **spec))
        address = self.guest.wait_address(name)
        for port in ports:
            self.wait_answer(address, port)
            self.wait_pods(address, port, pods)
        return address

    def wait_said(self, name: str, reason: str) -> str:
        """Wait until a Service says why it is not ready; return the message."""

        def said() -> str:
            condition = self.guest.condition(name, READY)
            return str(condition["message"]) if condition.get("reason") == reason else ""

        return wait_for(f"{name} to say {reason}", said)

    def nodes(self) -> list[str]:
        """The names of the guest's nodes, sorted."""
        return sorted(node["metadata"]["name"] for node in self.guest.api.items("/api/v1/nodes"))

    def programmed(self, name: str) -> str:
        """What the host's LoadBalancer of a Service says of being forwarded."""
        balancers = self.world.api("host").items("/apis/loadbalancer.harvesterhci.io/v1beta1/loadbalancers")
        place = {"namespace": self.guest.namespace, "name": name}
        found = next(b for b in balancers if place.items() <= b["spec"].get("service", {}).items())
        return next(str(c["message"]) for c in found["status"]["conditions"] if c["type"] == "Programmed")

    def label_node(self, name: str, label: str, value: str | None) -> None:
        """Set a label of a node of the guest; None takes it away."""
        self.guest.api.patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {label: value}}})

    def node_address(self, name: str) -> str:
        """The first address of a node of the guest."""
        node = self.guest.api.get(f"/api/v1/nodes/{name}")
        return str(node["status"]["addresses"][0]["address"])

    def node_port(self, name: str) -> int:
        """The NodePort of a Service's first port."""
        return int(self.guest.get(name)["spec"]["ports"][0]["nodePort"])

    def ask(self, address: str, port: Port) -> Answer:
        """One request from the client. Raises ConnectionRefusedError, TimeoutError or another OSError."""
        return self.world.client.request(port.protocol, address, port.port)

    def wait_answer(self, address: str, port: Port, *, timeout: float = 30) -> Answer:
        """Wait for an answer of the port's own target."""

        def answer() -> Answer:
            found = self.ask(address, port)
            assert found.port == port.target, f"answered by port {found.port}, not {port.target}"
            return found

        return wait_for(f"an answer of {address} {port.protocol} {port.port}", answer, timeout=timeout)

    def wait_refused(self, address: str, port: Port, *, timeout: float = 30) -> None:
        """Wait until the client is told that nobody is there (RST or ICMP): silence is not enough."""

        def refused() -> bool:
            try:
                answer = self.ask(address, port)
            except ConnectionRefusedError:
                return True
            raise AssertionError(f"answered by {answer.pod}")

        wait_for(f"refusal by {address} {port.protocol} {port.port}", refused, timeout=timeout)

    def wait_dropped(self, address: str, port: Port, *, timeout: float = 30) -> None:
        """Wait until what the client sends is dropped, though the address is there: no answer, no refusal."""

        def dropped() -> bool:
            assert self.world.client.ping(address), "the address does not answer ping"
            try:
                answer = self.ask(address, port)
            except TimeoutError:
                return True
            raise AssertionError(f"answered by {answer.pod}")

        wait_for(f"silence of {address} {port.protocol} {port.port}", dropped, timeout=timeout)

    def wait_silent(self, address: str, port: Port, *, timeout: float = 30) -> None:
        """Wait until nobody on the LAN has the address any more: no answer, no refusal, no ARP."""

        def silent() -> bool:
            self.world.client.forget_neighbours()
            try:
                answer = self.ask(address, port)
            except ConnectionRefusedError as error:
                raise AssertionError("somebody refuses, so has the address") from error
            except OSError:
                return True
            raise AssertionError(f"answered by {answer.pod}")

        wait_for(f"silence of {address}", silent, timeout=timeout)

    def wait_pods(self, address: str, port: Port, count: int, *, timeout: float = 30) -> None:
        """Wait until exactly ``count`` pods answer, and no request is lost on the way."""

        def all_pods() -> bool:
            pods = {self.ask(address, port).pod for _ in range(SAMPLES)}
            assert len(pods) == count, f"{sorted(pods)} answered"
            return True

        wait_for(f"{count} pods behind {address}", all_pods, timeout=timeout)

    def wait_backends(self, address: str, port: Port, nodes: frozenset[str] | None, *, timeout: float = 30) -> None:
        """Wait until the host's kernel sends a port to exactly these nodes."""

        def there() -> bool:
            found = self.world.backends(address, port.protocol, port.port)
            assert found == nodes, f"it goes to {found}"
            return True

        wait_for(f"{address} {port.protocol} {port.port} to go to {nodes}", there, timeout=timeout)

    def wait_mode(self, address: str, port: Port, mode: str, *, timeout: float = 30) -> None:
        """Wait until the host's kernel forwards a port in this mode."""

        def there() -> bool:
            found = self.world.mode(address, port.protocol, port.port)
            assert found == mode, f"it is forwarded in mode {found or 'none'}"
            return True

        wait_for(f"{address} {port.protocol} {port.port} in mode {mode}", there, timeout=timeout)

    def has_no_address(self, name: str, *, within: float) -> bool:
        """Whether a Service still shows no address after ``within`` seconds: for what must not happen."""
        try:
            self.guest.wait_address(name, timeout=within)
        except LabError:
            return True
        return False
