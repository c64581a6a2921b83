"""What is installed: it renders, the API server takes it, and each program may do what it does and no more."""

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloudprovider.cli.main import build_parser
from cloudprovider.cli.programs import PROGRAMS
from cloudprovider.core.naming import CA_SECRET, GUEST_SECRET, RENEWED_SECRET, SERVER_SECRET
from cloudprovider.core.permissions import SYSTEM as SYSTEM_NAMESPACE
from cloudprovider.host.webhook import DEADLINE
from cloudprovider.host.webhookserver import PATH
from cloudprovider.host.webhooktrust import CONFIGURATION, SECRET
from tests.lab.build import find
from tests.lab.controlplane import ControlPlane, Settings
from tests.lab.process import LabError

pytestmark = pytest.mark.apiserver

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
KUSTOMIZATIONS = sorted(
    path.parent
    for path in MANIFESTS.rglob("kustomization.yaml")
    if yaml.safe_load(path.read_text())["kind"] == "Kustomization"
)

CERT_MANAGER = Path(__file__).parent / "certmanager"
"""What of cert-manager's definitions the manifests need."""
DASHBOARD = "cloudprovider.json"

Json = dict[str, Any]


def render(folder: Path) -> list[Json]:
    """What ``kubectl kustomize`` makes of a folder."""
    done = subprocess.run(
        [find("kubectl"), "kustomize", folder], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return [d for d in yaml.safe_load_all(done.stdout) if d]


def workloads(folder: Path) -> list[Json]:
    return [d for d in render(folder) if d["kind"] in ("Deployment", "DaemonSet")]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """An API server of its own: what is installed here (an admission policy) is in other tests' way."""
    with tempfile.TemporaryDirectory(prefix="manifests-") as folder:
        settings = Settings(
            name="manifests", api_server_flags=("--allow-privileged=true",)
        )  # as Kubernetes' installers
        control_plane = ControlPlane(Path(folder), ROOT / "build" / "logs" / "manifests", settings)
        with control_plane:
            control_plane.apply_definitions(MANIFESTS / "crds")
            control_plane.apply_definitions(CERT_MANAGER)
            control_plane.apply_definitions(Path(__file__).parent / "data" / "operator")
            for name in ("guest", "host"):
                control_plane.kubectl("apply", "--server-side", "--force-conflicts", "-k", MANIFESTS / name)
            # Nobody answers here, and without an answer no pool passes: tests/host/webhook has it served.
            control_plane.kubectl("delete", "validatingwebhookconfiguration", CONFIGURATION)
            yield control_plane


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda p: str(p.relative_to(MANIFESTS)))
def test_the_api_server_takes_all_of_it(plane: ControlPlane, folder: Path) -> None:
    """Strictly: a misspelt field would be an error."""
    plane.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-k", folder)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda p: str(p.relative_to(MANIFESTS)))
def test_programs_know_their_arguments(folder: Path) -> None:
    found = [c for w in workloads(folder) for c in w["spec"]["template"]["spec"]["containers"]]
    assert found
    for container in found:
        parsed = build_parser().parse_args(container["args"])
        assert parsed.log_format == ["json"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda p: str(p.relative_to(MANIFESTS)))
def test_settings_in_config_maps_are_settings(folder: Path, tmp_path: Path) -> None:
    host = next(program for program in PROGRAMS if program.name == "host")
    for document in render(folder):
        for name, text in document.get("data", {}).items() if document["kind"] == "ConfigMap" else ():
            if name == DASHBOARD:
                continue  # see test_monitoring
            if name == "config.yaml":
                assert set(yaml.safe_load(text)) <= {option.name for option in host.options}
            else:
                from cloudprovider.agent.config import read_networks

                (tmp_path / name).write_text(text)
                assert read_networks(tmp_path / name)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda p: str(p.relative_to(MANIFESTS)))
def test_pods_take_no_more_than_they_need(folder: Path) -> None:
    for workload in workloads(folder):
        pod = workload["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False, "its variables would look like settings"
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"]["limits"].keys() == {"memory"}, "a limit of CPU only makes it late"
        if workload["kind"] == "DaemonSet":
            assert [m["mountPropagation"] for m in container["volumeMounts"] if m["name"] == "netns"] == [
                "Bidirectional"
            ]
            if "leave" in container["args"]:
                continue  # see test_charts
            told = next(a for a in container["args"] if a.startswith("--endpoint="))
            if "monitoring" in folder.parts:
                assert told == "--endpoint=$(HOST_IP):8083", "where Prometheus comes from, and nowhere else"
                assert "host" not in container["livenessProbe"]["httpGet"], "the pod's address is the host's"
            else:
                assert container["livenessProbe"]["httpGet"]["host"] == "127.0.0.1", (
                    "the host's network is no place to listen"
                )
                assert told == "--endpoint=127.0.0.1:8083"
            kept = "+net_admin,+net_raw,+sys_admin,+kill,+net_bind_service,+setgid,+setuid,+sys_nice"
            assert container["command"][:-2] == ["setpriv", "--no-new-privs", "--bounding-set", f"-all,{kept}"]
        else:
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
            moves = {t["key"]: t.get("tolerationSeconds") for t in pod["tolerations"] if t["effect"] == "NoExecute"}
            assert {moves["node.kubernetes.io/unreachable"], moves["node.kubernetes.io/not-ready"]} == {30}
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert "hostNetwork" not in pod


def test_secrets_are_those_that_the_command_line_issues() -> None:
    def secrets(folder: str) -> set[str]:
        volumes = [v for w in workloads(MANIFESTS / folder) for v in w["spec"]["template"]["spec"]["volumes"]]
        return {v["secret"]["secretName"] for v in volumes if "secret" in v}

    assert secrets("host") == {SERVER_SECRET}
    assert secrets("guest") == {GUEST_SECRET, RENEWED_SECRET}
    # What is renewed has a place from the beginning, as the program may not make one; nothing of it is ever applied.
    (made,) = (d for d in render(MANIFESTS / "guest") if d["kind"] == "Secret")
    assert made["metadata"]["name"] == RENEWED_SECRET
    assert not made.get("data")
    assert not made.get("stringData")


def test_the_webhook_is_called_where_it_is_served() -> None:
    documents = render(MANIFESTS / "host")

    def only(kind: str, name: str) -> Json:
        (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
        return found

    only("Secret", SECRET)
    webhooks = only("ValidatingWebhookConfiguration", CONFIGURATION)["webhooks"]
    assert [(w["name"].partition(".")[0], w["failurePolicy"]) for w in webhooks] == [
        ("ippools", "Fail"),
        ("loadbalancers", "Ignore"),
    ]
    (container,) = only("Deployment", "cloudprovider-host")["spec"]["template"]["spec"]["containers"]
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert f"--webhook-address=0.0.0.0:{ports['webhook']}" in container["args"]
    for webhook in webhooks:
        called = webhook["clientConfig"]["service"]
        service = only("Service", called["name"])
        assert service["metadata"]["namespace"] == called["namespace"] == SYSTEM_NAMESPACE
        assert {p["port"]: p["targetPort"] for p in service["spec"]["ports"]} == {called["port"]: "webhook"}
        assert service["spec"]["publishNotReadyAddresses"] is True, "a copy that stands by answers too"
        assert called["path"] == PATH
        assert webhook["timeoutSeconds"] > DEADLINE, "the webhook's own words come first"
        assert "caBundle" not in webhook["clientConfig"], "applying would take away what the program wrote"
        assert all("/" not in resource for rule in webhook["rules"] for resource in rule["resources"]), "no status"


def may(plane: ControlPlane, account: str, verb: str, resource: str, *more: str) -> bool:
    """What a SelfSubjectAccessReview of the account says."""
    user = f"--as=system:serviceaccount:{SYSTEM_NAMESPACE}:{account}"
    try:
        return plane.kubectl("auth", "can-i", verb, resource, user, *more).strip() == "yes"
    except LabError:
        return False


EVERYWHERE = "--all-namespaces"
OWN = f"--namespace={SYSTEM_NAMESPACE}"
LB = "loadbalancers.loadbalancer.harvesterhci.io"
POOLS = "ippools.loadbalancer.harvesterhci.io"
BLOCKS = "ipblocks.loadbalancer.harvesterhci.io"
CONFIGURATIONS = "validatingwebhookconfigurations.admissionregistration.k8s.io"
TENANTS = "guestclusters.cloudprovider.harvesterhci.io"


@pytest.mark.parametrize(
    ("account", "verb", "resource", "more"),
    [
        ("cloudprovider-host", "create", LB, (EVERYWHERE,)),
        ("cloudprovider-host", "patch", LB, (EVERYWHERE, "--subresource=status")),
        ("cloudprovider-host", "update", BLOCKS, ()),
        ("cloudprovider-host", "patch", POOLS, ("--subresource=status",)),
        ("cloudprovider-host", "patch", POOLS, ()),  # takes the annotation manuallyReleaseIP away
        ("cloudprovider-host", "patch", TENANTS, (EVERYWHERE, "--subresource=status")),
        *(("cloudprovider-host", verb, f"secrets/{SECRET}", (OWN,)) for verb in ("get", "patch")),
        *(("cloudprovider-host", verb, f"secrets/{SERVER_SECRET}", (OWN,)) for verb in ("get", "patch")),
        ("cloudprovider-host", "get", f"secrets/{CA_SECRET}", (OWN,)),
        ("cloudprovider-guest", "get", f"secrets/{GUEST_SECRET}", (OWN,)),
        *(("cloudprovider-guest", verb, f"secrets/{RENEWED_SECRET}", (OWN,)) for verb in ("get", "patch")),
        *(("cloudprovider-host", verb, f"{CONFIGURATIONS}/{CONFIGURATION}", ()) for verb in ("get", "patch")),
        ("cloudprovider-agent", "watch", LB, (EVERYWHERE,)),
        ("cloudprovider-agent", "patch", LB, (EVERYWHERE, "--subresource=status")),
        ("cloudprovider-agent", "create", "leases.coordination.k8s.io", (OWN,)),
        ("cloudprovider-guest", "patch", "services", (EVERYWHERE, "--subresource=status")),
        ("cloudprovider-guest", "watch", "endpointslices.discovery.k8s.io", (EVERYWHERE,)),
        ("cloudprovider-guest", "get", "namespaces/kube-system", ()),
        ("cloudprovider-guest", "create", "events", (EVERYWHERE,)),
    ],
)
def test_what_a_program_does_it_may(
    plane: ControlPlane, account: str, verb: str, resource: str, more: tuple[str, ...]
) -> None:
    assert may(plane, account, verb, resource, *more)


@pytest.mark.parametrize(
    ("account", "verb", "resource", "more"),
    [
        *((a, "get", "secrets", (OWN,)) for a in ("cloudprovider-host", "cloudprovider-agent", "cloudprovider-guest")),
        *((a, "create", "pods", (OWN,)) for a in ("cloudprovider-host", "cloudprovider-agent", "cloudprovider-guest")),
        *((a, "*", "*", (EVERYWHERE,)) for a in ("cloudprovider-host", "cloudprovider-agent", "cloudprovider-guest")),
        *(("cloudprovider-host", verb, "secrets", (OWN,)) for verb in ("create", "list", "watch", "update", "patch")),
        *(("cloudprovider-host", verb, f"secrets/{CA_SECRET}", (OWN,)) for verb in ("patch", "update", "delete")),
        ("cloudprovider-host", "get", f"secrets/{SECRET}", ("--namespace=kube-system",)),
        *(("cloudprovider-guest", verb, "secrets", (OWN,)) for verb in ("create", "list", "watch", "update", "patch")),
        *(("cloudprovider-guest", verb, f"secrets/{GUEST_SECRET}", (OWN,)) for verb in ("patch", "update", "delete")),
        *(("cloudprovider-host", verb, CONFIGURATIONS, ()) for verb in ("create", "list", "patch", "delete")),
        ("cloudprovider-host", "create", POOLS, ()),
        ("cloudprovider-host", "delete", POOLS, ()),
        ("cloudprovider-host", "update", POOLS, ()),
        ("cloudprovider-host", "delete", BLOCKS, ()),
        ("cloudprovider-host", "create", TENANTS, (EVERYWHERE,)),
        ("cloudprovider-host", "delete", TENANTS, (EVERYWHERE,)),
        ("cloudprovider-host", "update", "leases.coordination.k8s.io", ("--namespace=kube-system",)),
        ("cloudprovider-agent", "create", LB, (EVERYWHERE,)),
        ("cloudprovider-agent", "patch", LB, (EVERYWHERE,)),
        ("cloudprovider-agent", "delete", LB, (EVERYWHERE,)),
        ("cloudprovider-agent", "list", BLOCKS, ()),
        ("cloudprovider-agent", "patch", POOLS, ("--subresource=status",)),
        ("cloudprovider-agent", "patch", TENANTS, (EVERYWHERE,)),
        ("cloudprovider-agent", "update", "leases.coordination.k8s.io", ("--namespace=kube-node-lease",)),
        ("cloudprovider-guest", "delete", "services", (EVERYWHERE,)),
        ("cloudprovider-guest", "create", "services", (EVERYWHERE,)),
        ("cloudprovider-guest", "patch", "nodes", ()),
        ("cloudprovider-guest", "list", "namespaces", ()),
        ("cloudprovider-guest", "list", LB, (EVERYWHERE,)),
    ],
)
def test_what_no_program_does_it_may_not(
    plane: ControlPlane, account: str, verb: str, resource: str, more: tuple[str, ...]
) -> None:
    assert not may(plane, account, verb, resource, *more)


BRIDGE = f"--as=system:serviceaccount:{SYSTEM_NAMESPACE}:cloudprovider-host"


def cluster_load_balancer(name: str) -> Json:
    return {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "LoadBalancer",
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"cloudprovider.harvesterhci.io/cluster": "shop", "mine": "a"},
        },
        "spec": {
            "workloadType": "cluster",
            "listeners": [{"port": 80, "backendPort": 30080}],
            "service": {"namespace": "shop", "name": "web", "uid": "1"},
        },
    }


@pytest.fixture(scope="module")
def policy(plane: ControlPlane) -> ControlPlane:
    """The API server, once the policy is in force: it hears of it by a watch."""
    forged = json.dumps(cluster_load_balancer("forged"))
    refusals: list[str] = []
    for _ in range(60):  # some 0.1 s each
        try:
            plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=forged)
        except LabError as e:
            refusals.append(str(e))
            break
    assert refusals, "the policy is not in force"
    assert "only the bridge may write it" in refusals[0]
    return plane


@pytest.fixture
def bridges_own(policy: ControlPlane) -> Iterator[str]:
    policy.kubectl("create", BRIDGE, "-f", "-", stdin=json.dumps(cluster_load_balancer("bridges-own")))
    yield "bridges-own"
    policy.kubectl("delete", "lb", "bridges-own")


def test_nobody_else_makes_a_tenants_load_balancer(policy: ControlPlane) -> None:
    stock = cluster_load_balancer("stock")
    del stock["spec"]["service"]
    policy.kubectl("create", "-f", "-", stdin=json.dumps(stock))
    try:
        with pytest.raises(LabError, match="only the bridge may write it"):
            policy.kubectl(
                *("patch", "lb", "stock", "--type=merge", "-p"),
                '{"spec":{"service":{"namespace":"shop","name":"web","uid":"1"}}}',
            )
    finally:
        policy.kubectl("delete", "lb", "stock")


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        ({"spec": {"listeners": [{"port": 81, "backendPort": 30081}]}}, "change the Service there"),
        ({"spec": {"sourceRanges": ["10.0.0.0/8"]}}, "change the Service there"),
        ({"metadata": {"labels": {"cloudprovider.harvesterhci.io/cluster": "other"}}}, "say whose it is"),
        ({"metadata": {"labels": {"cloudprovider.harvesterhci.io/cluster": None}}}, "say whose it is"),
        ({"metadata": {"labels": {"cloudprovider.harvesterhci.io/serviceName": "x"}}}, "say whose it is"),
    ],
)
def test_nobody_else_changes_it(policy: ControlPlane, bridges_own: str, patch: Json, says: str) -> None:
    change = ("patch", "lb", bridges_own, "--type=merge", "-p", json.dumps(patch))
    with pytest.raises(LabError, match=re.escape(says)):
        policy.kubectl(*change)
    policy.kubectl(*change, BRIDGE)


@pytest.mark.parametrize(
    "patch", [{"metadata": {"labels": {"mine": "b"}}}, {"metadata": {"annotations": {"note": "x"}, "finalizers": []}}]
)
def test_what_is_nobodys_identity_stays_free(policy: ControlPlane, bridges_own: str, patch: Json) -> None:
    policy.kubectl("patch", "lb", bridges_own, "--type=merge", "-p", json.dumps(patch))


@pytest.mark.parametrize("path", sorted((MANIFESTS / "examples").glob("*.yaml")), ids=lambda p: str(p.name))
def test_examples_are_taken(plane: ControlPlane, path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        document["metadata"]["namespace"] = "default"
        plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(document))
