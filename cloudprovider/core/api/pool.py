"""IPPool (``loadbalancer.harvesterhci.io/v1beta1``, Harvester's) and IPBlock (ours): the addresses to hand out.

A pool is what operators write; its allocations stand in blocks of up to 256 addresses, each one
compare-and-swap, owned by the pool. The pool's status is a summary of its blocks, never the truth.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from cloudprovider.core.api.meta import ATOMIC, AddressText, ApiStruct, Cidr, Condition, KubeObject

MANUALLY_RELEASE_ANNOTATION = "loadbalancer.harvesterhci.io/manuallyReleaseIP"
BLOCK_POOL_LABEL = "loadbalancer.harvesterhci.io/pool"
BLOCK_SIZE = 256


class Range(ApiStruct, frozen=True, kw_only=True):
    """A subnet and the part of it to hand out; start, end and gateway default to its first, last and first host."""

    subnet: Annotated[Cidr, Meta(min_length=1, description='As CIDR, for example "192.168.100.0/24".')]
    range_start: Annotated[AddressText, Meta(description="First address to hand out; empty: the first host.")] = ""
    range_end: Annotated[AddressText, Meta(description="Last address to hand out; empty: the last host.")] = ""
    gateway: Annotated[AddressText, Meta(description="Never handed out; empty: the first host.")] = ""
    exclude: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=91)]],
        Meta(max_length=64, description='Never handed out: addresses, subnets, or "first-last".'),
    ] = []


class Scope(ApiStruct, frozen=True, kw_only=True):
    """Whom a pool serves; each part matches when equal or ``*``."""

    project: Annotated[str, Meta(max_length=127, description='Rancher\'s project, "c-xxx/p-yyy", or "*".')] = ""
    namespace: Annotated[str, Meta(max_length=63, description='Namespace of the load balancer, or "*".')] = ""
    guest_cluster: Annotated[str, Meta(max_length=63, description='Name of the guest cluster, or "*".')] = ""


class Selector(ApiStruct, frozen=True, kw_only=True):
    """Which requests a pool is for."""

    priority: Annotated[
        int, Meta(ge=0, le=4294967295, description="Of pools that match, the highest wins; then the name decides.")
    ] = 0
    network: Annotated[str, Meta(max_length=127, description='"namespace/name", empty: the management network.')] = ""
    scope: Annotated[
        list[Scope],
        Meta(max_length=256, description='Who may use it. Empty: only who names it. One entry of "*": all.'),
    ] = []


class Reservation(ApiStruct, frozen=True, kw_only=True):
    """An address that only one owner gets, whether it exists yet or not: a LoadBalancer by name, or a guest cluster's
    Service. The owner gets it without asking for it; history, pool and scope rules stay as they are."""

    address: Annotated[AddressText, Meta(min_length=1, description="Of this pool's ranges.")]
    namespace: Annotated[str, Meta(min_length=1, max_length=63, description="Host namespace of the owner.")]
    load_balancer: Annotated[str, Meta(max_length=253, description="The LoadBalancer's name; or:")] = ""
    guest_cluster: Annotated[str, Meta(max_length=63, description="The guest cluster whose Service it is for.")] = ""
    service: Annotated[str, Meta(max_length=127, description='That Service, "namespace/name".')] = ""


class IPPoolSpec(ApiStruct, frozen=True, kw_only=True):
    """What is to be handed out, to whom."""

    description: Annotated[str, Meta(max_length=1024, description="For people.")] = ""
    ranges: Annotated[list[Range], Meta(min_length=1, max_length=64, description="What it hands out, in this order.")]
    selector: Selector = msgspec.field(default_factory=Selector)
    reservations: Annotated[
        list[Reservation], Meta(max_length=256, description="Addresses kept for owners that may not exist yet.")
    ] = []
    addresses_per_tenant: Annotated[
        int,
        Meta(
            ge=0,
            le=1000000,
            description="So many of its addresses a guest cluster, or a namespace's load"
            " balancers for virtual machines, may hold; 0: as many as there are.",
        ),
    ] = 0
    nearly_full_percent: Annotated[
        int, Meta(ge=1, le=100, description="From so many percent allocated on, the condition NearlyFull says so.")
    ] = 90


class IPPoolStatus(ApiStruct, frozen=True, kw_only=True):
    """A summary, written at most once a second; the maps are cut at 1,000 entries (``truncated`` says so)."""

    total: Annotated[int, Meta(description="Addresses to hand out, without the gateways.")] = 0
    available: Annotated[int, Meta(description="Of them, free.")] = 0
    last_allocated: Annotated[str, Meta(description="The address given last.")] = ""
    allocated: Annotated[
        dict[str, str], Meta(description='Address to "namespace/name" of who has it.', extra_json_schema=ATOMIC)
    ] = {}
    allocated_history: Annotated[
        dict[str, str], Meta(description='Address to "namespace/name" of who had it last.', extra_json_schema=ATOMIC)
    ] = {}
    truncated: Annotated[bool, Meta(description="The maps were cut; the pool's IPBlocks have it all.")] = False
    conditions: Annotated[list[Condition], Meta(description="What is wrong with the pool, if anything.")] = []


class IPPool(KubeObject, frozen=True, kw_only=True):
    """A pool of addresses."""

    spec: IPPoolSpec
    status: IPPoolStatus = msgspec.field(default_factory=IPPoolStatus)


class Allocation(ApiStruct, frozen=True, kw_only=True):
    """Who holds an address: ``owner`` is "namespace/name" of the LoadBalancer (or "agent/NODE"), ``uid`` its UID."""

    owner: Annotated[str, Meta(description='"namespace/name" of the LoadBalancer, or "agent/NODE".')]
    uid: Annotated[str, Meta(description="UID of the LoadBalancer.")] = ""
    since: Annotated[str, Meta(description="RFC 3339.")] = ""
    tenant: Annotated[
        str, Meta(description='Whose quota it counts for: "namespace/cluster" of a GuestCluster, or a namespace.')
    ] = ""
    sharers: Annotated[
        dict[str, str],
        Meta(
            max_length=31,
            description="LoadBalancers that share the address, and their UIDs; one of them takes over"
            " when the owner leaves.",
        ),
    ] = {}


class AddressConflict(ApiStruct, frozen=True, kw_only=True):
    """Somebody who is none of ours has the address."""

    hardware_address: Annotated[str, Meta(max_length=64, description="Who answered for it.")]
    until: Annotated[str, Meta(description="RFC 3339; then it is handed out again.")]


class IPBlockSpec(ApiStruct, frozen=True, kw_only=True):
    """The truth about up to 256 addresses of one pool."""

    pool: Annotated[str, Meta(min_length=1, max_length=253, description="The pool's name. Immutable.")]
    first: Annotated[AddressText, Meta(min_length=1, description="The block's first address, 256-aligned. Immutable.")]
    allocations: Annotated[
        dict[str, Allocation],
        Meta(max_length=256, description="Address to who holds it.", extra_json_schema=ATOMIC),
    ] = {}
    history: Annotated[
        dict[str, str],
        Meta(max_length=256, description="Address to the owner that last gave it back.", extra_json_schema=ATOMIC),
    ] = {}
    conflicts: Annotated[
        dict[str, AddressConflict],
        Meta(max_length=256, description="Addresses that somebody else has: not handed out.", extra_json_schema=ATOMIC),
    ] = {}


class IPBlock(KubeObject, frozen=True, kw_only=True):
    """Allocations of up to 256 addresses of a pool."""

    spec: IPBlockSpec
