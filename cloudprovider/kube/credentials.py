"""Where an API server is and how to prove who we are: kubeconfig files and in-cluster service accounts.

The one place that uses the official ``kubernetes`` package, for its reading of kubeconfig files (merging, contexts,
exec plugins, inline data). Everything after that is :mod:`cloudprovider.kube.client`.
"""

import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from cloudprovider.core.errors import ConfigurationError

if TYPE_CHECKING:
    from kubernetes.config.kube_config import KubeConfigLoader

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_REREAD_SECONDS = 60.0
"""How long a token file is trusted, as in client-go: the kubelet rotates it at 80 % of its life (an hour)."""


@dataclass(frozen=True)
class Credentials:
    """An API server's URL, how to trust it, and how to authenticate.

    ``ssl`` is None for plain http; it carries the client certificate, if there is one. ``authorization`` returns the
    value of the Authorization header, empty when there is none; it is asked at every request, since tokens rotate.
    ``namespace`` is where the program itself lives (its leases and events), ``tls_server_name`` the name that the
    server's certificate must carry if not that in the URL.
    """

    server: str
    ssl: ssl.SSLContext | None
    authorization: Callable[[], str]
    namespace: str = "default"
    tls_server_name: str = ""


def load(kubeconfig: str | None = None, context: str | None = None) -> Credentials:
    """Credentials from ``kubeconfig`` (paths joined by ":"), else from the pod, else from kubectl's default places.

    Raises:
        ConfigurationError: nothing found, or what was found can't be used; says what to do.
    """
    from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION  # noqa: PLC0415 - 0.3 s, 15 MB

    if kubeconfig:
        return from_kubeconfig(kubeconfig, context)
    if (SERVICE_ACCOUNT / "token").exists() and context is None:
        return from_service_account()
    return from_kubeconfig(str(KUBE_CONFIG_DEFAULT_LOCATION), context)


def from_kubeconfig(paths: str, context: str | None = None) -> Credentials:
    """Credentials of ``context`` (None: the current one) in the kubeconfig file or files (joined by ":")."""
    from kubernetes.client import Configuration  # noqa: PLC0415
    from kubernetes.config import ConfigException  # noqa: PLC0415
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger  # noqa: PLC0415

    configuration = Configuration()
    # Inline keys must pass through files (ssl.load_cert_chain takes nothing else); these end with this block.
    with tempfile.TemporaryDirectory(prefix="cloudprovider-") as scratch:
        try:
            merged = KubeConfigMerger(paths).config  # type: ignore[no-untyped-call]
            if merged is None:
                raise ConfigurationError(f"no kubeconfig at {paths}: give --kubeconfig, or run inside a cluster")
            loader = KubeConfigLoader(  # type: ignore[no-untyped-call]
                merged, active_context=context or None, config_base_path=None, temp_file_path=scratch
            )
            loader.load_and_set(configuration)  # type: ignore[no-untyped-call]
            chosen = loader.current_context["context"]
            user = merged["users"].get_with_name(chosen["user"], safe=True) if "user" in chosen else None
            token_file = _token_file(user)
        except (ConfigException, yaml.YAMLError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # The official loader lets a malformed file show as whatever Python error comes first.
            raise ConfigurationError(f"kubeconfig {paths}: {error}") from error
        if configuration.proxy:
            raise ConfigurationError(f"kubeconfig {paths}: proxy-url is not supported; give a direct address")
        tls = _tls(configuration, paths) if configuration.host.startswith("https") else None
    if user is not None and "exec" in user["user"] and not (configuration.cert_file or configuration.api_key):
        raise ConfigurationError(f"kubeconfig {paths}: the exec plugin gave no credentials; its error is in the log")
    return Credentials(
        server=configuration.host.rstrip("/"),
        ssl=tls,
        authorization=FileToken(token_file) if token_file else _configured_token(configuration, loader),
        namespace=str(chosen.get("namespace") or "default"),
        tls_server_name=configuration.tls_server_name or "",
    )


def from_service_account() -> Credentials:
    """The credentials that Kubernetes mounts into a pod (BoundServiceAccountTokenVolume: the token rotates)."""
    from kubernetes.client import Configuration  # noqa: PLC0415
    from kubernetes.config import ConfigException, load_incluster_config  # noqa: PLC0415

    configuration = Configuration()
    try:
        load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        namespace = (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except (ConfigException, OSError) as error:
        raise ConfigurationError(f"in-cluster credentials: {error}") from error
    return Credentials(
        server=configuration.host.rstrip("/"),
        ssl=_tls(configuration, str(SERVICE_ACCOUNT)),
        authorization=FileToken(SERVICE_ACCOUNT / "token"),
        namespace=namespace or "default",
    )


class FileToken:
    """A bearer token in a file that somebody else keeps fresh."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._value = ""
        self._read_at = 0.0

    def __call__(self) -> str:
        """The Authorization header. While the file can't be read, the last token goes on being used."""
        now = self._clock()
        if not self._value or now - self._read_at >= TOKEN_REREAD_SECONDS:
            self._read_at = now
            try:
                token = self._path.read_text().strip()
            except (OSError, UnicodeDecodeError):
                token = ""
            if token:
                self._value = f"Bearer {token}"
        return self._value


def _configured_token(configuration: Any, loader: "KubeConfigLoader") -> Callable[[], str]:
    """A token in the kubeconfig itself, or from an exec plugin (run again, in this thread, when it has expired)."""
    if not configuration.api_key:
        return str

    def authorization() -> str:
        if "expiry" in vars(loader):
            configuration.refresh_api_key_hook(configuration)
        return str(configuration.api_key["BearerToken"])

    return authorization


def _token_file(user: Any) -> Path | None:
    """``tokenFile`` of a kubeconfig user; like client-go it goes before ``token``, and like it relative to its file."""
    if user is None or "tokenFile" not in user["user"]:
        return None
    base = Path(user["user"].path or ".").resolve().parent
    return base / str(user["user"]["tokenFile"])


def _tls(configuration: Any, where: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
        if configuration.cert_file:
            context.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError(f"{where}: its certificates can't be loaded: {error}") from error
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
