"""What a Service's status should say. Pure.

Written is all that is ours and nothing else: ``status.loadBalancer.ingress`` and our conditions, by server-side
apply. A Service keeps the addresses it shows until there are others; what is wrong stands in the condition. Only an
address by DHCP whose lease has ended is taken away: its server may give it to somebody else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from cloudprovider.core.api.kubernetes import LoadBalancerIngress, PortStatus, Service
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import condition, cut, find
from cloudprovider.core.conditiontypes import SERVICE_READY
from cloudprovider.core.errors import InvalidRequest
from cloudprovider.core.exchange import ADDRESS_KEPT, LoadBalancerState, StateCondition
from cloudprovider.core.reasons import Heard, Word
from cloudprovider.core.translate import UnservedPort

FIELD_MANAGER: Final = "cloudprovider-guest"
READY: Final = SERVICE_READY
PORTS_ERROR: Final = "LoadBalancerPortsError"
PORTS_ERROR_REASON: Final = "LoadBalancerMixedProtocolNotSupported"
"""Kubernetes' own condition and reason for a load balancer that leaves ports out (core/v1, KEP-1435)."""

PENDING: Final = "Pending"
FOREIGN_OWNER: Final = "ForeignOwner"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a Service is not served as it asks: a CamelCase word, and a sentence with what to do."""

    reason: Word
    message: str

    @classmethod
    def of_request(cls, error: InvalidRequest) -> "Problem":
        """What a refused request tells its author."""
        reasons = {violation.reason for violation in error.violations}
        return cls(reasons.pop() if len(reasons) == 1 else "InvalidRequest", str(error))


def problem_of_state(state: LoadBalancerState) -> Problem | None:
    """Return what the host could not do; None if there is nothing wrong, or it has not said yet."""
    for kind in ("Allocated", "Owned", "Programmed"):
        condition = _condition(state, kind)
        if condition is not None and condition.status == "False":
            return Problem(Heard(condition.reason or kind), condition.message)
    allocated = _condition(state, "Allocated")
    if state.addresses and allocated is not None and allocated.reason == ADDRESS_KEPT:
        return Problem(Heard(allocated.reason), allocated.message)
    ready = _condition(state, "Ready")
    if state.addresses and ready is not None and ready.status == "False":
        return Problem(Heard(ready.reason) or "NotReady", ready.message)
    return None


def lease_is_over(state: LoadBalancerState | None) -> bool:
    """Whether the host has no lease for a Service whose address is by DHCP."""
    leased = _condition(state, "Leased") if state is not None and not state.addresses else None
    return leased is not None and leased.status == "False"


def pending_problem(state: LoadBalancerState | None) -> Problem:
    """Say what a Service without an address is waiting for."""
    if state is None:
        return Problem(PENDING, "the host has not answered yet; the guest program's log says more")
    known = "; ".join(f"{c.type} is {c.status}: {c.message}" for c in state.conditions) or "it has said nothing yet"
    return Problem(PENDING, f"waiting for the host's load balancer {state.host_object or '(not named yet)'}: {known}")


def wanted_ingress(
    service: Service, state: LoadBalancerState | None, unserved: Sequence[UnservedPort]
) -> list[LoadBalancerIngress]:
    """Return the ingress entries for the state's addresses; empty while there is none.

    ``ports`` are listed where a port is left out, and then all of them, as the API asks for. ``ipMode`` is VIP in
    every mode: kube-proxy must accept the address (dsr), and may always deliver to it from inside the cluster.
    """
    if state is None:
        return []
    errors = {(port.port, port.protocol): port.error for port in unserved}
    ports = [
        PortStatus(port=port.port, protocol=port.protocol, error=errors.get((port.port, port.protocol)))
        for port in service.spec.ports
        if errors
    ]
    return [LoadBalancerIngress(ip=str(given.ip), ip_mode="VIP", ports=ports) for given in state.addresses]


def wanted_conditions(
    service: Service,
    state: LoadBalancerState | None,
    problem: Problem | None,
    unserved: Sequence[UnservedPort],
    now: str,
) -> list[Condition]:
    """Return our conditions; ``now`` (RFC 3339) is the transition time of those whose status changes."""
    if problem is not None:
        ready = condition(READY, "False", problem.reason, cut(problem.message))
    else:
        ready = condition(READY, "True", "AddressAssigned", cut(_served(state)))
    wanted = [ready]
    if unserved:
        message = cut("; ".join(f"{port.violation.field}: {port.violation.message}" for port in unserved))
        wanted.append(condition(PORTS_ERROR, "True", PORTS_ERROR_REASON, message))
    return [_timed(service, condition, now) for condition in wanted]


def shown_conditions(service: Service) -> list[Condition]:
    """Return our conditions as the Service shows them, Ready first."""
    found = (find(service.status.conditions, READY), find(service.status.conditions, PORTS_ERROR))
    return [c for c in found if c is not None and (c.type == READY or c.reason == PORTS_ERROR_REASON)]


def status_patch(
    service: Service, ingress: Sequence[LoadBalancerIngress] | None, conditions: Sequence[Condition]
) -> dict[str, Any]:
    """Return the apply patch for ``service``; ``ingress`` None: the addresses are somebody else's."""
    status: dict[str, Any] = {}
    if ingress is not None:
        status["loadBalancer"] = {"ingress": msgspec.to_builtins(list(ingress))}
    if conditions:
        status["conditions"] = msgspec.to_builtins(list(conditions))
    return {"metadata": {"uid": service.metadata.uid}, "status": status}


def _served(state: LoadBalancerState | None) -> str:
    if state is None:
        return ""
    addresses = ", ".join(f"{g.ip} (pool {g.ip_pool})" if g.ip_pool else str(g.ip) for g in state.addresses)
    masked = _condition(state, "ClientAddressNotPreserved")
    note = f"; clients' addresses are not preserved: {masked.message}" if masked and masked.status == "True" else ""
    return f"reachable at {addresses}{f', mode {state.mode}' if state.mode else ''}{note}"


def _timed(service: Service, condition: Condition, now: str) -> Condition:
    before = find(service.status.conditions, condition.type)
    same = before is not None and before.status == condition.status and before.last_transition_time
    return msgspec.structs.replace(condition, last_transition_time=same or now)


def _condition(state: LoadBalancerState, kind: str) -> StateCondition | None:
    return next((c for c in state.conditions if c.type == kind), None)
