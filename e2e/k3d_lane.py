"""k3d as a lane: a World out of two k3d clusters on a Docker network, our programs installed by their manifests.

What it can't do is what would need another machine than k3d's: scenarios that ask for it are marked ``lab``.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from http import HTTPStatus
from ipaddress import IPv4Network
from pathlib import Path
from typing import Final, Never

from cloudprovider.core.standing import WEIGHT_ANNOTATION
from cloudprovider.kube.lease import HOLDER_NODE
from e2e.k3d import kernel
from e2e.k3d.commands import run
from e2e.k3d.installation import PODS, SERVICES, SYSTEM, WORKLOADS, Installation
from e2e.k3d.machines import ROOT, Cluster, Machines
from e2e.k3d.station import ContainerClient
from e2e.world import Leases, ProgramName, Side
from tests.lab import checker
from tests.lab.client import STRATEGIC_MERGE_PATCH, Api, ApiError, Object
from tests.lab.lab import POOL, RESERVED_POOL
from tests.lab.machine import Machine
from tests.lab.process import LabError, wait_for
from tests.lab.programs import NO_RIGHTS, REQUESTS, kubectl_lb
from tests.lab.snapshot import BLOCKS, LOADBALANCERS, MACHINES, POOLS, TENANTS, Kernel, State
from tests.lab.traffic import Client
from tests.lab.workload import SERVER_IMAGE

AGREEMENT_LIMIT_SECONDS: Final = 40.0
SYSTEM_PATH: Final = "/apis/apps/v1/namespaces/cloudprovider-system"
PODS_PATH: Final = "/api/v1/namespaces/cloudprovider-system/pods"
PORTS: Final = {"guest": 8081, "host": 8082, "agent": 8083}
NOWHERE: Final = {"cloudprovider-e2e/nowhere": "true"}
METRICS: Final = (
    "import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/metrics', timeout=5).read().decode())"
)


class K3dWorld:
    """Meets :class:`e2e.world.World`."""

    def __init__(self, machines: Machines, installation: Installation, guest: Cluster, client: ContainerClient) -> None:
        self.machines = machines
        self.installation = installation
        self.host = installation.host
        self.guest = guest
        self._client = client
        self._stopped: set[ProgramName] = set()
        self._left = False
        self._inside: dict[str, ContainerClient] = {}
        self._forbidden: Counter[str] = Counter()

    @classmethod
    @contextlib.contextmanager
    def running(cls, prefix: str, folder: Path) -> Iterator["K3dWorld"]:
        """All of it, installed and ready; taken down at the end."""
        machines = Machines(prefix, folder)
        with machines.up():
            image, server = build_images(machines)
            host = machines.cluster("host", agents=1, pods=PODS["host"], services=SERVICES["host"])
            guest = machines.cluster("guest", agents=1, pods=PODS["guest"], services=SERVICES["guest"])
            machines.import_images([host], image)
            machines.import_images([guest], image, server)
            installation = Installation(folder / "operator", image, host, machines.lan)
            installation.install_host()
            installation.install_guest(guest)
            client = machines.client("client")
            world = cls(machines, installation, guest, client)
            try:
                yield world
            finally:
                for one in (*world._inside.values(), client):
                    one.close()

    @property
    def network(self) -> IPv4Network:
        return self.machines.lan

    @property
    def client(self) -> Client:
        return self._client

    def cluster(self, side: Side) -> Cluster:
        return self.host if side == "host" else self.guest

    def api(self, side: Side) -> Api:
        return self.cluster(side).api

    def kubectl(self, side: Side, *arguments: str) -> str:
        return self.cluster(side).kubectl(*arguments)

    def lb(self, side: Side, *arguments: str) -> tuple[int, str]:
        return kubectl_lb(self.cluster(side).kubeconfig, *arguments)

    def pool_holds(self, pool: str, address: str) -> bool:
        return next(p for p in (POOL, RESERVED_POOL) if p.name == pool).on(self.network).holds(address)

    def dhcp(self, *, lease_seconds: int = 3600) -> AbstractContextManager[Leases]:
        _absent(f"a DHCP server (of {lease_seconds} s)")

    @contextlib.contextmanager
    def intruder(self, address: str) -> Iterator[str]:
        with self.visitor(address):
            yield self.machines.mac(f"{self.machines.prefix}-visitor")

    @contextlib.contextmanager
    def visitor(self, address: str) -> Iterator[Client]:
        client = self.machines.client("visitor", address=address)
        try:
            yield client
        finally:
            self.machines.remove_client("visitor", client)

    def far_client(self, mtu: int) -> AbstractContextManager[Client]:
        _absent(f"a link of {mtu} bytes")

    def on_node(self, name: str) -> Client:
        _absent(f"a Python on the node {name}")

    def in_pod(self, uid: str) -> Client:
        if uid not in self._inside:
            pods = self.guest.api.items("/api/v1/pods")
            found = {pod["metadata"]["uid"]: pod["metadata"] for pod in pods}[uid]
            enter = ("kubectl", f"--kubeconfig={self.guest.kubeconfig}", "--namespace", found["namespace"])
            self._inside[uid] = ContainerClient([*enter, "exec", "--stdin", found["name"], "--"])
        return self._inside[uid]

    def _kernel(self) -> Kernel:
        return self._kernels()[0]

    def _kernels(self) -> tuple[Kernel, dict[str, str]]:
        return kernel.read_all(self.host, self.installation.own_addresses)

    def backends(self, address: str, protocol: str, port: int) -> frozenset[str] | None:
        found = self._kernel().backends.get((address, protocol.lower(), port))
        names = self._names()
        return None if found is None else frozenset(names.get(one, one) for one in found)

    def _names(self) -> dict[str, str]:
        """The guest's nodes by address and by MAC."""
        names: dict[str, str] = {}
        for node in self.guest.api.items("/api/v1/nodes"):
            name = node["metadata"]["name"]
            names |= {a["address"]: name for a in node["status"]["addresses"]}
            names[self.machines.mac(name)] = name
        return names

    def mode(self, address: str, protocol: str, port: int) -> str:
        return self._kernel().mode((address, protocol.lower(), port))

    def fixed_neighbours(self) -> dict[str, str]:
        return self._kernel().fixed

    def add_machine(self, namespace: str, name: str) -> Machine:
        _absent(f"virtual machines ({namespace}/{name})")

    def remove_machine(self, name: str) -> None:
        _absent(f"virtual machines ({name})")

    def migrate_machine(self, name: str) -> None:
        _absent(f"virtual machines ({name})")

    def traffic_nodes(self) -> frozenset[str]:
        return frozenset(checker.traffic_nodes(self.guest.api.items("/api/v1/nodes")))

    def kill(self, name: ProgramName) -> None:
        self._stopped.add(name)
        side, workload = _workload(name)
        cluster = self.cluster(side)
        kind, _, called = workload.partition("/")
        spec = {"template": {"spec": {"nodeSelector": NOWHERE}}} if kind == "daemonset" else {"replicas": 0}
        cluster.api.patch(f"{SYSTEM_PATH}/{kind}s/{called}", {"spec": spec}, content_type=STRATEGIC_MERGE_PATCH)
        label = f"--selector=app.kubernetes.io/name={called}"
        cluster.kubectl("delete", "pods", SYSTEM, label, "--force", "--grace-period=0", "--wait=true")

        def gone() -> bool:
            return not cluster.kubectl("get", "pods", SYSTEM, label, "--output=name").strip()

        wait_for(f"the pods of {called} to be gone", gone)

    def start(self, name: ProgramName) -> None:
        side, workload = _workload(name)
        if name in self._stopped:
            kind, _, called = workload.partition("/")
            path = f"{SYSTEM_PATH}/{kind}s/{called}"
            if kind == "daemonset":
                away = {"template": {"spec": {"nodeSelector": dict.fromkeys(NOWHERE)}}}
                self.cluster(side).api.patch(path, {"spec": away}, content_type=STRATEGIC_MERGE_PATCH)
            else:
                self.cluster(side).api.patch(path, {"spec": {"replicas": 2}})
            self._stopped.discard(name)
        if name == "agent" and self._left:
            self.installation.leave(leaving=False)
            self._left = False
        self.installation.wait_ready(self.cluster(side), side)

    def leave(self) -> None:
        self._left = True
        self.installation.leave()

    def api_server_down(self, side: Side) -> AbstractContextManager[None]:
        _absent(f"an API server of the {side} apart from its node")

    def bridge_cut(self) -> AbstractContextManager[None]:
        _absent("a way to cut the bridge and nothing else")

    def restore(self) -> None:
        programs: tuple[ProgramName, ...] = ("host", "agent", "guest")
        for program in programs:
            if program in self._stopped or (program == "agent" and self._left):
                self.start(program)

    def add_node(self, name: str, *, elsewhere: bool = False) -> None:
        _absent(f"nodes by a name of one's own ({name}{', elsewhere' if elsewhere else ''})")

    def without_kube_proxy(self, name: str) -> AbstractContextManager[None]:
        _absent(f"a kube-proxy apart from its node ({name})")

    def cut_node(self, name: str) -> None:
        _absent(f"nodes that are added ({name})")

    def remove_node(self, name: str) -> None:
        _absent(f"nodes that are added ({name})")

    @contextlib.contextmanager
    def stopped(self, node: str, *command: str) -> Iterator[None]:
        """A node's machine is off on entry, by the command, and back and ready on exit."""
        run(*command, node)
        try:
            yield
        finally:
            run("k3d", "node", "start", node)
            cluster = self.guest if self.guest.name in node else self.host
            cluster.wait_nodes(len(cluster.nodes()))

    def leads_since(self, node: str) -> float:
        """When the copy of the host program on a node began to lead (as time.time()); 0 while another one does."""
        lease = self.host.api.get(
            "/apis/coordination.k8s.io/v1/namespaces/cloudprovider-system/leases/cloudprovider-host"
        )
        if lease["metadata"]["annotations"].get(HOLDER_NODE) != node or not lease["spec"]["holderIdentity"]:
            return 0.0
        return datetime.fromisoformat(lease["spec"]["acquireTime"]).timestamp()

    def lead_from(self, node: str) -> None:
        """Have the copy of the host program on a node lead: those elsewhere are ended until it does."""

        def there() -> bool:
            if self.leads_since(node):
                return True
            for pod in self.host.api.items(PODS_PATH, labelSelector="app.kubernetes.io/name=cloudprovider-host"):
                if pod["spec"].get("nodeName", node) != node:
                    self.host.kubectl("delete", "pod", SYSTEM, pod["metadata"]["name"])
            self.installation.wait_ready(self.host, "host")
            return bool(self.leads_since(node))

        wait_for(f"the host program to lead from {node}", there, timeout=90)

    @contextlib.contextmanager
    def weighing(self, node: str, weight: int) -> Iterator[None]:
        """Meanwhile a host's node has this weight: with 0 the controller gives it no load balancer; others may still
        leave it theirs by dying."""
        path = f"/api/v1/nodes/{node}"
        self.host.api.patch(path, {"metadata": {"annotations": {WEIGHT_ANNOTATION: str(weight)}}})
        try:
            yield
        finally:
            self.host.api.patch(path, {"metadata": {"annotations": {WEIGHT_ANNOTATION: None}}})

    def wait_until_agreed(self) -> None:
        checker.wait_until_none(self.differences, AGREEMENT_LIMIT_SECONDS)

    def differences(self) -> list[str]:
        guest, host = self.guest.api, self.host.api
        nodes = guest.items("/api/v1/nodes")
        rules, up = self._kernels()
        state = State(
            up=up,
            macs={node["metadata"]["name"]: self.machines.mac(node["metadata"]["name"]) for node in nodes},
            services=guest.items("/api/v1/services"),
            nodes=nodes,
            slices=guest.items("/apis/discovery.k8s.io/v1/endpointslices"),
            balancers=host.items(LOADBALANCERS),
            pools=host.items(POOLS),
            blocks=host.items(BLOCKS),
            tenants=host.items(TENANTS),
            machines=self._machines(),
            kernel=rules,
        )
        return checker.compare(state)

    def _machines(self) -> list[Object]:
        """KubeVirt's instances; none where there is no KubeVirt."""
        try:
            return self.host.api.items(MACHINES)
        except ApiError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return []

    def check_rights(self) -> None:
        found: Counter[str] = Counter()
        for program, port in PORTS.items():
            cluster = self.guest if program == "guest" else self.host
            label = f"--selector=app.kubernetes.io/name=cloudprovider-{program}"
            pods = json.loads(cluster.kubectl("get", "pods", SYSTEM, label, "--output=json"))["items"]
            for pod in pods:
                name = pod["metadata"]["name"]
                with contextlib.suppress(LabError):  # it has ended meanwhile, and can't say
                    told = cluster.kubectl("exec", SYSTEM, name, "--", "python3", "-c", METRICS.format(port=port))
                    for labels, count in re.findall(rf"^{REQUESTS}\{{(.*)\}} (\S+)$", told, re.MULTILINE):
                        values = dict(re.findall(r'(\w+)="([^"]*)"', labels))
                        if int(values["code"]) in NO_RIGHTS:
                            found[f"{name}: {values['verb']} {values['resource']}"] += int(float(count))
        news, self._forbidden = found - self._forbidden, found
        if news:
            told = "; ".join(f"{what} ({count} times)" for what, count in sorted(news.items()))
            raise LabError(f"forbidden by an API server, so missing in manifests/: {told}")

    def describe(self) -> str:
        sections: dict[str, Callable[[], str]] = {
            "guest": partial(
                self.guest.kubectl, "get", "nodes,services,pods,endpointslices,events", "-A", "-o", "wide"
            ),
            "host": partial(
                self.host.kubectl, "get", "loadbalancers,ippools,ipblocks,guestclusters", "-A", "-o", "yaml"
            ),
            "host's pods": partial(self.host.kubectl, "get", "nodes,pods", "-A", "-o", "wide"),
            "kernel": lambda: str(self._kernel()),
        }
        for side in ("guest", "host"):
            for workload in WORKLOADS[side]:
                logs = ("logs", SYSTEM, workload, "--tail=200", "--all-pods", "--prefix")
                sections[f"logs of {workload}"] = partial(self.cluster(side).kubectl, *logs)
        return "\n".join(f"===== {title}\n{_text(section)}" for title, section in sections.items())


def build_images(machines: Machines) -> tuple[str, str]:
    """Our image and the one that answers in scenarios, from what ``make wheels`` has made."""
    from cloudprovider import __version__  # noqa: PLC0415 - the version alone

    server = machines.image(SERVER_IMAGE, ROOT / "e2e" / "k3d" / "server.Dockerfile", context=ROOT / "tests" / "lab")
    tag = f"cloudprovider-e2e:{machines.prefix}"
    dockerfile = ROOT / "manifests" / "image" / "Dockerfile"
    return machines.image(tag, dockerfile, f"VERSION={__version__}"), server


def _workload(name: ProgramName) -> tuple[Side, str]:
    side: Side = "guest" if name == "guest" else "host"
    return side, next(one for one in WORKLOADS[side] if one.endswith(name))


def _absent(what: str) -> Never:
    raise LabError(f"this lane does not have {what}: mark the scenario pytest.mark.lab")


def _text(section: Callable[[], str]) -> str:
    try:
        return section()
    except (AssertionError, OSError, LabError, ApiError) as error:
        return f"can't be told: {error}"
