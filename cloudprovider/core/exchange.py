"""What a guest cluster and its host tell each other: plain data, the same on both sides of the bridge.

The bridge's messages (``proto/``) are these on the wire; only :mod:`cloudprovider.bridge.codec` knows both. All values
are immutable and comparable: a guest that wants what it asked for last time need not ask again, and a state equal to
the last one need not be sent.
"""

from dataclasses import dataclass
from typing import Final, Literal

from cloudprovider.core.plan import IPAddress, IPNetwork, L4Protocol
from cloudprovider.core.reasons import Heard, PlaceReason

IPFamily = Literal["IPv4", "IPv6"]
IPFamilyPolicy = Literal["SingleStack", "PreferDualStack", "RequireDualStack"]
Mode = Literal["auto", "dsr", "nat"]
Ipam = Literal["pool", "dhcp"]
TrafficPolicy = Literal["Cluster", "Local"]
ConditionStatus = Literal["True", "False", "Unknown"]
CheckProtocol = Literal["TCP", "HTTP", "HTTPS", "GRPC", "GRPCS"]
FailedConnections = Literal["Keep", "Reset"]


@dataclass(frozen=True, order=True, slots=True)
class Tenant:
    """A guest cluster as its host knows it: the GuestCluster object's namespace and name."""

    namespace: str
    cluster: str

    @property
    def path(self) -> str:
        """ "namespace/cluster", for people."""
        return f"{self.namespace}/{self.cluster}"


@dataclass(frozen=True, order=True, slots=True)
class ServiceKey:
    """A Service of the guest. The UID tells it from its namesake of yesterday."""

    namespace: str
    name: str
    uid: str

    @property
    def path(self) -> str:
        """ "namespace/name", for people."""
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Listener:
    """One port of the address; ``node_port`` None where the Service allocates none."""

    name: str
    protocol: L4Protocol
    port: int
    node_port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """How a Service's nodes are checked; ``port`` is one of the nodes. Empty texts and codes: what is usual.

    The defaults are those of Harvester's documentation. Times are in seconds. ``failed_connections``: what becomes of
    TCP connections to a node that fails.
    """

    port: int
    protocol: CheckProtocol = "TCP"
    path: str = ""
    host: str = ""
    expected_codes: tuple[str, ...] = ()
    verify_certificate: bool = False
    grpc_service: str = ""
    success_threshold: int = 1
    failure_threshold: int = 3
    period_seconds: int = 5
    timeout_seconds: int = 3
    failed_connections: FailedConnections = "Keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerRequest:
    """What a guest wants for one Service.

    ``ip_pool``, ``network``, ``scope_project`` and ``scope_namespace`` empty: not asked for; they only narrow the
    choice. ``primary_service``: "namespace/name" of the guest's Service whose addresses it shares; with it nothing is
    asked for that decides on an address (:mod:`cloudprovider.core.combinations`). ``dhcp_hostname``: told to the
    DHCP server; with ``ipam`` dhcp only. ``mode`` None: the tenant's default. ``endpoint_nodes``: policy Local only,
    sorted. ``affinity_seconds`` None: no session affinity. ``drain_seconds`` None: the host's default. ``sources``
    empty: everybody may connect. ``health_check`` None: the probes of nodes decide.
    """

    listeners: tuple[Listener, ...]
    ipam: Ipam = "pool"
    ip_pool: str = ""
    network: str = ""
    scope_project: str = ""
    scope_namespace: str = ""
    addresses: tuple[IPAddress, ...] = ()
    ip_families: tuple[IPFamily, ...] = ()
    ip_family_policy: IPFamilyPolicy = "SingleStack"
    mode: Mode | None = None
    external_traffic_policy: TrafficPolicy = "Cluster"
    endpoint_nodes: tuple[str, ...] = ()
    health_check_node_port: int | None = None
    affinity_seconds: int | None = None
    sources: tuple[IPNetwork, ...] = ()
    primary_service: str = ""
    dhcp_hostname: str = ""
    drain_seconds: int | None = None
    health_check: HealthCheck | None = None


ADDRESS_KEPT: Final = "AddressKept"
"""Reason of the condition ``Allocated`` = True where the address is not what is asked for any more, and what is asked
for can't be had (yet): it is kept until it can, so that no client is cut off for nothing."""


@dataclass(frozen=True, slots=True)
class GivenAddress:
    """An address that is given and programmed, and the pool it comes from."""

    ip: IPAddress
    ip_pool: str = ""


@dataclass(frozen=True, slots=True)
class StateCondition:
    """A condition of the host's LoadBalancer, without its times."""

    type: str
    status: ConditionStatus
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerState:
    """What the host has made of a Service.

    ``addresses`` hold only what is programmed on a host: safe to publish. ``mode`` is empty until then.
    ``host_object`` ("namespace/name") is for people who compare both sides.
    """

    service: ServiceKey
    addresses: tuple[GivenAddress, ...] = ()
    conditions: tuple[StateCondition, ...] = ()
    host_object: str = ""
    mode: Literal["dsr", "nat", ""] = ""


@dataclass(frozen=True, slots=True)
class ReportedNode:
    """A node that takes traffic, and its InternalIP addresses. ``virtual_machine``: the machine that it is, as its
    guest has it; empty: the one of its name."""

    name: str
    addresses: tuple[IPAddress, ...]
    virtual_machine: str = ""


@dataclass(frozen=True, slots=True)
class RejectedNode:
    """A node address that the host does not send to. ``reason``: OutsideNodeCIDRs, HostAddress, GatewayAddress,
    LoadBalancerAddress, ReservedRange, DuplicateAddress, AddressInUse."""

    name: str
    address: str
    reason: PlaceReason | Heard
    message: str


@dataclass(frozen=True, slots=True)
class InventoryItem:
    """A Service of type LoadBalancer, and the addresses that it shows now."""

    service: ServiceKey
    shown_addresses: tuple[IPAddress, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """All load-balancer Services of a guest, as of one list.

    ``complete``: the list was read to its end; an incomplete inventory deletes nothing. ``fencing_token``: the
    ``leaseTransitions`` of the sender's leader lease.
    """

    items: tuple[InventoryItem, ...]
    resource_version: str
    complete: bool
    fencing_token: int


@dataclass(frozen=True, slots=True)
class InventoryResult:
    """What an inventory led to: the Services whose load balancers go, and how many more wait for a second one."""

    deleted: tuple[ServiceKey, ...] = ()
    held_back: int = 0
