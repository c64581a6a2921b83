"""Our programs in the lab: real processes under the accounts and roles of ``manifests/``, never as an administrator."""

import contextlib
import functools
import http.client
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.lab.client import ApiError, Object
from tests.lab.controlplane import ControlPlane
from tests.lab.network import Namespace
from tests.lab.process import LabError, Process, wait_for

ROOT = Path(__file__).parent.parent.parent
MANIFESTS = ROOT / "manifests"
SYSTEM_NAMESPACE = "cloudprovider-system"
START_LIMIT_SECONDS = 30.0
PROBE_LIMIT_SECONDS = 2.0
ACTION_LIMIT_SECONDS = 30.0
REQUESTS = "cloudprovider_kube_requests_total"
NO_RIGHTS = {http.client.UNAUTHORIZED, http.client.FORBIDDEN}
PORTS = {"guest": 8081, "host": 8082, "agent": 8083}
BRIDGE_PORT = 8443
IPNetwork = IPv4Network | IPv6Network
WEBHOOK_PORT = 9443
POOLS_PATH = "/apis/loadbalancer.harvesterhci.io/v1beta1/ippools"
WEBHOOKS = "ValidatingWebhookConfiguration"
WORKLOADS = frozenset({"Deployment", "DaemonSet", "Service", "ConfigMap", WEBHOOKS})
"""What ``manifests/`` has for pods and the lab does as processes."""


class Outcome(NamedTuple):
    """What an action came to."""

    exit_code: int
    log: str


class Program:
    """One of ``cloudprovider guest|host|agent``, with its health endpoint on loopback of its namespace."""

    def __init__(
        self,
        name: str,
        namespace: Namespace,
        kubeconfig: Path,
        flags: Sequence[str | Path],
        log: Path,
        *,
        enter: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._enter = list(enter)
        self.namespace = namespace
        self._port = PORTS[name]
        common = [f"--kubeconfig={kubeconfig}", f"--endpoint=127.0.0.1:{self._port}", "--log-format=json"]
        self._arguments = [*common, *map(str, flags)]
        self._forbidden: Counter[str] = Counter()
        self.process = Process(name, [*enter, *_command(name), *self._arguments], log=log, namespace=namespace.name)
        self.run_from(ROOT)

    def run_from(self, source: Path) -> None:
        """From the next start on be the program of another checkout's ``source``."""
        # Safe path: what stands where the test runs must not come before it.
        self.process.environment.update(PYTHONPATH=str(source), PYTHONSAFEPATH="1")

    def start(self, *, wait: bool = True) -> None:
        self.process.start()
        if wait:
            self.wait_ready()

    def wait_ready(self, timeout: float = START_LIMIT_SECONDS) -> None:
        self.process.wait_until("ready", self.ready, timeout=timeout)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self._keep_forbidden()
        self.process.kill()

    def stop(self) -> None:
        """SIGTERM, as Kubernetes would."""
        self._keep_forbidden()
        self.process.terminate()

    def run_action(self, action: str) -> Outcome:
        """Run another of the program's actions to its end, with the same settings (``agent leave``)."""
        enter = ("nsenter", f"--net=/run/netns/{self.namespace.name}", "--")
        done = subprocess.run(
            [*enter, *self._enter, *_command(self.name), action, *self._arguments],
            env=os.environ | self.process.environment,
            capture_output=True,
            text=True,
            timeout=ACTION_LIMIT_SECONDS,
            check=False,
        )
        return Outcome(done.returncode, done.stderr)

    def forbidden(self) -> Counter[str]:
        """Its requests that the API server refused for want of rights (401, 403), "VERB RESOURCE" to how many, in all
        of its runs; a run that ended by itself is not counted."""
        return self._forbidden + self._forbidden_now()

    def _keep_forbidden(self) -> None:
        self._forbidden += self._forbidden_now()

    def _forbidden_now(self) -> Counter[str]:
        """Of the current run; nothing when it can't say."""
        try:
            counted = self.metrics()
        except (OSError, http.client.HTTPException):
            return Counter()
        found: Counter[str] = Counter()
        for name, value in counted.items():
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            if name.startswith(f"{REQUESTS}{{") and int(labels["code"]) in NO_RIGHTS:
                found[f"{labels['verb']} {labels['resource']}"] += int(value)
        return found

    def not_ready(self) -> str:
        """What it says to whoever asks whether it is ready; "" when it is. Raises OSError when it does not answer."""
        status, said = self._ask("/readyz")
        return "" if status == http.client.OK else said

    def ready(self) -> bool:
        try:
            return self._ask("/readyz")[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def metrics(self) -> dict[str, float]:
        """Its metrics, by name and labels as exposed. Raises OSError when it does not answer."""
        text = self._ask("/metrics")[1]
        return {name: float(value) for name, value in re.findall(r"^([a-z_]+(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}

    def _ask(self, path: str) -> tuple[int, str]:
        def ask() -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PROBE_LIMIT_SECONDS)
            with contextlib.closing(connection):
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read().decode()

        return self.namespace.call(ask)


def _command(*arguments: str) -> list[str]:
    given_up = _capabilities() if arguments[0] == "agent" else []
    return [*given_up, sys.executable, "-m", "cloudprovider.cli.main", *arguments]


@functools.cache
def _capabilities() -> list[str]:
    """What the agent's pod gives up its capabilities by, before the program."""
    agent = yaml.safe_load((MANIFESTS / "host" / "agent.yaml").read_text())
    *words, program = agent["spec"]["template"]["spec"]["containers"][0]["command"]
    assert (words[0], program) == ("setpriv", "cloudprovider")
    return list(words)


def cloudprovider(*arguments: str | Path) -> str:
    """Run a command of the command line to its end; return what it prints. Raises LabError."""
    done = subprocess.run(
        _command(*map(str, arguments)), capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    if done.returncode != 0:
        raise LabError(f"cloudprovider {' '.join(map(str, arguments))}: {done.stderr.strip()}")
    return done.stdout


def kubectl_lb(kubeconfig: Path, *arguments: str) -> tuple[int, str]:
    """Run ``kubectl lb`` as the administrator; return its exit code and all that it prints."""
    command = [sys.executable, "-m", "cloudprovider.cli.kubectl.main", *arguments, f"--kubeconfig={kubeconfig}"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False, cwd=ROOT
    )
    return done.returncode, done.stdout


def install(plane: ControlPlane, side: str, *, manifests: Path = MANIFESTS, only: str = "") -> None:
    """Apply what ``manifests/SIDE`` has of accounts, roles and policies; the programs themselves run as processes.
    ``only``: of one program."""
    rendered = plane.kubectl("kustomize", manifests / side)
    wanted = [
        item
        for item in yaml.safe_load_all(rendered)
        if item and item["kind"] not in WORKLOADS and (not only or item["metadata"]["name"] == f"cloudprovider-{only}")
    ]
    plane.kubectl("apply", "--server-side", "-f", "-", stdin=yaml.safe_dump_all(wanted))


def register_webhook(plane: ControlPlane, url: str, *, server_side: bool = True) -> None:
    """Apply the webhook configuration of ``manifests/host``, called at ``url`` ("https://ADDRESS:PORT"): the lab has
    no Services on its hosts. The program reads from it which name its certificate needs."""
    rendered = plane.kubectl("kustomize", MANIFESTS / "host")
    (wanted,) = (item for item in yaml.safe_load_all(rendered) if item and item["kind"] == WEBHOOKS)
    for webhook in wanted["webhooks"]:
        service = webhook["clientConfig"].pop("service")
        webhook["clientConfig"]["url"] = url + service["path"]
    flags = ("--server-side",) if server_side else ()
    plane.kubectl("apply", *flags, "-f", "-", stdin=yaml.safe_dump(wanted))


def wait_judged(plane: ControlPlane) -> None:
    """Wait until the API server asks the registered webhook, and trusts it: it hears of both by a watch."""
    wrong: Object = {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "IPPool",
        "metadata": {"name": "judged"},
        "spec": {"ranges": [{"subnet": "224.0.0.0/24"}]},  # what only the webhook refuses
    }

    def judged() -> bool:
        try:
            plane.api.request("POST", POOLS_PATH, wrong, query={"dryRun": "All"})
        except ApiError as refusal:
            return "denied the request" in str(refusal)
        return False

    wait_for(f"{plane.name}: pools to be judged by the webhook", judged, timeout=START_LIMIT_SECONDS)


def account(plane: ControlPlane, name: str) -> Path:
    """A kubeconfig of a program's account."""
    return plane.kubeconfig_for_account(SYSTEM_NAMESPACE, f"cloudprovider-{name}")


def issue_bridge_certificate(folder: Path, address: str) -> None:
    """``bridge.crt`` and ``bridge.key`` in ``folder``, signed by the tenants' CA there."""
    command = ("tenant", "server-certificate", address, "--ca-dir", folder / "ca", "--out", folder, "--pem")
    cloudprovider(*command)


def issue_tenant(
    folder: Path, plane: ControlPlane, name: str, *, namespace: str, bridge: str, node_cidrs: Sequence[IPNetwork]
) -> None:
    """A tenant, as an operator makes one: certificate in ``folder``, its namespace and GuestCluster on the host."""
    cloudprovider(
        *("tenant", "issue", name, "--namespace", namespace, "--bridge", bridge),
        *(word for cidr in node_cidrs for word in ("--node-cidr", str(cidr))),
        *("--ca-dir", folder / "ca", "--out", folder, "--pem"),
    )
    with contextlib.suppress(ApiError):  # there already: another tenant's
        plane.api.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    plane.kubectl("apply", "-f", folder / f"{name}.host.yaml")


def host_program(
    namespace: Namespace, kubeconfig: Path, certificates: Path, *, reserved: Sequence[str], log: Path
) -> Program:
    flags = [
        f"--bridge-address=0.0.0.0:{BRIDGE_PORT}",
        f"--webhook-address=0.0.0.0:{WEBHOOK_PORT}",
        f"--tls-cert={certificates / 'bridge.crt'}",
        f"--tls-key={certificates / 'bridge.key'}",
        f"--tenant-ca={certificates / 'ca.crt'}",
        *(f"--reserved-cidrs={cidr}" for cidr in reserved),
    ]
    return Program("host", namespace, kubeconfig, flags, log)


def guest_program(
    namespace: Namespace, kubeconfig: Path, certificates: Path, *, tenant: str, bridge: str, log: Path
) -> Program:
    flags = [
        f"--bridge={bridge}",
        f"--bridge-ca={certificates / 'ca.crt'}",
        f"--client-cert={certificates / f'{tenant}.crt'}",
        f"--client-key={certificates / f'{tenant}.key'}",
    ]
    return Program("guest", namespace, kubeconfig, flags, log)


def agent_program(
    namespace: Namespace,
    kubeconfig: Path,
    networks: Path,
    *,
    node: str,
    instance: str,
    log: Path,
    enter: Sequence[str] = (),
) -> Program:
    """``enter``: what leads into more than the network namespace."""
    flags = [f"--node-name={node}", f"--instance={instance}", f"--networks={networks}"]
    return Program("agent", namespace, kubeconfig, flags, log, enter=enter)


def write_networks(
    path: Path,
    device: str,
    addresses: Sequence[IPv4Interface | IPv6Interface],
    gateways: Sequence[str],
    *,
    masquerade: bool = True,
) -> None:
    """The agent's networks file: the management network alone, with an address and a gateway of each family."""
    network: dict[str, str | bool] = {"name": "", "device": device, "masquerade": masquerade}
    for address, gateway in zip(addresses, gateways, strict=True):
        family = "6" if address.version == 6 else ""
        network |= {f"address{family}": str(address), f"gateway{family}": gateway}
    path.write_text(yaml.safe_dump({"networks": [network]}))


def wait_permitted(plane: ControlPlane, accounts: Sequence[str]) -> None:
    """Wait until the API server has learnt of the accounts' roles (its authorizer follows by watch)."""
    for name in accounts:
        user = f"system:serviceaccount:{SYSTEM_NAMESPACE}:cloudprovider-{name}"
        where = {"namespace": SYSTEM_NAMESPACE, "verb": "get", "group": "coordination.k8s.io", "resource": "leases"}
        review: Object = {"spec": {"user": user, "resourceAttributes": where}}

        def allowed(body: Object = review) -> bool:
            told = plane.api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
            return bool(told["status"]["allowed"])

        wait_for(f"{plane.name}: roles of {user}", allowed, timeout=10)
