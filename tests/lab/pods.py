"""The part of a kubelet (and of the scheduler) that makes Deployments and scaling real on the lab's nodes.

Watches the Pods of one cluster, binds unbound ones to the node with the fewest, starts each (pod.py), ends it when
asked, and keeps the nodes alive.
"""

import contextlib
import datetime as dt
import threading
import time
from pathlib import Path

from tests.lab.client import STRATEGIC_MERGE_PATCH, Api, ApiError, Object
from tests.lab.network import Namespace
from tests.lab.pod import BACKOFF_SECONDS, Pod, PodHost, now

TICK_SECONDS = 1.0
HEARTBEAT_SECONDS = 10.0


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
