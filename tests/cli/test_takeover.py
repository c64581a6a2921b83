"""``cloudprovider takeover`` on a real API server with Harvester's own definitions: every address stays, both ways."""

import asyncio
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
import yaml

from cloudprovider.cli.crds import render
from cloudprovider.host.assembly import Host
from cloudprovider.host.caches import Caches
from cloudprovider.host.clock import utc_now
from cloudprovider.host.metrics import HostMetrics
from cloudprovider.kube import credentials
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import IPBLOCKS, LOADBALANCERS
from tests.conftest import LOGS, ROOT
from tests.host.world import LIMIT, at_once, eventually
from tests.lab import netns, programs
from tests.lab.build import find
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.process import wait_for

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(180)]

DATA = Path(__file__).parent / "data" / "harvester.yaml"
OLD = "/apis/apps/v1/namespaces/harvester-system/deployments"
GROUP = "/apis/loadbalancer.harvesterhci.io/v1beta1"
WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
POD = "/api/v1/namespaces/harvester-system/pods"

WOULD = """\
Harvester's own load balancer controller, in harvester-system:
  harvester-load-balancer: 1 replica, to be scaled to 0
  harvester-load-balancer-webhook: 1 replica, to be scaled to 0

It has 1 pool and 4 load balancers. Adopted with them:
  lan   10.0.8.100   office/intranet                   virtual machines
  lan   10.0.8.101   shops/shop-default-web-1a2b3c4d   guest cluster with Harvester's provider: kept, not forwarded
  lan   10.0.8.102   office/unbooked                   virtual machines

Not adopted:
  lan   10.0.8.100   office/twin   10.0.8.100 is in use by the load balancer "office/intranet": ask for another \
address, or for none
  lan   10.0.8.103   office/gone   its load balancer is gone: it is free again

Besides:
  define IPBlock and GuestCluster
  delete the Services by which kube-vip announces virtual machines' addresses: office/intranet
  take the old controller's finalizers off 5 objects
  take harvester-load-balancer-webhook off the API server's list; it registers itself when it starts

Nothing was changed. With --yes it is done.
"""


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A Harvester host; the old controller's pods come and go as its Deployments say."""
    with tempfile.TemporaryDirectory(prefix="takeover-") as folder:
        settings = Settings(name="takeover", controller_manager=True)
        plane = ControlPlane(Path(folder), LOGS / "tests", settings)
        with plane:
            documents = [d for d in yaml.safe_load_all(DATA.read_text()) if d]
            kinds = [d for d in documents if d["kind"] == "CustomResourceDefinition"]
            definitions = Path(folder) / "definitions"
            definitions.mkdir()
            (definitions / "harvester.yaml").write_text(yaml.safe_dump_all(kinds))
            plane.apply_definitions(definitions)
            plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([d for d in documents if d not in kinds]))
            _register_old_webhook(plane)
            wait_for("the old controller's pods", lambda: len(plane.api.items(POD)) == 2, timeout=60)
            yield plane


def _register_old_webhook(plane: ControlPlane) -> None:
    """As it registers itself: whoever writes its kinds is refused while it does not answer."""
    rule = {
        "apiGroups": ["loadbalancer.harvesterhci.io"],
        "apiVersions": ["v1beta1"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["loadbalancers", "ippools"],
    }
    service = {"namespace": "harvester-system", "name": "harvester-load-balancer-webhook", "path": "/v1"}
    webhook = {
        "name": "validator.harvester-system.harvester-load-balancer-webhook",
        "clientConfig": {"service": service},
        "rules": [rule],
        "failurePolicy": "Fail",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    plane.api.create(WEBHOOKS, {"metadata": {"name": "harvester-load-balancer-webhook"}, "webhooks": [webhook]})
    conversion = {
        "strategy": "Webhook",
        "webhook": {
            "conversionReviewVersions": ["v1"],
            "clientConfig": {"service": {**service, "path": "/v1/webhook/conversion"}},
        },
    }
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/loadbalancers.loadbalancer.harvesterhci.io"
    plane.api.patch(path, {"spec": {"conversion": conversion}})


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[HttpKubeClient]:
    account = credentials.from_kubeconfig(str(plane.kubeconfig))
    async with HttpKubeClient(account, program="test", version="0", rng=random.Random(1)) as client:
        yield client


def takeover(plane: ControlPlane, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cloudprovider.cli.main", "takeover", f"--kubeconfig={plane.kubeconfig}"]
    return subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)


def replicas(plane: ControlPlane) -> list[int]:
    return [d["spec"]["replicas"] for d in plane.api.items(OLD)]


def test_1_a_dry_run_says_what_would_be_and_changes_nothing(plane: ControlPlane) -> None:
    kinds = "lb,pools,services,virtualmachines,validatingwebhookconfigurations,crd"
    before = plane.kubectl("get", kinds, "-A", "-o", "yaml")
    done = takeover(plane)
    assert (done.returncode, done.stdout, done.stderr) == (0, WOULD, "")
    assert plane.kubectl("get", kinds, "-A", "-o", "yaml") == before
    assert replicas(plane) == [1, 1]


def test_2_the_host_program_does_not_start_beside_the_old_one(plane: ControlPlane, tmp_path: Path) -> None:
    programs.install(plane, "host")
    programs.wait_permitted(plane, ("host",))
    programs.issue_bridge_certificate(tmp_path, "127.0.0.1")
    bridge, endpoint = (netns.free_port("", "127.0.0.1") for _ in range(2))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "cloudprovider.cli.main", "host"),
            *(f"--kubeconfig={programs.account(plane, 'host')}", f"--bridge-address=127.0.0.1:{bridge}"),
            *(f"--tls-cert={tmp_path / 'bridge.crt'}", f"--tls-key={tmp_path / 'bridge.key'}"),
            *(f"--tenant-ca={tmp_path / 'ca.crt'}", f"--endpoint=127.0.0.1:{endpoint}", "--log-format=json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == (
        "cloudprovider host: Harvester's own load balancer controller runs (Deployment"
        " harvester-system/harvester-load-balancer), and works on the same objects: run `cloudprovider takeover`, which"
        " says what it would adopt, then `cloudprovider takeover --yes`"
    )


async def test_3_it_records_every_address_and_switches_the_old_one_off(
    plane: ControlPlane, client: HttpKubeClient
) -> None:
    done = await asyncio.to_thread(takeover, plane, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert replicas(plane) == [0, 0]
    assert plane.api.items(POD) == []
    assert plane.api.items(WEBHOOKS) == []
    (block,) = (await client.list(IPBLOCKS)).items
    assert {a: record.owner for a, record in block.spec.allocations.items()} == {
        "10.0.8.100": "office/intranet",
        "10.0.8.101": "shops/shop-default-web-1a2b3c4d",
        "10.0.8.102": "office/unbooked",
    }
    balancers = {lb.key: lb for lb in (await client.list(LOADBALANCERS)).items}
    assert {r.uid for r in block.spec.allocations.values()} == {
        lb.metadata.uid for lb in balancers.values() if lb.metadata.name != "twin"
    }
    unbooked = balancers["office", "unbooked"].status
    assert (unbooked.address, unbooked.addresses) == ("10.0.8.102", []), "as far as Harvester's definition has room"
    assert [lb.metadata.finalizers for lb in balancers.values()] == [[]] * 4
    machine = plane.api.get("/apis/kubevirt.io/v1/namespaces/office/virtualmachines/vm-1")
    assert machine["metadata"]["finalizers"] == ["kubevirt.io/virtualMachineControllerFinalize"]
    assert plane.api.items("/api/v1/namespaces/office/services") == []


def test_4_without_rights_it_says_so_in_one_line(plane: ControlPlane) -> None:
    command = [sys.executable, "-m", "cloudprovider.cli.main", "takeover"]
    nobody = plane.kubeconfig_for("nobody")
    done = subprocess.run(
        [*command, f"--kubeconfig={nobody}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith(
        "cloudprovider takeover: run it as an administrator of the host cluster (--kubeconfig, --context); this account"
        " may not do all of it: list customresourcedefinitions"
    )


def test_4_done_twice_it_finds_nothing_left_to_do(plane: ControlPlane) -> None:
    done = takeover(plane, "--yes")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("There is nothing left to do.\n")


async def test_5_the_host_program_goes_on_with_every_address(plane: ControlPlane, client: HttpKubeClient) -> None:
    definitions = "---\n".join(text for _, text in render())
    await asyncio.to_thread(plane.kubectl, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=definitions)
    account = credentials.from_kubeconfig(str(programs.account(plane, "host")))
    async with HttpKubeClient(account, program="host", version="0", rng=random.Random(2)) as own:
        caches = Caches(own, random.Random(3), time=asyncio.get_running_loop().time)
        host = Host(
            own,
            caches,
            version="0",
            identity="test",
            reserved=(ip_network("10.96.0.0/12"),),
            now=utc_now,
            time=asyncio.get_running_loop().time,
            rng=random.Random(3),
            metrics=HostMetrics(Registry("host", "0")),
            readoption_seconds=0.0,
        )
        task = asyncio.create_task(at_once(caches.run(), host.run()))
        try:
            async with asyncio.timeout(LIMIT):
                await host.caches.synced()

            def given() -> dict[str, list[str]]:
                objects = host.caches.load_balancers.objects
                return {name: [a.ip for a in lb.status.addresses] for (_, name), lb in objects.items()}

            await eventually(lambda: all(given()[name] for name in ("intranet", "unbooked", "twin")), "addresses")
            host.controller.audit()
            await host.controller.load_balancers.queue.idle()
            assert given()["intranet"] == ["10.0.8.100"]
            assert given()["unbooked"] == ["10.0.8.102"]
            assert given()["twin"] != ["10.0.8.100"]
            stock = host.caches.load_balancers.objects["shops", "shop-default-web-1a2b3c4d"]
            assert stock.status.address == "10.0.8.101"
            assert "10.0.8.101" in (await client.list(IPBLOCKS)).items[0].spec.allocations, "a stock provider's stays"
            await eventually(
                lambda: (
                    host.caches.pools.objects["", "lan"].status.allocated.get("10.0.8.101") is not None
                    and len(host.caches.pools.objects["", "lan"].status.allocated) == 4
                )
            )
        finally:
            task.cancel()
            await asyncio.wait([task])


def test_6_the_way_back_is_as_the_page_says(plane: ControlPlane, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "takeover.md").read_text().partition("## The way back")[2]
    match = re.search(r"```\n(.*?)```", page, re.DOTALL)
    assert match is not None
    done = subprocess.run(
        ["bash", "-euc", match[1]],
        env={
            "PATH": f"{find('kubectl').parent}:/usr/bin:/bin",
            "KUBECONFIG": str(plane.kubeconfig),
            "HOME": str(tmp_path),  # or kubectl keeps its cache in the current folder
        },
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".kube").is_dir()
    assert replicas(plane) == [1, 1]
    path = f"{GROUP}/namespaces/office/loadbalancers/intranet"

    def is_harvesters() -> bool:
        """Whether a status is written with the object again, as the old controller does."""
        plane.api.patch(path, {"status": {"backendServers": ["10.0.8.32"]}})
        return bool(plane.api.get(path)["status"].get("backendServers") == ["10.0.8.32"])

    wait_for("the definitions to be as Harvester's controller needs them", is_harvesters, timeout=30)
    found = plane.api.get(path)
    assert "finalizers" not in found["metadata"]
    assert found["status"]["allocatedAddress"]["ip"] == "10.0.8.100"
    allocated = plane.api.get(f"{GROUP}/ippools/lan")["status"]["allocated"]
    assert {a: allocated[a] for a in ("10.0.8.100", "10.0.8.101", "10.0.8.102")} == {
        "10.0.8.100": "office/intranet",
        "10.0.8.101": "shops/shop-default-web-1a2b3c4d",
        "10.0.8.102": "office/unbooked",
    }
