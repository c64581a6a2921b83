"""The words for load balancers of virtual machines: their owner in the host cluster, and the machines themselves."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from e2e.scenario import Scenario
from tests.lab.client import ApiError, Object
from tests.lab.lab import Pool
from tests.lab.machine import Machine
from tests.lab.process import wait_for
from tests.lab.programs import POOLS_PATH
from tests.lab.workload import Port

OURS, RIVALS = "machines", "rivals"
"""Namespaces of two tenants of the host cluster."""
POOL = Pool("machines", "10.77.98.1", "10.77.98.50", namespace=OURS, first6="fd00:77::9701", last6="fd00:77::9750")
SELECTOR = {"app": ["web"]}
FOLLOWED_SECONDS = 1.0


class Owner:
    """Who runs virtual machines in a namespace, and has load balancers for them."""

    def __init__(self, scenario: Scenario, namespace: str) -> None:
        self.scenario = scenario
        self.world = scenario.world
        self.api = self.world.api("host")
        self.namespace = namespace
        self._balancers = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{namespace}/loadbalancers"
        self._machines: list[Machine] = []

    # Machines.

    def machine(
        self, name: str, says: Sequence[str] | None = None, *, labels: Mapping[str, str] | None = None, **told: Any
    ) -> Machine:
        """A machine that runs, with its instance; ``told`` as :meth:`Machine.tell` has it."""
        machine = self.world.add_machine(self.namespace, name)
        self._machines.append(machine)
        machine.tell({"app": "web"} if labels is None else labels, says, **told)
        return machine

    def clear(self) -> None:
        """Have nothing left: load balancers first."""
        for balancer in self.api.items(self._balancers):
            self.api.delete(f"{self._balancers}/{balancer['metadata']['name']}")
        wait_for(f"no load balancer in {self.namespace}", lambda: not self.api.items(self._balancers))
        for machine in self._machines:
            with suppress(ApiError):
                machine.delete()
            with suppress(KeyError):
                self.world.remove_machine(machine.name)

    # Load balancers.

    def balance(
        self,
        name: str,
        ports: Sequence[Port],
        selector: Mapping[str, Sequence[str]] | None = None,
        **spec: Any,
    ) -> None:
        """Make a load balancer."""
        listeners = [
            {"name": f"{p.protocol.lower()}-{p.port}", "port": p.port, "protocol": p.protocol, "backendPort": p.target}
            for p in ports
        ]
        fixed = {"workloadType": "vm", "listeners": listeners, "backendServerSelector": selector or SELECTOR}
        kind = {"apiVersion": "loadbalancer.harvesterhci.io/v1beta1", "kind": "LoadBalancer"}
        self.api.create(self._balancers, {**kind, "metadata": {"name": name}, "spec": {**fixed, **spec}})

    def delete(self, name: str) -> None:
        """Delete a load balancer, and wait until it is gone."""
        self.api.delete(f"{self._balancers}/{name}")
        wait_for(f"the end of {name}", lambda: self.api.find(f"{self._balancers}/{name}") is None)

    def status(self, name: str) -> Object:
        status: Object = self.api.get(f"{self._balancers}/{name}").get("status", {})
        return status

    def addresses(self, name: str, count: int = 1) -> list[str]:
        """Wait until so many addresses are up; return them."""

        def up() -> list[str]:
            found: list[str] = self.status(name).get("holder", {}).get("addresses", [])
            return found if len(found) == count else []

        return wait_for(f"{count} addresses of {name}", up)

    def wait_said(self, name: str, kind: str, reason: str) -> str:
        """Wait until a condition has this reason; return its message."""

        def said() -> str:
            conditions: list[Object] = self.status(name).get("conditions", [])
            found: Object = next((c for c in conditions if c["type"] == kind), {})
            assert found.get("reason") == reason, f"{kind} is {found}"
            return str(found["message"])

        return wait_for(f"{name} to say {reason}", said)

    def backend(self, name: str, machine: str) -> Object:
        """What the status says of a machine, once it says anything."""

        def entry() -> Object | None:
            backends: list[Object] = self.status(name).get("backends", [])
            return next((b for b in backends if b["name"] == machine), None)

        return wait_for(f"{name} to tell of {machine}", entry)

    # Traffic.

    def wait_served(self, address: str, ports: Sequence[Port], machines: set[str]) -> None:
        """Wait until exactly these machines answer at each port."""
        for port in ports:
            self.scenario.wait_answer(address, port)

            def all_of_them(port: Port = port) -> bool:
                names = {self.scenario.ask(address, port).pod for _ in range(8 * len(machines))}
                assert names == machines, f"{sorted(names)} answered"
                return True

            wait_for(f"{sorted(machines)} behind {address} {port.protocol} {port.port}", all_of_them)

    def follows(self, change: Callable[[], object], address: str, port: Port, machines: set[str]) -> None:
        """Make a change of objects; within a second of it the host's kernel is to send to exactly these machines."""
        began = time.monotonic()
        change()
        limit = FOLLOWED_SECONDS - (time.monotonic() - began)
        self.scenario.wait_backends(address, port, frozenset(machines), timeout=limit)


def wait_fixed(scenario: Scenario, fixed: Mapping[str, str]) -> None:
    """Wait until the host's kernel has these addresses fixed to these MACs, and no others."""

    def there() -> bool:
        found = scenario.world.fixed_neighbours()
        assert found == fixed, f"fixed are {found}"
        return True

    wait_for("the fixed neighbours", there)


@contextmanager
def owners(scenario: Scenario) -> Iterator[tuple[Owner, Owner]]:
    """Both tenants, with a pool of both families for the first, which stays; nothing else of theirs is left."""
    api = scenario.world.api("host")
    namespaces = [("/api/v1/namespaces", {"metadata": {"name": namespace}}) for namespace in (OURS, RIVALS)]
    for path, made in (*namespaces, (POOLS_PATH, POOL.on(scenario.world.network).manifest())):
        with suppress(ApiError):  # there since an earlier scenario
            api.create(path, made)
    both = Owner(scenario, OURS), Owner(scenario, RIVALS)
    try:
        yield both
    finally:
        scenario.world.restore()
        for owner in both:
            owner.clear()
        wait_fixed(scenario, {})
