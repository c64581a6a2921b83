"""What the guest program is told."""

from dataclasses import dataclass
from pathlib import Path

from cloudprovider.core.translate import DEFAULT_CLASS, Classes


@dataclass(frozen=True, kw_only=True)
class GuestConfig:
    """Settings of the guest program.

    ``bridge`` is "HOST:PORT" of the host's bridge and ``bridge_ca`` signs its certificate; ``bridge_server_name`` is
    the name in that certificate where it is not HOST. ``client_cert`` and ``client_key`` say which tenant we are.
    ``load_balancer_class``: handle only Services of this class; empty: those that name none, and those that name
    ours. ``lease_namespace`` holds the Lease by which one of several copies leads, ``identity`` is this copy's name
    there (empty: made from the host name). ``endpoint`` is "ADDRESS:PORT" of the health endpoint.
    """

    bridge: str
    bridge_ca: Path
    client_cert: Path
    client_key: Path
    bridge_server_name: str = ""
    load_balancer_class: str = ""
    lease_namespace: str = "cloudprovider-system"
    identity: str = ""
    kubeconfig: str = ""
    context: str = ""
    endpoint: str = "127.0.0.1:8081"

    @property
    def classes(self) -> Classes:
        """Which Services are ours."""
        return Classes(own=self.load_balancer_class or DEFAULT_CLASS, default=not self.load_balancer_class)
