"""The part of a kubelet (and of the scheduler) that makes Deployments and scaling real on the lab's nodes.

Watches the Pods of one cluster, binds unbound ones to the node with the fewest, runs each as a namespace behind its
node's bridge with a server process in it (server.py), tells the API server how it goes, and ends it when asked.
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
from typing import TypeVar

from tests.lab.client import STRATEGIC_MERGE_PATCH, Api, ApiError, Object
from tests.lab.network import Namespace, Switch
from tests.lab.process import LabError, Process

T = TypeVar("T")
SERVER = Path(__file__).parent / "server.py"
START_LIMIT_SECONDS = 30.0
TICK_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0
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


class PodRunner:
    """Runs the pods of a cluster on the lab's nodes until stopped."""

    def __init__(self, api: Api, logs: Path) -> None:
        self._api = api.sibling()
        self._logs = logs
        self._lock = threading.RLock()
        self._hosts: dict[str, PodHost] = {}
        self._objects: dict[str, Object] = {}  # by UID
        self._pods: dict[str, Pod] = {}  # by UID
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"runner-{target.__name__}", daemon=True)
            for target in (self._follow, self._tick)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every pod's process and namespace; the objects stay."""
        with self._lock:
            self._stopping.set()
            pods = list(self._pods.values())
        for pod in pods:
            pod.end()
        for pod in pods:
            pod.join()
        self._api.close()
        for thread in self._threads:
            thread.join(timeout=10)

    def add_host(self, host: PodHost) -> None:
        with self._lock:
            self._hosts[host.name] = host
        self._beat(host)

    def namespace_of(self, uid: str) -> Namespace:
        """Where a pod's processes are. Raises KeyError when it does not run here."""
        with self._lock:
            return self._pods[uid].namespace

    def kill_server(self, uid: str) -> None:
        """SIGKILL for a pod's process; it is started again, as the kubelet would."""
        with self._lock:
            server = self._pods[uid].server
        if server is not None:
            server.kill()

    def remove_host(self, name: str) -> None:
        """End the node's pods and forget it; its objects are deleted as the cloud's node controller would."""
        with self._lock:
            self._hosts.pop(name, None)  # not there yet when its start has failed
            pods = [pod for pod in self._pods.values() if pod.host.name == name]
        for pod in pods:
            pod.end()
        for pod in pods:
            pod.join()

    def _follow(self) -> None:
        attempt = 0
        while not self._stopping.is_set():
            self._api.release()
            try:
                listed = self._api.get("/api/v1/pods")
                with self._lock:
                    self._objects = {pod["metadata"]["uid"]: pod for pod in listed["items"]}
                    self._reconcile()
                attempt = 0
                for event in self._api.watch("/api/v1/pods", listed["metadata"]["resourceVersion"]):
                    self._observe(event)
            except (OSError, ApiError):
                self._stopping.wait(BACKOFF_SECONDS[min(attempt, len(BACKOFF_SECONDS) - 1)])
                attempt += 1
        self._api.release()

    def _observe(self, event: Object) -> None:
        if event["type"] == "BOOKMARK":
            return
        uid = event["object"]["metadata"]["uid"]
        with self._lock:
            if event["type"] == "DELETED":
                self._objects.pop(uid, None)
            else:
                self._objects[uid] = event["object"]
            self._reconcile()

    def _reconcile(self) -> None:
        if self._stopping.is_set():
            return
        for uid, pod in list(self._pods.items()):
            wanted = self._objects.get(uid)
            if wanted is None or wanted["metadata"].get("deletionTimestamp"):
                pod.end()
            if wanted is None:
                del self._pods[uid]
        for uid, wanted in self._objects.items():
            node, ending = wanted["spec"].get("nodeName"), wanted["metadata"].get("deletionTimestamp")
            if node in self._hosts and uid not in self._pods and not ending:
                self._pods[uid] = Pod(self._api, self._hosts[node], wanted, self._logs)
                self._pods[uid].start()
            elif not node and not ending:
                self._bind(wanted)

    def _bind(self, pod: Object) -> None:
        bound = [other["spec"].get("nodeName") for other in self._objects.values()]
        ready = [host.name for host in self._hosts.values() if host.ready]
        if not ready:
            return
        node = min(ready, key=bound.count)
        metadata = {key: pod["metadata"][key] for key in ("name", "namespace", "uid")}
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/binding"
        try:
            self._api.create(path, {"metadata": metadata, "target": {"kind": "Node", "name": node}})
        except (OSError, ApiError):
            return  # gone, bound by somebody else, or no server: the next event or tick looks again
        pod["spec"]["nodeName"] = node

    def _tick(self) -> None:
        """Look again at what waits, and keep the nodes alive."""
        beaten = time.monotonic()
        while not self._stopping.wait(TICK_SECONDS):
            with self._lock:
                self._reconcile()
                hosts = list(self._hosts.values())
            if time.monotonic() - beaten >= HEARTBEAT_SECONDS:
                beaten = time.monotonic()
                for host in hosts:
                    with contextlib.suppress(OSError, ApiError):
                        self._beat(host)
        self._api.release()

    def _beat(self, host: PodHost) -> None:
        """Renew the node's Lease and Ready condition (KEP-589)."""
        if not host.ready:
            return
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": host.name, "namespace": "kube-node-lease"},
            "spec": {
                "holderIdentity": host.name,
                "leaseDurationSeconds": 40,
                "renewTime": dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            },
        }
        self._api.apply(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{host.name}", lease)
        self.report_ready(host, ready=True)

    def report_ready(self, host: PodHost, *, ready: bool) -> None:
        """Set the node's Ready condition; one that is not ready is not kept alive either."""
        if host.ready != ready or not host.since:
            host.ready, host.since = ready, now()
        condition = {
            "type": "Ready",
            "status": "True" if ready else "False",
            "reason": "LabSaysSo",
            "lastTransitionTime": host.since,
            "lastHeartbeatTime": now(),
        }
        self._api.patch(
            f"/api/v1/nodes/{host.name}/status",
            {"status": {"conditions": [condition]}},
            content_type=STRATEGIC_MERGE_PATCH,
        )
