"""A real Kubernetes control plane: etcd, kube-apiserver and, where wanted, kube-controller-manager.

Programs under test run under accounts of their own, never as the administrator: :meth:`ControlPlane.kubeconfig_for`
makes a kubeconfig for any user and groups, :meth:`ControlPlane.kubeconfig_for_account` one for a ServiceAccount.
Every component can be stopped, killed and started again, one by one; its data outlives it.
"""

import contextlib
import http.client
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self

from tests.lab import netns
from tests.lab.build import find
from tests.lab.client import Api, ApiError
from tests.lab.pki import Authority, KeyPair, write_key
from tests.lab.process import LabError, Process, wait_for

Component = Literal["etcd", "kube-apiserver", "kube-controller-manager"]
ETCD: Final = "etcd"
API_SERVER: Final = "kube-apiserver"
CONTROLLER_MANAGER: Final = "kube-controller-manager"
START_LIMIT_SECONDS = 60.0
KUBECTL_LIMIT_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a control plane is set up. ``namespace``: the network namespace it runs in, "" the lab's own."""

    name: str = "cluster"
    namespace: str = ""
    address: str = "127.0.0.1"
    controller_manager: bool = False
    service_cidr: str = "10.96.0.0/16"
    cluster_cidr: str = "10.244.0.0/16"
    node_port_range: str = "30000-32767"
    api_server_flags: tuple[str, ...] = ()
    controller_manager_flags: tuple[str, ...] = ()


class ControlPlane:
    """One cluster's control plane. ``folder`` holds its keys and data, ``logs`` its logs."""

    def __init__(self, folder: Path, logs: Path, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.folder = folder
        self.logs = logs
        self.authority = Authority(folder / "pki", f"{self.settings.name}-ca")
        self._port = netns.free_port(self.settings.namespace, self.settings.address)
        self._service_account_key = folder / "pki" / "service-account.key"
        write_key(self._service_account_key)
        self.kubeconfig = self.kubeconfig_for("admin", groups=("system:masters",))
        self.processes: dict[Component, Process] = {
            ETCD: self._process(ETCD, self._etcd_flags()),
            API_SERVER: self._process(API_SERVER, self._api_server_flags()),
        }
        if self.settings.controller_manager:
            self.processes[CONTROLLER_MANAGER] = self._process(CONTROLLER_MANAGER, self._controller_manager_flags())
        admin = self._pair("admin")
        self.api = Api(self.url, self.ca, certificate=admin.certificate, key=admin.key)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def url(self) -> str:
        host = f"[{self.settings.address}]" if ":" in self.settings.address else self.settings.address
        return f"https://{host}:{self._port}"

    @property
    def ca(self) -> Path:
        """Certificate of the cluster's authority, PEM."""
        return self.authority.files.certificate

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.api.close()

    def launch(self) -> None:
        """Start etcd and the API server without waiting for them: two control planes come up in the time of one."""
        for component in (ETCD, API_SERVER):
            if not self.processes[component].running:
                self.processes[component].start()

    def start(self) -> None:
        """Start what does not run, and wait until it serves. Raises LabError with the end of the log if it does not."""
        self.launch()
        for component in self.processes:
            self.start_component(component)
        wait_for(f"{self.name}: namespace kube-system", lambda: self.api.find("/api/v1/namespaces/kube-system"))
        wait_for(f"{self.name}: namespace default", lambda: self.api.find("/api/v1/namespaces/default"))

    def stop(self) -> None:
        """Stop everything; a later :meth:`start` finds the same objects."""
        self.api.release()
        for component in reversed(self.processes):
            if component == ETCD:
                self.processes[component].kill()  # it would first wait for its clients; no fsync, nothing to lose
            else:
                self.processes[component].terminate()

    def start_component(self, component: Component) -> None:
        """Start one component if it does not run, and wait until it is ready."""
        process = self.processes[component]
        if not process.running:
            process.start()
        if component == API_SERVER:
            process.wait_until("ready", self._ready, timeout=START_LIMIT_SECONDS)

    def stop_component(self, component: Component) -> None:
        """End one component as an operator would (SIGTERM)."""
        self.processes[component].terminate(timeout=30)

    def kill_component(self, component: Component) -> None:
        """End one component as a crash would (SIGKILL)."""
        self.processes[component].kill()

    def _ready(self) -> bool:
        # A server that answers with an error (ApiError) is there, but not ready: try again.
        with contextlib.suppress(Exception):
            return bool(self.api.get("/readyz"))
        return False

    def kubeconfig_for(self, user: str, *, groups: Sequence[str] = ()) -> Path:
        """A kubeconfig with a client certificate for ``user`` in ``groups``."""
        pair = self.authority.issue(_file_name(user), common_name=user, organizations=groups)
        credentials = f"client-certificate: {pair.certificate}\n    client-key: {pair.key}"
        return self._write_kubeconfig(user, credentials)

    def kubeconfig_for_account(self, namespace: str, name: str) -> Path:
        """A kubeconfig with a token of a ServiceAccount, which must exist: what a program in a pod would have."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        review = self.api.create(path, {"spec": {"expirationSeconds": 86400}})
        return self._write_kubeconfig(f"{namespace}.{name}", f"token: {review['status']['token']}")

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Run kubectl as the administrator; return what it prints. Raises LabError with its message."""
        command = [str(find("kubectl")), f"--kubeconfig={self.kubeconfig}", *map(str, arguments)]
        done = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=KUBECTL_LIMIT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise LabError(f"{self.name}: kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout

    def apply_definitions(self, folder: Path) -> None:
        """Apply a folder's CustomResourceDefinitions and wait until they are served."""
        self.kubectl("apply", "--server-side", "--recursive", "-f", folder)
        self.kubectl("wait", "--for=condition=Established", "--timeout=30s", "crd", "--all")
        for definition in self.api.items("/apis/apiextensions.k8s.io/v1/customresourcedefinitions"):
            spec = definition["spec"]
            path = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
            wait_for(f"{self.name}: {path} to be served", partial(self._served, path))

    def _served(self, path: str) -> bool:
        try:
            self.api.get(path)
        except ApiError as error:
            if error.status in (http.client.NOT_FOUND, http.client.TOO_MANY_REQUESTS):
                return False  # just made: not known yet, or "storage is (re)initializing"
            raise
        return True

    def _pair(self, user: str) -> KeyPair:
        folder, name = self.authority.folder, _file_name(user)
        return KeyPair(folder / f"{name}.crt", folder / f"{name}.key")

    def _write_kubeconfig(self, user: str, credentials: str) -> Path:
        path = self.folder / f"{_file_name(user)}.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(
            f"""apiVersion: v1
kind: Config
current-context: {self.name}
clusters:
- name: {self.name}
  cluster:
    server: {self.url}
    certificate-authority: {self.ca}
users:
- name: "{user}"
  user:
    {credentials}
contexts:
- name: {self.name}
  context:
    cluster: {self.name}
    user: "{user}"
"""
        )
        return path

    def _process(self, name: Component, flags: list[str]) -> Process:
        return Process(
            f"{self.name}/{name}",
            [find(name), *flags],
            log=self.logs / f"{self.name}-{name}.log",
            namespace=self.settings.namespace,
        )

    def _etcd_flags(self) -> list[str]:
        self._etcd = f"http://127.0.0.1:{netns.free_port(self.settings.namespace, '127.0.0.1')}"
        peer = f"http://127.0.0.1:{netns.free_port(self.settings.namespace, '127.0.0.1')}"
        return [
            "--name=default",
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd}",
            f"--advertise-client-urls={self._etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _api_server_flags(self) -> list[str]:
        serving = self.authority.issue(
            "kube-apiserver",
            common_name="kube-apiserver",
            hosts=["localhost", "kubernetes.default.svc", "127.0.0.1", self.settings.address],
        )
        return [
            f"--etcd-servers={self._etcd}",
            f"--bind-address={self.settings.address}",
            f"--advertise-address={self.settings.address}",
            f"--secure-port={self._port}",
            # Nobody uses the kubernetes Service here, and a loopback address would be refused as its endpoint.
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--client-ca-file={self.ca}",
            "--authorization-mode=RBAC",
            # Pods need no token, and not to wait for the default account of a fresh namespace.
            "--disable-admission-plugins=ServiceAccount",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._service_account_key}",
            f"--service-account-signing-key-file={self._service_account_key}",
            f"--service-cluster-ip-range={self.settings.service_cidr}",
            f"--service-node-port-range={self.settings.node_port_range}",
            "--shutdown-delay-duration=0s",
            *self.settings.api_server_flags,
        ]

    def _controller_manager_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig_for('system:kube-controller-manager', groups=('system:masters',))}",
            "--leader-elect=false",
            "--secure-port=0",
            f"--service-account-private-key-file={self._service_account_key}",
            f"--root-ca-file={self.ca}",
            f"--cluster-cidr={self.settings.cluster_cidr}",
            *self.settings.controller_manager_flags,
        ]


def _file_name(user: str) -> str:
    return user.replace(":", "-").replace("/", "-")
