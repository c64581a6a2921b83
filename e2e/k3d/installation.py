"""Our programs, installed into clusters and taken away again by the commands of README.md, as its reader would."""

import shutil
from functools import partial
from pathlib import Path
from typing import Final

import yaml

from e2e.k3d import readme
from e2e.k3d.machines import ROOT, Cluster, run
from tests.lab.client import Object
from tests.lab.lab import NETWORK, POOL, RESERVED_POOL, TENANT, TENANT_NAMESPACE
from tests.lab.process import LabError, wait_for
from tests.lab.programs import SYSTEM_NAMESPACE

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


class Installation:
    """``folder``: the operator's own copy of the tree, with the CA, certificates, and overlays in it."""

    def __init__(self, folder: Path, image: str, host: Cluster) -> None:
        self.folder = folder
        self.image = image
        self.host = host
        shutil.copytree(ROOT / "manifests", folder / "manifests", symlinks=True)
        self._numbers: dict[str, int] = {}

    @property
    def overlays(self) -> Path:
        return self.folder / "manifests" / "overlays" / "mine"

    # The host.

    def install_host(self) -> None:
        """Everything on the host, and wait until it serves; two pools."""
        definitions, programs, _ = readme.blocks("Install")
        bridge = " ".join(self._address(node) for node in self.host.nodes())
        contexts = self._contexts()
        readme.run(definitions, self.folder, contexts, {"BRIDGE": bridge})
        self.edit()
        readme.run(programs, self.folder, contexts)
        for pool in (POOL, RESERVED_POOL):
            wait_for(f"the pool {pool.name} to be judged and taken", partial(self._create_pool, pool.manifest()))

    def edit(self) -> None:
        """What the operator says in the overlays, for the nodes that the host has now."""
        name, _, tag = self.image.rpartition(":")
        for side in ("host", "guest"):
            overlay = self.overlays / side / "kustomization.yaml"
            document = yaml.safe_load(overlay.read_text())
            document["images"] = [{"name": "cloudprovider", "newName": name, "newTag": tag}]
            for generator in document.get("configMapGenerator", ()):
                if generator["name"] == "cloudprovider-agent":
                    generator["files"] = [self._write_networks(node).name for node in self.host.nodes()]
            overlay.write_text(yaml.safe_dump(document))
        settings = {"reserved-cidrs": [PODS["host"], SERVICES["host"]], "log-level": "info"}
        (self.overlays / "host" / "controller-config.yaml").write_text(yaml.safe_dump(settings))

    def _write_networks(self, node: str) -> Path:
        number = self._numbers.setdefault(node, len(self._numbers))
        network = {
            "name": "",
            "device": "eth0",
            "address": f"{agent_address(number)}/{NETWORK.prefixlen}",
            "gateway": str(NETWORK[1]),
        }
        path = self.overlays / "host" / f"{node}.yaml"
        path.write_text(yaml.safe_dump({"networks": [network]}))
        return path

    def _create_pool(self, manifest: Object) -> bool:
        try:
            self.host.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
        except LabError as error:
            raise AssertionError(str(error)) from error  # no webhook yet: asked again
        return True

    @property
    def own_addresses(self) -> set[str]:
        """Those of the agents."""
        return {agent_address(number) for number in range(len(self._numbers))}

    def leave(self, *, leaving: bool = True) -> None:
        """Have all agents remove what they have made, or serve again; wait until they have."""
        self.host.kubectl("apply", "-k", self.overlays / ("leave" if leaving else "host"))
        self.wait_ready(self.host, "host")

    def uninstall_host(self) -> None:
        """No tenant is left before."""
        _, host = readme.blocks("Uninstall")
        readme.run(host, self.folder, self._contexts())

    # Tenants and their clusters.

    def install_guest(self, guest: Cluster, tenant: str = TENANT, namespace: str = TENANT_NAMESPACE) -> None:
        """A tenant on the host and everything in its cluster, and wait until it serves."""
        settings = {
            "TENANT": tenant,
            "NAMESPACE": namespace,
            "NODES": f"{NETWORK.network_address}/24",
            "BRIDGE": f"{self._address(self.host.server)}:{BRIDGE_PORT}",
        }
        readme.run(readme.blocks("Install")[2], self.folder, self._contexts(guest), settings)

    def uninstall_guest(self, guest: Cluster, tenant: str = TENANT, namespace: str = TENANT_NAMESPACE) -> None:
        """Its Services of type LoadBalancer are gone before, and the tenant's grace is short."""
        settings = {"TENANT": tenant, "NAMESPACE": namespace}
        readme.run(readme.blocks("Uninstall")[0], self.folder, self._contexts(guest), settings)

    def wait_ready(self, cluster: Cluster, side: str) -> None:
        """Wait until all of it runs as it was last applied. Raises LabError with what the pods say."""
        for workload in WORKLOADS[side]:
            try:
                cluster.kubectl("rollout", "status", SYSTEM, workload, f"--timeout={READY_LIMIT_SECONDS}s")
            except LabError as error:
                pods = cluster.kubectl("describe", "pods", SYSTEM)
                logs = cluster.kubectl("logs", SYSTEM, workload, "--tail=20", "--all-pods")
                raise LabError(f"{error}\n{pods}\n{logs}") from error

    def _contexts(self, guest: Cluster | None = None) -> Path:
        """A kubeconfig with the contexts that README.md speaks of."""
        merged: dict[str, list[Object]] = {"clusters": [], "users": [], "contexts": []}
        for name, cluster in (("host", self.host), ("guest", guest)):
            if cluster is not None:
                config = yaml.safe_load(cluster.kubeconfig.read_text())
                merged["clusters"].append({"name": name, "cluster": config["clusters"][0]["cluster"]})
                merged["users"].append({"name": name, "user": config["users"][0]["user"]})
                merged["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})
        path = self.folder / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **merged}))
        return path

    def _address(self, node: str) -> str:
        status = self.host.api.get(f"/api/v1/nodes/{node}")["status"]
        return next(str(a["address"]) for a in status["addresses"] if a["type"] == "InternalIP")


def left_on(node: str, image: str) -> list[str]:
    """What of ours is left in a node's kernel: namespaces and links, seen from a container that shares both."""
    script = (
        "import glob, os, socket; "
        "print(*map(os.path.basename, glob.glob('/proc/1/root/run/netns/lb-*')), "
        "*(name for _, name in socket.if_nameindex() if name.startswith('lb')), sep='\\n')"
    )
    found = run(
        *("docker", "run", "--rm", "--privileged", "--user", "0", "--entrypoint", "python3"),
        *("--network", f"container:{node}", "--pid", f"container:{node}", image, "-c", script),
    )
    return found.split()
