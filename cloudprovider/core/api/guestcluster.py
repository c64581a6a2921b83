"""GuestCluster, ``cloudprovider.harvesterhci.io/v1beta1``: a tenant.

Operators write the spec (limits, revocations); the bridge the status (what the guest reports about itself).
Only deleting this object ends a tenant.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from cloudprovider.core.api.meta import ApiStruct, Condition, KubeObject

REBIND_ANNOTATION = "cloudprovider.harvesterhci.io/rebind"
"""Set by an operator to the new kube-system UID (or "any") to let a rebuilt cluster take over; then removed."""


class Quota(ApiStruct, frozen=True, kw_only=True):
    """Bounds of one tenant. None: the program's default."""

    load_balancers: Annotated[int, Meta(ge=0)] = 10000
    ports_per_load_balancer: Annotated[int, Meta(ge=1, le=1000)] = 250
    source_ranges_per_load_balancer: Annotated[int, Meta(ge=0, le=1000)] = 250
    streams: Annotated[int, Meta(ge=1, le=100)] = 4
    calls_per_second: Annotated[int, Meta(ge=1, le=100000)] = 500


class GuestClusterSpec(ApiStruct, frozen=True, kw_only=True):
    """What the tenant may do. An empty list limits nothing."""

    description: Annotated[str, Meta(max_length=1024)] = ""
    revoked_fingerprints: Annotated[
        list[Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]],
        Meta(max_length=1000, description="SHA-256 of certificates (DER) that are no longer accepted, in hex."),
    ] = []
    revoked_before: Annotated[
        str, Meta(description="RFC 3339; certificates with an earlier notBefore are no longer accepted.")
    ] = ""
    networks: Annotated[list[str], Meta(max_length=256, description="Networks whose pools may be used.")] = []
    pools: Annotated[list[str], Meta(max_length=256, description="Pools that may be used.")] = []
    node_cidrs: Annotated[
        list[str], Meta(max_length=64, description="Where the nodes' addresses must lie. Empty: no node is accepted.")
    ] = []
    quota: Quota = msgspec.field(default_factory=Quota)
    default_mode: Literal["auto", "dsr", "nat"] = "auto"
    deletion_grace_period_seconds: Annotated[int, Meta(ge=0, le=2592000)] = 3600


class GuestNode(ApiStruct, frozen=True, kw_only=True):
    """A node of the guest cluster that takes load-balancer traffic."""

    name: Annotated[str, Meta(min_length=1, max_length=253)]
    addresses: Annotated[list[str], Meta(min_length=1, max_length=8)]


class InventoryRecord(ApiStruct, frozen=True, kw_only=True):
    """The last complete inventory that was accepted."""

    services: int = 0
    resource_version: str = ""
    fencing_token: int = 0
    time: str = ""


class GuestClusterStatus(ApiStruct, frozen=True, kw_only=True):
    """What the bridge knows of the tenant."""

    cluster_uid: Annotated[str, Meta(description="UID of the guest's kube-system namespace, bound at first use.")] = ""
    guest_version: str = ""
    last_seen_time: str = ""
    nodes: Annotated[list[GuestNode], Meta(max_length=5000)] = []
    inventory: InventoryRecord | None = None
    conditions: list[Condition] = []


class GuestCluster(KubeObject, frozen=True, kw_only=True):
    """A tenant: one guest cluster, in the host namespace that its load balancers live in."""

    spec: GuestClusterSpec = msgspec.field(default_factory=GuestClusterSpec)
    status: GuestClusterStatus = msgspec.field(default_factory=GuestClusterStatus)
