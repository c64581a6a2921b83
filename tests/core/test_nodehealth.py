"""The nodes' health on their GuestCluster: what is written of it, and who takes a load balancer's traffic by it."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import msgspec
import pytest

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
from cloudprovider.core.nodehealth import nodes_told, nodes_wanted
from cloudprovider.core.overview import Count, health_of

START = datetime(2026, 1, 1, tzinfo=UTC)
NODES = [GuestNode(name=f"n{i}", addresses=[f"10.0.0.{i}", f"fd00::{i}"]) for i in (1, 2, 3)]
SILENT = "Nothing comes back"


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_node_is_named_once_it_has_failed_and_stays_with_its_history() -> None:
    assert nodes_told([], NODES, {}, START) == []
    failed = nodes_told([], NODES, {ip_address("fd00::2"): SILENT}, START)
    assert failed == [
        NodeHealth(
            name="n2",
            health=BackendHealth(
                healthy=False,
                since="2026-01-01T00:00:00Z",
                message=SILENT,
                history=[HealthChange(time="2026-01-01T00:00:00Z", healthy=False)],
            ),
        )
    ]
    assert nodes_told(failed, NODES, {ip_address("10.0.0.2"): SILENT}, at(5)) == failed, "nothing to be written"
    (back,) = nodes_told(failed, NODES, {}, at(9))
    assert (back.health.healthy, back.health.since, back.health.message) == (True, "2026-01-01T00:00:09Z", "")
    assert [change.healthy for change in back.health.history] == [False, True]
    assert nodes_told([back], NODES[:1], {}, at(10)) == [], "a node that has left is forgotten"


def test_an_address_that_is_none_fails_nobody() -> None:
    nodes = [GuestNode(name="n1", addresses=["nonsense"])]
    assert nodes_told([], nodes, {ip_address("10.0.0.1"): SILENT}, START) == []


def cluster(*failing: str) -> GuestCluster:
    down = BackendHealth(healthy=False, since="2026-01-01T00:00:00Z")
    up = BackendHealth(healthy=True, since="2026-01-01T00:00:00Z")
    told = [NodeHealth(name=n.name, health=down if n.name in failing else up) for n in NODES]
    return GuestCluster(status=GuestClusterStatus(nodes=NODES, node_health=told))


def lb(*local: str, passing: str | None = None, failing: str = "") -> LoadBalancer:
    """With a check where ``passing`` is said: names, apart by spaces."""
    judged = dict.fromkeys((passing or "").split(), True) | dict.fromkeys(failing.split(), False)
    backends = [Backend(name=n, health=BackendHealth(healthy=up, since="")) for n, up in judged.items()]
    spec = LoadBalancerSpec(
        workload_type="cluster",
        external_traffic_policy="Local" if local else "Cluster",
        endpoint_nodes=list(local),
        health_check=HealthCheck(port=80) if passing is not None else None,
    )
    return LoadBalancer(spec=spec, status=LoadBalancerStatus(backends=backends))


@pytest.mark.parametrize(
    ("found", "failing", "taking", "total"),
    [
        (lb(), "", "n1 n2 n3", 3),
        (lb(), "n2", "n1 n3", 3),
        (lb(), "n1 n2 n3", "n1 n2 n3", 3),  # where all fail, all are kept
        (lb("n1", "n2"), "n2", "n1", 2),
        (lb("n2"), "n2", "n2", 1),
        (lb(passing="n1 n2", failing="n3"), "", "n1 n2", 3),
        (lb(passing="n1 n2", failing="n3"), "n1", "n2", 3),
        (lb(passing="n1", failing="n2 n3"), "n1", "n1", 3),  # of those that pass, not of all
        (lb(passing=""), "", "", 3),  # none has been checked yet: a new one starts down
        (lb("n1", passing="n1 n2"), "", "n1", 1),
    ],
)
def test_who_takes_traffic(found: LoadBalancer, failing: str, taking: str, total: int) -> None:
    known = cluster(*failing.split())
    assert nodes_wanted(found).taking(known) == frozenset(taking.split())
    assert health_of(found, known) == Count(len(taking.split()), total, known=True)


def test_a_check_that_is_no_more_does_not_count() -> None:
    checked = lb(passing="n1", failing="n2 n3")
    spec = msgspec.structs.replace(checked.spec, health_check=None)
    assert nodes_wanted(msgspec.structs.replace(checked, spec=spec)).taking(cluster()) == {"n1", "n2", "n3"}
