"""IPPool (``loadbalancer.harvesterhci.io/v1beta1``, Harvester's) and IPBlock (ours): the addresses to hand out.

A pool is what operators write; its allocations stand in blocks of up to 256 addresses, each one
compare-and-swap, owned by the pool. The pool's status is a summary of its blocks, never the truth.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from cloudprovider.core.api.meta import ApiStruct, Condition, KubeObject

MANUALLY_RELEASE_ANNOTATION = "loadbalancer.harvesterhci.io/manuallyReleaseIP"
BLOCK_POOL_LABEL = "loadbalancer.harvesterhci.io/pool"
BLOCK_SIZE = 256


class Range(ApiStruct, frozen=True, kw_only=True):
    """A subnet and the part of it to hand out; start, end and gateway default to its first, last and first host."""

    subnet: Annotated[str, Meta(min_length=1, max_length=43, description="CIDR.")]
    range_start: Annotated[str, Meta(max_length=39)] = ""
    range_end: Annotated[str, Meta(max_length=39)] = ""
    gateway: Annotated[str, Meta(max_length=39)] = ""


class Scope(ApiStruct, frozen=True, kw_only=True):
    """Whom a pool serves; each part matches when equal or ``*``."""

    project: Annotated[str, Meta(max_length=127)] = ""
    namespace: Annotated[str, Meta(max_length=63)] = ""
    guest_cluster: Annotated[str, Meta(max_length=63)] = ""


class Selector(ApiStruct, frozen=True, kw_only=True):
    """Which requests a pool is for."""

    priority: Annotated[int, Meta(ge=0, le=4294967295)] = 0
    network: Annotated[str, Meta(max_length=127, description='"namespace/name", empty: the management network.')] = ""
    scope: Annotated[list[Scope], Meta(max_length=256)] = []


class IPPoolSpec(ApiStruct, frozen=True, kw_only=True):
    """What is to be handed out, to whom."""

    description: Annotated[str, Meta(max_length=1024)] = ""
    ranges: Annotated[list[Range], Meta(min_length=1, max_length=64)]
    selector: Selector = msgspec.field(default_factory=Selector)


class IPPoolStatus(ApiStruct, frozen=True, kw_only=True):
    """A summary, written at most once a second; the maps are cut at 1,000 entries (``truncated`` says so)."""

    total: int = 0
    available: int = 0
    last_allocated: str = ""
    allocated: dict[str, str] = {}
    allocated_history: dict[str, str] = {}
    truncated: bool = False
    conditions: list[Condition] = []


class IPPool(KubeObject, frozen=True, kw_only=True):
    """A pool of addresses."""

    spec: IPPoolSpec
    status: IPPoolStatus = msgspec.field(default_factory=IPPoolStatus)


class Allocation(ApiStruct, frozen=True, kw_only=True):
    """Who holds an address: ``owner`` is "namespace/name" of the LoadBalancer (or "agent/NODE"), ``uid`` its UID."""

    owner: str
    uid: str = ""
    since: Annotated[str, Meta(description="RFC 3339.")] = ""


class IPBlockSpec(ApiStruct, frozen=True, kw_only=True):
    """The truth about up to 256 addresses of one pool."""

    pool: Annotated[str, Meta(min_length=1, max_length=253)]
    first: Annotated[str, Meta(min_length=1, max_length=39, description="The block's first address, 256-aligned.")]
    allocations: Annotated[dict[str, Allocation], Meta(max_length=256)] = {}
    history: Annotated[
        dict[str, str], Meta(max_length=256, description="Address to the owner that last gave it back.")
    ] = {}


class IPBlock(KubeObject, frozen=True, kw_only=True):
    """Allocations of up to 256 addresses of a pool."""

    spec: IPBlockSpec
