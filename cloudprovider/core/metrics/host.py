"""What the host program exports. Admission and its certificate are of every copy, the rest of the one that leads."""

from typing import Final

from cloudprovider.core.metrics.definition import (
    CALL_BUCKETS,
    MOST_POOLS,
    MOST_REASONS,
    MOST_TENANTS,
    PROVISIONING_BUCKETS,
    Group,
)

_group = Group("host")
_TENANTS: Final = f'{MOST_TENANTS} tenants, then "other"'
_POOLS: Final = f'{MOST_POOLS} pools, then "other"'

LEADER: Final = _group.gauge("leader", "1 while this copy leads.")
TIME_TO_ADDRESS: Final = _group.histogram(
    "time_to_address_seconds",
    "Seconds from the first sight of a load balancer to its first address in the status.",
    PROVISIONING_BUCKETS,
)
TIME_TO_READY: Final = _group.histogram(
    "time_to_ready_seconds",
    "Seconds from the first sight of a load balancer to the first time that it is Ready.",
    PROVISIONING_BUCKETS,
)
LOAD_BALANCERS: Final = _group.gauge(
    "load_balancers",
    "Load balancers, by state and the reason that their conditions give.",
    "state",
    "reason",
    bound=f"ready, no_address, not_ready and deleting, {MOST_REASONS} reasons",
)
POOL_ADDRESSES: Final = _group.gauge("pool_addresses", "Addresses that a pool's ranges have.", "pool", bound=_POOLS)
POOL_AVAILABLE: Final = _group.gauge(
    "pool_addresses_available", "Addresses that a pool can still give to anybody.", "pool", bound=_POOLS
)
POOL_ALLOCATED: Final = _group.gauge(
    "pool_addresses_allocated", "Addresses of a pool that load balancers have.", "pool", bound=_POOLS
)
BLOCK_WRITES: Final = _group.counter(
    "block_writes_total",
    "Writes of IPBlocks; a conflict is decided anew.",
    "outcome",
    bound="written, conflict, failed",
)
GUEST_CLUSTERS: Final = _group.gauge("guest_clusters", "Tenants.")
BRIDGE_SERVING: Final = _group.gauge("bridge_serving", "1 while the bridge listens.")
GUEST_CONNECTED: Final = _group.gauge(
    "guest_connected",
    "1 while a tenant that has been bound has a stream open, else 0.",
    "tenant",
    bound=_TENANTS,
)
BRIDGE_CALLS: Final = _group.counter(
    "bridge_calls_total",
    "Calls of the bridge served, by gRPC code.",
    "method",
    "code",
    bound="6 methods, 17 codes",
)
BRIDGE_CALL_SECONDS: Final = _group.histogram(
    "bridge_call_duration_seconds",
    "Seconds that a call of the bridge took, streams left out.",
    CALL_BUCKETS,
    "method",
    bound="5 methods",
)
TENANT_CALLS: Final = _group.counter(
    "tenant_bridge_calls_total", "Calls of the bridge served, by who called.", "tenant", "code", bound=_TENANTS
)
TENANT_CERTIFICATE_EXPIRY: Final = _group.gauge(
    "tenant_certificate_expiry_timestamp_seconds",
    "When the certificate ends that a tenant showed in its last call, Unix time.",
    "tenant",
    bound=f"{MOST_TENANTS} tenants",
)
BRIDGE_CERTIFICATE_EXPIRY: Final = _group.gauge(
    "bridge_certificate_expiry_timestamp_seconds", "When the bridge's certificate ends, Unix time."
)
ADMISSION_REVIEWS: Final = _group.counter(
    "admission_reviews_total",
    "Changes judged by the admission webhook.",
    "resource",
    "outcome",
    bound="ippools and loadbalancers; allowed, refused and unread",
)
ADMISSION_REVIEW_SECONDS: Final = _group.histogram(
    "admission_review_duration_seconds",
    "Seconds that the admission webhook took for an answer.",
    CALL_BUCKETS,
    "resource",
    bound="ippools and loadbalancers",
)
WEBHOOK_CERTIFICATE_EXPIRY: Final = _group.gauge(
    "webhook_certificate_expiry_timestamp_seconds", "When the admission webhook's certificate ends, Unix time."
)

HOST: Final = _group.metrics
