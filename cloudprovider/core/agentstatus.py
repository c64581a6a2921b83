"""What the agent that holds a load balancer says of it: ``status.holder`` and its three conditions."""

from dataclasses import dataclass

from cloudprovider.core.api.loadbalancer import Holder, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import carry_times
from cloudprovider.core.forwarding import Problem
from cloudprovider.core.plan import IPAddress

PROGRAMMED = "Programmed"
READY = "Ready"
CLIENT_ADDRESS_NOT_PRESERVED = "ClientAddressNotPreserved"
AGENT_CONDITIONS = frozenset({PROGRAMMED, READY, CLIENT_ADDRESS_NOT_PRESERVED})


@dataclass(frozen=True)
class Observation:
    """What the agent knows of one load balancer on its host.

    ``generation``: of the spec that the kernel forwards by (0: none). ``addresses``: those up and announced.
    ``problem``: why it is not served; ``partial``: what of it is not. ``has_nodes``: there is a node to send to.
    """

    generation: int
    addresses: tuple[IPAddress, ...]
    problem: Problem | None
    partial: Problem | None
    has_nodes: bool


def report(lb: LoadBalancer, node: str, seen: Observation, now: str) -> LoadBalancerStatus:
    """All that the agent owns of the status (field manager ``cloudprovider-agent``). ``now``: RFC 3339.

    The holder stays while any address is up, also when the newest spec is not (yet) forwarded by: what the Service
    shows keeps working.
    """
    programmed = seen.problem
    ready = seen.problem or seen.partial
    if ready is None and not seen.has_nodes:
        ready = Problem(
            "NoNodes",
            "No node of the guest cluster takes traffic; connections are refused. Check the nodes' readiness, "
            "their exclude labels and, for externalTrafficPolicy Local, where the pods run.",
        )
    conditions = [
        _condition(lb, PROGRAMMED, programmed, f"Forwarding on host {node}."),
        _condition(lb, READY, ready, "The address is announced and forwarded."),
    ]
    holder = None
    if seen.addresses:
        holder = Holder(node=node, generation=seen.generation, addresses=[str(a) for a in seen.addresses], mode="nat")
        conditions.append(
            Condition(
                type=CLIENT_ADDRESS_NOT_PRESERVED,
                status="True",
                reason="Masquerade",
                message="Mode nat masquerades here: pods see an address of the host, not the client's.",
                observed_generation=lb.metadata.generation,
            )
        )
    return LoadBalancerStatus(holder=holder, conditions=carry_times(lb.status.conditions, conditions, now))


def reported(lb: LoadBalancer) -> LoadBalancerStatus:
    """What the object says now, of the agent's fields."""
    return LoadBalancerStatus(
        holder=lb.status.holder,
        conditions=[c for c in lb.status.conditions if c.type in AGENT_CONDITIONS and not _controllers(lb, c)],
    )


def _controllers(lb: LoadBalancer, condition: Condition) -> bool:
    """Whether ``Ready`` is the controller's word: it says so only while there is no address."""
    return condition.type == READY and not lb.status.addresses


def _condition(lb: LoadBalancer, kind: str, problem: Problem | None, fine: str) -> Condition:
    return Condition(
        type=kind,
        status="False" if problem else "True",
        reason=problem.reason if problem else kind,
        message=problem.message if problem else fine,
        observed_generation=lb.metadata.generation,
    )
