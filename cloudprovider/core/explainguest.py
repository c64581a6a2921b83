"""A Service explained in its guest cluster. What the host says of it stands in the Service's condition."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cloudprovider.core.api.kubernetes import SERVICE_FINALIZER, EndpointSlice, Lease, Node, Service
from cloudprovider.core.conditions import find
from cloudprovider.core.conditiontypes import SERVICE_READY
from cloudprovider.core.errors import InvalidRequest
from cloudprovider.core.guestnodes import is_excluded, select_nodes
from cloudprovider.core.naming import GUEST_PROGRAM
from cloudprovider.core.overview import nodes_of, slices_of
from cloudprovider.core.steps import Explanation, Name, Step, explanation, running, step_of, todo_of
from cloudprovider.core.translate import DEFAULT_CLASS, translate, unserved_ports

_ORDER: Final[tuple[Name, ...]] = (
    *("read", "translated", "sent", "accepted", "pool", "address", "holder", "programmed", "announced"),
    *("backends", "shown"),
)
_OF_HOST: Final = _ORDER[2:9]
"""What the host does, or is asked: seen in the Service's condition alone."""


@dataclass(frozen=True, kw_only=True)
class GuestView:
    """What can be seen of it; None: may not be read."""

    service: Service
    now: datetime
    leases: Sequence[Lease] | None = None
    nodes: Sequence[Node] | None = None
    slices: Sequence[EndpointSlice] | None = None


def explain_service(view: GuestView) -> Explanation:
    """Return each step, as far as it can be seen in the guest."""
    return explanation("Service", view.service.key, list(_steps(view)))


def _steps(view: GuestView) -> Iterator[Step]:
    read = _read(view)
    translated = _translated(view)
    yield read
    yield translated
    if translated.state == "wrong":
        yield from (Step(name=name, state="waiting") for name in _OF_HOST)
    else:
        yield from _host_side(view, heard=read.state != "wrong")
    yield _backends(view)
    yield _shown(view)


def _read(view: GuestView) -> Step:
    service = view.service
    if service.spec.type != "LoadBalancer":
        message = f"it is of type {service.spec.type}, not LoadBalancer: nobody gives it an address"
        return Step(name="read", state="wrong", message=message, reason="NotALoadBalancer", todo="set spec.type")
    if service.metadata.deletion_timestamp:
        message = f"it is being deleted since {service.metadata.deletion_timestamp}; the host gives the address back"
        return Step(name="read", state="waiting", message=message)
    state, message = running(GUEST_PROGRAM, view.leases, view.now)
    if state == "wrong":
        todo = "kubectl -n cloudprovider-system get pods,leases"
        return Step(name="read", state=state, message=message, reason="NotRunning", todo=todo)
    wanted = service.spec.load_balancer_class
    marked = SERVICE_FINALIZER in service.metadata.finalizers or find(service.status.conditions, SERVICE_READY)
    if not marked and wanted not in ("", DEFAULT_CLASS):
        message = f'it has the loadBalancerClass "{wanted}", which another controller is to handle'
        todo = f'a class can\'t be changed: make it anew without, or with "{DEFAULT_CLASS}"'
        return Step(name="read", state="wrong", message=message, reason="OtherClass", todo=todo)
    if not marked and state == "ok":
        message = f"{message}, and has not taken it up yet"
        todo = "look at the program's log if it stays; with --load-balancer-class it handles that class alone"
        return Step(name="read", state="waiting", message=message, todo=todo)
    return Step(name="read", state=state, message=message)


def _translated(view: GuestView) -> Step:
    service = view.service
    if service.spec.type != "LoadBalancer":
        return Step(name="translated", state="waiting")
    try:
        translate(service, slices_of(service, view.slices or ()))
    except InvalidRequest as error:
        reasons = {v.reason for v in error.violations}
        message = "; ".join(f"{v.field}: {v.message}" for v in error.violations)
        reason = reasons.pop() if len(reasons) == 1 else "InvalidRequest"
        return Step(name="translated", state="wrong", message=message, reason=reason, todo="correct these fields")
    ports = ", ".join(f"{p.port}/{p.protocol}" for p in service.spec.ports)
    left_out = ", ".join(f"{p.port}/{p.protocol}" for p in unserved_ports(service))
    return Step(name="translated", state="ok", message=f"{ports}; left out: {left_out}" if left_out else ports)


def _host_side(view: GuestView, *, heard: bool) -> Iterator[Step]:
    """By the condition that the guest program writes: all before the step that it speaks of is fine."""
    said = find(view.service.status.conditions, SERVICE_READY)
    if said is None:
        waits = "no answer of the host yet" if heard else ""
        yield Step(name="sent", state="waiting", message=waits)
        yield from (Step(name=name, state="waiting") for name in _OF_HOST[1:])
        return
    if said.status == "True":
        yield from (Step(name=name, state="ok") for name in _OF_HOST[:-1])
        yield Step(name="announced", state="ok", message=said.message)
        return
    at = step_of(said.reason, "address" if said.reason == "Pending" else "accepted")
    before = True
    for name in _OF_HOST:
        if name == at:
            before = False
            state = "waiting" if said.reason == "Pending" else "wrong"
            yield Step(
                name=name,
                state=state,  # type: ignore[arg-type]  # one of the two
                message=said.message,
                reason=said.reason,
                todo=todo_of(said.reason, name),
            )
        else:
            yield Step(name=name, state="ok" if before else "waiting")


def _backends(view: GuestView) -> Step:
    service, said = view.service, find(view.service.status.conditions, SERVICE_READY)
    if said is not None and said.status == "False" and step_of(said.reason, "read") == "backends":
        todo = todo_of(said.reason)
        return Step(name="backends", state="wrong", message=said.message, reason=said.reason, todo=todo)
    if view.nodes is None:
        return Step(name="backends", state="unknown", message="the nodes can't be read")
    taking = {n.name for n in select_nodes(view.nodes, in_use=None, now=view.now).nodes}
    counted = nodes_of(service, taking, len(view.nodes), view.slices)
    if not counted.known:
        return Step(name="backends", state="unknown", message="the EndpointSlices can't be read")
    local = " with endpoints" if service.spec.external_traffic_policy == "Local" else ""
    if view.slices is not None and not any(s.endpoints for s in slices_of(service, view.slices)):
        message = "the Service has no endpoints: its selector matches no ready pod"
        todo = f"kubectl -n {service.metadata.namespace} describe service {service.metadata.name}"
        return Step(name="backends", state="wrong", message=message, reason="NoEndpoints", todo=todo)
    if not counted.healthy:
        message = f"none of {counted.total} nodes{local} takes traffic"
        return Step(name="backends", state="wrong", message=message, reason="NoNodes", todo=todo_of("NoNodes"))
    excluded = sorted(n.metadata.name for n in view.nodes if is_excluded(n))
    out = f" (taken out: {', '.join(excluded)})" if excluded else ""
    return Step(
        name="backends", state="ok", message=f"{counted.healthy} of {counted.total} nodes{local} take traffic{out}"
    )


def _shown(view: GuestView) -> Step:
    addresses = [i.ip or i.hostname for i in view.service.status.load_balancer.ingress]
    said = find(view.service.status.conditions, SERVICE_READY)
    if said is not None and said.status == "False" and step_of(said.reason, "read") == "shown":
        todo = todo_of(said.reason)
        return Step(name="shown", state="wrong", message=said.message, reason=said.reason, todo=todo)
    if not addresses:
        return Step(name="shown", state="waiting", message="no address yet")
    if said is None:
        message = f"{', '.join(addresses)}, which another controller has written"
        todo = "let one controller alone handle the Service"
        return Step(name="shown", state="wrong", message=message, reason="ForeignOwner", todo=todo)
    return Step(name="shown", state="ok", message=", ".join(addresses))
