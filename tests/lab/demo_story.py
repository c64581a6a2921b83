"""What ``make demo`` shows, told inside of the sandbox that demo.py starts: from nothing to nothing, step by step."""

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from tests.lab import checker, snapshot
from tests.lab.build import BuildError
from tests.lab.client import ApiError
from tests.lab.console import start_console
from tests.lab.controlplane import ControlPlane
from tests.lab.lab import POOL, RESERVED_POOL, Lab
from tests.lab.process import LabError, wait_for
from tests.lab.programs import POOLS_PATH, kubectl_lb
from tests.lab.workload import POOL_ANNOTATION, Port, Workspace, service

NAMESPACE = "demo"
MACHINES_NAMESPACE = "machines"
BALANCERS_PATH = f"/apis/loadbalancer.harvesterhci.io/v1beta1/namespaces/{MACHINES_NAMESPACE}/loadbalancers"
FRONT = {
    "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
    "kind": "LoadBalancer",
    "metadata": {"name": "front"},
    "spec": {
        "workloadType": "vm",
        "listeners": [{"name": "http", "port": 80, "backendPort": 8080}],
        "backendServerSelector": {"app": ["front"]},
        "healthCheck": {"port": 8080, "protocol": "HTTP", "periodSeconds": 1, "timeoutSeconds": 1},
    },
}
WEB, ADMIN, DNS = Port(80, 8080), Port(8081, 9090), Port(53, 5353, "UDP")
SAMPLES = 30
PATIENCE_SECONDS = 0.2
"""How long the client waits for one answer before it asks again: the shorter, the truer a step's time."""
INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a story that was asked to end."""
KEPT = b"\0"
"""Ends the text of a demo that stays; what the outside needs to know follows, as one line of JSON."""


class Narrator:
    """Tells what happens, and how long it took."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._write("Left: seconds since the start. In brackets: what the step took.\n")

    def headline(self, text: str) -> None:
        self._write(f"\n{text}\n")

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """A step that is under way: what it came to is told at its end, with the time it took."""
        outcome = ["done"]
        began = time.monotonic()
        self._write(f"  {began - self._began:6.1f} s  {text} ... ")
        try:
            yield outcome.append
        except BaseException:
            self._write(f"FAILED ({_duration(time.monotonic() - began)})\n")
            raise
        self._write(f"{outcome[-1]} ({_duration(time.monotonic() - began)})\n")

    def detail(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            self._write(f"            {line}\n")

    def kubectl(self, plane: ControlPlane, *arguments: str) -> None:
        """What kubectl shows of a cluster, below the command."""
        self.detail(f"{plane.name}$ kubectl {' '.join(arguments)}\n{plane.kubectl(*arguments)}")

    def _write(self, text: str) -> None:
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:
            os._exit(INTERRUPTED)  # nobody looks on any more: that is as good as Ctrl-C


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


class Demo:
    """The story, told on a lab."""

    def __init__(self, lab: Lab, say: Narrator) -> None:
        self.lab = lab
        self.say = say

    def bring_up(self) -> None:
        self.say.headline("A host cluster, a guest cluster, and a LAN")
        with self.say.step("Lay the LAN, with a host node, the guest's machine and a client"):
            self.lab.start_network()
        with self.say.step("Start two real control planes: etcd, kube-apiserver, kube-controller-manager"):
            self.lab.start_control_planes()
        with self.say.step("Start two guest nodes with the real kube-proxy") as told:
            self.lab.start_nodes()
            told(", ".join(f"{node.name} {node.address}" for node in self.lab.nodes.nodes.values()))
        with self.say.step("Start our three programs, host, agent and guest, each with its own few rights"):
            self.lab.start_programs()
        self.guest = Workspace(self.lab.guest_plane.api, NAMESPACE)
        self.guest.create()

    def pools(self) -> None:
        self.say.headline("The host's operator has made two pools of addresses")
        for pool in self.lab.host_plane.api.items(POOLS_PATH):
            (scope,) = pool["spec"]["selector"]["scope"]
            whom = f"guest cluster {scope['guestCluster']}" if scope["guestCluster"] != "*" else "everybody"
            for one in pool["spec"]["ranges"]:
                name, first, last = pool["metadata"]["name"], one["rangeStart"], one["rangeEnd"]
                self.say.detail(f"{name:<10}{first:>14} to {last:<14} for {whom}")

    def first_service(self) -> None:
        self.say.headline("A user of the guest deploys a web server, and exposes it: two TCP ports and a UDP port")
        with self.say.step("Deploy web, 2 pods") as told:
            self.guest.deploy("web", 2)
            told("ready")
        with self.say.step("Create Service web, type LoadBalancer: its address") as told:
            self.guest.expose(service("web", [WEB, ADMIN, DNS]))
            self.web = self.guest.wait_address("web")
            told(f"{self.web}, of pool {self._pool(self.web)}, chosen by its scope")
        self._wait_kube_proxy("web", WEB)
        for port in (WEB, ADMIN, DNS):
            self._ask(self.web, port)
        self.say.kubectl(self.lab.guest_plane, "-n", NAMESPACE, "get", "service", "web")
        self.say.kubectl(self.lab.host_plane, "get", "loadbalancers", "-A")

    def second_service(self) -> None:
        self.say.headline(f"A second Service names its pool, by the annotation {POOL_ANNOTATION}: {RESERVED_POOL.name}")
        with self.say.step("Create Service dns: its address") as told:
            annotations = {POOL_ANNOTATION: RESERVED_POOL.name}
            self.guest.expose(service("dns", [DNS], app="web", annotations=annotations))
            self.dns = self.guest.wait_address("dns")
            told(f"{self.dns}, of pool {self._pool(self.dns)}")
        self._wait_kube_proxy("dns", DNS)
        self._ask(self.dns, DNS)

    def scale(self) -> None:
        self.say.headline("Backends come and go")
        for replicas in (3, 1):
            with self.say.step(f"Scale web to {replicas}: of {SAMPLES} requests, each pod answers") as told:
                self.guest.scale("web", replicas)
                told(wait_for(f"{replicas} pods to answer", partial(self._who_answers, replicas)))
        with self.say.step("Node node-3 joins: the host sends to") as told:
            self.lab.add_node("node-3", 3)
            told(self._wait_backends())
        with self.say.step("Node node-3 leaves: the host sends to") as told:
            self.lab.remove_node("node-3")
            told(self._wait_backends())

    def refuse(self) -> None:
        with self.say.step("Scale web to 0: the client, not left waiting, is") as told:
            self.guest.scale("web", 0)
            wait_for("refusal", self._refused)
            told("refused")
        with self.say.step("Scale web to 2") as told:
            self.guest.scale("web", 2)
            told(self._answer(self.web, WEB))

    def machines(self) -> None:
        self.say.headline("Virtual machines of the host get one, too: chosen by label, checked every second")
        self.lab.host_plane.api.create("/api/v1/namespaces", {"metadata": {"name": MACHINES_NAMESPACE}})
        with self.say.step("Start two virtual machines with a web server, labelled app=front") as told:
            for name in ("vm-1", "vm-2"):
                self.lab.add_machine(MACHINES_NAMESPACE, name).tell({"app": "front"})
            told(", ".join(f"{machine.name} {machine.addresses[0]}" for machine in self.lab.machines.values()))
        with self.say.step("Create LoadBalancer front, for app=front: its address") as told:
            self.lab.host_plane.api.create(BALANCERS_PATH, FRONT)
            self.front = wait_for("its address", self._front_address)
            told(self.front)
        with self.say.step(f"Of {SAMPLES} requests to http://{self.front}:80/, each machine answers") as told:
            told(wait_for("both machines to answer", partial(self._who_answers, 2, self.front)))
        with self.say.step("Kill the server in vm-1; three checks later the other one answers") as told:
            self.lab.machines["vm-1"].stop_serving()
            told(wait_for("vm-2 to answer alone", partial(self._who_answers, 1, self.front)))
        wait_for("the status to say so", self._front_told)
        self.say.detail(f"host$ kubectl lb list -A\n{kubectl_lb(self.lab.host_plane.kubeconfig, 'list', '-A')[1]}")
        with self.say.step("Start it again: each machine answers") as told:
            machine = self.lab.machines["vm-1"]
            machine.serve(machine.addresses)
            told(wait_for("both machines to answer", partial(self._who_answers, 2, self.front)))

    def agree(self) -> None:
        with self.say.step("Compare both clusters, pools, kernel rules and addresses") as told:
            checker.wait_until_agreed(self.lab)
            told("no difference")

    def delete(self) -> None:
        self.say.headline("All is deleted again")
        with self.say.step("Delete Services web and dns") as told:
            for name in ("web", "dns"):
                self.guest.delete(name)
            for name in ("web", "dns"):
                self.guest.wait_deleted(name)
            told("gone, their addresses given back")
        with self.say.step("Delete LoadBalancer front and its machines") as told:
            self.lab.host_plane.api.delete(f"{BALANCERS_PATH}/front")
            wait_for("its end", lambda: self.lab.host_plane.api.find(f"{BALANCERS_PATH}/front") is None)
            for name in list(self.lab.machines):
                self.lab.machines[name].delete()
                self.lab.remove_machine(name)
            told("gone, its address given back")
        with self.say.step(f"Ask the LAN who has {self.web}") as told:
            wait_for("silence", self._silent)
            told("nobody")

    def _pool(self, address: str) -> str:
        return next(pool.name for pool in (POOL, RESERVED_POOL) if pool.holds(address))

    def _wait_kube_proxy(self, name: str, port: Port) -> None:
        """Tell kube-proxy's time from ours: it programs a new Service at its own pace, up to a second later."""
        with self.say.step(f"Wait for kube-proxy on both nodes to have Service {name} too"):
            ports: list[dict[str, Any]] = self.guest.get(name)["spec"]["ports"]
            (number,) = (entry["nodePort"] for entry in ports if entry["port"] == port.port)
            for node in self.lab.nodes.nodes.values():
                ask = partial(self.lab.client.request, port.protocol, node.address, number, timeout=PATIENCE_SECONDS)
                wait_for(f"an answer of {node.name} at NodePort {number}", ask)

    def _ask(self, address: str, port: Port) -> None:
        tcp = port.protocol == "TCP"
        what = f"fetches http://{address}:{port.port}/" if tcp else f"asks {address}, UDP port {port.port}"
        with self.say.step(f"The client {what}") as told:
            told(self._answer(address, port))

    def _answer(self, address: str, port: Port) -> str:
        ask = partial(self.lab.client.request, port.protocol, address, port.port, timeout=PATIENCE_SECONDS)
        answer = wait_for("an answer", ask)
        return f"{answer.pod} answers from its port {answer.port}"

    def _front_address(self) -> str:
        return next(iter(self._front_status().get("holder", {}).get("addresses", [])), "")

    def _front_told(self) -> bool:
        return any(not one["health"].get("healthy") for one in self._front_status()["backends"] if one.get("health"))

    def _front_status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.lab.host_plane.api.get(f"{BALANCERS_PATH}/front").get("status", {})
        return status

    def _who_answers(self, count: int, address: str = "") -> str:
        address = address or self.web
        pods = Counter(self.lab.client.get(address, WEB.port, timeout=PATIENCE_SECONDS).pod for _ in range(SAMPLES))
        if len(pods) != count:
            return ""
        return ", ".join(
            f"{pod if address != self.web else pod.rpartition('-')[2]} {times}x" for pod, times in sorted(pods.items())
        )

    def _wait_backends(self) -> str:
        def there() -> str:
            found = snapshot.nodes_behind(self.lab, (self.web, "tcp", WEB.port))
            return ", ".join(sorted(found)) if found and found == self.lab.nodes.nodes.keys() else ""

        return wait_for("the host's rules to follow", there)

    def _refused(self) -> bool:
        try:
            self.lab.client.get(self.web, WEB.port, timeout=PATIENCE_SECONDS)
        except ConnectionRefusedError:
            return True
        return False

    def _silent(self) -> bool:
        self.lab.client.forget_neighbours()
        try:
            self.lab.client.get(self.web, WEB.port, timeout=1)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
        return False


def tell(logs: Path, *, door: socket.socket | None) -> None:
    """The whole story; with a ``door`` up to where all runs, and then it stays there until it is ended, with the
    console behind that socket, which listens outside of the sandbox."""
    say = Narrator()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))
        lab = Lab(Path(folder), logs)
        stack.enter_context(lab.opened())
        demo = Demo(lab, say)
        demo.bring_up()
        demo.pools()
        demo.first_service()
        demo.second_service()
        demo.scale()
        demo.refuse()
        demo.agree()
        demo.machines()
        if door is not None:
            start_console(lab, stack, door)
            _stay(demo, logs)
        demo.delete()
        demo.agree()
        say.headline("Clean up")
        with say.step("End every process; namespaces, links and rules end with the sandbox"):
            stack.close()


def _stay(demo: Demo, logs: Path) -> NoReturn:
    """Tell the outside how to reach this, give its terminal back, and wait to be ended."""
    kubeconfigs = {plane.name: str(plane.kubeconfig) for plane in (demo.lab.host_plane, demo.lab.guest_plane)}
    sys.stdout.buffer.write(KEPT + json.dumps({"kubeconfigs": kubeconfigs, "address": demo.web}).encode() + b"\n")
    sys.stdout.flush()
    with (logs / "demo.log").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    while True:
        signal.pause()


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once. Nothing is taken down in order: the kernel ends all that the sandbox holds, and sooner."""
    os._exit(INTERRUPTED)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", type=Path, required=True, help="where the programs' logs go")
    parser.add_argument("--keep", type=int, metavar="DESCRIPTOR", help="stay, once all runs; of the console's socket")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    logs = os.path.relpath(options.logs)
    hint = f"What each program says stands in {logs}; our own: program-host.log, program-agent.log, program-guest.log"
    try:
        tell(options.logs, door=None if options.keep is None else socket.socket(fileno=options.keep))
    except (LabError, BuildError, ApiError) as error:
        print(f"\ndemo: {error}\n{hint}", file=sys.stderr)
        return 1
    except Exception:
        print(f"\ndemo: a fault of its own, at the place below\n{hint}", file=sys.stderr)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
