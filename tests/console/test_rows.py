"""The list: states, filter, order, pages."""

import pytest

from cloudprovider.console.rows import PAGE_SIZE, Query, Row, in_cluster, row_of, view
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode, NodeHealth
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_LABEL,
    Address,
    Backend,
    BackendHealth,
    HealthCheck,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
    ServiceReference,
)
from cloudprovider.core.api.meta import Condition, ObjectMeta


def lb(
    name: str = "web",
    *conditions: Condition,
    backends: list[Backend] | None = None,
    address: str = "",
    port: int | None = 80,
    **metadata: str,
) -> LoadBalancer:
    addresses = [Address(ip=address, ip_pool="p", prefix_length=24)] if address else []
    return LoadBalancer(
        metadata=ObjectMeta(name=name, namespace="shops", **metadata),  # type: ignore[arg-type]
        spec=LoadBalancerSpec(
            listeners=[Listener(port=80), Listener(port=53, protocol="UDP")], health_check=HealthCheck(port=port)
        ),
        status=LoadBalancerStatus(addresses=addresses, backends=backends or [], conditions=list(conditions)),
    )


def condition(kind: str, status: str, reason: str = "R") -> Condition:
    return Condition(type=kind, status=status, reason=reason)  # type: ignore[arg-type]


def backend(name: str, *, healthy: bool | None = None, reason: str = "") -> Backend:
    health = BackendHealth(healthy=healthy, since="2026-01-01T00:00:00Z") if healthy is not None else None
    return Backend(name=name, addresses=["10.0.0.1"], reason=reason, health=health)


UP = condition("Ready", "True")


@pytest.mark.parametrize(
    ("found", "state", "reason"),
    [
        (lb(), "pending", ""),
        (lb("a", condition("Allocated", "False", "Full"), condition("Ready", "False", "X")), "pending", "Full"),
        (lb("a", condition("Ready", "False", "NoPoolMatches")), "pending", "NoPoolMatches"),
        (lb("a", UP, address="10.0.0.9"), "ready", ""),
        (lb("a", UP, address="10.0.0.9", backends=[backend("x"), backend("y")], port=None), "ready", ""),
        (lb("a", UP, address="10.0.0.9", backends=[backend("x"), backend("y", healthy=True)]), "degraded", ""),
        (lb("a", UP, address="10.0.0.9", backends=[backend("x"), backend("y", healthy=False)]), "degraded", ""),
        (lb("a", UP, address="10.0.0.9", backends=[backend("x", reason="NoAddress")]), "degraded", ""),
        (lb("a", condition("Ready", "False", "NoBackends"), address="10.0.0.9"), "failed", "NoBackends"),
        (lb("a", condition("Ready", "Unknown", "Lost"), address="10.0.0.9"), "failed", "Lost"),
        (lb("a", UP, address="10.0.0.9", deletion_timestamp="2026-01-01T00:00:00Z"), "leaving", ""),
    ],
)  # fmt: skip
def test_where_a_load_balancer_stands(found: LoadBalancer, state: str, reason: str) -> None:
    row = row_of(found)
    assert (row.state, row.reason) == (state, reason)


def test_a_line_counts_backends_and_names_a_guests_service() -> None:
    backends = [
        backend("a"),
        backend("b", healthy=False),
        backend("c", reason="NotOnNetwork"),
        backend("d", healthy=True),
    ]
    row = row_of(lb("x", UP, address="10.0.0.9", backends=backends))
    assert (row.healthy, row.backends, row.pool, row.workload) == (1, 4, "p", "Virtual machines"), (
        "a is not checked yet"
    )
    assert row_of(lb("x", UP, address="10.0.0.9", backends=backends, port=None)).healthy == 3, "without a check"
    assert row.listeners == ("TCP 80", "UDP 53")
    guest = LoadBalancer(
        metadata=ObjectMeta(name="g", namespace="n", annotations={"loadbalancer.harvesterhci.io/cluster": "blue"}),
        spec=LoadBalancerSpec(workload_type="cluster", service=ServiceReference(namespace="d", name="web", uid="u")),
    )
    assert row_of(guest).guest == "blue: d/web"
    assert row_of(guest).workload == "Guest cluster"


def test_a_guests_service_has_the_nodes_of_its_cluster_where_they_may_be_seen() -> None:
    guest = LoadBalancer(
        metadata=ObjectMeta(name="g", namespace="n", labels={CLUSTER_LABEL: "blue"}),
        spec=LoadBalancerSpec(workload_type="cluster"),
        status=LoadBalancerStatus(addresses=[Address(ip="10.0.0.9", prefix_length=24)], conditions=[UP]),
    )
    row = row_of(guest)
    assert (row.state, row.healthy, row.backends) == ("ready", 0, 0)
    assert in_cluster(row, {}) == row, "not to be seen"
    nodes = [GuestNode(name=name, addresses=["10.0.0.1"]) for name in ("n1", "n2")]
    sick = NodeHealth(name="n2", health=BackendHealth(healthy=False, since="2026-01-01T00:00:00Z"))
    known = GuestCluster(status=GuestClusterStatus(nodes=nodes, node_health=[sick]))
    found = in_cluster(row, {("n", "blue"): known})
    assert (found.state, found.healthy, found.backends) == ("degraded", 1, 2)


def made(i: int, **changed: object) -> Row:
    values: dict[str, object] = {
        "namespace": f"n{i % 3}",
        "name": f"lb-{i:04}",
        "guest": "",
        "ipam": "Pool",
        "pool": "p",
        "addresses": (f"10.0.{i // 200}.{i % 200 + 1}",),
        "listeners": ("TCP 80",),
        "healthy": i % 4,
        "backends": 3,
        "state": ("ready", "pending", "failed")[i % 3],
        "reason": "",
        "created": f"2026-01-01T00:{i // 60 % 60:02}:{i % 60:02}Z",
    }
    return Row(**{**values, **changed})  # type: ignore[arg-type]


def test_a_filter_takes_all_its_words_anywhere() -> None:
    rows = [made(1, name="web"), made(2, pool="web-pool"), made(3, addresses=("10.9.9.9",)), made(4, guest="c: web/x")]
    assert [r.name for r in view(rows, Query(text="WEB")).rows] == ["lb-0002", "lb-0004", "web"]
    assert [r.name for r in view(rows, Query(text="web guest")).rows] == ["lb-0004"]
    assert [r.name for r in view(rows, Query(text="10.9.9.9")).rows] == ["lb-0003"]
    assert view(rows, Query(text="no such")).matching == 0
    assert {r.state for r in view(rows, Query(state="failed")).rows} == {"failed"}
    assert view(rows, Query(state="failed")).states["pending"] == 2, "of all, not of those shown"


def test_addresses_are_sorted_as_numbers_and_ages_from_the_youngest() -> None:
    rows = [
        made(1, addresses=("10.0.0.10",)),
        made(2, addresses=("10.0.0.9",)),
        made(3, addresses=()),
        made(4, addresses=("fd00::1",)),
    ]
    assert [r.addresses for r in view(rows, Query(sort="address")).rows] == [
        (),
        ("10.0.0.9",),
        ("10.0.0.10",),
        ("fd00::1",),
    ]
    assert next(r.name for r in view(rows, Query(sort="age")).rows) == "lb-0004"
    assert next(r.name for r in view(rows, Query(sort="age", descending=True)).rows) == "lb-0001"
    health = [r.healthy for r in view(rows, Query(sort="health")).rows]
    assert health == sorted(health)


def test_many_come_in_pages_and_a_page_too_far_is_the_last() -> None:
    rows = [made(i) for i in range(250)]
    shown = [view(rows, Query(page=page)) for page in (1, 2, 3, 99)]
    assert [len(v.rows) for v in shown] == [PAGE_SIZE, PAGE_SIZE, 50, 50]
    assert [v.page for v in shown] == [1, 2, 3, 3]
    assert len({r.key for v in shown[:3] for r in v.rows}) == 250


def test_a_url_says_it_all_and_nonsense_says_nothing() -> None:
    query = Query(namespace="n", text="a b", state="failed", sort="age", descending=True, page=2)
    assert Query.of(query.parameters()) == query
    assert Query().parameters() == {}
    nonsense = {"sort": "__class__", "state": "<script>", "page": "-1", "desc": "x", "q": "y" * 1000}
    assert Query.of(nonsense) == Query(text="y" * 200)
    assert Query.of({"page": "9" * 30}).page == 1
    assert Query(sort="age").by("age") == {"sort": "age", "desc": "1"}
    assert Query(sort="age", descending=True).by("age") == {"sort": "age"}
