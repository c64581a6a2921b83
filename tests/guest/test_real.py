"""The whole process against a real API server, as an account with just the shipped rights, over a real bridge."""

import asyncio
import itertools
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
import yaml

from cloudprovider.bridge.fake import MemoryBackend, MemoryTenant
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.guest.program import COMPONENT
from tests.bridge.tls import DOMAIN, TENANT, Authority, now
from tests.lab import netns
from tests.lab.client import Object
from tests.lab.controlplane import ControlPlane
from tests.lab.process import Process

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120)]

T = TypeVar("T")

LIMIT = 45.0
ROOT = Path(__file__).parent.parent.parent
RBAC = ROOT / "manifests" / "guest" / "rbac.yaml"
_numbers = itertools.count(int(time.time()))


@dataclass
class Cluster:
    """A real guest cluster with the program in it."""

    plane: ControlPlane
    namespace: str
    backend: MemoryBackend
    wanted_class: str
    endpoint: str
    program: Process

    @property
    def services(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/services"

    def create(self, name: str, **spec: Any) -> Object:
        body = {
            "metadata": {"name": name},
            "spec": {
                "type": "LoadBalancer",
                "loadBalancerClass": self.wanted_class,
                "ports": [{"name": "http", "port": 80}],
                **spec,
            },
        }
        return self.plane.api.create(self.services, body)

    def patch(self, name: str, body: Object, subresource: str = "") -> Object:
        return self.plane.api.patch(f"{self.services}/{name}{subresource}", body)

    def find(self, name: str) -> Object | None:
        return self.plane.api.find(f"{self.services}/{name}")

    def condition(self, name: str, kind: str = "loadbalancer.harvesterhci.io/Ready") -> Object:
        service = self.find(name) or {}
        conditions = service.get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == kind), {})

    def ingress(self, name: str) -> list[Object]:
        service = self.find(name) or {}
        found: list[Object] = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        return found

    def events(self, name: str) -> list[str]:
        """Reasons of the program's events; the API server, too, has something to say of Services now and then
        ("ClusterIPNotAllocated ... repairing", where its repair loop meets one that is just being made)."""
        events = self.plane.api.items(f"/api/v1/namespaces/{self.namespace}/events")
        return [
            e["reason"]
            for e in events
            if e["involvedObject"]["name"] == name and e["source"].get("component") == COMPONENT
        ]

    async def until(self, condition: Callable[[], T]) -> T:
        """Wait until ``condition`` holds. What it asks takes milliseconds, so long the bridge's loop can wait."""
        async with asyncio.timeout(LIMIT):
            while not (found := condition()):
                assert self.program.running, f"the program has ended, see {self.program.log}"
                await asyncio.sleep(0.05)
        return found

    async def until_written(self, expected: Counter[str]) -> None:
        """Wait until the program has had answers to just these requests: what they did can be seen a little earlier."""
        async with asyncio.timeout(LIMIT):
            while (counts := await self.writes()) != expected:
                assert counts < expected
                await asyncio.sleep(0.05)

    async def writes(self) -> Counter[str]:
        """The program's requests but for reading, by verb and resource, from its /metrics."""
        async with aiohttp.ClientSession() as session, session.get(f"http://{self.endpoint}/metrics") as answer:
            text = await answer.text()
        counts: Counter[str] = Counter()
        for line in text.splitlines():
            if line.startswith("cloudprovider_kube_requests_total{"):
                labels, value = line.removeprefix("cloudprovider_kube_requests_total").rsplit(" ", 1)
                found = dict(pair.split("=", 1) for pair in labels.strip("{}").replace('"', "").split(","))
                if found["verb"] not in {"get", "list", "watch"} and found["resource"] != "leases":
                    counts[f"{found['verb']} {found['resource']} {found['code']}"] += int(float(value))
        return counts


def _grant(plane: ControlPlane, user: str, namespace: str) -> None:
    """Give ``user`` what the shipped manifests give the program's account, under names of this test's own."""
    subject = {"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}
    for document in yaml.safe_load_all(RBAC.read_text()):
        kind = document["kind"]
        if kind not in {"ClusterRole", "Role"}:
            continue
        where = f"/namespaces/{namespace}" if kind == "Role" else ""
        path = f"/apis/rbac.authorization.k8s.io/v1{where}/{kind.lower()}"
        plane.api.create(f"{path}s", {**document, "metadata": {"name": user}})
        reference = {"kind": kind, "name": user, "apiGroup": "rbac.authorization.k8s.io"}
        binding = {"metadata": {"name": user}, "roleRef": reference, "subjects": [subject]}
        plane.api.create(f"{path}bindings", binding)


@pytest.fixture
async def cluster(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Cluster]:
    namespace = f"guest-{next(_numbers)}"
    control_plane.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    _grant(control_plane, namespace, namespace)
    authority = Authority.make(tmp_path / "tls")
    backend = MemoryBackend()
    backend.set_tenant(TENANT, MemoryTenant())
    tls = authority.write("server", authority.server())
    server = BridgeServer(ServerConfig(listen="127.0.0.1:0", tls=tls, trust_domain=DOMAIN), backend, now=now)
    port = await server.start()
    client = authority.write("client", authority.client())
    wanted_class = f"example.com/{namespace}"
    endpoint = f"127.0.0.1:{netns.free_port('', '127.0.0.1')}"
    program = Process(
        "guest",
        [
            *(sys.executable, "-m", "cloudprovider.cli.main", "guest", "--log-format=json"),
            *(f"--bridge=127.0.0.1:{port}", f"--bridge-ca={client.ca}"),
            *(f"--client-cert={client.certificate}", f"--client-key={client.key}"),
            *(f"--load-balancer-class={wanted_class}", f"--lease-namespace={namespace}", f"--endpoint={endpoint}"),
            f"--kubeconfig={control_plane.kubeconfig_for(namespace)}",
        ],
        log=tmp_path / "guest.log",
        environment={"PYTHONPATH": str(ROOT)},
    )
    program.start()
    made = Cluster(control_plane, namespace, backend, wanted_class, endpoint, program)
    try:
        yield made
    finally:
        await asyncio.to_thread(program.terminate)
        await server.stop(grace=0.2)
        control_plane.api.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {"done": ""}}})
        for service in control_plane.api.items(made.services):
            made.patch(service["metadata"]["name"], {"metadata": {"finalizers": None}})
        control_plane.api.delete(f"/api/v1/namespaces/{namespace}")


async def test_services_cost_three_requests_each_and_one_to_delete(cluster: Cluster) -> None:
    names = [f"web{i}" for i in range(20)]
    for name in names:
        cluster.create(name)
    for name in names:
        await cluster.until(lambda name=name: cluster.ingress(name))  # type: ignore[misc]
        await cluster.until(lambda name=name: cluster.events(name) == ["AddressAssigned"])  # type: ignore[misc]
    expected = Counter({"patch services 200": 20, "apply services/status 200": 20, "create events 201": 20})
    await cluster.until_written(expected)
    service = cluster.find("web0")
    assert service is not None
    (ingress,) = service["status"]["loadBalancer"]["ingress"]
    assert ingress["ipMode"] == "VIP"
    assert cluster.condition("web0")["status"] == "True"
    assert cluster.condition("web0")["lastTransitionTime"]
    for name in names:
        cluster.plane.api.delete(f"{cluster.services}/{name}")
    await cluster.until(lambda: not cluster.plane.api.items(cluster.services))
    assert not cluster.backend.load_balancers
    await cluster.until_written(expected + Counter({"patch services 200": 20}))


async def test_a_port_that_is_not_served_and_a_mistake_that_is_taken_back(cluster: Cluster) -> None:
    tcp, sctp = {"name": "http", "port": 80}, {"name": "s", "port": 81, "protocol": "SCTP"}
    cluster.create("web", ports=[tcp, sctp])
    (ingress,) = await cluster.until(lambda: cluster.ingress("web"))
    assert ingress["ports"] == [
        {"port": 80, "protocol": "TCP"},
        {"port": 81, "protocol": "SCTP", "error": "cloudprovider.harvesterhci.io/SCTPNotSupported"},
    ]
    assert cluster.condition("web", "LoadBalancerPortsError")["status"] == "True"
    annotation = "cloudprovider.harvesterhci.io/ipam"
    cluster.patch("web", {"metadata": {"annotations": {annotation: "cloud"}}})
    await cluster.until(lambda: cluster.condition("web").get("reason") == "UnsupportedValue")
    assert cluster.ingress("web") == [ingress]
    cluster.patch("web", {"metadata": {"annotations": {annotation: None}}, "spec": {"ports": [tcp]}})
    await cluster.until(lambda: cluster.condition("web").get("status") == "True")
    await cluster.until(lambda: "ports" not in cluster.ingress("web")[0])
    assert not cluster.condition("web", "LoadBalancerPortsError")


async def test_the_type_changed_away_and_back(cluster: Cluster) -> None:
    cluster.create("web")
    await cluster.until(lambda: cluster.ingress("web"))
    other = {
        "type": "Other",
        "status": "True",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "reason": "x",
        "message": "",
    }
    service = cluster.find("web") or {}
    cluster.patch("web", {"status": {"conditions": [*service["status"]["conditions"], other]}}, "/status")
    cluster.patch("web", {"spec": {"type": "ClusterIP", "loadBalancerClass": None}})
    await cluster.until(lambda: not (cluster.find("web") or {})["metadata"].get("finalizers"))
    left = cluster.find("web") or {}
    assert [c["type"] for c in left["status"]["conditions"]] == ["Other"]
    assert not cluster.backend.load_balancers
    back = {"type": "LoadBalancer", "loadBalancerClass": cluster.wanted_class}
    cluster.patch("web", {"spec": back})
    await cluster.until(lambda: cluster.ingress("web"))


async def test_a_foreign_owner_of_the_status(cluster: Cluster) -> None:
    cluster.create("web")
    await cluster.until(lambda: cluster.ingress("web"))
    foreign = {"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1", "ipMode": "VIP"}]}}}
    cluster.patch("web", foreign, "/status")
    await cluster.until(lambda: cluster.condition("web").get("reason") == "ForeignOwner")
    assert [entry["ip"] for entry in cluster.ingress("web")] == ["198.51.100.1"]
    cluster.patch("web", {"status": {"loadBalancer": {"ingress": None}}}, "/status")
    await cluster.until(lambda: [e["ip"] for e in cluster.ingress("web")] == ["192.0.2.1"])


async def test_it_is_ready_when_the_host_is_reached(cluster: Cluster) -> None:
    async def readiness() -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{cluster.endpoint}/readyz") as answer,
        ):
            return answer.status

    cluster.create("web")
    await cluster.until(lambda: cluster.ingress("web"))
    assert await readiness() == 200
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases/cloudprovider-guest"
    assert cluster.plane.api.get(lease)["spec"]["holderIdentity"]
    await asyncio.to_thread(cluster.program.terminate)
    assert not cluster.plane.api.get(lease)["spec"].get("holderIdentity")
