"""What the host program is told."""

from dataclasses import dataclass
from pathlib import Path

from cloudprovider.core.plan import IPAddress, IPNetwork


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Settings of the host program.

    ``bridge_address`` is "ADDRESS:PORT" to listen on for guests with ``tls_cert`` and ``tls_key``; ``tenant_ca`` signs
    the guests' certificates, whose identities begin with ``trust_domain``. ``reserved_cidrs``: the host cluster's own
    service and pod ranges. ``lease_namespace`` holds the Lease by which one of several copies leads, ``identity`` is
    this copy's name there (empty: made from the host name). ``endpoint`` is "ADDRESS:PORT" of the health endpoint,
    ``webhook_address`` that of the admission webhook; empty: none is served. Its Secret is in ``lease_namespace``.
    ``node_name`` is the node that this copy runs on: another copy takes over at once where the agents say that it is
    dead. ``pod_address`` is where the bridge's Service leads to while this copy leads; None: the Service is left alone.
    """

    tls_cert: Path
    tls_key: Path
    tenant_ca: Path
    bridge_address: str = "0.0.0.0:8443"
    trust_domain: str = "cloudprovider.local"
    reserved_cidrs: tuple[IPNetwork, ...] = ()
    lease_namespace: str = "cloudprovider-system"
    identity: str = ""
    kubeconfig: str = ""
    context: str = ""
    endpoint: str = "127.0.0.1:8082"
    webhook_address: str = ""
    node_name: str = ""
    pod_address: IPAddress | None = None
