"""Our programs, installed into two clusters as README.md says: definitions, certificates, copies of the example
overlays, ``kubectl apply -k``; and taken away again in the order that it gives."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import yaml

from e2e.k3d.machines import ROOT, Cluster, run
from tests.lab.client import Object
from tests.lab.lab import NETWORK, POOL, RESERVED_POOL, TENANT, TENANT_NAMESPACE
from tests.lab.process import LabError, wait_for
from tests.lab.programs import SYSTEM_NAMESPACE, cloudprovider

MANIFESTS: Final = ROOT / "manifests"
READY_LIMIT_SECONDS: Final = 120
BRIDGE_PORT: Final = 30843
AGENTS: Final = NETWORK.network_address + 8 * 256
"""The agents' own addresses come after it: outside of pools, and of where nodes get theirs."""
PODS: Final = {"host": "10.42.0.0/16", "guest": "10.52.0.0/16"}
SERVICES: Final = {"host": "10.43.0.0/16", "guest": "10.53.0.0/16"}
WORKLOADS: Final = {
    "host": ("deployment/cloudprovider-host", "daemonset/cloudprovider-agent"),
    "guest": ("deployment/cloudprovider-guest",),
}
SYSTEM: Final = f"--namespace={SYSTEM_NAMESPACE}"


def agent_address(number: int) -> str:
    """The address of its own that the host's ``number``-th node (from 0) has for its agent."""
    return str(AGENTS + 1 + number)


def networks_of(nodes: Sequence[str], device: str) -> dict[str, list[Object]]:
    """By node, how it stands on the management network."""
    return {
        node: [
            {
                "name": "",
                "device": device,
                "address": f"{agent_address(number)}/{NETWORK.prefixlen}",
                "gateway": str(NETWORK[1]),
            }
        ]
        for number, node in enumerate(nodes)
    }


class Installation:
    """``folder``: the operator's own: the CA, certificates, and copies of the example overlays."""

    def __init__(self, folder: Path, image: str, host: Cluster) -> None:
        self.folder = folder
        self.image = image
        self.host = host
        self._leaving = False

    # The host.

    def install_host(self) -> None:
        """Everything on the host, and wait until it serves."""
        host = self.host
        host.kubectl("apply", "--server-side", "-f", MANIFESTS / "crds")
        addresses = [self._address(node) for node in host.nodes()]
        cloudprovider("tenant", "server-certificate", *addresses, "--ca-dir", self.ca, "--out", self.folder)
        host.kubectl("apply", "-f", MANIFESTS / "host" / "namespace.yaml", "-f", self.folder / "bridge.host.yaml")
        host.kubectl("apply", "-k", self.overlay_host())
        self.wait_ready(host, "host")
        for pool in (POOL, RESERVED_POOL):
            wait_for(f"the pool {pool.name} to be judged and taken", partial(self._create_pool, pool.manifest()))

    def _create_pool(self, manifest: Object) -> bool:
        try:
            self.host.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
        except LabError as error:
            raise AssertionError(str(error)) from error  # no webhook yet: asked again
        return True

    def overlay_host(self) -> Path:
        """The operator's copy of manifests/overlays/example/host, for the nodes that the host has now."""
        overlay = self._overlay("host", components=["components/leave"] if self._leaving else [])
        kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
        networks = networks_of(self.host.nodes(), "eth0")
        for node, entries in networks.items():
            (overlay / f"{node}.yaml").write_text(yaml.safe_dump({"networks": entries}))
        settings = {"reserved-cidrs": [PODS["host"], SERVICES["host"]], "log-level": "info"}
        (overlay / "controller-config.yaml").write_text(yaml.safe_dump(settings))
        generated = {
            "cloudprovider-host": ["config.yaml=controller-config.yaml"],
            "cloudprovider-agent": [f"{node}.yaml" for node in networks],
        }
        kustomization["configMapGenerator"] = [
            {"name": name, "namespace": SYSTEM_NAMESPACE, "behavior": "merge", "files": files}
            for name, files in generated.items()
        ]
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return overlay

    def leave(self, *, leaving: bool = True) -> None:
        """Have all agents remove what they have made, or serve again; wait until they have."""
        self._leaving = leaving
        self.host.kubectl("apply", "-k", self.overlay_host())
        self.wait_ready(self.host, "host")

    def uninstall_host(self) -> None:
        """In README.md's order; no tenant is left before."""
        host = self.host
        self.leave()
        host.kubectl("delete", "--ignore-not-found", "--all", "ippools.loadbalancer.harvesterhci.io")
        host.kubectl("delete", "--ignore-not-found", "-k", self.overlay_host())
        host.kubectl("delete", "--ignore-not-found", "-f", MANIFESTS / "crds")

    # Tenants and their clusters.

    def make_tenant(self, name: str = TENANT, namespace: str = TENANT_NAMESPACE, *, grace: int = 3600) -> None:
        """A tenant on the host, and the file for its guest."""
        bridge = f"{self._address(self.host.server)}:{BRIDGE_PORT}"
        cidr = f"{NETWORK.network_address}/24"
        cloudprovider(
            *("tenant", "issue", name, "--namespace", namespace, "--node-cidr", cidr, "--bridge", bridge),
            *("--ca-dir", self.ca, "--out", self.folder),
        )
        made: Object = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        self.host.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(made))
        tenant = self.folder / f"{name}.host.yaml"
        document = yaml.safe_load(tenant.read_text())
        document["spec"]["deletionGracePeriodSeconds"] = grace
        tenant.write_text(yaml.safe_dump(document))
        self.host.kubectl("apply", "-f", tenant)

    def install_guest(self, guest: Cluster, tenant: str = TENANT) -> None:
        """Everything in a guest cluster, and wait until it serves."""
        guest.kubectl("apply", "-f", self.folder / f"{tenant}.guest.yaml")
        guest.kubectl("apply", "-k", self._overlay("guest"))
        self.wait_ready(guest, "guest")

    def uninstall_guest(self, guest: Cluster) -> None:
        """Its Services of type LoadBalancer are gone before."""
        guest.kubectl("delete", "--ignore-not-found", "-k", self._overlay("guest"))

    @property
    def ca(self) -> Path:
        """The key to all tenants."""
        return self.folder / "ca"

    def wait_ready(self, cluster: Cluster, side: str) -> None:
        """Wait until all of it runs as it was last applied. Raises LabError with what the pods say."""
        for workload in WORKLOADS[side]:
            try:
                cluster.kubectl("rollout", "status", SYSTEM, workload, f"--timeout={READY_LIMIT_SECONDS}s")
            except LabError as error:
                pods = cluster.kubectl("describe", "pods", SYSTEM)
                logs = cluster.kubectl("logs", SYSTEM, workload, "--tail=20", "--all-pods")
                raise LabError(f"{error}\n{pods}\n{logs}") from error

    def _overlay(self, side: str, components: Sequence[str] = ()) -> Path:
        overlay = self.folder / "overlays" / side
        overlay.mkdir(parents=True, exist_ok=True)
        name, _, tag = self.image.rpartition(":")
        kustomization: Mapping[str, object] = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(MANIFESTS / side, overlay)],
            "components": [os.path.relpath(MANIFESTS / component, overlay) for component in components],
            "images": [{"name": "cloudprovider", "newName": name, "newTag": tag}],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return overlay

    def _address(self, node: str) -> str:
        status = self.host.api.get(f"/api/v1/nodes/{node}")["status"]
        return next(str(a["address"]) for a in status["addresses"] if a["type"] == "InternalIP")


def left_on(node: str, image: str) -> list[str]:
    """What of ours is left in a node's kernel, seen from a container of the same network and process namespaces."""
    script = (
        "import glob, socket, sys; "
        "print(*glob.glob('/proc/1/root/run/netns/lb-*'), "
        "*(n for _, n in socket.if_nameindex() if n.startswith('lb')), sep='\\n')"
    )
    found = run(
        *("docker", "run", "--rm", "--privileged", "--user", "0", "--entrypoint", "python3"),
        *("--network", f"container:{node}", "--pid", f"container:{node}", image, "-c", script),
    )
    return found.split()
