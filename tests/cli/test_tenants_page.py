"""docs/tenants.md's commands, run as they stand there, on the real API servers of a host and a guest."""

import asyncio
import base64
import os
import random
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from cloudprovider.cli.cloudinit import CONFIG, MANIFEST
from cloudprovider.host.certificates import Certificates
from cloudprovider.host.clock import utc_now
from cloudprovider.kube import credentials
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.events import EventRecorder
from tests.conftest import DEFINITIONS, LOGS, ROOT
from tests.lab.build import find
from tests.lab.controlplane import ControlPlane, Settings

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(180)]

PAGE = ROOT / "docs" / "tenants.md"
SYSTEM = "/api/v1/namespaces/cloudprovider-system/secrets"
TENANTS = "/apis/cloudprovider.harvesterhci.io/v1beta1/namespaces/shops/guestclusters"


def blocks(heading: str) -> list[str]:
    (chapter,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    found: list[str] = re.findall(r"^```sh\n(.*?)^```$", chapter, re.M | re.S)
    return found


@dataclass
class Desk:
    """An operator's folder, with contexts for both clusters."""

    folder: Path
    host: ControlPlane
    guest: ControlPlane

    def run(self, script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=os.environ
            | {
                "PATH": f"{ROOT / '.venv' / 'bin'}:{find('kubectl').parent}:{os.environ['PATH']}",
                "KUBECONFIG": str(self.folder / "kubeconfig"),
                "HOME": str(self.folder),
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def let_the_host_look(self) -> None:
        """What the host's program does once a minute."""

        async def look() -> None:
            rng = random.Random(1)
            access = credentials.load(str(self.host.kubeconfig))
            async with HttpKubeClient(access, program="host", version="0", rng=rng) as client:
                events = EventRecorder(client, component="test", instance="t", now=utc_now, rng=rng)
                namespace = "cloudprovider-system"
                await Certificates(client, namespace=namespace, events=events, now=utc_now, rng=rng).check()

        asyncio.run(look())

    def secret(self, plane: ControlPlane, name: str) -> dict[str, bytes]:
        data = plane.api.get(f"{SYSTEM}/{name}")["data"]
        return {key: base64.b64decode(value) for key, value in data.items()}

    def write_contexts(self) -> None:
        merged: dict[str, list[Any]] = {"clusters": [], "users": [], "contexts": []}
        for name, plane in (("host", self.host), ("guest", self.guest)):
            config = yaml.safe_load(plane.kubeconfig.read_text())
            merged["clusters"].append({"name": name, "cluster": config["clusters"][0]["cluster"]})
            merged["users"].append({"name": name, "user": config["users"][0]["user"]})
            merged["contexts"].append({"name": name, "context": {"cluster": name, "user": name}})
        path = self.folder / "kubeconfig"
        path.touch(mode=0o600)
        path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **merged}))


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tenants-")))
        planes = {}
        for name in ("host", "guest"):
            (folder / name).mkdir()
            flags = ("--allow-privileged=true",)
            settings = Settings(name=f"tenants-{name}", api_server_flags=flags)
            planes[name] = stack.enter_context(ControlPlane(folder / name, LOGS / f"tenants-{name}", settings))
        planes["host"].apply_definitions(DEFINITIONS)
        made = Desk(folder / "desk", planes["host"], planes["guest"])
        made.folder.mkdir()
        shutil.copytree(ROOT / "manifests", made.folder / "manifests", symlinks=True)
        overlays = made.folder / "manifests" / "overlays"
        shutil.copytree(overlays / "example", overlays / "mine")
        made.write_contexts()
        yield made


def subject(pem: bytes) -> str:
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    (uri,) = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return uri


def test_1_create(desk: Desk) -> None:
    first, tenant, by_file = blocks("Create")
    assert "a new CA is in the Secret cloudprovider-system/cloudprovider-tenant-ca" in desk.run(first)
    desk.run(tenant)
    there = desk.secret(desk.guest, "cloudprovider-bridge")
    assert subject(there["tls.crt"]) == "spiffe://cloudprovider.local/ns/shops/cluster/shop"
    assert yaml.safe_load(there["config.yaml"]) == {"bridge": "10.0.0.2:30843"}
    assert there["ca.crt"] == desk.secret(desk.host, "cloudprovider-tenant-ca")["ca.crt"]
    spec = desk.host.api.get(f"{TENANTS}/shop")["spec"]
    assert (spec["nodeCidrs"], spec["networks"]) == (["10.0.8.0/25"], ["default/vlan8"])
    listed = desk.run(by_file).splitlines()
    assert stat.S_IMODE((desk.folder / "depot.guest.yaml").stat().st_mode) == 0o600
    assert subject(desk.secret(desk.guest, "cloudprovider-bridge")["tls.crt"]).endswith("/depot")
    assert [line.split() for line in listed if line.startswith("shops")] == [
        ["shops", "depot", "New", "-", "-", "-"],
        ["shops", "shop", "New", "-", "-", "-"],
    ]
    desk.run(tenant)  # again, as after a run that broke off


def test_2_rotate_and_revoke(desk: Desk) -> None:
    (rotate,) = blocks("Renewal")
    before = desk.secret(desk.guest, "cloudprovider-bridge")
    desk.run(rotate)
    after = desk.secret(desk.guest, "cloudprovider-bridge")
    assert after["tls.crt"] != before["tls.crt"]
    assert after["config.yaml"] == before["config.yaml"]
    revoke, end = blocks("Revoke")
    assert "refused" in desk.run(revoke)
    assert desk.host.api.get(f"{TENANTS}/shop")["spec"]["revokedBefore"]
    desk.run(end)
    assert [t["metadata"]["name"] for t in desk.host.api.items(TENANTS)] == ["shop"]


def test_3_the_ca_is_replaced(desk: Desk) -> None:
    begin, finish = blocks("The CA")
    first = desk.secret(desk.host, "cloudprovider-tenant-ca")
    desk.run(begin)
    desk.let_the_host_look()
    both = desk.secret(desk.host, "cloudprovider-tenant-ca")
    assert len(x509.load_pem_x509_certificates(both["ca.crt"])) == 2
    assert first["ca.crt"] in both["ca.crt"]
    desk.run(finish)
    desk.let_the_host_look()
    assert len(x509.load_pem_x509_certificates(desk.secret(desk.host, "cloudprovider-tenant-ca")["ca.crt"])) == 1


def test_4_cloud_init(desk: Desk) -> None:
    (command,) = blocks("RKE2, by cloud-init")
    desk.run(command)
    path = desk.folder / "fresh.cloud-init.yaml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text()
    assert text.startswith("#cloud-config\n")
    files = {each["path"]: each for each in yaml.safe_load(text)["write_files"]}
    assert set(files) == {MANIFEST, CONFIG}
    (shown,) = (b for b in re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if "#cloud-config" in b)
    page = {each["path"]: each for each in yaml.safe_load(shown)["write_files"]}
    assert page[CONFIG] == files[CONFIG]
    assert {k: v for k, v in page[MANIFEST].items() if k != "content"} == {
        k: v for k, v in files[MANIFEST].items() if k != "content"
    }
    assert yaml.safe_load(files[CONFIG]["content"]) == {"cloud-provider-name": ""}
    manifest = desk.folder / "applied.yaml"
    manifest.write_text(files[MANIFEST]["content"])
    # As RKE2 applies it, at its start and at each one after.
    for _ in range(2):
        desk.guest.kubectl("apply", "--validate=strict", "-f", manifest)
    objects = list(yaml.safe_load_all(files[MANIFEST]["content"]))
    assert {"Namespace", "Secret", "Deployment", "Role", "ClusterRole"} <= {o["kind"] for o in objects}
    assert subject(desk.secret(desk.guest, "cloudprovider-bridge")["tls.crt"]).endswith("/fresh")
