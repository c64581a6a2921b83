"""What is wrong when something is installed: each program says it in a sentence with what to do, at /readyz, which is
what ``kubectl describe pod`` shows; and goes on by itself once that is done."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudprovider.bridge.certificates import KeyPair, issue_server, issue_tenant, make_ca
from cloudprovider.cli.options import DEFAULT_TRUST_DOMAIN
from cloudprovider.core.exchange import Tenant
from tests.lab import programs
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.network import Namespace, run
from tests.lab.process import wait_for
from tests.lab.programs import BRIDGE_PORT, ROOT, Program

pytestmark = [pytest.mark.apiserver, pytest.mark.kernel, pytest.mark.timeout(120)]

HERE = Namespace("")
WHO = Tenant(namespace="shops", cluster="shop")
YEAR = timedelta(days=365)
CLOCKS_APART = timedelta(minutes=10)


@pytest.fixture
def plane() -> Iterator[ControlPlane]:
    """Host and guest in one: accounts and roles, and no definition of our kinds."""
    with tempfile.TemporaryDirectory(prefix="bad-input-") as folder:
        settings = Settings(name="bad-input", api_server_flags=("--allow-privileged=true",))
        with ControlPlane(Path(folder), ROOT / "build" / "logs" / "bad-input", settings) as plane:
            for side in ("host", "guest"):
                programs.install(plane, side)
            programs.wait_permitted(plane, ("host", "agent", "guest"))
            yield plane


class Certificates:
    """A CA, and what it has issued, as files in ``folder``; its clock is ``ahead``."""

    def __init__(self, folder: Path, *, ahead: timedelta = timedelta(0)) -> None:
        self.folder = folder
        folder.mkdir()
        now = datetime.now(UTC) + ahead
        self.ca = make_ca("tests", now=now - ahead, validity=2 * YEAR)
        (folder / "ca.crt").write_bytes(self.ca.certificate)
        self._write("bridge", issue_server(self.ca, ["127.0.0.1"], now=now - ahead, validity=YEAR))
        self._write(WHO.cluster, issue_tenant(self.ca, WHO, DEFAULT_TRUST_DOMAIN, now=now, validity=YEAR))

    def _write(self, name: str, pair: KeyPair) -> None:
        (self.folder / f"{name}.crt").write_bytes(pair.certificate)
        (self.folder / f"{name}.key").write_bytes(pair.key)


@contextlib.contextmanager
def running(program: Program) -> Iterator[Program]:
    program.start(wait=False)
    try:
        yield program
    finally:
        program.kill()


def host_of(plane: ControlPlane, certificates: Certificates, tmp_path: Path) -> Program:
    account = programs.account(plane, "host")
    log = tmp_path / "host.log"
    return programs.host_program(HERE, account, certificates.folder, reserved=["10.97.0.0/16"], log=log)


def guest_of(plane: ControlPlane, certificates: Certificates, tmp_path: Path) -> Program:
    account, bridge, log = programs.account(plane, "guest"), f"127.0.0.1:{BRIDGE_PORT}", tmp_path / "guest.log"
    return programs.guest_program(HERE, account, certificates.folder, tenant=WHO.cluster, bridge=bridge, log=log)


def agent_of(plane: ControlPlane, tmp_path: Path) -> Program:
    networks = tmp_path / "networks.yaml"
    networks.write_text("networks: [{device: lo, address: 192.0.2.9/24}]\n")
    account, log = programs.account(plane, "agent"), tmp_path / "agent.log"
    return programs.agent_program(HERE, account, networks, node="host", instance="bad", log=log)


def define(plane: ControlPlane) -> None:
    """What is missing: our kinds, and the tenant."""
    plane.apply_definitions(ROOT / "manifests" / "crds")
    plane.api.create("/api/v1/namespaces", {"metadata": {"name": WHO.namespace}})
    path = f"/apis/cloudprovider.harvesterhci.io/v1beta1/namespaces/{WHO.namespace}/guestclusters"
    kind = {"apiVersion": "cloudprovider.harvesterhci.io/v1beta1", "kind": "GuestCluster"}
    spec = {"nodeCidrs": ["10.0.8.0/25"]}
    plane.api.create(path, {**kind, "metadata": {"name": WHO.cluster}, "spec": spec})


def wait_said(program: Program, *words: str) -> str:
    """Wait until a program says all of this; return the line."""

    def said() -> str:
        told = program.not_ready()
        found = [line for line in told.splitlines() if all(word in line for word in words)]
        assert found, f"it says: {told or 'ready'}"
        return found[0]

    return program.process.wait_until(f"to say {words}", said, timeout=30)


def test_kinds_that_are_not_defined(plane: ControlPlane, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "pki")
    lacks = "the API server does not know {} ({}): apply manifests/crds"
    balancers = lacks.format("loadbalancers", "loadbalancer.harvesterhci.io/v1beta1")
    tenants = lacks.format("guestclusters", "cloudprovider.harvesterhci.io/v1beta1")
    with running(host_of(plane, certificates, tmp_path)) as host, running(agent_of(plane, tmp_path)) as agent:
        for program in (host, agent):
            for sentence in (balancers, tenants):
                assert wait_said(program, sentence) == sentence
        define(plane)
        host.wait_ready()
        wait_for("the agent to find them", lambda: "manifests/crds" not in agent.not_ready())


def test_a_node_without_nftables(plane: ControlPlane, tmp_path: Path) -> None:
    """The library hidden by a mount; what a kernel lacks is tests/dataplane/test_features.py's."""
    known = run("ldconfig", "-p").splitlines()
    (library,) = {line.split()[-1] for line in known if line.split()[:1] == ["libnftables.so.1"]}
    (tmp_path / "networks.yaml").write_text("networks: [{device: lo, address: 192.0.2.9/24}]\n")
    agent = (sys.executable, "-m", "cloudprovider.cli.main", "agent", "--node-name=n")
    settings = (f"--networks={tmp_path / 'networks.yaml'}", f"--kubeconfig={programs.account(plane, 'agent')}")
    script = f'mount --bind /dev/null {library}; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", script, "sh", *agent, *settings],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cloudprovider agent: libnftables can't be loaded")
    assert last.endswith("install it (Debian: libnftables1)")


def test_a_guest_before_its_host(plane: ControlPlane, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "pki")
    define(plane)
    with running(guest_of(plane, certificates, tmp_path)) as guest:
        wait_said(guest, "the host is not reached", f"127.0.0.1:{BRIDGE_PORT}")
        with running(host_of(plane, certificates, tmp_path)):
            guest.wait_ready()


def test_a_certificate_of_another_ca(plane: ControlPlane, tmp_path: Path) -> None:
    ours, others = Certificates(tmp_path / "pki"), Certificates(tmp_path / "others")
    (others.folder / "ca.crt").write_bytes(ours.ca.certificate)  # the bridge is trusted, and does not trust
    define(plane)
    with (
        running(host_of(plane, ours, tmp_path)) as host,
        running(guest_of(plane, others, tmp_path)) as guest,
    ):
        host.wait_ready()
        wait_said(guest, "certificate")


def test_a_bridge_whose_ca_is_not_trusted(plane: ControlPlane, tmp_path: Path) -> None:
    ours, others = Certificates(tmp_path / "pki"), Certificates(tmp_path / "others")
    define(plane)
    with (
        running(host_of(plane, ours, tmp_path)) as host,
        running(guest_of(plane, others, tmp_path)) as guest,
    ):
        host.wait_ready()
        wait_said(guest, "certificate")


def test_clocks_ten_minutes_apart(plane: ControlPlane, tmp_path: Path) -> None:
    """The certificate was made where the clock is ahead: five minutes are allowed for."""
    certificates = Certificates(tmp_path / "pki", ahead=CLOCKS_APART)
    define(plane)
    with (
        running(host_of(plane, certificates, tmp_path)) as host,
        running(guest_of(plane, certificates, tmp_path)) as guest,
    ):
        host.wait_ready()
        wait_said(guest, "clock")
