"""What an agent exports. All but ``serving`` are of the agent that serves."""

from typing import Final

from cloudprovider.core.metrics.definition import KERNEL_BUCKETS, MOST_BALANCERS, Group

_group = Group("agent")
MANAGEMENT: Final = "management"
"""What the management network, which has no name, is called in labels."""

_NETWORKS: Final = "networks of the host"
_BALANCERS: Final = f'{MOST_BALANCERS} load balancers a network, then "other"'
_NODES: Final = f'{MOST_BALANCERS} nodes a network, then "other"'

SERVING: Final = _group.gauge("serving", "1 while this agent serves its instance's addresses.")
NETWORK_UP: Final = _group.gauge(
    "network_up", "1 while the network's kernel takes what it is told.", "network", bound=_NETWORKS
)
ADDRESSES: Final = _group.gauge(
    "addresses",
    "Load balancers' addresses: held (up and announced), claiming (on their way up), failed (not to be had now).",
    "network",
    "state",
    bound=f"{_NETWORKS}, 3 states",
)
HOST_UP: Final = _group.gauge(
    "host_up",
    "Of another host, by BFD: 1 while it is heard, 0 when it has fallen silent; absent where that can't be known.",
    "network",
    "host",
    bound=f"{_NETWORKS}, other hosts on each",
)
TAKEOVERS: Final = _group.counter(
    "takeovers_total",
    "Load balancers whose addresses this host took from another one, which was living or dead.",
    "other",
    bound="living and dead",
)
LISTENERS: Final = _group.gauge("listeners", "Listeners that are to be forwarded.", "network", bound=_NETWORKS)
BACKENDS: Final = _group.gauge(
    "backends",
    "Backends of load balancers that have a health check, by its result.",
    "health",
    bound="healthy and unhealthy",
)
NODES_FAILING: Final = _group.gauge(
    "nodes_failing", "Guests' nodes that are left out, as their kube-proxy says so or is silent.", "network",
    bound=_NETWORKS,
)  # fmt: skip
PROBES: Final = _group.counter(
    "probes_total",
    "Probes that have ended; kind node: of a guest's kube-proxy; unasked: this host could not ask.",
    "network",
    "kind",
    "result",
    bound=f"{_NETWORKS}, tcp, http, https, grpc, grpcs and node, passed, failed and unasked",
)
APPLY_SECONDS: Final = _group.histogram(
    "kernel_apply_duration_seconds",
    "Seconds from a change of what is to be forwarded to the kernel having it.",
    KERNEL_BUCKETS,
    "network",
    bound=_NETWORKS,
)
READ_BACK_SECONDS: Final = _group.histogram(
    "kernel_read_back_duration_seconds",
    "Seconds to read all rules back, compare them with what is wanted and mend what differs.",
    KERNEL_BUCKETS,
    "network",
    bound=_NETWORKS,
)
REFUSALS: Final = _group.counter(
    "kernel_refusals_total", "Times that the kernel refused what it was told, each tried again.", "network",
    bound=_NETWORKS,
)  # fmt: skip
REPAIRS: Final = _group.counter(
    "repairs_total",
    "What somebody else had changed and was put right: rules, listeners, groups, neighbours, addresses.",
    "network",
    "what",
    bound=f"{_NETWORKS}, 5 things",
)
CONFLICTS: Final = _group.counter(
    "address_conflicts_total", "Addresses not brought up, as somebody else has them.", "network", bound=_NETWORKS
)
FOREIGN_CLAIMS: Final = _group.counter(
    "foreign_claims_total", "Claims by somebody else of an address that is up, each defended.", "network",
    bound=_NETWORKS,
)  # fmt: skip
RETURNED: Final = _group.counter(
    "frames_returned_total",
    "Looks at which a node was seen to send back a listener's frames (mode dsr); these are dropped.",
    "network",
    bound=_NETWORKS,
)
DHCP_LEASES: Final = _group.gauge(
    "dhcp_leases",
    "Leases by state: held, troubled (held, and not to be renewed now), seeking (none yet, or none any more).",
    "network",
    "state",
    bound=f"{_NETWORKS}, 3 states",
)
DHCP_EXPIRY: Final = _group.gauge(
    "dhcp_earliest_expiry_timestamp_seconds",
    "When the first of the leases ends if it is not renewed, Unix time; absent without any.",
    "network",
    bound=_NETWORKS,
)
DHCP_MESSAGES: Final = _group.counter(
    "dhcp_messages_total", "DHCP messages.", "network", "direction", "type", bound=f"{_NETWORKS}, 2 directions, 8 types"
)
DHCP_DROPPED: Final = _group.counter(
    "dhcp_dropped_total",
    "DHCP packets not taken (malformed, or asked for by nobody here) or not sent.",
    "network",
    "reason",
    bound=f"{_NETWORKS}, some 20 reasons",
)
CLIENT_PACKETS: Final = _group.counter(
    "client_packets_total", "Packets from clients.", "network", "load_balancer", bound=_BALANCERS
)
CLIENT_BYTES: Final = _group.counter(
    "client_bytes_total", "Bytes from clients.", "network", "load_balancer", bound=_BALANCERS
)
CLIENT_CONNECTIONS: Final = _group.counter(
    "client_connections_total",
    "Connections from clients that were sent on (mode dsr: TCP only).",
    "network",
    "load_balancer",
    bound=_BALANCERS,
)
NODE_PACKETS: Final = _group.counter(
    "node_packets_total", "Packets sent on to a node.", "network", "node", bound=_NODES
)
NODE_BYTES: Final = _group.counter("node_bytes_total", "Bytes sent on to a node.", "network", "node", bound=_NODES)
NODE_CONNECTIONS: Final = _group.counter(
    "node_connections_total",
    "Connections that began at a node (mode dsr: TCP only).",
    "network",
    "node",
    bound=_NODES,
)

AGENT: Final = _group.metrics
