"""What the agent counts, in Prometheus' text format."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.plan import ListenerKey, Member
from cloudprovider.dataplane.api import Counter
from cloudprovider.dhcp.api import Counts

MOST_SERIES: Final = 2000
"""Load balancers (and nodes) of one network that have a line of their own; the rest is added up as "other"."""

_PREFIX: Final = "cloudprovider_agent_"


@dataclass(frozen=True)
class Traffic:
    """What went through one network's namespace: by listener, with the load balancer ("namespace/name") that it is
    of, and by node."""

    listeners: Mapping[ListenerKey, Counter]
    owners: Mapping[ListenerKey, str]
    nodes: Mapping[Member, Counter]


def exposition_of_dhcp(counts: Mapping[str, Counts]) -> str:
    """Return what the DHCP clients sent, received and dropped, by network."""
    messages = [
        (f'network="{network}",direction="{direction}",type="{kind}"', number)
        for network, count in sorted(counts.items())
        for direction, of in (("received", count.received), ("sent", count.sent))
        for kind, number in sorted(of.items())
    ]
    dropped = [
        (f'network="{network}",reason="{reason}"', number)
        for network, count in sorted(counts.items())
        for reason, number in sorted(count.dropped.items())
    ]
    return _family("dhcp_messages_total", "DHCP messages.", messages) + _family(
        "dhcp_dropped_total", "DHCP packets not taken (malformed, or asked for by nobody here) or not sent.", dropped
    )


def exposition_of_traffic(traffic: Mapping[str, Traffic]) -> str:
    """Return what clients sent to each load balancer, and what was sent on to each node, by network."""
    balancers: list[tuple[str, Counter]] = []
    nodes: list[tuple[str, Counter]] = []
    for network, found in sorted(traffic.items()):
        by_owner: dict[str, Counter] = {}
        for listener, counter in found.listeners.items():
            owner = found.owners.get(listener, "other")
            by_owner[owner] = _sum(by_owner.get(owner), counter)
        where = f'network="{network}"'
        balancers += [(f'{where},load_balancer="{name}"', c) for name, c in _most(by_owner)]
        nodes += [(f'{where},node="{name}"', c) for name, c in _most({str(m): c for m, c in found.nodes.items()})]
    return "".join(
        (
            _family("client_packets_total", "Packets from clients.", [(w, c.packets) for w, c in balancers]),
            _family("client_bytes_total", "Bytes from clients.", [(w, c.bytes) for w, c in balancers]),
            _family(
                "client_connections_total",
                "Connections from clients that were sent on (mode dsr: TCP only).",
                [(w, c.connections) for w, c in balancers],
            ),
            _family("node_packets_total", "Packets sent on to a node.", [(w, c.packets) for w, c in nodes]),
            _family("node_bytes_total", "Bytes sent on to a node.", [(w, c.bytes) for w, c in nodes]),
            _family(
                "node_connections_total",
                "Connections that began at a node (mode dsr: TCP only).",
                [(w, c.connections) for w, c in nodes],
            ),
        )
    )


def _family(name: str, what: str, samples: Iterable[tuple[str, int]]) -> str:
    head = [f"# HELP {_PREFIX}{name} {what}", f"# TYPE {_PREFIX}{name} counter"]
    return "\n".join([*head, *(f"{_PREFIX}{name}{{{labels}}} {number}" for labels, number in samples)]) + "\n"


def _most(counters: Mapping[str, Counter]) -> list[tuple[str, Counter]]:
    """Those with the most bytes, by name; then all others in one."""
    ranked = sorted(counters.items(), key=lambda item: (item[0] == "other", -item[1].bytes, item[0]))
    rest: Counter | None = None
    for _, counter in ranked[MOST_SERIES:]:
        rest = _sum(rest, counter)
    shown = sorted(ranked[:MOST_SERIES])
    return shown if rest is None else [*shown, ("other", rest)]


def _sum(one: Counter | None, other: Counter) -> Counter:
    if one is None:
        return other
    return Counter(one.packets + other.packets, one.bytes + other.bytes, one.connections + other.connections)
