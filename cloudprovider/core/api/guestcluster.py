"""GuestCluster, ``cloudprovider.harvesterhci.io/v1beta1``: a tenant.

Operators write the spec (limits, revocations); the bridge the status (what the guest reports about itself).
Only deleting this object ends a tenant.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloudprovider.core.api.loadbalancer import MAX_LISTENERS, MAX_SOURCE_RANGES, BackendHealth
from cloudprovider.core.api.meta import AddressText, ApiStruct, Cidr, Condition, KubeObject

REBIND_ANNOTATION = "cloudprovider.harvesterhci.io/rebind"
"""Set by an operator to the new kube-system UID (or "any") to let a rebuilt cluster take over; then removed."""


class Quota(ApiStruct, frozen=True, kw_only=True):
    """Bounds of one tenant. None: the program's default."""

    load_balancers: Annotated[int, Meta(ge=0, description="Load balancers at one time.")] = 10000
    addresses: Annotated[int, Meta(ge=0, description="Addresses at one time, shared ones counted once.")] = 10000
    ports_per_load_balancer: Annotated[int, Meta(ge=1, le=MAX_LISTENERS, description="Ports of one of them.")] = 250
    source_ranges_per_load_balancer: Annotated[
        int, Meta(ge=0, le=MAX_SOURCE_RANGES, description="Source ranges of one of them.")
    ] = 250
    streams: Annotated[int, Meta(ge=1, le=100, description="Watch streams open at one time.")] = 4
    calls_per_second: Annotated[int, Meta(ge=1, le=100000, description="Calls of the bridge in a second.")] = 500


class GuestClusterSpec(ApiStruct, frozen=True, kw_only=True):
    """What the tenant may do. An empty list limits nothing."""

    description: Annotated[str, Meta(max_length=1024, description="For people.")] = ""
    revoked_fingerprints: Annotated[
        list[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]],
        Meta(max_length=1000, description="SHA-256 of certificates (DER) that are no longer accepted, in hex."),
    ] = []
    revoked_before: Annotated[
        str,
        Meta(
            pattern=r"^($|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$)",
            description="RFC 3339; certificates with an earlier notBefore are no longer accepted.",
        ),
    ] = ""
    networks: Annotated[
        list[Annotated[str, Meta(max_length=127)]],
        Meta(max_length=256, description="Networks whose pools may be used."),
    ] = []
    pools: Annotated[
        list[Annotated[str, Meta(max_length=253)]],
        Meta(max_length=256, description="Pools that may be used; where any is named, DHCP may not."),
    ] = []
    node_cidrs: Annotated[
        list[Cidr], Meta(max_length=64, description="Where the nodes' addresses must lie. Empty: no node is accepted.")
    ] = []
    quota: Quota = msgspec.field(default_factory=Quota)
    default_mode: Annotated[
        Literal["auto", "dsr", "nat"], Meta(description="For load balancers that ask for no mode.")
    ] = "auto"
    deletion_grace_period_seconds: Annotated[
        int, Meta(ge=0, le=2592000, description="Seconds from this object's deletion to its load balancers' end.")
    ] = 3600


class GuestNode(ApiStruct, frozen=True, kw_only=True):
    """A node of the guest cluster that takes load-balancer traffic."""

    name: Annotated[str, Meta(min_length=1, max_length=253, description="As the guest names it.")]
    addresses: Annotated[list[AddressText], Meta(min_length=1, max_length=8, description="Its internal addresses.")]
    virtual_machine: Annotated[
        str,
        Meta(max_length=253, description="The virtual machine that it is, by the guest's word; empty: of its name."),
    ] = ""


class MachineInterface(ApiStruct, frozen=True, kw_only=True):
    """An interface of a virtual machine, by its definition."""

    network: Annotated[str, Meta(max_length=127, description='"namespace/name"; empty is the management network.')] = ""
    mac_address: Annotated[str, Meta(max_length=17, description="Its MAC.")]


class NodeMachine(ApiStruct, frozen=True, kw_only=True):
    """The virtual machine that a node of the guest cluster is, which the host knows better than the guest."""

    name: Annotated[str, Meta(min_length=1, max_length=253, description="Of the node.")]
    virtual_machine: Annotated[str, Meta(max_length=253, description="Its name in the tenant's namespace.")]
    interfaces: Annotated[list[MachineInterface], Meta(max_length=32, description="Where it stands.")] = []


class NodeHealth(ApiStruct, frozen=True, kw_only=True):
    """What the probes say of a node that has failed them at least once."""

    name: Annotated[str, Meta(min_length=1, max_length=253, description="Of the node.")]
    health: Annotated[BackendHealth, Meta(description="By GET /healthz of its kube-proxy.")]


class InventoryRecord(ApiStruct, frozen=True, kw_only=True):
    """The last complete inventory that was accepted."""

    services: Annotated[int, Meta(description="How many load balancers it named.")] = 0
    resource_version: Annotated[str, Meta(description="Of the guest's list of Services.")] = ""
    fencing_token: Annotated[int, Meta(description="Of the guest program that sent it.")] = 0
    time: Annotated[str, Meta(description="RFC 3339; when it was accepted.")] = ""


class CertificateRecord(ApiStruct, frozen=True, kw_only=True):
    """The certificate that the guest last introduced itself with."""

    fingerprint: Annotated[str, Meta(description="SHA-256 of the DER, in hex.")] = ""
    not_before: Annotated[str, Meta(description="RFC 3339.")] = ""
    not_after: Annotated[str, Meta(description="RFC 3339; its end.")] = ""


class GuestClusterStatus(ApiStruct, frozen=True, kw_only=True):
    """What is known of the tenant: ``machines`` by the host controller, ``nodeHealth`` by the agent, all else
    by the bridge."""

    cluster_uid: Annotated[str, Meta(description="UID of the guest's kube-system namespace, bound at first use.")] = ""
    guest_version: Annotated[str, Meta(description="Version of the guest's program.")] = ""
    last_seen_time: Annotated[str, Meta(description="RFC 3339; when the guest last called.")] = ""
    certificate: CertificateRecord | None = None
    nodes: Annotated[list[GuestNode], Meta(max_length=5000, description="Its nodes that take traffic.")] = []
    machines: Annotated[
        list[NodeMachine],
        Meta(max_length=5000, description="The virtual machines of these nodes, as far as the host knows them."),
    ] = []
    node_health: Annotated[
        list[NodeHealth],
        Meta(max_length=5000, description="Health of the nodes that the probes have found unfit, once or now."),
    ] = []
    inventory: InventoryRecord | None = None
    conditions: Annotated[list[Condition], Meta(description="What is wrong with the tenant, if anything.")] = []


class GuestCluster(KubeObject, frozen=True, kw_only=True):
    """A tenant: one guest cluster, in the host namespace that its load balancers live in."""

    spec: GuestClusterSpec = msgspec.field(default_factory=GuestClusterSpec)
    status: GuestClusterStatus = msgspec.field(default_factory=GuestClusterStatus)
