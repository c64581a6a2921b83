"""What stands before anything of ours is installed: a Docker network, k3d clusters and plain containers on it, images.

All names have a prefix of the run's own, the network has addresses that no other of this Docker has, and all is removed
at the run's end, whatever ends it: several runs at once do not meet.
"""

import base64
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final

import yaml

from e2e.k3d.commands import COMMAND_LIMIT_SECONDS, run
from e2e.k3d.station import ContainerClient
from tests.lab.client import Api
from tests.lab.keeper import Keeper
from tests.lab.process import LabError, wait_for
from tests.lab.workload import SERVER_IMAGE

ROOT: Final = Path(__file__).parents[2]
BASE_IMAGE: Final = os.environ.get("BASE_IMAGE", "docker.io/library/python:3.11-slim-bookworm")
K3S_IMAGE: Final = os.environ.get("K3S_IMAGE", "")
"""Empty: k3d's own choice."""
CREATE_LIMIT_SECONDS: Final = 240
NETWORKS: Final = tuple(IPv4Network(f"10.{number}.0.0/16") for number in range(77, 93))
"""What the LAN may be: the lab's own first."""
NOT_NEEDED: Final = "traefik,servicelb,metrics-server,local-storage"


def unusable() -> str:
    """Why this machine can't carry the lane; "" if it can."""
    for program in ("docker", "k3d", "kubectl"):
        if shutil.which(program) is None:
            return f"{program} is not on PATH"
    try:
        run("docker", "version", "--format", "{{.Server.Version}}", limit=10)
    except LabError as error:
        return f"Docker does not answer: {error}"
    return ""


def _image() -> tuple[str, ...]:
    return ("--image", K3S_IMAGE) if K3S_IMAGE else ()


@dataclass(frozen=True)
class Cluster:
    """A k3d cluster as its administrator sees it."""

    name: str
    kubeconfig: Path
    api: Api

    def kubectl(self, *arguments: str | Path, stdin: str = "", limit: float = COMMAND_LIMIT_SECONDS) -> str:
        return run("kubectl", f"--kubeconfig={self.kubeconfig}", *arguments, stdin=stdin, limit=limit)

    @property
    def server(self) -> str:
        """The node with the control plane."""
        return f"k3d-{self.name}-server-0"

    def nodes(self) -> list[str]:
        """The names of its nodes, which are those of their containers, sorted."""
        return sorted(node["metadata"]["name"] for node in self.api.items("/api/v1/nodes"))

    def wait_nodes(self, count: int) -> None:
        """Wait until it has so many nodes, all ready, and its DNS serves."""

        def ready() -> bool:
            nodes = self.api.items("/api/v1/nodes")
            conditions = [c["status"] for n in nodes for c in n["status"]["conditions"] if c["type"] == "Ready"]
            return conditions == ["True"] * count

        wait_for(f"{count} ready nodes of {self.name}", ready, timeout=120, period=0.5)


class Machines:
    """Docker's network and what stands on it, for one run. ``prefix`` begins every name; ``folder``, for kubeconfigs,
    goes with the rest."""

    def __init__(self, prefix: str, folder: Path) -> None:
        self.prefix = prefix
        self.folder = folder
        self.lan = NETWORKS[0]
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def up(self) -> Iterator["Machines"]:
        """The network; at the end all that stands on it is taken down."""
        swept = [sys.executable, "-m", "e2e.k3d.sweep", self.prefix, str(self.folder)]
        with Keeper([], swept, ROOT / "build" / "logs" / "k3d-sweep.log"), contextlib.ExitStack() as self._stack:
            self._create_network()
            yield self

    def _create_network(self) -> None:
        """On the first addresses that are free: Docker says whether they are, so two runs never have the same."""
        for self.lan in NETWORKS:
            try:
                run(
                    *("docker", "network", "create", "--subnet", str(self.lan), "--gateway", str(self.lan[1])),
                    *("--ip-range", self.node_cidr, self.network),
                )
            except LabError as error:
                if "overlap" not in str(error) or self.lan == NETWORKS[-1]:
                    raise
            else:
                return

    @property
    def network(self) -> str:
        return f"{self.prefix}-lan"

    @property
    def node_cidr(self) -> str:
        """Where nodes get their addresses: apart from pools, and from what scenarios use themselves."""
        return f"{self.lan.network_address}/25"

    def cluster(self, name: str, *, agents: int, pods: str, services: str) -> Cluster:
        """A new k3d cluster with one server and so many agents."""
        full = f"{self.prefix}-{name}"
        self._stack.callback(self.delete_cluster, full)
        run(
            *("k3d", "cluster", "create", full, "--network", self.network, "--no-lb", "--agents", str(agents)),
            *(*_image(), "--timeout", f"{CREATE_LIMIT_SECONDS}s", "--kubeconfig-update-default=false"),
            *("--k3s-arg", f"--disable={NOT_NEEDED}@server:*"),
            *("--k3s-arg", f"--cluster-cidr={pods}@server:*", "--k3s-arg", f"--service-cidr={services}@server:*"),
            limit=CREATE_LIMIT_SECONDS + 30,
        )
        text = run("k3d", "kubeconfig", "get", full)
        kubeconfig = self.folder / f"{name}.kubeconfig"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(text)
        cluster = Cluster(full, kubeconfig, self._api(name, text))
        self._stack.callback(cluster.api.close)
        cluster.wait_nodes(1 + agents)
        return cluster

    def delete_cluster(self, full: str) -> None:
        """As a whole, with all nodes that were added."""
        run("k3d", "cluster", "delete", full)

    def _api(self, name: str, kubeconfig: str) -> Api:
        config = yaml.safe_load(kubeconfig)
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        files = {}
        for key, text in (
            ("ca", cluster["certificate-authority-data"]),
            ("crt", user["client-certificate-data"]),
            ("key", user["client-key-data"]),
        ):
            files[key] = self.folder / f"{name}.{key}"
            files[key].touch(mode=0o600)
            files[key].write_bytes(base64.b64decode(text))
        return Api(cluster["server"], files["ca"], certificate=files["crt"], key=files["key"])

    def add_node(self, cluster: Cluster, name: str) -> str:
        """A further agent of a cluster; return its node's name."""
        full = f"{self.prefix}-{name}"
        run(
            *("k3d", "node", "create", full, "--cluster", cluster.name, "--role", "agent", *_image()),
            *("--timeout", f"{CREATE_LIMIT_SECONDS}s", "--wait"),
            limit=CREATE_LIMIT_SECONDS + 30,
        )
        return f"k3d-{full}-0"

    def remove_node(self, cluster: Cluster, node: str) -> None:
        """Delete a node's machine, and its object as an operator would."""
        run("k3d", "node", "delete", node)
        cluster.kubectl("delete", "node", node, "--ignore-not-found")

    def image(self, tag: str, dockerfile: Path, *arguments: str, context: Path = ROOT) -> str:
        """Build an image; one with a tag of the run's own goes with the run."""
        words = [word for argument in arguments for word in ("--build-arg", argument)]
        run(
            *("docker", "build", "--quiet", "--file", str(dockerfile), "--tag", tag, *words),
            *("--build-arg", f"BASE_IMAGE={BASE_IMAGE}", str(context)),
            limit=900,
        )
        return tag

    def import_images(self, clusters: Sequence[Cluster], *images: str) -> None:
        """Onto every node of the clusters, as nothing here is pulled from a registry."""
        words = [word for cluster in clusters for word in ("--cluster", cluster.name)]
        command = ["k3d", "image", "import", *words, *images]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        told = done.stdout + done.stderr
        if done.returncode != 0 or re.search(r"\bERRO\b|\bFATA\b", told):  # it ends with 0 when a node failed
            raise LabError(f"{' '.join(command)}: {told[-2000:]}")

    def client(self, name: str, *, address: str = "") -> ContainerClient:
        """A plain container on the network, and who asks from it."""
        full = f"{self.prefix}-{name}"
        where = ("--ip", address) if address else ()
        run(
            *("docker", "run", "--detach", "--rm", "--init", "--name", full, "--network", self.network, *where),
            *("--cap-add", "NET_ADMIN", BASE_IMAGE, "sleep", "infinity"),
        )
        return ContainerClient(["docker", "exec", "--interactive", full])

    @contextlib.contextmanager
    def server(self, name: str) -> Iterator[str]:
        """A plain container on the network that answers as pods do; its full name."""
        full = f"{self.prefix}-{name}"
        run(
            *("docker", "run", "--detach", "--init", "--name", full, "--network", self.network),
            *(SERVER_IMAGE, "--name", name),
        )
        try:
            yield full
        finally:
            run("docker", "rm", "--force", full)

    def address(self, container: str) -> str:
        """A container's address on the network."""
        return self._inspect(container, "IPAddress")

    def remove_client(self, name: str, client: ContainerClient) -> None:
        client.close()
        run("docker", "rm", "--force", f"{self.prefix}-{name}")

    def mac(self, container: str) -> str:
        """A container's hardware address on the network."""
        return self._inspect(container, "MacAddress")

    def _inspect(self, container: str, field: str) -> str:
        form = f'{{{{(index .NetworkSettings.Networks "{self.network}").{field}}}}}'
        return run("docker", "inspect", "--format", form, container).strip()
