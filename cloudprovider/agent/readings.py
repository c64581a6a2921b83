"""What stands in the memory of the agent that serves, and in its kernel, read for each scrape."""

from collections.abc import Mapping
from dataclasses import dataclass

from cloudprovider.core.metrics import agent as metrics
from cloudprovider.core.metrics.definition import MOST_BALANCERS, OTHER
from cloudprovider.core.plan import ListenerKey, Member
from cloudprovider.dataplane.api import Counter
from cloudprovider.dhcp.api import Counts
from cloudprovider.kube.registry import Readings


@dataclass(frozen=True)
class Traffic:
    """What went through one network's namespace: by listener, with the load balancer ("namespace/name") that it is
    of, and by node."""

    listeners: Mapping[ListenerKey, Counter]
    owners: Mapping[ListenerKey, str]
    nodes: Mapping[Member, Counter]


@dataclass(frozen=True)
class NetworkState:
    """How it stands with one network. ``expiry``: Unix time."""

    up: bool
    held: int
    claiming: int
    failed: int
    listeners: int
    nodes_failing: int
    leases: Mapping[str, int]
    expiry: float | None
    hosts: Mapping[str, bool]
    """The other hosts, and whether they are heard."""


def read_networks(networks: Mapping[str, NetworkState]) -> Readings:
    """Tell how networks, by label, stand."""
    yield metrics.NETWORK_UP, {(n,): s.up for n, s in networks.items()}
    yield (
        metrics.ADDRESSES,
        {
            (n, state): number
            for n, s in networks.items()
            for state, number in (("held", s.held), ("claiming", s.claiming), ("failed", s.failed))
        },
    )
    yield metrics.HOST_UP, {(n, host): int(up) for n, s in networks.items() for host, up in s.hosts.items()}
    yield metrics.LISTENERS, {(n,): s.listeners for n, s in networks.items()}
    yield metrics.NODES_FAILING, {(n,): s.nodes_failing for n, s in networks.items()}
    yield metrics.DHCP_LEASES, {(n, state): number for n, s in networks.items() for state, number in s.leases.items()}
    yield metrics.DHCP_EXPIRY, {(n,): s.expiry for n, s in networks.items() if s.expiry is not None}


def read_backends(healthy: int, unhealthy: int) -> Readings:
    """Tell how many backends pass their checks."""
    yield metrics.BACKENDS, {("healthy",): healthy, ("unhealthy",): unhealthy}


def read_dhcp(counts: Mapping[str, Counts]) -> Readings:
    """Tell what the DHCP clients sent, received and dropped, by network."""
    yield (
        metrics.DHCP_MESSAGES,
        {
            (network, direction, kind): number
            for network, count in counts.items()
            for direction, of in (("received", count.received), ("sent", count.sent))
            for kind, number in of.items()
        },
    )
    yield (
        metrics.DHCP_DROPPED,
        {(network, reason): number for network, count in counts.items() for reason, number in count.dropped.items()},
    )


def read_traffic(traffic: Mapping[str, Traffic], most: int = MOST_BALANCERS) -> Readings:
    """Tell what clients sent to each load balancer, and what was sent on to each node, by network."""
    balancers: list[tuple[tuple[str, str], Counter]] = []
    nodes: list[tuple[tuple[str, str], Counter]] = []
    for network, found in sorted(traffic.items()):
        by_owner: dict[str, Counter] = {}
        for listener, counter in found.listeners.items():
            owner = found.owners.get(listener, OTHER)
            by_owner[owner] = _sum(by_owner.get(owner), counter)
        balancers += [((network, name), c) for name, c in _most(by_owner, most)]
        nodes += [((network, name), c) for name, c in _most({str(m): c for m, c in found.nodes.items()}, most)]
    yield metrics.CLIENT_PACKETS, {where: c.packets for where, c in balancers}
    yield metrics.CLIENT_BYTES, {where: c.bytes for where, c in balancers}
    yield metrics.CLIENT_CONNECTIONS, {where: c.connections for where, c in balancers}
    yield metrics.NODE_PACKETS, {where: c.packets for where, c in nodes}
    yield metrics.NODE_BYTES, {where: c.bytes for where, c in nodes}
    yield metrics.NODE_CONNECTIONS, {where: c.connections for where, c in nodes}


def _most(counters: Mapping[str, Counter], most: int) -> list[tuple[str, Counter]]:
    """Those with the most bytes, by name; then all others in one."""
    ranked = sorted(counters.items(), key=lambda item: (item[0] == OTHER, -item[1].bytes, item[0]))
    rest: Counter | None = None
    for _, counter in ranked[most:]:
        rest = _sum(rest, counter)
    shown = sorted(ranked[:most])
    return shown if rest is None else [*shown, (OTHER, rest)]


def _sum(one: Counter | None, other: Counter) -> Counter:
    if one is None:
        return other
    return Counter(one.packets + other.packets, one.bytes + other.bytes, one.connections + other.connections)
