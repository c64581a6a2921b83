"""The list of load balancers: one line each, filtered, sorted, cut into pages. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import CLUSTER_ANNOTATION, CLUSTER_LABEL, LoadBalancer
from cloudprovider.core.conditions import find
from cloudprovider.core.nodehealth import NodesWanted, nodes_wanted
from cloudprovider.core.overview import Count, cluster_key, count_nodes, health_of
from cloudprovider.core.wanted import parsed

PAGE_SIZE: Final = 100
SHOWN_PORTS: Final = 3

State = Literal["ready", "degraded", "pending", "failed", "leaving"]
WORDS: Final[Mapping[State, str]] = {
    "ready": "Ready",
    "degraded": "Degraded",
    "pending": "Pending",
    "failed": "Not ready",
    "leaving": "Going away",
}
STATES: Final = tuple(WORDS)
COLUMNS: Final[Mapping[str, str]] = {
    "name": "Name",
    "namespace": "Namespace",
    "workload": "Workload",
    "ipam": "IPAM",
    "address": "Address",
    "listeners": "Listeners",
    "health": "Health",
    "state": "State",
    "age": "Age",
}


@dataclass(frozen=True, slots=True)
class Row:
    """A load balancer as the list shows it. ``guest``: "cluster: namespace/name" of a guest's Service, else empty.

    ``healthy`` of ``backends`` take traffic; ``backends`` 0: not known one by one. ``state`` with its ``reason``.
    ``cluster``: the guest cluster's key, and ``nodes`` which of its nodes it goes to; None for virtual machines.
    """

    namespace: str
    name: str
    guest: str
    ipam: str
    pool: str
    addresses: tuple[str, ...]
    listeners: tuple[str, ...]
    healthy: int
    backends: int
    state: State
    reason: str
    created: str
    cluster: tuple[str, str] = ("", "")
    nodes: NodesWanted | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return (self.namespace, self.name)

    @property
    def workload(self) -> str:
        """What it is for."""
        return "Guest cluster" if self.guest else "Virtual machines"

    @property
    def word(self) -> str:
        """The state for people."""
        return WORDS[self.state]

    @property
    def text(self) -> str:
        """What a filter looks at."""
        parts = (self.namespace, self.name, self.guest, self.ipam, self.pool, *self.addresses, *self.listeners)
        return "\n".join((*parts, self.workload, self.word, self.reason)).lower()


@dataclass(frozen=True, kw_only=True)
class Query:
    """What of the list is asked for: by the page's URL."""

    namespace: str = ""
    text: str = ""
    state: str = ""
    sort: str = "name"
    descending: bool = False
    page: int = 1

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> "Query":
        """Read it from a URL; what makes no sense is left out."""
        page = parameters.get("page", "")
        sort, state = parameters.get("sort", ""), parameters.get("state", "")
        return cls(
            namespace=parameters.get("namespace", "").strip()[:63],
            text=parameters.get("q", "").strip()[:200],
            state=state if state in STATES else "",
            sort=sort if sort in COLUMNS else "name",
            descending=parameters.get("desc", "") == "1",
            page=int(page) if page.isdecimal() and 0 < len(page) < 7 and int(page) > 0 else 1,
        )

    def parameters(self, **changed: str) -> dict[str, str]:
        """As a URL's; what is as it would be anyway is left out."""
        found = {
            "namespace": self.namespace,
            "q": self.text,
            "state": self.state,
            "sort": self.sort if self.sort != "name" else "",
            "desc": "1" if self.descending else "",
            "page": str(self.page) if self.page > 1 else "",
        }
        return {name: value for name, value in {**found, **changed}.items() if value}

    def by(self, column: str) -> dict[str, str]:
        """The parameters that sort by a column: by the same one once more, the other way round."""
        turned = column == self.sort and not self.descending
        return self.parameters(sort=column if column != "name" else "", desc="1" if turned else "", page="")


@dataclass(frozen=True)
class View:
    """A page of the list. ``matching`` of ``total`` fit the filter; ``states``: how many of all are in each."""

    rows: Sequence[Row]
    matching: int
    total: int
    page: int
    pages: int
    states: Mapping[State, int]


def row_of(lb: LoadBalancer) -> Row:
    """Return the line of a load balancer."""
    spec, status = lb.spec, lb.status
    counted = health_of(lb, None)
    state, reason = state_of(lb, counted)
    addresses = tuple(a.ip for a in status.addresses) or ((status.address,) if status.address else ())
    return Row(
        namespace=lb.metadata.namespace,
        name=lb.metadata.name,
        guest=guest_name(lb),
        ipam="DHCP" if spec.ipam == "dhcp" else "Pool",
        pool=status.addresses[0].ip_pool if status.addresses else spec.ip_pool,
        addresses=addresses,
        listeners=tuple(f"{x.protocol} {x.port}" for x in spec.listeners),
        healthy=counted.healthy,
        backends=counted.total,
        state=state,
        reason=reason,
        created=lb.metadata.creation_timestamp,
        cluster=cluster_key(lb),
        nodes=nodes_wanted(lb) if spec.workload_type == "cluster" else None,
    )


def in_cluster(row: Row, clusters: Mapping[tuple[str, str], GuestCluster]) -> Row:
    """The line of a guest's Service with what is known of its cluster's nodes."""
    cluster = clusters.get(row.cluster)
    if row.nodes is None or cluster is None:
        return row
    counted = count_nodes(row.nodes, cluster)
    state = _working(counted) if row.state in {"ready", "degraded"} else row.state
    return replace(row, healthy=counted.healthy, backends=counted.total, state=state)


def guest_name(lb: LoadBalancer) -> str:
    """ "cluster: namespace/name" of the guest's Service that it stands for; empty for virtual machines."""
    if lb.spec.workload_type != "cluster":
        return ""
    cluster = lb.metadata.annotations.get(CLUSTER_ANNOTATION, "") or lb.metadata.labels.get(CLUSTER_LABEL, "")
    service = f"{lb.spec.service.namespace}/{lb.spec.service.name}" if lb.spec.service is not None else "no Service"
    return f"{cluster or 'a guest cluster'}: {service}"


def state_of(lb: LoadBalancer, counted: Count) -> tuple[State, str]:
    """Return where a load balancer stands, and the reason where it is not ready. ``counted``: its backends."""
    if lb.metadata.deletion_timestamp:
        return "leaving", ""
    ready = find(lb.status.conditions, "Ready")
    if ready is not None and ready.status == "True":
        return _working(counted), ""
    allocated = find(lb.status.conditions, "Allocated")
    if not lb.status.addresses and not lb.status.address:
        waiting = allocated if allocated is not None and allocated.status != "True" else ready
        return "pending", waiting.reason if waiting is not None else ""
    said = find(lb.status.conditions, "Owned") or ready
    return "failed", said.reason if said is not None else ""


def _working(counted: Count) -> State:
    return "degraded" if counted.healthy < counted.total else "ready"


def view(rows: Iterable[Row], query: Query) -> View:
    """Filter, sort and cut."""
    everything = list(rows)
    words = query.text.lower().split()
    found = [r for r in everything if all(w in r.text for w in words) and (not query.state or r.state == query.state)]
    found.sort(key=lambda r: r.key)
    # The youngest has the smallest age, and the latest time.
    found.sort(key=_KEYS[query.sort], reverse=query.descending != (query.sort == "age"))
    pages = max(1, -(-len(found) // PAGE_SIZE))
    page = min(query.page, pages)
    shown = found[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
    states = {state: sum(1 for r in everything if r.state == state) for state in STATES}
    return View(shown, len(found), len(everything), page, pages, states)


def _share(row: Row) -> tuple[int, float]:
    return (0, 0.0) if not row.backends else (1, row.healthy / row.backends)


def _first_address(row: Row) -> tuple[int, int]:
    address = parsed(row.addresses[0]) if row.addresses else None
    return (0, 0) if address is None else (address.version, int(address))


_KEYS: Final[Mapping[str, Callable[[Row], Any]]] = {
    "name": lambda r: r.name,
    "namespace": lambda r: r.namespace,
    "workload": lambda r: (r.workload, r.guest),
    "ipam": lambda r: (r.ipam, r.pool),
    "address": _first_address,
    "listeners": lambda r: r.listeners,
    "health": _share,
    "state": lambda r: STATES.index(r.state),
    "age": lambda r: r.created,
}
