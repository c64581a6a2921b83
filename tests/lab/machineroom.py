"""Further hosts beside the lab's own: each a bridge on the LAN, with an agent of its own that can be pulled out."""

import contextlib
import json
import shlex
from collections.abc import Iterator

from tests.lab import programs
from tests.lab.client import STRATEGIC_MERGE_PATCH
from tests.lab.lab import GATEWAY, INSTANCE, Lab
from tests.lab.network import run
from tests.lab.node import HostNode
from tests.lab.pod import now
from tests.lab.process import LabError, Process
from tests.lab.programs import Program

NETNS = "/run/netns"
MACHINES, AGENTS = 200, 220
"""Their places on the LAN begin here: the hosts', and their agents'."""


class Host:
    """A host that stands for itself. The agents' namespaces are mounted where only this host sees them, and a process
    stands for the machine: with it, all that its kernel does is gone."""

    def __init__(self, lab: Lab, number: int) -> None:
        self.name = f"host-{number}"
        self._lab = lab
        self._number = number
        self._machine = Process(
            f"{self.name}/machine",
            ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _MACHINE],
            log=lab.logs / f"{self.name}.log",
            namespace=self.name,
        )
        self.agent: Program | None = None

    def boot(self) -> None:
        """Switch it on, and start its agent; returns when that is ready."""
        lab = self._lab
        self.node = HostNode.create(lab.lan, self.name, MACHINES + self._number)
        self._machine.start()
        self._machine.wait_until("on", lambda: "on" in self._machine.log_text())
        with contextlib.suppress(Exception):
            lab.host_plane.api.delete(f"/api/v1/nodes/{self.name}")
        lab.host_plane.api.create("/api/v1/nodes", {"metadata": {"name": self.name}})
        status = {
            "addresses": [{"type": "InternalIP", "address": self.node.address}],
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": now(), "lastHeartbeatTime": now()}
            ],
        }
        path = f"/api/v1/nodes/{self.name}/status"
        lab.host_plane.api.patch(path, {"status": status}, content_type=STRATEGIC_MERGE_PATCH)
        networks = lab.folder / f"networks-{self.name}.yaml"
        subnets = lab.lan.subnets
        own = subnets.interfaces(AGENTS + self._number)
        programs.write_networks(networks, self.node.switch.device, own, subnets.addresses(GATEWAY))
        self.agent = programs.agent_program(
            self.node.namespace,
            programs.account(lab.host_plane, "agent"),
            networks,
            node=self.name,
            instance=INSTANCE,
            log=lab.logs / f"program-agent-{self.name}.log",
            enter=("nsenter", f"--mount=/proc/{self._machine.pid}/ns/mnt", "--"),
        )
        self.agent.start()

    def pull_the_plug(self) -> None:
        """Its power is gone: no frame comes from it any more, and all processes are dead."""
        run("ip", "-n", self.name, "link", "delete", "uplink")
        if self.agent is not None:
            self.agent.kill()
        self._machine.kill()
        self.node.remove()

    def switch_off(self) -> None:
        """For good: what it has is given back first, if its agent still runs."""
        if self.agent is not None and self.agent.process.running:
            self.agent.stop()
            self.agent.run_action("leave")
        self._machine.kill()
        with contextlib.suppress(LabError):
            self.node.remove()
        self._lab.host_plane.api.delete(f"/api/v1/nodes/{self.name}")
        with contextlib.suppress(Exception):
            self._lab.host_plane.api.delete(f"{LEASES}/cloudprovider-agent-{INSTANCE}-{self.name}")

    @property
    def is_on(self) -> bool:
        return self._machine.running

    def addresses_on_link(self) -> set[str]:
        """The addresses of load balancers that its agent's namespace answers for."""
        if not self.is_on:
            return set()
        listed = self._inside("ip", "-n", f"lb-{INSTANCE}-mgmt", "-j", "address", "show", "scope", "global")
        own = set(self._lab.lan.subnets.addresses(AGENTS + self._number))
        return {a["local"] for link in json.loads(listed) for a in link.get("addr_info", []) if a} - own

    def _inside(self, *command: str) -> str:
        return run("nsenter", f"--mount=/proc/{self._machine.pid}/ns/mnt", "--", *command)


LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{programs.SYSTEM_NAMESPACE}/leases"
_MACHINE = f"mount -t tmpfs none {shlex.quote(NETNS)} && echo on && exec sleep infinity"


@contextlib.contextmanager
def hosts(lab: Lab, *numbers: int) -> Iterator[list[Host]]:
    """So many further hosts, on; off at the end."""
    made: list[Host] = []
    try:
        for number in numbers:
            made.append(Host(lab, number))
            made[-1].boot()
        yield made
    finally:
        for host in made:
            host.switch_off()


def holder(lab: Lab, path: str) -> str:
    """The host that holds a load balancer, "" for none."""
    return str(lab.host_plane.api.get(path).get("status", {}).get("holder", {}).get("node", ""))
