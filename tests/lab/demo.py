"""``make demo``: the whole system at work, step by step, from nothing to nothing.

Everything runs in the sandbox (sandbox.py), whose end removes it all, whatever ends it. With ``--keep`` it goes on
running afterwards, with a kubectl for each cluster in build/demo, until ``make demo-stop``.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

from tests.lab import checker
from tests.lab.build import BuildError, find
from tests.lab.lab import POOL, RESERVED_POOL, Lab
from tests.lab.process import LabError, wait_for
from tests.lab.workload import POOL_ANNOTATION, Port, Workspace, service

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "build" / "demo"
STATE = FOLDER / "state.json"
LOGS = FOLDER / "logs"
SANDBOX = Path(__file__).parent / "sandbox.py"
DONE = "\0kept"
"""Last line of a demo that stays: the terminal is given back."""

WEB, ADMIN, DNS = Port(80, 8080), Port(8081, 9090), Port(53, 5353, "UDP")
SAMPLES = 30
STOP_LIMIT_SECONDS = 30.0


class Narrator:
    """Tells what happens, and how long it took."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def headline(self, text: str) -> None:
        print(f"\n{text}", flush=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """A step that is under way: what it came to is told at its end, with the time it took."""
        outcome: list[str] = []
        began = time.monotonic()
        terminal = sys.stdout.isatty()
        if terminal:
            print(f"  {began - self._began:6.1f} s  {text} ...", end="", flush=True)
        try:
            yield outcome.append
        except BaseException:
            if terminal:
                print(flush=True)  # what went wrong is told on a line of its own
            raise
        lasted = time.monotonic() - began
        took = f"{lasted * 1000:.0f} ms" if lasted < 1 else f"{lasted:.1f} s"
        ending = f": {outcome[-1]}" if outcome else ""
        line = f"  {began - self._began:6.1f} s  {text}{ending}  ({took})"
        print(f"\r{line}\x1b[K" if terminal else line, flush=True)

    def detail(self, text: str) -> None:
        for line in text.rstrip().splitlines():
            print(f"            {line}", flush=True)


class Demo:
    """The story, told on a lab."""

    def __init__(self, lab: Lab, say: Narrator) -> None:
        self.lab = lab
        self.say = say

    def bring_up(self) -> None:
        self.say.headline("A host cluster, a guest cluster, and a LAN")
        with self.say.step("Lay the LAN, with a host node, the guest's machine and a client"):
            self.lab.start_network()
        with self.say.step("Start two real control planes (etcd, kube-apiserver, kube-controller-manager)"):
            self.lab.start_control_planes()
        with self.say.step("Start two guest nodes with the real kube-proxy") as told:
            self.lab.start_nodes()
            told(", ".join(f"{node.name} {node.address}" for node in self.lab.nodes.nodes.values()))
        with self.say.step("Start our programs: host, agent, guest, each with its own few rights"):
            self.lab.start_programs()
        self.guest = Workspace(self.lab.guest_plane.api, "demo")
        self.guest.create()

    def pools(self) -> None:
        self.say.headline("The operator of the host has made two pools of addresses")
        self.say.detail(self.lab.host_plane.kubectl("get", "ippools"))

    def first_service(self) -> None:
        self.say.headline("A user of the guest deploys a web server, and exposes it: two TCP ports and a UDP port")
        with self.say.step("Deployment web, 2 replicas, is ready"):
            self.guest.deploy("web", 2)
        with self.say.step("Service web, type LoadBalancer, has its address") as told:
            self.guest.expose(service("web", [WEB, ADMIN, DNS]))
            self.web = self.guest.wait_address("web")
            told(f"{self.web}, of pool {self._pool(self.web)}, chosen by its scope")
        for port in (WEB, ADMIN, DNS):
            with self.say.step(f"The client asks {self.web} {port.protocol} {port.port}") as told:
                told(self._answer(self.web, port))
        self.say.detail(self.lab.guest_plane.kubectl("-n", "demo", "get", "service", "web"))
        self.say.detail(self.lab.host_plane.kubectl("get", "loadbalancers", "-A"))

    def second_service(self) -> None:
        self.say.headline(f"A second Service names its pool: {POOL_ANNOTATION}: {RESERVED_POOL.name}")
        with self.say.step("Service dns has its address") as told:
            annotations = {POOL_ANNOTATION: RESERVED_POOL.name}
            self.guest.expose(service("dns", [DNS], app="web", annotations=annotations))
            self.dns = self.guest.wait_address("dns")
            told(f"{self.dns}, of pool {self._pool(self.dns)}")
        with self.say.step(f"The client asks {self.dns} UDP {DNS.port}") as told:
            told(self._answer(self.dns, DNS))

    def scale(self) -> None:
        self.say.headline("Backends come and go")
        for replicas in (3, 1):
            with self.say.step(f"Scaled to {replicas}: who answers {SAMPLES} requests") as told:
                self.guest.scale("web", replicas)
                told(wait_for(f"{replicas} pods to answer", partial(self._who_answers, replicas)))
        with self.say.step("A third guest node joins: the host sends to it too") as told:
            node = self.lab.add_node("node-3", 3)
            told(self._wait_backends({node.address}, present=True))
        with self.say.step("It leaves again") as told:
            self.lab.remove_node("node-3")
            told(self._wait_backends({node.address}, present=False))

    def refuse(self) -> None:
        with self.say.step("Scaled to 0: the client is refused at once, not left waiting"):
            self.guest.scale("web", 0)
            wait_for("refusal", self._refused)
        with self.say.step("Scaled to 2 again") as told:
            self.guest.scale("web", 2)
            told(self._answer(self.web, WEB))

    def agree(self, when: str) -> None:
        with self.say.step(f"Compare both clusters, pools, kernel rules and addresses {when}") as told:
            checker.wait_until_agreed(self.lab)
            told("no difference")

    def delete(self) -> None:
        self.say.headline("The user deletes what was made")
        with self.say.step("Services web and dns are gone, their addresses given back"):
            for name in ("web", "dns"):
                self.guest.delete(name)
            for name in ("web", "dns"):
                self.guest.wait_deleted(name)
        with self.say.step(f"Nobody on the LAN has {self.web} any more"):
            wait_for("silence", self._silent)

    def _pool(self, address: str) -> str:
        return next(pool.name for pool in (POOL, RESERVED_POOL) if pool.holds(address))

    def _answer(self, address: str, port: Port) -> str:
        answer = wait_for("an answer", lambda: self.lab.client.request(port.protocol, address, port.port, timeout=0.5))
        return f"{answer.pod} answers from its port {answer.port}"

    def _who_answers(self, count: int) -> str:
        pods = Counter(self.lab.client.get(self.web, WEB.port).pod for _ in range(SAMPLES))
        return ", ".join(f"{pod} {times}x" for pod, times in sorted(pods.items())) if len(pods) == count else ""

    def _wait_backends(self, nodes: set[str], *, present: bool) -> str:
        def there() -> str:
            found = checker.read_kernel(self.lab).backends.get((self.web, "tcp", WEB.port), frozenset())
            return " ".join(sorted(found)) if bool(nodes & found) == present else ""

        return wait_for("the host's rules to follow", there)

    def _refused(self) -> bool:
        try:
            self.lab.client.get(self.web, WEB.port)
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


def tell(*, keep: bool) -> int:
    """Inside of the sandbox: the whole story. Returns the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    say = Narrator()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))
        lab = Lab(Path(folder), LOGS)
        stack.enter_context(lab.opened())
        demo = Demo(lab, say)
        demo.bring_up()
        demo.pools()
        demo.first_service()
        demo.second_service()
        demo.scale()
        demo.refuse()
        demo.agree("while all runs")
        if keep:
            _stay(lab)
            return 0
        demo.delete()
        demo.agree("when all is deleted")
        say.headline("Clean up")
        with say.step("End every process, and with the sandbox every namespace, link and rule"):
            stack.close()
    return 0


def _stay(lab: Lab) -> None:
    """Tell the outside how to reach this, and wait for the end."""
    kubectl = {plane.name: str(plane.kubeconfig) for plane in (lab.host_plane, lab.guest_plane)}
    print(DONE + json.dumps({"kubeconfigs": kubectl}), flush=True)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), sys.stdout.fileno())
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            signal.pause()


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(*, keep: bool) -> int:
    """Outside: start the sandbox with the story in it, and show it. Returns the exit code."""
    if _kept() is not None:
        print(f"demo: one is running already (see {FOLDER}); end it with `make demo-stop`", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    inside = [sys.executable, "-m", "tests.lab.demo", "--inside", *(["--keep"] if keep else [])]
    command = [sys.executable, str(SANDBOX), *inside]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    errors = (FOLDER / "errors.log").open("w+")
    # A demo that stays must not hang on this terminal; one that ends shares it, and Ctrl-C with it.
    sandbox = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if keep else None,
        stderr=errors if keep else None,
        text=True,
        start_new_session=keep,
    )
    try:
        if keep:
            return _show_until_kept(sandbox, began)
        code = sandbox.wait()
    except KeyboardInterrupt:
        print("\ninterrupted; cleaning up", flush=True)
        _end(sandbox, told=not keep)
        print("nothing is left", flush=True)
        return 130
    finally:
        errors.close()
    if code == 0:
        print(f"\nNothing is left. The whole took {time.monotonic() - began:.0f} s; logs of all programs: {LOGS}")
    return code


def _end(sandbox: "subprocess.Popen[str]", *, told: bool) -> None:
    """Wait for the end of a sandbox that the terminal's Ctrl-C has ``told`` to end; tell it where that is not so."""
    if told:
        with contextlib.suppress(subprocess.TimeoutExpired):
            sandbox.wait(timeout=5)
    sandbox.terminate()
    try:
        sandbox.wait(timeout=STOP_LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        sandbox.kill()  # the kernel ends everything inside
        sandbox.wait()


def _show_until_kept(sandbox: "subprocess.Popen[str]", began: float) -> int:
    assert sandbox.stdout is not None
    for line in sandbox.stdout:
        if line.startswith(DONE):
            _write_state(sandbox, json.loads(line.removeprefix(DONE))["kubeconfigs"])
            print(f"\nAll of it stays up ({time.monotonic() - began:.0f} s). Look around:\n")
            print(f"  {FOLDER.relative_to(ROOT)}/kubectl-guest -n demo get services,pods -o wide")
            print(f"  {FOLDER.relative_to(ROOT)}/kubectl-host get loadbalancers -A     (and ippools, ipblocks)")
            print(f"  {FOLDER.relative_to(ROOT)}/on-client curl http://ADDRESS/")
            print(f"\nLogs of all programs: {LOGS.relative_to(ROOT)}\nEnd it: make demo-stop")
            return 0
        print(line, end="", flush=True)
    code = sandbox.wait()
    print((FOLDER / "errors.log").read_text(), file=sys.stderr, end="")
    return code or 1


def _write_state(sandbox: "subprocess.Popen[str]", kubeconfigs: dict[str, str]) -> None:
    """Wrappers that enter the sandbox, and what --stop needs to know."""
    (first,) = Path(f"/proc/{sandbox.pid}/task/{sandbox.pid}/children").read_text().split()
    enter = f"nsenter --target {first} --net --mount --pid --wdns="
    for cluster, kubeconfig in kubeconfigs.items():
        _write_script(f"kubectl-{cluster}", f'exec {enter}"$PWD" {find("kubectl")} --kubeconfig={kubeconfig} "$@"')
    _write_script("on-client", f'exec {enter}"$PWD" nsenter --net=/run/netns/client "$@"')
    STATE.write_text(json.dumps({"pid": sandbox.pid, "started": _started(sandbox.pid)}))


def _write_script(name: str, line: str) -> None:
    path = FOLDER / name
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


def _started(pid: int) -> str:
    """When the process began, in ticks since boot: with the pid, it names a process for good."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def _kept() -> int | None:
    """The process of a demo that still runs."""
    try:
        state = json.loads(STATE.read_text())
        return int(state["pid"]) if _started(state["pid"]) == state["started"] else None
    except (OSError, ValueError, KeyError):
        return None


def stop() -> int:
    """End a demo that was kept."""
    pid = _kept()
    if pid is None:
        print("demo: none is running")
        return 0
    os.kill(pid, signal.SIGTERM)
    try:
        wait_for("the demo's end", lambda: _kept() is None, timeout=STOP_LIMIT_SECONDS)
    except LabError:
        os.kill(pid, signal.SIGKILL)  # the kernel ends everything inside
    for name in ("state.json", "kubectl-host", "kubectl-guest", "on-client"):
        (FOLDER / name).unlink(missing_ok=True)
    print("demo: ended; nothing is left")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running")
    parser.add_argument("--stop", action="store_true", help="end one that was left running")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stop:
        return stop()
    if not options.inside:
        return run(keep=options.keep)
    try:
        return tell(keep=options.keep)
    except KeyboardInterrupt:
        return 130
    except (LabError, BuildError) as error:
        print(f"\ndemo: {error}\nLogs of all programs: {LOGS}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
