"""``kubectl lb`` on real API servers, through the real kubectl, under real rights."""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudprovider.bridge.certificates import issue_server, make_ca
from tests.conftest import DEFINITIONS, LOGS
from tests.lab import programs
from tests.lab.build import find
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.process import wait_for

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[3]
GROUP = "/apis/loadbalancer.harvesterhci.io/v1beta1"
SYSTEM = "cloudprovider-system"
SCRIPTS = {
    "kubectl-lb": "cloudprovider.cli.kubectl.main",
    "kubectl_complete-lb": "cloudprovider.cli.kubectl.complete",
}


@pytest.fixture(scope="module")
def host() -> Iterator[ControlPlane]:
    """A host with what ``manifests/host`` installs, the programs' pods left out."""
    with tempfile.TemporaryDirectory(prefix="lb-host-") as folder:
        plane = ControlPlane(Path(folder), LOGS / "tests", Settings(name="lb-host", api_server_flags=ALLOW))
        with plane:
            plane.apply_definitions(DEFINITIONS)
            programs.install(plane, "host")
            _fill(plane)
            yield plane


@pytest.fixture(scope="module")
def guest() -> Iterator[ControlPlane]:
    """A cluster that knows no load balancer objects."""
    with tempfile.TemporaryDirectory(prefix="lb-guest-") as folder:
        plane = ControlPlane(Path(folder), LOGS / "tests", Settings(name="lb-guest"))
        with plane:
            service = {"type": "LoadBalancer", "ports": [{"port": 80}], "selector": {"app": "web"}}
            plane.api.create("/api/v1/namespaces/default/services", {"metadata": {"name": "web"}, "spec": service})
            plane.api.create("/api/v1/nodes", {"metadata": {"name": "worker-1"}})
            yield plane


ALLOW = ("--allow-privileged=true",)


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    """A PATH with the plugin's scripts on it, as an installed package has them."""
    with tempfile.TemporaryDirectory(prefix="lb-path-") as folder:
        for name, module in SCRIPTS.items():
            script = Path(folder) / name
            script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {module} "$@"\n')
            script.chmod(0o755)
        yield f"{folder}:{os.environ['PATH']}"


def _fill(plane: ControlPlane) -> None:
    for name in ("team-a", "team-b"):
        plane.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
        spec = {
            "workloadType": "vm",
            "listeners": [{"name": "web", "port": 80, "protocol": "TCP", "backendPort": 80}],
            "backendServerSelector": {"app": ["web"]},
        }
        meta = {"name": "web", "namespace": name}
        plane.api.create(f"{GROUP}/namespaces/{name}/loadbalancers", {**_KIND, "metadata": meta, "spec": spec})
    pool = {"ranges": [{"subnet": "10.0.8.0/24"}], "selector": {"network": "default/vlan8"}}
    plane.api.create(f"{GROUP}/ippools", {**_KIND, "kind": "IPPool", "metadata": {"name": "vlan8"}, "spec": pool})


_KIND = {"apiVersion": "loadbalancer.harvesterhci.io/v1beta1", "kind": "LoadBalancer"}


def run(
    path: str, kubeconfig: Path | str, *arguments: str, environment: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """``kubectl lb ...``: exit code, output, what is said on standard error."""
    done = subprocess.run(
        [str(find("kubectl")), *arguments],
        env={**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def allow(plane: ControlPlane, user: str, kind: str, rules: list[dict[str, list[str]]], namespace: str = "") -> Path:
    """A user with just these rights, and their kubeconfig."""
    where = f"/apis/rbac.authorization.k8s.io/v1/{f'namespaces/{namespace}/' if namespace else ''}"
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    plane.api.create(f"{where}{kind.lower()}s", {"metadata": {"name": user}, "rules": rules})
    body = {"metadata": {"name": user}, "roleRef": reference, "subjects": [subject]}
    plane.api.create(f"{where}{kind.lower()}bindings", body)
    return plane.kubeconfig_for(user)


def test_kubectl_finds_it_and_it_lists_all(host: ControlPlane, path: str) -> None:
    code, out, err = run(path, host.kubeconfig, "lb", "list")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert [line[:6] for line in lines[1:]] == [
        ["team-a", "web", "Unknown", "0/0", "<none>", "80/TCP"],
        ["team-b", "web", "Unknown", "0/0", "<none>", "80/TCP"],
    ]


def test_a_tenant_sees_what_is_theirs_and_hears_what_is_not(host: ControlPlane, path: str) -> None:
    rules = [{"apiGroups": ["loadbalancer.harvesterhci.io"], "resources": ["loadbalancers"], "verbs": ["get", "list"]}]
    theirs = allow(host, "alice", "Role", rules, "team-a")
    code, out, err = run(path, theirs, "lb", "list", "-n", "team-a", "-o", "json")
    assert (code, [item["namespace"] for item in json.loads(out)["items"]]) == (0, ["team-a"])
    assert err == "kubectl lb: guest clusters' nodes can't be seen: you may not list guestclusters\n"
    code, out, err = run(path, theirs, "lb", "list", "-n", "team-b")
    assert (code, out) == (3, "")
    assert err == (
        "kubectl lb: you may not list loadbalancers in the namespace team-b: have an administrator allow it\n"
    )
    code, _, err = run(path, theirs, "lb", "list", "-A")
    assert code == 3
    assert err == (
        "kubectl lb: you may not list loadbalancers in all namespaces: have an administrator allow it, or name a"
        " namespace with -n\n"
    )
    code, out, _ = run(path, theirs, "lb", "explain", "team-a/web")
    assert (code, "whether cloudprovider-host runs can't be seen" in out) == (1, True)
    code, _, err = run(path, theirs, "lb", "pools")
    assert (code, err) == (3, "kubectl lb: you may not list ippools: have an administrator allow it\n")


def test_without_n_and_a_it_falls_back_to_the_contexts_namespace(host: ControlPlane, path: str, tmp_path: Path) -> None:
    rules = [{"apiGroups": ["loadbalancer.harvesterhci.io"], "resources": ["loadbalancers"], "verbs": ["list"]}]
    theirs = allow(host, "bob", "Role", rules, "team-b")
    config = yaml.safe_load(theirs.read_text())
    config["contexts"][0]["context"]["namespace"] = "team-b"
    mine = tmp_path / "config"
    mine.write_text(yaml.safe_dump(config))
    code, out, err = run(path, mine, "lb", "list")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err.splitlines()[0] == "kubectl lb: only of the namespace team-b: you may not see those of all"


def test_who_is_not_known_or_reaches_nothing_is_told_in_one_sentence(
    host: ControlPlane, path: str, tmp_path: Path
) -> None:
    config = yaml.safe_load(host.kubeconfig.read_text())
    stranger, nowhere = tmp_path / "stranger", tmp_path / "nowhere"
    config["users"][0]["user"] = {"token": "none"}
    stranger.write_text(yaml.safe_dump(config))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    nowhere.write_text(yaml.safe_dump(config))
    code, out, err = run(path, stranger, "lb", "list")
    assert (code, out) == (3, "")
    assert err == (
        "kubectl lb: the API server does not know you (401): renew the credentials of the kubeconfig, or choose"
        " --context\n"
    )
    code, out, err = run(path, nowhere, "lb", "list")
    assert (code, out, len(err.splitlines())) == (3, "", 1)
    assert err.startswith("kubectl lb: the API server https://127.0.0.1:1 can't be reached: no connection")
    code, _, err = run(path, tmp_path / "missing", "lb", "list")
    assert code == 2
    assert err == (
        f"kubectl lb: no kubeconfig at {tmp_path / 'missing'}: give the right one with --kubeconfig, or set"
        " KUBECONFIG\n"
    )
    code, _, err = run(path, host.kubeconfig, "lb", "list", "--context", "elsewhere")
    assert (code, "elsewhere" in err, len(err.splitlines())) == (2, True, 1)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["explain", "nothing"], 1, "there is no LoadBalancer nothing in the namespace default"),
        (["pools", "nothing"], 1, "there is no pool nothing"),
        (["trace", "nothing"], 2, '"nothing" is not ADDRESS:PORT[/PROTOCOL]'),
        (["drain", "team-a/vm"], 1, "there is no VirtualMachineInstance vm in the namespace team-a"),
    ],
)
def test_what_is_not_there(host: ControlPlane, path: str, arguments: list[str], code: int, says: str) -> None:
    found, out, err = run(path, host.kubeconfig, "lb", *arguments)
    assert (found, out, len(err.splitlines())) == (code, "", 1)
    assert says in err


def test_a_guest_is_recognized(guest: ControlPlane, path: str) -> None:
    code, out, _ = run(path, guest.kubeconfig, "lb", "list")
    assert (code, out.split()[:4]) == (0, ["NAMESPACE", "NAME", "READY", "HEALTHY"])
    code, out, _ = run(path, guest.kubeconfig, "lb", "explain", "web")
    assert (code, "cloudprovider-guest does not run" in out) == (1, True)
    code, _, err = run(path, guest.kubeconfig, "lb", "pools")
    assert (code, "works on the host" in err) == (3, True)


def test_a_node_is_drained_and_put_back_by_who_may(guest: ControlPlane, path: str) -> None:
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]
    code, out, err = run(path, allow(guest, "carol", "ClusterRole", rules), "lb", "drain", "worker-1")
    assert (code, out, err) == (3, "", "kubectl lb: you may not patch nodes: have an administrator allow it\n")

    def labels() -> dict[str, str]:
        found: dict[str, str] = guest.api.get("/api/v1/nodes/worker-1")["metadata"].get("labels", {})
        return found

    label = "node.kubernetes.io/exclude-from-external-load-balancers"
    assert run(path, guest.kubeconfig, "lb", "drain", "worker-1", "--dry-run")[0] == 0
    assert label not in labels()
    assert run(path, guest.kubeconfig, "lb", "drain", "worker-1")[0] == 0
    assert label in labels()
    assert run(path, guest.kubeconfig, "lb", "drain", "worker-1", "--back")[0] == 0
    assert label not in labels()


def test_words_are_completed(host: ControlPlane, path: str) -> None:
    def offered(*words: str) -> list[str]:
        code, out, _ = run(path, host.kubeconfig, "__complete", "lb", *words)
        assert code == 0
        *lines, directive = out.splitlines()
        assert directive == ":4"
        return [line.partition("\t")[0] for line in lines]

    assert offered("") == ["list", "explain", "pools", "trace", "drain", "check"]
    assert offered("e") == ["explain"]
    assert offered("explain", "-n", "team-a", "") == ["web"]
    assert offered("pools", "v") == ["vlan8"]
    assert offered("list", "-n", "team") == ["team-a", "team-b"]
    assert offered("list", "-o", "") == ["json", "yaml"]
    assert offered("drain", "--") == [
        "--all-namespaces",
        "--back",
        "--context",
        "--dry-run",
        "--help",
        "--kubeconfig",
        "--namespace",
        "--output",
    ]


def check(path: str, plane: ControlPlane, kubeconfig: Path | None = None) -> tuple[int, dict[str, tuple[str, str]]]:
    code, out, _ = run(path, kubeconfig or plane.kubeconfig, "lb", "check", "-o", "json")
    found: dict[str, tuple[str, str]] = {}
    for item in json.loads(out)["items"]:
        name = item["name"] if item["name"] not in found else f"{item['name']} 2"
        found[name] = (item["verdict"], item["message"])
    return code, found


def test_check_finds_what_an_installation_lacks_and_is_content_when_it_has_it(host: ControlPlane, path: str) -> None:
    code, found = check(path, host)
    assert code == 1
    assert {name: verdict for name, (verdict, _) in found.items() if verdict != "ok"} == {
        "certificate of the bridge": "wrong",
        "certificate of the webhook": "wrong",
        "CA of the webhook": "wrong",
        "cloudprovider-host": "wrong",
        "cloudprovider-agent": "wrong",
        "webhook": "warning",
        "networks": "unknown",
    }
    assert found["clock"] == ("ok", "in step")
    assert found["permissions"] == ("ok", "admin may do all that kubectl lb needs")

    _install(host)
    code, found = check(path, host)
    assert {name: told for name, told in found.items() if told[0] != "ok"} == {
        "networks": (
            "warning",
            f"no file for {socket.gethostname()} in the agents' ConfigMap: the agent does not start there",
        ),
        "webhook": ("warning", "not registered: wrong pools are not refused"),
    }
    assert code == 0
    assert found["networks 2"] == ("ok", "default/vlan8: host-1")
    assert found["kernel"] == ("ok", "has all that both modes need")


def test_check_tells_a_webhook_that_nobody_trusts_from_one_that_does_not_answer(host: ControlPlane, path: str) -> None:
    programs.register_webhook(host, "https://127.0.0.1:1")
    name = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/cloudprovider-admission"
    try:
        assert check(path, host)[1]["webhook"] == (
            "wrong",
            "registered, but the API server does not trust it yet: its caBundle is empty",
        )
        webhooks = host.api.get(name)["webhooks"]
        for each in webhooks:
            each["clientConfig"]["caBundle"] = base64.b64encode(host.ca.read_bytes()).decode()
        host.api.patch(name, {"webhooks": webhooks})

        def told() -> bool:
            verdict, message = check(path, host)[1]["webhook"]
            return verdict == "wrong" and message.startswith("does not answer")

        wait_for("the API server to call the webhook", told, timeout=30)
    finally:
        host.api.delete(name)


def _install(plane: ControlPlane) -> None:
    """The rest of what an operator and the programs make."""
    now = datetime.now(UTC)
    ca = make_ca("test", now=now, validity=timedelta(days=400))
    bridge = issue_server(ca, ["bridge.example.org"], now=now, validity=timedelta(days=365))
    data = {
        "tls.crt": base64.b64encode(bridge.certificate).decode(),
        "ca.crt": base64.b64encode(ca.certificate).decode(),
    }
    secrets = f"/api/v1/namespaces/{SYSTEM}/secrets"
    plane.api.create(secrets, {"metadata": {"name": "cloudprovider-bridge-tls"}, "data": data})
    plane.api.patch(f"{secrets}/cloudprovider-webhook-tls", {"data": data})
    renewed = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    for name in ("cloudprovider-host", "cloudprovider-agent-default-host-1"):
        spec = {"holderIdentity": "host-1", "leaseDurationSeconds": 60, "renewTime": renewed}
        plane.api.create(
            f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases", {"metadata": {"name": name}, "spec": spec}
        )
    for document in yaml.safe_load_all(
        plane.kubectl("kustomize", ROOT / "manifests" / "overlays" / "example" / "host")
    ):
        if document["kind"] == "DaemonSet":
            plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(document))
        if document["kind"] == "ConfigMap" and document["metadata"]["name"].startswith("cloudprovider-agent"):
            assert _networks(document) >= {"default/vlan8"}
            plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(document))
    for name in ("host-1", socket.gethostname()):
        plane.api.create("/api/v1/nodes", {"metadata": {"name": name}})


def _networks(config_map: dict[str, Any]) -> set[str]:
    return {n["name"] for text in config_map["data"].values() for n in yaml.safe_load(text)["networks"]}


def test_check_says_what_it_may_not_see(host: ControlPlane, path: str) -> None:
    code, found = check(path, host, host.kubeconfig_for("nobody"))
    assert code == 0
    assert found["permissions"][0] == "warning"
    assert found["CRD IPPool"] == ("unknown", "you may not read CustomResourceDefinitions")
    assert {found[n][0] for n in ("cloudprovider-host", "webhook", "networks", "certificate of the bridge")} == {
        "unknown"
    }


@pytest.mark.parametrize("program", ["host", "agent"])
def test_check_by_a_program_asks_for_its_own_rights(host: ControlPlane, path: str, program: str) -> None:
    who = f"system:serviceaccount:{SYSTEM}:cloudprovider-{program}"
    programs.wait_permitted(host, (program,))
    found = check(path, host, programs.account(host, program))[1]
    assert found["permissions"] == ("ok", f"{who} may do all that cloudprovider-{program} needs")
    role = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/cloudprovider-{program}"
    rules = host.api.get(role)["rules"]
    host.api.patch(role, {"rules": rules[1:]})
    try:

        def told() -> bool:
            verdict, message = check(path, host, programs.account(host, program))[1]["permissions"]
            return verdict == "wrong" and "list loadbalancers.loadbalancer.harvesterhci.io" in message

        wait_for("the API server to hear of the role", told, timeout=20)
    finally:
        host.api.patch(role, {"rules": rules})


def test_check_of_a_guest(guest: ControlPlane, path: str) -> None:
    code, found = check(path, guest)
    assert code == 1
    assert {name for name, (verdict, _) in found.items() if verdict == "wrong"} == {
        "certificate of the guest",
        "cloudprovider-guest",
    }
