"""Our programs, installed into clusters and taken away again by the commands of README.md, as its reader would."""

import shutil
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

import yaml

from e2e.k3d import readme
from e2e.k3d.commands import run
from e2e.k3d.machines import ROOT, Cluster
from tests.lab.client import Object
from tests.lab.lab import POOL, RESERVED_POOL, TENANT, TENANT_NAMESPACE
from tests.lab.process import LabError, wait_for
from tests.lab.programs import SYSTEM_NAMESPACE

READY_LIMIT_SECONDS: Final = 120
BRIDGE_PORT: Final = 30843
AGENTS: Final = 8 * 256
"""Of the LAN's addresses: the agents' own come after it, outside of pools and of where nodes get theirs."""
PODS: Final = {"host": "10.42.0.0/16", "guest": "10.52.0.0/16"}
SERVICES: Final = {"host": "10.43.0.0/16", "guest": "10.53.0.0/16"}
WORKLOADS: Final = {
    "host": ("deployment/cloudprovider-host", "daemonset/cloudprovider-agent"),
    "guest": ("deployment/cloudprovider-guest",),
}
SYSTEM: Final = f"--namespace={SYSTEM_NAMESPACE}"


class Installation:
    """``folder``: the operator's own copy of the ``tree``, with the CA, certificates, and overlays in it; ``lan``: the
    network that both clusters and clients stand on."""

    def __init__(
        self,
        folder: Path,
        image: str,
        host: Cluster,
        lan: IPv4Network,
        *,
        tree: Path = ROOT,
    ) -> None:
        self.folder = folder
        self.image = image
        self.host = host
        self.lan = lan
        self._tree = tree
        self._commands = readme.Installing(*readme.blocks("Install", tree=tree))
        shutil.copytree(tree / "manifests", folder / "manifests", symlinks=True)
        self._numbers: dict[str, int] = {}

    @property
    def overlays(self) -> Path:
        return self.folder / "manifests" / "overlays" / "mine"

    # The host.

    def install_host(self) -> None:
        """Everything on the host, and wait until it serves; two pools."""
        bridge = " ".join(self.address(node) for node in self.host.nodes())
        self.run(self._commands.before, {"BRIDGE": bridge})
        self.edit()
        self.run(self._commands.host)
        self.create_pools()

    def create_pools(self) -> None:
        """Those that scenarios take for granted."""
        for pool in (POOL, RESERVED_POOL):
            manifest = pool.on(self.lan).manifest()
            wait_for(f"the pool {pool.name} to be judged and taken", partial(self._create_pool, manifest))

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
        (self.overlays / "host" / "controller-config.yaml").write_text(yaml.safe_dump(self.settings))

    @property
    def settings(self) -> Object:
        """Those of the host program."""
        return {"reserved-cidrs": [PODS["host"], SERVICES["host"]], "log-level": "info"}

    def network(self, node: str) -> Object:
        """How a host's node stands on the LAN."""
        number = self._numbers.setdefault(node, len(self._numbers))
        address = f"{self._agent_address(number)}/{self.lan.prefixlen}"
        return {"name": "", "device": "eth0", "address": address, "gateway": str(self.lan[1])}

    def _write_networks(self, node: str) -> Path:
        path = self.overlays / "host" / f"{node}.yaml"
        path.write_text(yaml.safe_dump({"networks": [self.network(node)]}))
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
        return {self._agent_address(number) for number in range(len(self._numbers))}

    def _agent_address(self, number: int) -> str:
        """The address of its own that the host's ``number``-th node (from 0) has for its agent."""
        return str(self.lan[AGENTS + 1 + number])

    def leave(self, *, leaving: bool = True) -> None:
        """Have all agents remove what they have made, or serve again; wait until they have."""
        self.host.kubectl("apply", "-k", self.overlays / ("leave" if leaving else "host"))
        self.wait_ready(self.host, "host")

    def uninstall_host(self) -> None:
        """No tenant is left before."""
        _, host = readme.blocks("Uninstall")
        self.run(host)

    # Tenants and their clusters.

    def install_guest(self, guest: Cluster, tenant: str = TENANT, namespace: str = TENANT_NAMESPACE) -> None:
        """A tenant on the host and everything in its cluster, and wait until it serves."""
        self.run(self._commands.guest, self.tenant(tenant, namespace), guest)

    def tenant(self, tenant: str = TENANT, namespace: str = TENANT_NAMESPACE) -> dict[str, str]:
        """What the commands ask for."""
        return {
            "TENANT": tenant,
            "NAMESPACE": namespace,
            "NODES": f"{self.lan.network_address}/24",
            "BRIDGE": f"{self.address(self.host.server)}:{BRIDGE_PORT}",
        }

    def uninstall_guest(self, guest: Cluster, tenant: str = TENANT, namespace: str = TENANT_NAMESPACE) -> None:
        """Its Services of type LoadBalancer are gone before, and the tenant's grace is short."""
        self.run(readme.blocks("Uninstall")[0], {"TENANT": tenant, "NAMESPACE": namespace}, guest)

    # Another version.

    def upgrade(self, before: "Installation", guest: Cluster) -> None:
        """Take the place of what was installed before, keeping the operator's own files; ours is not installed yet."""
        shutil.copytree(self.overlays.parent / "example", self.overlays)
        shutil.copytree(before.overlays, self.overlays, dirs_exist_ok=True)
        shutil.copytree(before.folder / "ca", self.folder / "ca")
        for written in (*before.folder.glob("*.host.yaml"), *before.folder.glob("*.guest.yaml")):
            shutil.copy(written, self.folder)
        self.edit()
        self.run("\n".join(readme.blocks("Upgrade")), guest=guest)

    def run(self, block: str, settings: dict[str, str] | None = None, guest: Cluster | None = None) -> None:
        """Run commands as the operator, in their folder; with contexts for the host, and for a guest. Raises LabError
        with what the pods say."""
        try:
            readme.run(block, self.folder, self._contexts(guest), settings, tree=self._tree)
        except LabError as error:
            raise LabError(f"{error}\n{_pods(self.host)}\n{_pods(guest) if guest else ''}") from error

    def wait_ready(self, cluster: Cluster, side: str) -> None:
        """Wait until all of it runs as it was last applied. Raises LabError with what the pods say."""
        for workload in WORKLOADS[side]:
            try:
                cluster.kubectl("rollout", "status", SYSTEM, workload, f"--timeout={READY_LIMIT_SECONDS}s")
            except LabError as error:
                raise LabError(f"{error}\n{_pods(cluster)}") from error

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

    def address(self, node: str) -> str:
        """A host's node's own."""
        status = self.host.api.get(f"/api/v1/nodes/{node}")["status"]
        return next(str(a["address"]) for a in status["addresses"] if a["type"] == "InternalIP")


def _pods(cluster: Cluster) -> str:
    """How our pods are, and what they said last."""
    everyone = "--selector=app.kubernetes.io/name"
    try:
        pods = cluster.kubectl("describe", "pods", SYSTEM)
        return f"{pods}\n{cluster.kubectl('logs', SYSTEM, everyone, '--tail=20', '--prefix', '--ignore-errors')}"
    except LabError as error:
        return str(error)


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
