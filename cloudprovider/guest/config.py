"""What the guest program is told."""

from dataclasses import dataclass
from pathlib import Path

from cloudprovider.bridge.authority import CERTIFICATE, KEY, TRUSTED
from cloudprovider.bridge.tlsfiles import TlsPaths
from cloudprovider.core.translate import DEFAULT_CLASS, Classes


@dataclass(frozen=True, kw_only=True)
class GuestConfig:
    """Settings of the guest program.

    ``bridge`` is "HOST:PORT" of the host's bridge and ``bridge_ca`` signs its certificate; ``bridge_server_name`` is
    the name in that certificate where it is not HOST. ``client_cert`` and ``client_key`` say which tenant we are.
    ``renewed_secret`` (in ``lease_namespace``) keeps the certificate when it has been renewed, and is mounted at
    ``renewed_dir``; without either nothing is renewed here. ``load_balancer_class``: handle only Services of this
    class; empty: those that name none, and those that name ours. ``lease_namespace`` holds the Lease by which one of
    several copies leads, ``identity`` is this copy's name there (empty: made from the host name). ``endpoint`` is
    "ADDRESS:PORT" of the health endpoint.
    """

    bridge: str
    bridge_ca: Path
    client_cert: Path
    client_key: Path
    bridge_server_name: str = ""
    renewed_secret: str = ""
    renewed_dir: Path | None = None
    load_balancer_class: str = ""
    lease_namespace: str = "cloudprovider-system"
    identity: str = ""
    kubeconfig: str = ""
    context: str = ""
    endpoint: str = "127.0.0.1:8081"

    @property
    def tls(self) -> TlsPaths:
        """Where certificate, key and CA are."""
        folder = self.renewed_dir
        renewed = TlsPaths(folder / CERTIFICATE, folder / KEY, folder / TRUSTED) if folder is not None else None
        return TlsPaths(self.client_cert, self.client_key, self.bridge_ca, renewed=renewed)

    @property
    def classes(self) -> Classes:
        """Which Services are ours."""
        return Classes(own=self.load_balancer_class or DEFAULT_CLASS, default=not self.load_balancer_class)
