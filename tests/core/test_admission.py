"""What is wrong with a pool or a load balancer, by field."""

import pytest

from cloudprovider.core.admission import validate_load_balancer, validate_pool
from cloudprovider.core.api.loadbalancer import HealthCheck, Listener, LoadBalancerSpec
from cloudprovider.core.api.pool import IPPool, Scope
from tests.core.pools import pool

OWN = [Scope(project="p", namespace="n", guest_cluster="g")]
HTTP = Listener(name="http", port=80, backend_port=8080)


def fields(found: list[object]) -> list[tuple[str, str]]:
    return [(getattr(v, "field", ""), getattr(v, "reason", "")) for v in found]


def test_a_pool_by_itself() -> None:
    assert validate_pool(pool("a")) == []
    assert fields([*validate_pool(pool("a", "banana"))]) == [("spec.ranges[0].subnet", "InvalidCIDR")]


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (pool("b", "10.0.0.128/25", scope=OWN), [("spec.ranges", "Overlap")]),
        (pool("b", "10.1.0.0/24", scope=OWN, priority=7), [("spec.selector.priority", "Duplicate")]),
        (pool("b", "10.0.0.128/25", scope=OWN, priority=7, network="default/other"), []),
        (pool("b", "10.1.0.0/24", scope=OWN, priority=8), []),
        (pool("b", "banana", scope=OWN), []),  # it hands out nothing
        (pool("a", "10.0.0.128/25", scope=OWN, priority=7), []),  # itself, before the change
    ],
)
def test_a_pool_beside_another(other: IPPool, expected: list[tuple[str, str]]) -> None:
    assert fields([*validate_pool(pool("a", scope=OWN, priority=7), [other])]) == expected


def test_one_global_pool_a_network() -> None:
    first, second = pool("a", "10.0.0.0/24"), pool("b", "10.1.0.0/24")
    assert fields([*validate_pool(second, [first])]) == [("spec.selector.scope", "Duplicate")]
    assert validate_pool(second, [pool("a", "10.0.0.0/24", network="default/other")]) == []


def test_sound_load_balancers() -> None:
    assert validate_load_balancer(LoadBalancerSpec(listeners=[HTTP])) == []
    assert validate_load_balancer(LoadBalancerSpec(workload_type="cluster", listeners=[])) == []
    both = [
        Listener(name="dns", port=53, backend_port=53),
        Listener(name="dns-udp", port=53, protocol="UDP", backend_port=53),
    ]
    assert validate_load_balancer(LoadBalancerSpec(listeners=both, health_check=HealthCheck(port=53))) == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (LoadBalancerSpec(), [("spec.listeners", "Required")]),
        (
            LoadBalancerSpec(listeners=[HTTP, Listener(name="http", port=81, backend_port=81)]),
            [("spec.listeners[0].name", "Duplicate"), ("spec.listeners[1].name", "Duplicate")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP, Listener(name="x", port=80, backend_port=81)]),
            [("spec.listeners[0].port", "Duplicate"), ("spec.listeners[1].port", "Duplicate")],
        ),
        (LoadBalancerSpec(listeners=[Listener(port=80)]), [("spec.listeners[0].backendPort", "Required")]),
        (
            LoadBalancerSpec(listeners=[HTTP], health_check=HealthCheck(port=80)),
            [("spec.healthCheck.port", "NotAListener")],
        ),
        (
            LoadBalancerSpec(
                listeners=[Listener(port=53, protocol="UDP", backend_port=53)], health_check=HealthCheck(port=53)
            ),
            [("spec.healthCheck.port", "NotAListener")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], addresses=["banana"]),
            [("spec.addresses[0]", "InvalidAddress")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], addresses=["10.0.0.9", "10.0.0.10"]),
            [("spec.addresses[1]", "Duplicate")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], addresses=["fd00::9"], ip_families=["IPv4"]),
            [("spec.addresses[0]", "FamilyMismatch")],
        ),
        (LoadBalancerSpec(listeners=[HTTP], source_ranges=["x"]), [("spec.sourceRanges[0]", "InvalidCIDR")]),
    ],
)
def test_wrong_load_balancers(spec: LoadBalancerSpec, expected: list[tuple[str, str]]) -> None:
    assert fields([*validate_load_balancer(spec)]) == expected
