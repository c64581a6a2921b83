"""One pod of the lab: a namespace behind its node's bridge with a server process in it (server.py).

A container's ``ports`` say what its server listens on; its image and command are not looked at.
"""

import contextlib
import datetime as dt
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from tests.lab.client import STRATEGIC_MERGE_PATCH, Api, ApiError, Object
from tests.lab.network import Namespace, Switch
from tests.lab.process import LabError, Process

SERVER = Path(__file__).parent / "server.py"
START_LIMIT_SECONDS = 30.0
BACKOFF_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0)
HTTP_NOT_FOUND, HTTP_CONFLICT, HTTP_TOO_MANY, HTTP_SERVER_ERROR = 404, 409, 429, 500


@dataclass
class PodHost:
    """A node as far as its pods need it: where they are plugged in, and their addresses.

    ``ready``: whether the node's Ready condition and Lease are kept up, ``since`` when it became so.
    """

    name: str
    address: str
    namespace: Namespace
    switch: Switch
    pod_cidr: IPv4Network
    ready: bool = True
    since: str = ""
    _taken: set[IPv4Address] = field(default_factory=set)
    _next: int = 2

    @property
    def gateway(self) -> str:
        """The node's own address on its pods' bridge."""
        return str(self.pod_cidr[1])

    def take_address(self) -> IPv4Address:
        """The next free address; those given back lately come last, as with a real CNI plugin."""
        last = self.pod_cidr.num_addresses - 2
        for number in (*range(self._next, last + 1), *range(2, self._next)):
            if (address := self.pod_cidr[number]) not in self._taken:
                self._taken.add(address)
                self._next = number + 1 if number < last else 2
                return address
        raise LabError(f"node {self.name}: no free pod address in {self.pod_cidr}")

    def give_back(self, address: IPv4Address) -> None:
        self._taken.discard(address)


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
                address = self._plug_in(stack)
                self._serve(address)
        except _Gone:
            pass
        except Exception as error:  # noqa: BLE001 a pod's failure is shown, and ends nothing else
            print(f"lab: pod {self._path}: {error!r}", file=sys.stderr, flush=True)
        with contextlib.suppress(_Gone):
            self._insist(self._delete_object, even_when_ending=True)
        self._api.release()

    def _plug_in(self, stack: contextlib.ExitStack) -> str:
        taken = self.host.take_address()
        stack.callback(self.host.give_back, taken)
        address = str(taken)
        self.namespace.create()
        stack.callback(self._unplug, address)
        self.host.switch.plug(self.namespace, "eth0")
        gateway = self.host.gateway
        # A /32: even neighbours are reached through the node, so that NAT on the way is undone on the way back.
        self.namespace.ip(
            f"address add {address}/32 dev eth0",
            f"route add {gateway} dev eth0 scope link",
            f"route add default via {gateway}",
        )
        return address

    def _unplug(self, address: str) -> None:
        self.namespace.remove()
        with contextlib.suppress(LabError):  # the next pod with this address has another MAC
            self.host.namespace.ip(f"neighbour del {address} dev {self.host.switch.device}")

    def _serve(self, address: str) -> None:
        restarts = 0
        while not self._ending.is_set():
            process = Process(
                self.name,
                [sys.executable, "-I", "-S", SERVER, "--name", self.name, "--address", address, *self._ports()],
                log=self._logs / f"{self.name}.log",
                namespace=self.namespace.name,
            )
            self.server = process
            process.start()
            try:
                process.wait_until("listening", partial(_says_ready, process), timeout=START_LIMIT_SECONDS)
                self._report(address, ready=True, restarts=restarts)
                while process.running and not self._ending.wait(0.1):
                    pass
            except LabError as error:
                print(f"lab: pod {self._path}: {error}", file=sys.stderr, flush=True)
            finally:
                process.terminate(self._grace)
            restarts += 1
            if not self._ending.is_set():
                self._report(address, ready=False, restarts=restarts)
                self._ending.wait(BACKOFF_SECONDS[min(restarts, len(BACKOFF_SECONDS) - 1)])

    def _ports(self) -> list[str]:
        return [
            word
            for container in self._containers
            for port in container.get("ports", [])
            for word in (f"--{port.get('protocol', 'TCP').lower()}", str(port["containerPort"]))
        ]

    def _report(self, address: str, *, ready: bool, restarts: int) -> None:
        state = {"running": {"startedAt": now()}} if ready else {"waiting": {"reason": "CrashLoopBackOff"}}
        truth = "True" if ready else "False"
        status = {
            "phase": "Running",
            "startTime": self._started,
            "hostIP": self.host.address,
            "hostIPs": [{"ip": self.host.address}],
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [
                {
                    "type": kind,
                    "status": "True" if kind in {"Initialized", "PodScheduled"} else truth,
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


class _Gone(Exception):
    """The pod's object is no longer there, or another's."""
