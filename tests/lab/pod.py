"""One pod of the lab: a namespace behind its node's bridge with a server process in it (server.py).

A container's ``ports`` say what its server listens on, ``lifecycle.preStop.sleep`` how long it goes on after it has
been asked to end; its image and command are not looked at. A pod with a readiness gate never becomes ready.
"""

import contextlib
import datetime as dt
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from itertools import chain
from pathlib import Path

from tests.lab.client import STRATEGIC_MERGE_PATCH, Api, ApiError, Object
from tests.lab.network import Namespace, Switch
from tests.lab.process import LabError, Process, wait_for

SERVER = Path(__file__).parent / "server.py"
START_LIMIT_SECONDS = 30.0
BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
HTTP_NOT_FOUND, HTTP_CONFLICT, HTTP_TOO_MANY, HTTP_SERVER_ERROR = 404, 409, 429, 500


@dataclass
class PodHost:
    """A node as far as its pods need it: where they are plugged in, and their addresses, one of each family.

    ``ready``: whether the node's Ready condition and Lease are kept up, ``since`` when it became so.
    """

    name: str
    addresses: Sequence[str]
    namespace: Namespace
    switch: Switch
    cidrs: Sequence[IPv4Network | IPv6Network]
    ready: bool = True
    since: str = ""
    _taken: set[int] = field(default_factory=set)
    _next: int = 2

    @property
    def gateways(self) -> list[str]:
        """The node's own addresses on its pods' bridge."""
        return self.numbered(1)

    def numbered(self, number: int) -> list[str]:
        return [str(cidr[number]) for cidr in self.cidrs]

    def take_number(self) -> int:
        """The next free number of an address; those given back lately come last, as with a real CNI plugin."""
        last = min(int(cidr.num_addresses) for cidr in self.cidrs) - 2
        for number in chain(range(self._next, last + 1), range(2, self._next)):
            if number not in self._taken:
                self._taken.add(number)
                self._next = number + 1 if number < last else 2
                return number
        raise LabError(f"node {self.name}: no free pod address in {self.cidrs[0]}")

    def give_back(self, number: int) -> None:
        self._taken.discard(number)


def now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Pod:
    """One pod on one node, from its start to its end, in a thread of its own."""

    def __init__(self, api: Api, host: PodHost, pod: Object, logs: Path) -> None:
        self.host = host
        self.name: str = pod["metadata"]["name"]
        self.uid: str = pod["metadata"]["uid"]
        self._api = api
        self._path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{self.name}"
        self._containers: list[Object] = pod["spec"]["containers"]
        self._started = now()
        self._ending = threading.Event()
        self._gated = bool(pod["spec"].get("readinessGates"))
        hooks = (one.get("lifecycle", {}).get("preStop", {}).get("sleep", {}) for one in self._containers)
        self._linger: float = max((hook.get("seconds", 0) for hook in hooks), default=0)
        self._grace: float = pod["spec"].get("terminationGracePeriodSeconds", 30)
        self.namespace = Namespace(f"pod-{self.uid[:13]}")
        self.server: Process | None = None
        self._logs = logs
        self._thread = threading.Thread(target=self._run, name=f"pod-{self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Begin its end; what is left is removed by its own thread."""
        self._ending.set()

    def join(self) -> None:
        self._thread.join(timeout=60)

    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                self._serve(self._plug_in(stack))
        except _Gone:
            pass
        except Exception as error:  # noqa: BLE001 a pod's failure is shown, and ends nothing else
            print(f"lab: pod {self._path}: {error!r}", file=sys.stderr, flush=True)
        with contextlib.suppress(_Gone):
            self._insist(self._delete_object, even_when_ending=True)
        self._api.release()

    def _plug_in(self, stack: contextlib.ExitStack) -> list[str]:
        number = self.host.take_number()
        stack.callback(self.host.give_back, number)
        addresses = self.host.numbered(number)
        self.namespace.create()
        stack.callback(self._unplug, addresses)
        self.host.switch.plug(self.namespace, "eth0")
        # A /32: even neighbours are reached through the node, so that NAT on the way is undone on the way back.
        for address, gateway in zip(addresses, self.host.gateways, strict=True):
            length = 128 if ":" in address else 32
            self.namespace.ip(
                f"address add {address}/{length} dev eth0",
                f"route add {gateway}/{length} dev eth0 scope link",
                f"route add default via {gateway} dev eth0",
            )
        return addresses

    def _unplug(self, addresses: list[str]) -> None:
        self.namespace.remove()
        for address in addresses:
            with contextlib.suppress(LabError):  # the next pod with this address has another MAC
                self.host.namespace.ip(f"neighbour del {address} dev {self.host.switch.device}")

    def _serve(self, addresses: list[str]) -> None:
        restarts = 0
        where = [word for address in addresses for word in ("--address", address)]
        while not self._ending.is_set():
            process = Process(
                self.name,
                [sys.executable, "-I", "-S", SERVER, "--name", self.name, *where, *self._ports()],
                log=self._logs / f"{self.name}.log",
                namespace=self.namespace.name,
            )
            self.server = process
            process.start()
            try:
                process.wait_until("listening", partial(_says_ready, process), timeout=START_LIMIT_SECONDS)
                self._report(addresses, ready=True, restarts=restarts)
                while process.running and not self._ending.wait(0.1):
                    pass
                self._wait_before_stop(process)
            except LabError as error:
                print(f"lab: pod {self._path}: {error}", file=sys.stderr, flush=True)
            finally:
                process.terminate(self._grace)
            restarts += 1
            if not self._ending.is_set():
                self._report(addresses, ready=False, restarts=restarts)
                self._ending.wait(BACKOFF_SECONDS[min(restarts, len(BACKOFF_SECONDS) - 1)])

    def _wait_before_stop(self, process: Process) -> None:
        """The hook ``preStop``: it is over early when the process ends by itself."""
        with contextlib.suppress(LabError):
            wait_for("its end", lambda: not process.running, timeout=self._linger, period=0.1)

    def _ports(self) -> list[str]:
        return [
            word
            for container in self._containers
            for port in container.get("ports", [])
            for word in (f"--{port.get('protocol', 'TCP').lower()}", str(port["containerPort"]))
        ]

    def _report(self, addresses: list[str], *, ready: bool, restarts: int) -> None:
        state = {"running": {"startedAt": now()}} if ready else {"waiting": {"reason": "CrashLoopBackOff"}}
        status = {
            "phase": "Running",
            "startTime": self._started,
            "hostIP": self.host.addresses[0],
            "hostIPs": [{"ip": address} for address in self.host.addresses],
            "podIP": addresses[0],
            "podIPs": [{"ip": address} for address in addresses],
            "conditions": [
                {
                    "type": kind,
                    "status": _truth(kind, ready=ready, gated=self._gated),
                    "lastTransitionTime": now(),
                }
                for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
            ],
            "containerStatuses": [
                {
                    "name": container["name"],
                    "image": container.get("image", ""),
                    "imageID": "",
                    "ready": ready,
                    "started": ready,
                    "restartCount": restarts,
                    "state": state,
                }
                for container in self._containers
            ],
        }
        body = {"metadata": {"uid": self.uid}, "status": status}
        self._insist(lambda: self._api.patch(f"{self._path}/status", body, content_type=STRATEGIC_MERGE_PATCH))

    def _delete_object(self) -> None:
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        self._api.request("DELETE", self._path, options)

    def _insist(self, call: Callable[[], object], *, even_when_ending: bool = False) -> None:
        """Make a request until it is answered, with backoff. Raises _Gone when the pod's object is not there."""
        attempt = 0
        while even_when_ending or not self._ending.is_set():
            try:
                call()
            except OSError:
                pass
            except ApiError as error:
                if error.status in {HTTP_NOT_FOUND, HTTP_CONFLICT}:
                    raise _Gone from error
                if error.status != HTTP_TOO_MANY and error.status < HTTP_SERVER_ERROR:
                    raise
            else:
                return
            delay = BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)]
            attempt += 1
            if even_when_ending and attempt > 10:
                raise _Gone  # the control plane is gone for good
            time.sleep(delay)
        raise _Gone


def _says_ready(process: Process) -> bool:
    return "ready" in process.log_text()


def _truth(kind: str, *, ready: bool, gated: bool) -> str:
    """The status of a pod's condition."""
    if kind == "Ready":
        ready = ready and not gated
    return str(ready or kind in {"Initialized", "PodScheduled"})


class _Gone(Exception):
    """The pod's object is no longer there, or another's."""
