"""The backends of one load balancer in words."""

import pytest

from cloudprovider.console.detail import BackendView, backends
from cloudprovider.core.api.guestcluster import GuestCluster, GuestClusterStatus, GuestNode, NodeHealth
from cloudprovider.core.api.loadbalancer import (
    Backend,
    BackendHealth,
    HealthChange,
    HealthCheck,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
)
from tests.console.users import now

SINCE = "2026-05-01T11:00:00Z"
UP = BackendHealth(healthy=True, since=SINCE)
DOWN = BackendHealth(
    healthy=False, since=SINCE, message="Connection refused", history=[HealthChange(time=SINCE, healthy=False)]
)
SILENT = BackendHealth(healthy=False, since=SINCE, message="Nothing comes back")
NODES = [GuestNode(name=f"n{i}", addresses=[f"10.0.0.{i}"]) for i in (1, 2, 3)]


def lb(*found: Backend, workload: str = "vm", checked: bool = True) -> LoadBalancer:
    spec = LoadBalancerSpec(
        workload_type=workload,  # type: ignore[arg-type]
        health_check=HealthCheck(port=80) if checked else None,
    )
    return LoadBalancer(spec=spec, status=LoadBalancerStatus(backends=list(found)))


def cluster(**health: BackendHealth) -> GuestCluster:
    told = [NodeHealth(name=name, health=said) for name, said in health.items()]
    return GuestCluster(status=GuestClusterStatus(nodes=NODES, node_health=told))


def said(views: list[BackendView] | tuple[BackendView, ...]) -> list[tuple[str, str, str, str]]:
    return [(v.backend.name, v.mark, v.word, v.why) for v in views]


def vm(name: str, health: BackendHealth | None, reason: str = "") -> Backend:
    return Backend(name=name, addresses=["10.0.0.9"], health=health, reason=reason, message="m" if reason else "")


def test_machines_what_is_wrong_first() -> None:
    found = lb(vm("a", UP), vm("b", DOWN), vm("c", None), vm("d", None, "NoAddress"))
    assert said(list(backends(found, None, now()))) == [
        ("b", "failed", "Failed", "Connection refused"),
        ("d", "failed", "Not used", "NoAddress: m"),
        ("a", "ready", "Healthy", ""),
        ("c", "pending", "Not checked yet", ""),
    ]


def test_without_a_check_nobody_is_down() -> None:
    for health in (None, DOWN):
        found = backends(lb(vm("a", health), checked=False), None, now())
        assert said(list(found)) == [("a", "pending", "Not checked", "")]


@pytest.mark.parametrize(
    ("found", "known", "views"),
    [
        (lb(workload="cluster", checked=False), cluster(), [(f"n{i}", "ready", "Healthy", "") for i in (1, 2, 3)]),
        (
            lb(workload="cluster", checked=False),
            cluster(n2=SILENT, n3=UP),
            [
                ("n2", "failed", "Left out", "Nothing comes back"),
                ("n1", "ready", "Healthy", ""),
                ("n3", "ready", "Healthy", ""),
            ],
        ),
        (
            lb(Backend(name="n1", health=UP), Backend(name="n2", health=DOWN), workload="cluster"),
            cluster(n2=SILENT),
            [
                ("n2", "failed", "Failed", "Connection refused"),
                ("n3", "failed", "Failed", "Not checked yet"),
                ("n1", "ready", "Healthy", ""),
            ],
        ),
        (
            lb(Backend(name="n1", health=UP), workload="cluster"),
            cluster(n1=SILENT),
            [
                ("n1", "degraded", "Kept", "Nothing comes back. It is kept, as no node is better"),
                ("n2", "failed", "Failed", "Not checked yet"),
                ("n3", "failed", "Failed", "Not checked yet"),
            ],
        ),
        (
            lb(Backend(name="n2", health=DOWN), workload="cluster"),
            None,
            [("n2", "failed", "Failed", "Connection refused")],
        ),
    ],
)
def test_nodes_of_a_guest(
    found: LoadBalancer, known: GuestCluster | None, views: list[tuple[str, str, str, str]]
) -> None:
    assert said(list(backends(found, known, now()))) == views


def test_a_node_has_the_plot_of_whoever_judges_it() -> None:
    checked = lb(Backend(name="n2", health=DOWN), workload="cluster")
    drawn = next(v for v in backends(checked, cluster(), now()) if v.backend.name == "n2")
    assert drawn.plot is not None
    assert [span.healthy for span in drawn.plot.spans] == [False]
    assert drawn.backend.addresses == ["10.0.0.2"]
