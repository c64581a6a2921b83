import msgspec
import pytest

from cloudprovider.core.api.loadbalancer import (
    Backend,
    BackendHealth,
    HealthCheck,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
)
from cloudprovider.core.api.meta import Condition, ObjectMeta
from cloudprovider.core.backends import BACKENDS_FOUND, selector_text, selects, usable, why_none

SELECTOR = {"tier": ["front", "back"], "app": ["web"]}
WEB = Backend(name="web", addresses=["10.0.0.5"], mac_address="02:00:00:00:00:05")
UP = BackendHealth(healthy=True, since="2026-01-01T00:00:00Z")
DOWN = BackendHealth(healthy=False, since="2026-01-01T00:00:00Z", message="connection refused")


def load_balancer(*backends: Backend, port: int | None = None, **spec: object) -> LoadBalancer:
    fields = {"backend_server_selector": SELECTOR, "health_check": HealthCheck(port=port), **spec}
    return LoadBalancer(
        metadata=ObjectMeta(name="lb", namespace="shop"),
        spec=LoadBalancerSpec(**fields),  # type: ignore[arg-type]
        status=LoadBalancerStatus(backends=list(backends)),
    )


def out(name: str, reason: str = "AgentNotConnected") -> Backend:
    return Backend(name=name, reason=reason, message=f"What is wrong with {name}.")


def healthy(backend: Backend, health: BackendHealth | None) -> Backend:
    return msgspec.structs.replace(backend, health=health)


def said(lb: LoadBalancer) -> tuple[str, str]:
    problem = why_none(lb)
    assert problem is not None
    return problem.reason, problem.message


@pytest.mark.parametrize(
    "lb",
    [
        load_balancer(WEB),
        load_balancer(healthy(WEB, DOWN)),  # a check that is no more: what it said does not count
        load_balancer(WEB, out("api")),
        load_balancer(healthy(WEB, UP), healthy(out("api"), DOWN), port=80),
        load_balancer(workload_type="cluster"),
        load_balancer(workload_type="cluster", port=80),
        load_balancer(Backend(name="node", health=UP), workload_type="cluster", port=80),
    ],
)
def test_one_backend_that_takes_traffic_is_enough(lb: LoadBalancer) -> None:
    assert why_none(lb) is None


@pytest.mark.parametrize("selector", [{}, {"app": []}, {"app": ["web"], "tier": []}])
def test_a_selector_without_labels_or_values_chooses_nothing(selector: dict[str, list[str]]) -> None:
    assert not selects(selector)
    reason, message = said(load_balancer(backend_server_selector=selector))
    assert reason == "NoBackends"
    assert "No virtual machines are chosen" in message


def test_what_matches_nothing_says_what_was_looked_for() -> None:
    reason, message = said(load_balancer())
    assert reason == "NoBackends"
    assert 'in the namespace "shop" matches the selector (app=web, tier=front or back)' in message


def test_an_entry_that_the_agent_alone_still_has_counts_for_nothing() -> None:
    dropped = Backend(name="gone", health=UP)
    assert usable([dropped, WEB, out("api")]) == [WEB]
    assert said(load_balancer(dropped, port=80))[0] == "NoBackends"


def test_the_commonest_reason_comes_first_and_a_few_are_named() -> None:
    names = ("a", "b", "c", "d")
    lb = load_balancer(out("0", "NotOnNetwork"), *(out(name) for name in names))
    reason, message = said(lb)
    assert reason == "AgentNotConnected"
    assert message.endswith("a: What is wrong with a. b: What is wrong with b. c: What is wrong with c. (2 more)")


def test_where_all_fail_the_check_it_says_what_each_failed_with() -> None:
    reason, message = said(load_balancer(healthy(WEB, DOWN), out("api"), port=80))
    assert reason == "NoHealthyBackends"
    assert message == "No backend passes the TCP check of port 80, connections are refused. web: connection refused."


def test_a_new_backend_has_to_pass_the_check_first() -> None:
    reason, message = said(load_balancer(WEB, port=80))
    assert reason == "NoHealthyBackends"
    assert message.endswith("None has been checked yet.")


def test_a_guests_nodes_that_all_fail_their_check() -> None:
    lb = load_balancer(Backend(name="node", health=DOWN), workload_type="cluster", port=80)
    assert said(lb)[0] == "NoHealthyBackends"


def test_what_the_controller_says_of_the_machines_is_told_as_it_says_it() -> None:
    lb = load_balancer()
    no = Condition(type=BACKENDS_FOUND, status="False", reason="KubeVirtNotInstalled", message="Install it.")
    lb = msgspec.structs.replace(lb, status=LoadBalancerStatus(conditions=[no]))
    assert said(lb) == ("KubeVirtNotInstalled", "Install it.")


def test_a_selector_in_words() -> None:
    assert selector_text(SELECTOR) == "app=web, tier=front or back"
