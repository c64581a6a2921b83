"""Which nodes of a guest take load-balancer traffic. Pure.

Out at once: nodes with an exclusion label (KEP-1143), marked for deletion, or about to be removed by the cluster
autoscaler. NotReady alone changes nothing (KEP-3458: the connections a node holds may well live), but until health
probes decide a node goes after a grace time, and a node that was not in use joins only when it is ready.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cloudprovider.core.annotations import VIRTUAL_MACHINE
from cloudprovider.core.api.kubernetes import DELETION_TAINT, EXCLUDE_LABELS, Node
from cloudprovider.core.exchange import ReportedNode
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.times import parse_time

NOT_READY_GRACE: Final = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The nodes that take traffic, by name, and when time alone may change that (None: never)."""

    nodes: tuple[ReportedNode, ...]
    recheck_at: datetime | None = None


def select_nodes(
    nodes: Iterable[Node],
    *,
    in_use: Collection[str] | None,
    now: datetime,
    grace: timedelta = NOT_READY_GRACE,
) -> Selection:
    """Select the nodes that take traffic at ``now``.

    ``in_use`` are the names selected last; None on the first call of a program, which can't tell a node that has
    never been ready from one that just failed, and gives both the grace time.
    """
    selected: list[ReportedNode] = []
    rechecks: list[datetime] = []
    for node in sorted(nodes, key=lambda n: n.metadata.name):
        addresses = internal_addresses(node)
        if not addresses or is_excluded(node):
            continue
        since = not_ready_since(node)
        if since is not None:
            ends = since + grace
            if ends <= now or (in_use is not None and node.metadata.name not in in_use):
                continue
            rechecks.append(ends)
        selected.append(ReportedNode(node.metadata.name, addresses, virtual_machine(node)))
    return Selection(nodes=tuple(selected), recheck_at=min(rechecks, default=None))


def is_excluded(node: Node) -> bool:
    """Whether the node takes no traffic, ready or not."""
    return (
        bool(node.metadata.deletion_timestamp)
        or not EXCLUDE_LABELS.isdisjoint(node.metadata.labels)
        or any(taint.key == DELETION_TAINT for taint in node.spec.taints)
    )


def internal_addresses(node: Node) -> tuple[IPAddress, ...]:
    """Return the node's InternalIP addresses, the first of each family, in the node's order."""
    found: dict[int, IPAddress] = {}
    for entry in node.status.addresses:
        if entry.type == "InternalIP":
            try:
                address = ip_address(entry.address)
            except ValueError:
                continue
            found.setdefault(address.version, address)
    return tuple(found.values())


def virtual_machine(node: Node) -> str:
    """Return the machine that it is, where its name is another one: Harvester's cloud provider notes it."""
    name = node.metadata.annotations.get(VIRTUAL_MACHINE, "")
    return "" if name == node.metadata.name else name


def not_ready_since(node: Node) -> datetime | None:
    """Return since when the node is not ready, None if it is; a node without that condition never was."""
    ready = next((c for c in node.status.conditions if c.type == "Ready"), None)
    if ready is None:
        return _time(node.metadata.creation_timestamp)
    return None if ready.status == "True" else _time(ready.last_transition_time or "")


def _time(text: str) -> datetime:
    """RFC 3339 as the API server writes it; what can't be read is long past."""
    return parse_time(text) or datetime.min.replace(tzinfo=UTC)
