"""What the guest program exports. All but ``leader`` are of the copy that leads."""

from typing import Final

from cloudprovider.core.metrics.definition import CALL_BUCKETS, MOST_REASONS, PROVISIONING_BUCKETS, Group

_group = Group("guest")

LEADER: Final = _group.gauge("leader", "1 while this copy leads.")
TIME_TO_ADDRESS: Final = _group.histogram(
    "time_to_address_seconds",
    "Seconds from the first sight of a Service to its address in the status.",
    PROVISIONING_BUCKETS,
)
SERVICES: Final = _group.gauge(
    "services",
    "Services looked after, by whether they are ready and the reason that their condition gives.",
    "state",
    "reason",
    bound=f"ready and pending, {MOST_REASONS} reasons",
)
LOAD_BALANCERS: Final = _group.gauge("load_balancers", "Load balancers that the host has for this cluster.")
BRIDGE_CONNECTED: Final = _group.gauge("bridge_connected", "1 while the host is heard.")
BRIDGE_CALLS: Final = _group.counter(
    "bridge_calls_total",
    "Calls of the host's bridge that have ended, by gRPC code.",
    "method",
    "code",
    bound="6 methods, 17 codes",
)
BRIDGE_CALL_SECONDS: Final = _group.histogram(
    "bridge_call_duration_seconds",
    "Seconds that a call of the host's bridge took, streams left out.",
    CALL_BUCKETS,
    "method",
    bound="5 methods",
)
CERTIFICATE_EXPIRY: Final = _group.gauge(
    "bridge_certificate_expiry_timestamp_seconds", "When the client certificate for the bridge ends, Unix time."
)

GUEST: Final = _group.metrics
