"""Load balancers of virtual machines: containers stand in for machines, KubeVirt is its kind alone, whose objects are
written as KubeVirt writes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from typing_extensions import override

from e2e.k3d.commands import run
from e2e.k3d_lane import K3dWorld
from e2e.machines import Owner, owners, wait_fixed
from e2e.scenario import DNS, WEB, Scenario
from tests.lab.lab import KUBEVIRT
from tests.lab.machine import Instance
from tests.lab.process import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(150)]


@dataclass
class StandIn(Instance):
    """A container of ``machines``' network, called as :meth:`Machines.server` calls it."""

    k3d: K3dWorld
    container: str

    @property
    @override
    def mac(self) -> str:
        return self.k3d.machines.mac(self.container)

    @property
    @override
    def addresses(self) -> list[str]:
        return [self.k3d.machines.address(self.container)]


@pytest.fixture
def both(k3d: K3dWorld, scenario: Scenario) -> Iterator[tuple[Owner, Owner]]:
    """Two tenants of the host, after KubeVirt has come to it: later than our programs, as it may."""
    k3d.host.kubectl("apply", "--server-side", "-f", KUBEVIRT)
    k3d.host.kubectl("wait", "--for=condition=Established", "crd/virtualmachineinstances.kubevirt.io", "--timeout=30s")
    with owners(scenario) as made:
        yield made


@contextmanager
def machine(k3d: K3dWorld, owner: Owner, name: str) -> Iterator[StandIn]:
    """A machine of a tenant that runs and serves, and its instance, which goes first."""
    with k3d.machines.server(name) as container:
        made = StandIn(k3d.host.api, owner.namespace, name, k3d, container)
        made.tell({"app": "web"})
        try:
            yield made
        finally:
            k3d.host.kubectl("delete", "vmi", "--namespace", owner.namespace, name, "--ignore-not-found")


def test_machines_come_are_relabelled_die_and_go(k3d: K3dWorld, both: tuple[Owner, Owner]) -> None:
    ours, _ = both
    check = {"port": WEB.target, "protocol": "TCP", "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 2}
    with machine(k3d, ours, "one") as one:
        ours.balance("web", [WEB, DNS], ipPool="machines", healthCheck=check)
        (address,) = ours.addresses("web")
        ours.wait_served(address, [WEB, DNS], {"one"})
        with machine(k3d, ours, "two") as two:
            ours.wait_served(address, [WEB, DNS], {"one", "two"})
            wait_fixed(ours.scenario, {m.addresses[0]: m.mac for m in (one, two)})
            assert {b["name"]: b["macAddress"] for b in ours.status("web")["backends"]} == {
                "one": one.mac,
                "two": two.mac,
            }
            one.label(app="other")
            ours.wait_served(address, [WEB, DNS], {"two"})
            one.label(app="web")
            ours.wait_served(address, [WEB, DNS], {"one", "two"})
            run("docker", "kill", two.container)  # KubeVirt has not told yet: the check finds it out
            wait_for(
                "the check to see it", lambda: ours.backend("web", "two").get("health", {}).get("healthy") is False
            )
            ours.wait_served(address, [WEB], {"one"})
        ours.wait_served(address, [WEB, DNS], {"one"})
    ours.scenario.wait_refused(address, WEB)
    ours.wait_said("web", "Ready", "NoBackends")
    ours.delete("web")
    ours.scenario.wait_silent(address, WEB)


def test_a_machine_that_claims_anothers_address_gets_nothing(k3d: K3dWorld, both: tuple[Owner, Owner]) -> None:
    ours, rivals = both
    with machine(k3d, ours, "victim") as victim:
        ours.balance("web", [WEB], ipPool="machines")
        (address,) = ours.addresses("web")
        ours.wait_served(address, [WEB], {"victim"})
        with machine(k3d, rivals, "liar") as liar:
            liar.report(*victim.addresses)
            rivals.balance("web", [WEB], ipPool="reserved")
            (lied,) = rivals.addresses("web")

            def told() -> bool:
                return bool(rivals.backend("web", "liar").get("reason") == "AddressInUse")

            wait_for("the lie to be found out", told)
            rivals.scenario.wait_refused(lied, WEB)
            ours.wait_served(address, [WEB], {"victim"})
