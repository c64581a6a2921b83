"""The real programs under the accounts that the manifests give them: nothing they ask for is forbidden."""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from cloudprovider.bridge import authority
from cloudprovider.bridge.certificates import KeyPair, issue_server, issue_tenant
from cloudprovider.bridge.inspection import end_of, names_of, uris_of
from cloudprovider.bridge.secrets import text
from cloudprovider.cli.main import main
from cloudprovider.cli.options import DEFAULT_TRUST_DOMAIN
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.naming import CA_SECRET, RENEWED_SECRET, SERVER_SECRET
from cloudprovider.core.permissions import SYSTEM as SYSTEM_NAMESPACE
from cloudprovider.kube.resources import GUESTCLUSTERS
from tests.conftest import KUBEVIRT
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.network import Namespace, Switch
from tests.lab.process import wait_for

pytestmark = pytest.mark.apiserver

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 30.0
SECRETS = f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets"

_REQUEST = re.compile(r"^\w*requests_total\{(?P<labels>[^}]*)\} (?P<count>\S+)$", re.M)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    with tempfile.TemporaryDirectory(prefix="rights-") as folder:
        settings = Settings(name="rights", api_server_flags=("--allow-privileged=true",))
        control_plane = ControlPlane(Path(folder), ROOT / "build" / "logs" / "rights", settings)
        with control_plane:
            control_plane.apply_definitions(ROOT / "manifests" / "crds")
            control_plane.apply_definitions(KUBEVIRT)
            for name in ("guest", "host"):
                control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", ROOT / "manifests" / name)
            yield control_plane


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cloudprovider.cli.main", *arguments]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


@contextmanager
def running(log: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    with log.open("wb") as output:
        process = subprocess.Popen(command(*arguments), stdout=output, stderr=subprocess.STDOUT, env=environment())
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_SECONDS) == 0, log.read_text()
        finally:
            process.kill()
            process.wait(LIMIT_SECONDS)


def metrics(port: int) -> str:
    """What a program exposes; empty while it does not yet."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            exposed: str = answer.read().decode()
            return exposed
    except (urllib.error.URLError, ConnectionError):
        return ""


def requests(port: int) -> dict[tuple[str, str], set[int]]:
    """(verb, resource) to the HTTP status codes of its answers, from /metrics."""
    found: dict[tuple[str, str], set[int]] = {}
    for match in _REQUEST.finditer(metrics(port)):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        found.setdefault((labels["verb"], labels["resource"]), set()).add(int(labels["code"]))
    return found


GUEST = {("create", "leases"), ("watch", "services"), ("watch", "nodes"), ("get", "namespaces")}
HOST = {
    ("create", "leases"),
    *((verb, "secrets") for verb in ("get", "patch")),  # the webhook's certificate
    *((verb, "validatingwebhookconfigurations") for verb in ("get", "apply")),
    ("get", "deployments"),  # Harvester's own controller
    *(("watch", kind) for kind in ("loadbalancers", "ippools", "ipblocks", "guestclusters", "namespaces")),
    *(("watch", kind) for kind in ("nodes", "leases")),
    *((verb, "virtualmachineinstances") for verb in ("list", "watch")),
}
AGENT = {
    ("create", "leases"),
    ("get", "network-attachment-definitions"),
    *((verb, kind) for verb in ("list", "watch") for kind in ("loadbalancers", "guestclusters")),
}


@pytest.mark.parametrize(("program", "does"), [("guest", GUEST), ("host", HOST)])
def test_a_program_may_do_what_it_does(
    plane: ControlPlane, tmp_path: Path, program: str, does: set[tuple[str, str]]
) -> None:
    ca = ["--ca-dir", str(tmp_path / "ca"), "--out", str(tmp_path), "--pem"]
    bridge = f"127.0.0.1:{free_port()}"
    assert main(["tenant", "server-certificate", "127.0.0.1", *ca]) == 0
    tenant = ["--namespace", "default", "--node-cidr", "192.0.2.0/24", "--bridge", bridge]
    assert main(["tenant", "issue", "shop", *tenant, *ca]) == 0
    port = free_port()
    files = {
        "guest": ("--bridge", bridge, "--bridge-ca", "ca.crt", "--client-cert", "shop.crt", "--client-key", "shop.key"),
        "host": (
            "--bridge-address",
            bridge,
            "--tenant-ca",
            "ca.crt",
            "--tls-cert",
            "bridge.crt",
            "--tls-key",
            "bridge.key",
            "--webhook-address",
            f"127.0.0.1:{free_port()}",
        ),
    }[program]
    settings = [str(tmp_path / each) if (tmp_path / each).is_file() else each for each in files]
    account = plane.kubeconfig_for_account(SYSTEM_NAMESPACE, f"cloudprovider-{program}")
    endpoint = f"127.0.0.1:{port}"
    log = tmp_path / "log"
    with running(log, program, *settings, "--kubeconfig", str(account), "--endpoint", endpoint) as process:
        assert_permitted(process, log, port, does)


def test_certificates_near_their_end_are_renewed(plane: ControlPlane, tmp_path: Path) -> None:
    """The guest's by the host, the bridge's by itself: the whole way, with no more rights than the manifests give."""
    made = datetime.now(UTC) - timedelta(days=300)
    year = timedelta(days=365)
    ca = authority.make(made)
    tenant = Tenant("default", "due")
    pairs = {
        "bridge": issue_server(ca.serving, ["127.0.0.1"], now=made, validity=year),
        "due": issue_tenant(ca.signing, tenant, DEFAULT_TRUST_DOMAIN, now=made, validity=year),
    }
    for name, pair in pairs.items():
        (tmp_path / f"{name}.crt").write_bytes(pair.certificate)
        (tmp_path / f"{name}.key").write_bytes(pair.key)
    (tmp_path / "ca.crt").write_bytes(ca.trusted)
    plane.api.create(SECRETS, {"metadata": {"name": CA_SECRET}, "data": authority.data_of(ca)})
    shown = {
        "tls.crt": text(pairs["bridge"].certificate),
        "tls.key": text(pairs["bridge"].key),
        "ca.crt": text(ca.trusted),
    }
    plane.api.create(SECRETS, {"metadata": {"name": SERVER_SECRET}, "data": shown})
    document = {
        "apiVersion": GUESTCLUSTERS.api_version,
        "kind": GUESTCLUSTERS.kind,
        "metadata": {"name": tenant.cluster, "namespace": tenant.namespace},
        "spec": {"nodeCidrs": ["192.0.2.0/24"]},
    }
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(document))
    bridge, ports = f"127.0.0.1:{free_port()}", {side: free_port() for side in ("host", "guest")}
    accounts = {s: plane.kubeconfig_for_account(SYSTEM_NAMESPACE, f"cloudprovider-{s}") for s in ports}
    common = {s: (f"--kubeconfig={accounts[s]}", f"--endpoint=127.0.0.1:{ports[s]}") for s in ports}
    files = {
        key: f"{tmp_path / value}" for key, value in (("ca", "ca.crt"), ("crt", "bridge.crt"), ("key", "bridge.key"))
    }
    host = [f"--bridge-address={bridge}", f"--tenant-ca={files['ca']}", f"--tls-cert={files['crt']}"]
    guest = [f"--bridge={bridge}", f"--bridge-ca={files['ca']}", f"--client-cert={tmp_path / 'due.crt'}"]
    guest += [f"--client-key={tmp_path / 'due.key'}", f"--renewed-secret={RENEWED_SECRET}"]
    mounted = tmp_path / "renewed"
    mounted.mkdir()

    def until(name: str) -> KeyPair:
        """What a Secret holds, once it is not what it was."""

        def held() -> dict[str, str]:
            data: dict[str, str] = plane.api.get(f"{SECRETS}/{name}").get("data") or {}
            return data

        before = shown["tls.crt"]
        wait_for(f"{name} to be renewed", lambda: held().get("tls.crt", before) != before, timeout=LIMIT_SECONDS)
        return KeyPair(base64.b64decode(held()["tls.crt"]), base64.b64decode(held()["tls.key"]))

    with running(tmp_path / "host.log", "host", *host, f"--tls-key={files['key']}", *common["host"]):
        new = until(SERVER_SECRET)
        assert names_of(new) == {"127.0.0.1"}
        assert end_of(new) > datetime.now(UTC) + timedelta(days=360)
        wait_for("the bridge", partial(_is_ready, ports["host"]), timeout=LIMIT_SECONDS)
        with running(tmp_path / "guest.log", "guest", *guest, f"--renewed-dir={mounted}", *common["guest"]):
            new = until(RENEWED_SECRET)
            assert uris_of(new) == {"spiffe://cloudprovider.local/ns/default/cluster/due"}
            assert end_of(new) > datetime.now(UTC) + timedelta(days=360)
            for side, port in ports.items():
                assert not [r for r, codes in requests(port).items() if codes & {401, 403}], side
                name = f"cloudprovider_{side}_bridge_certificate_expiry_timestamp_seconds"
                ends = re.search(rf"^{name} (\S+)$", metrics(port), re.MULTILINE)
                assert ends is not None
                assert float(ends[1]) == int((made + year).timestamp()), "of what is shown still: nothing mounts here"


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
            return True
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.kernel
def test_the_agent_may_do_what_it_does_and_leave(plane: ControlPlane, tmp_path: Path) -> None:
    """Idle: what it writes of load balancers is seen in the lab, which ends with an error when that is forbidden."""
    Switch(Namespace(""), "rights-br").create()
    networks = tmp_path / "networks.yaml"
    networks.write_text("networks: [{device: rights-br, address: 192.0.2.2/24}, {name: default/elsewhere}]\n")
    account = plane.kubeconfig_for_account(SYSTEM_NAMESPACE, "cloudprovider-agent")
    settings = ["--node-name=host-1", "--instance=rights", f"--networks={networks}", f"--kubeconfig={account}"]
    port = free_port()
    log = tmp_path / "log"
    namespace = Path("/run/netns/lb-rights-mgmt")
    try:
        with running(log, "agent", *settings, f"--endpoint=127.0.0.1:{port}") as process:
            wait_for("the agent's namespace", namespace.exists)
            assert_permitted(process, log, port, AGENT)
        with log.open("wb") as output:
            left = subprocess.run(command("agent", "leave", *settings), stderr=output, env=environment(), check=False)
        assert left.returncode == 0, log.read_text()
        assert "forbidden" not in log.read_text()
        assert not namespace.exists()
    finally:
        Namespace("").ip("link del rights-br")


def assert_permitted(process: "subprocess.Popen[bytes]", log: Path, port: int, does: set[tuple[str, str]]) -> None:
    """Wait until the program has made all the requests that it makes when idle: none was refused."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not does <= (seen := requests(port)).keys():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"not yet: {does - seen.keys()}\n{log.read_text()}"
        time.sleep(0.1)  # between two looks
    refused = {request: codes for request, codes in seen.items() if codes & {401, 403}}
    assert refused == {}
    assert "forbidden" not in log.read_text()
