"""What a GuestCluster says of its nodes' health: made of what the node probes find, and read by who shows it.

A node is named there once for all load balancers of its cluster, and only after probes have found it unfit for the
first time: unknown is not bad.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cloudprovider.core.api.guestcluster import GuestCluster, GuestNode, NodeHealth
from cloudprovider.core.api.loadbalancer import BackendHealth, LoadBalancer
from cloudprovider.core.backendhealth import told
from cloudprovider.core.backends import is_checked, passes
from cloudprovider.core.checks import Standing
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.wanted import parsed

_UNTIL_NOW = BackendHealth(healthy=True, since="")
"""Of a node that has never failed."""


def nodes_told(
    before: Iterable[NodeHealth], nodes: Iterable[GuestNode], failing: Mapping[IPAddress, str], now: datetime
) -> list[NodeHealth]:
    """What is to be said of a cluster's ``nodes``, by name; ``failing``: addresses that probes have found unfit, and
    why. A node has one kube-proxy: it fails with any of its addresses."""
    known = {each.name: each.health for each in before}
    found: list[NodeHealth] = []
    for node in sorted(nodes, key=lambda n: n.name):
        why = next((failing[a] for text in node.addresses if (a := parsed(text)) in failing and a is not None), "")
        if why or node.name in known:
            standing = Standing(healthy=not why, since=now, message=why)
            found.append(NodeHealth(name=node.name, health=told(known.get(node.name, _UNTIL_NOW), [standing], now)))
    return found


@dataclass(frozen=True, slots=True)
class NodesWanted:
    """The nodes of its guest cluster that a load balancer goes to. ``names`` None: all; ``passing`` None: it has no
    check of its own, else those that pass it."""

    names: frozenset[str] | None
    passing: frozenset[str] | None

    def of(self, cluster: GuestCluster) -> Sequence[GuestNode]:
        """They, healthy or not."""
        return [n for n in cluster.status.nodes if self.names is None or n.name in self.names]

    def taking(self, cluster: GuestCluster) -> frozenset[str]:
        """The names of those that take its traffic: that pass its check, and of these, unless that leaves nobody, those
        that the node probes find fit (as :func:`cloudprovider.core.groups.members` does)."""
        names = frozenset(n.name for n in self.of(cluster) if self.passing is None or n.name in self.passing)
        return names - {each.name for each in cluster.status.node_health if not each.health.healthy} or names


def nodes_wanted(lb: LoadBalancer) -> NodesWanted:
    """Return the nodes that a load balancer of a guest cluster goes to."""
    local = lb.spec.external_traffic_policy == "Local"
    passing = frozenset(b.name for b in lb.status.backends if passes(lb, b.health)) if is_checked(lb) else None
    return NodesWanted(frozenset(lb.spec.endpoint_nodes) if local else None, passing)
