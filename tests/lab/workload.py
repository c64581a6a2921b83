"""What a user of the guest cluster does: deployments of the lab's server, and Services before them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.lab.client import Api, Object
from tests.lab.process import wait_for

TCP_PORTS = (8080, 9090)
UDP_PORTS = (5353,)
SERVER_IMAGE = "cloudprovider-e2e-server:1"
"""server.py as an image, where pods are containers; the lab's own are not."""
PREFIX = "cloudprovider.harvesterhci.io/"
MODE_ANNOTATION = PREFIX + "mode"
POOL_ANNOTATION = PREFIX + "ip-pool"


@dataclass(frozen=True)
class Port:
    """A port of a Service; without a ``name`` it is called by protocol and number."""

    port: int
    target: int
    protocol: str = "TCP"
    name: str = ""

    def manifest(self) -> Object:
        name = self.name or f"{self.protocol.lower()}-{self.port}"
        return {"name": name, "port": self.port, "targetPort": self.target, "protocol": self.protocol}


def deployment(name: str, replicas: int, *, node: str = "", linger: int = 0, ready: bool = True) -> Object:
    """Servers that listen on TCP_PORTS and UDP_PORTS; on any nodes, or all on one. ``linger``: for how many seconds
    they go on serving after they have been asked to end; ``ready``: whether they ever say that they are."""
    labels = {"app": name}
    ports = [
        *({"containerPort": port, "protocol": "TCP"} for port in TCP_PORTS),
        *({"containerPort": port, "protocol": "UDP"} for port in UDP_PORTS),
    ]
    container: Object = {
        "name": "server",
        "image": SERVER_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["--name", "$(POD)"],
        "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": {"tcpSocket": {"port": TCP_PORTS[0]}, "periodSeconds": 1},
        "ports": ports,
    }
    if linger:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": linger}}}
    spec = {"containers": [container], "terminationGracePeriodSeconds": linger + 5, "nodeName": node}
    if not ready:
        spec["readinessGates"] = [{"conditionType": "lab/never"}]
    return {
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def service(
    name: str,
    ports: Sequence[Port],
    *,
    app: str = "",
    kind: str = "LoadBalancer",
    annotations: Mapping[str, str] | None = None,
    **spec: object,
) -> Object:
    """A Service before the deployment ``app`` (without it, of the Service's own name); ``spec``: more fields of it."""
    fixed = {"type": kind, "selector": {"app": app or name}, "ports": [port.manifest() for port in ports]}
    return {"metadata": {"name": name, "annotations": dict(annotations or {})}, "spec": {**fixed, **spec}}


class Workspace:
    """One namespace of a guest cluster, and what stands in it."""

    def __init__(self, api: Api, namespace: str) -> None:
        self.api = api
        self.namespace = namespace
        self.services = f"/api/v1/namespaces/{namespace}/services"
        self.deployments = f"/apis/apps/v1/namespaces/{namespace}/deployments"

    def create(self) -> None:
        self.api.create("/api/v1/namespaces", {"metadata": {"name": self.namespace}})

    def deploy(self, name: str, replicas: int, *, node: str = "", linger: int = 0) -> None:
        """Make a deployment and wait until all its pods are ready."""
        self.api.create(self.deployments, deployment(name, replicas, node=node, linger=linger))
        self.wait_replicas(name, replicas)

    def roll_out(self, name: str, version: str) -> None:
        """Have a deployment's pods replaced by others, and wait until those before are gone and the new ones ready."""
        template = {"metadata": {"annotations": {"version": version}}}
        changed = self.api.patch(f"{self.deployments}/{name}", {"spec": {"template": template}})
        generation, replicas = changed["metadata"]["generation"], changed["spec"]["replicas"]

        def done() -> bool:
            status = self.api.get(f"{self.deployments}/{name}")["status"]
            counts = {status.get(kind, 0) for kind in ("replicas", "updatedReplicas", "availableReplicas")}
            return bool(status["observedGeneration"] >= generation and counts == {replicas})

        wait_for(f"the rollout {version} of {name}", done)

    def pods(self, app: str) -> list[Object]:
        """The pods of a deployment."""
        return self.api.items(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=f"app={app}")

    def scale_down(self, name: str, replicas: int, *, first: str) -> None:
        """Have fewer pods, and this one be the first to go (KEP-2255)."""
        cost = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}}
        self.api.patch(f"/api/v1/namespaces/{self.namespace}/pods/{first}", cost)
        self.scale(name, replicas)

    def annotate(self, name: str, **annotations: str | None) -> None:
        """Set annotations of ours on a Service, and take those away that are None; "_" stands for "-"."""
        body = {PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}
        self.api.patch(f"{self.services}/{name}", {"metadata": {"annotations": body}})

    def scale(self, name: str, replicas: int) -> None:
        self.api.patch(f"{self.deployments}/{name}", {"spec": {"replicas": replicas}})

    def move(self, name: str, node: str) -> None:
        """Have a deployment's pods replaced by others on that node, one after the other."""
        template = {"spec": {"nodeName": node}}
        self.api.patch(f"{self.deployments}/{name}", {"spec": {"template": template}})

    def wait_replicas(self, name: str, replicas: int) -> None:
        def ready() -> bool:
            status = self.api.get(f"{self.deployments}/{name}")["status"]
            return bool(status.get("readyReplicas", 0) == replicas == status.get("replicas", 0))

        wait_for(f"{replicas} ready pods of {name}", ready)

    def expose(self, body: Object) -> None:
        self.api.create(self.services, body)

    def get(self, name: str) -> Object:
        return self.api.get(f"{self.services}/{name}")

    def address(self, name: str) -> str:
        """The address that a Service shows now; "" without one."""
        return next(iter(self.addresses(name)), "")

    def addresses(self, name: str) -> list[str]:
        """All addresses that a Service shows now."""
        ingress = self.get(name)["status"].get("loadBalancer", {}).get("ingress", [])
        return [str(entry.get("ip", "")) for entry in ingress]

    def wait_address(self, name: str, *, timeout: float = 30) -> str:
        return wait_for(f"an address of Service {name}", lambda: self.address(name), timeout=timeout)

    def set_ports(self, name: str, ports: Sequence[Port]) -> None:
        """Replace a Service's ports."""
        self.api.patch(f"{self.services}/{name}", {"spec": {"ports": [port.manifest() for port in ports]}})

    def set_type(self, name: str, kind: str) -> None:
        self.set_field(name, "type", kind)

    def set_field(self, name: str, field: str, value: object) -> None:
        """Change a field of a Service's spec."""
        self.api.patch(f"{self.services}/{name}", {"spec": {field: value}})

    def delete(self, name: str) -> None:
        """Ask for a Service's deletion; its finalizer keeps it until its address is given back."""
        self.api.delete(f"{self.services}/{name}")

    def wait_deleted(self, name: str, *, timeout: float = 30) -> None:
        wait_for(
            f"Service {name} to be gone", lambda: self.api.find(f"{self.services}/{name}") is None, timeout=timeout
        )

    def condition(self, name: str, kind: str) -> Object:
        """A condition that a Service shows; {} without it."""
        conditions = self.get(name)["status"].get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def empty(self) -> None:
        """Delete everything in it, and wait until the Services are gone."""
        names = [item["metadata"]["name"] for item in self.api.items(self.services)]
        for name in names:
            self.delete(name)
        for item in self.api.items(self.deployments):
            self.api.delete(f"{self.deployments}/{item['metadata']['name']}")
        for name in names:
            self.wait_deleted(name)

    def remove(self) -> None:
        """Empty it, and delete it."""
        self.empty()
        self.api.delete(f"/api/v1/namespaces/{self.namespace}")
