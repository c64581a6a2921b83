"""What the agent that holds a load balancer says of it: ``status.holder``, its lease, whom it found to have an address
of it, its backends' health, and its conditions."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from cloudprovider.core.api.loadbalancer import (
    Backend,
    DhcpLease,
    ForeignAddress,
    Holder,
    LoadBalancer,
    LoadBalancerStatus,
)
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.backends import why_none, why_none_is_healthy
from cloudprovider.core.conditions import carry_times, condition
from cloudprovider.core.modes import Choice
from cloudprovider.core.plan import ForwardMode, IPAddress
from cloudprovider.core.wanted import Problem, is_for_machines

LEASED: Final = "Leased"
PROGRAMMED: Final = "Programmed"
READY: Final = "Ready"
CLIENT_ADDRESS_NOT_PRESERVED: Final = "ClientAddressNotPreserved"
AGENT_CONDITIONS = frozenset({LEASED, PROGRAMMED, READY, CLIENT_ADDRESS_NOT_PRESERVED})


@dataclass(frozen=True)
class Observation:
    """What the agent knows of one load balancer on its host.

    ``generation``: of the spec that the kernel forwards by (0: none). ``addresses``: those up and announced.
    ``problem``: why it is not served; ``partial``: what of it is not; ``awaited``: why an address that is to take
    another one's place is not up. ``has_nodes``: there is a node to send to. ``foreign``: addresses that others have.
    ``choices``: the modes, by address. ``masquerades``: whether mode nat hides the client's address here. ``refusing``:
    the nodes that send back what comes for it; ``refused``: all of them do. ``answerers``: those that answer for its
    addresses themselves. ``backends``: by name, the health of those that its own check judges. ``beware``: sentences on
    limits. ``before``: the host that had the addresses before this one, and lives.
    """

    generation: int
    addresses: tuple[IPAddress, ...]
    problem: Problem | None
    partial: Problem | None
    has_nodes: bool
    awaited: Problem | None = None
    foreign: tuple[ForeignAddress, ...] = ()
    choices: Mapping[IPAddress, Choice] = field(default_factory=dict)
    masquerades: bool = True
    refusing: frozenset[str] = frozenset()
    refused: bool = False
    answerers: frozenset[str] = frozenset()
    backends: tuple[Backend, ...] = ()
    beware: tuple[str, ...] = ()
    before: str = ""

    @property
    def hides_clients(self) -> bool:
        """Whether nodes see an address of the host instead of a client's, for any of the addresses."""
        return self.masquerades and any(self.choices[a].mode == "nat" for a in self.addresses if a in self.choices)

    @property
    def mode(self) -> ForwardMode:
        """How the first address is forwarded."""
        return next((choice.mode for choice in self.choices.values()), "nat")


@dataclass(frozen=True)
class Leasing:
    """How it stands with the lease of a load balancer by DHCP. Both may be there: one that can't be renewed now."""

    lease: DhcpLease | None
    problem: Problem | None


def report(
    lb: LoadBalancer, node: str, seen: Observation | None, leasing: Leasing | None, now: str
) -> LoadBalancerStatus:
    """All that the agent owns of the status (field manager ``cloudprovider-agent``). ``now``: RFC 3339. ``seen`` None:
    it has no address (yet); ``leasing`` None: it needs no lease.

    The holder stays while any address is up, also when the newest spec is not (yet) forwarded by: what the Service
    shows keeps working.
    """
    conditions = [] if leasing is None else [_leased(lb, leasing)]
    holder = None
    if seen is not None:
        conditions += _forwarded(lb, node, seen)
        if seen.addresses:
            up = [str(a) for a in seen.addresses]
            before = seen.before if seen.hides_clients else ""
            holder = Holder(node=node, generation=seen.generation, addresses=up, mode=seen.mode, before=before)
    return LoadBalancerStatus(
        holder=holder,
        lease=None if leasing is None else leasing.lease,
        foreign_addresses=[] if seen is None else list(seen.foreign),
        backends=[] if seen is None else list(seen.backends),
        conditions=_in_order(carry_times(lb.status.conditions, conditions, now)),
    )


def report_lease(lb: LoadBalancer, leasing: Leasing | None, now: str) -> LoadBalancerStatus:
    """What :func:`report` returns while there is news of the lease alone: all else stays as it is said now."""
    said = reported(lb)
    conditions = [c for c in said.conditions if c.type != LEASED]
    if leasing is not None:
        conditions += carry_times(lb.status.conditions, [_leased(lb, leasing)], now)
    return msgspec.structs.replace(
        said, lease=None if leasing is None else leasing.lease, conditions=_in_order(conditions)
    )


def reported(lb: LoadBalancer) -> LoadBalancerStatus:
    """What the object says now, of the agent's fields."""
    return LoadBalancerStatus(
        holder=lb.status.holder,
        lease=lb.status.lease,
        foreign_addresses=lb.status.foreign_addresses,
        backends=sorted((_judged(b) for b in lb.status.backends if b.health is not None), key=lambda b: b.name),
        conditions=_in_order(c for c in lb.status.conditions if c.type in AGENT_CONDITIONS and not _controllers(lb, c)),
    )


def conflict(lb: LoadBalancer, vip: IPAddress, said: str) -> Problem:
    """Why an address that somebody else has is not served, and what comes of it. ``said``: who has it."""
    by_dhcp = any(a.ip == str(vip) and not a.ip_pool for a in (*lb.status.addresses, *lb.status.next_addresses))
    if str(vip) in lb.spec.addresses:
        remedy = "It was asked for by name, so it is tried again every minute: free it there, or ask for another."
    elif by_dhcp:
        remedy = "It is declined, and the DHCP server is asked for another."
    else:
        remedy = "Another address is taken."
    return Problem("AddressConflict", f"{said} {remedy}")


def _in_order(conditions: Iterable[Condition]) -> list[Condition]:
    """By type, so that what is said and what was said compare: the API server keeps an order of its own."""
    return sorted(conditions, key=lambda c: c.type)


def _leased(lb: LoadBalancer, leasing: Leasing) -> Condition:
    lease, problem = leasing.lease, leasing.problem
    if lease is None:
        return _condition(lb, LEASED, problem or Problem("WaitingForLease", "A lease is being asked for."), "")
    fine = f"{lease.ip} is leased by the DHCP server {lease.server}."
    return _condition(lb, LEASED, None, fine if problem is None else f"{fine} {problem.message}")


def _forwarded(lb: LoadBalancer, node: str, seen: Observation) -> list[Condition]:
    ready = seen.problem or seen.partial or why_none_is_healthy(lb, seen.backends)
    if ready is None and not seen.has_nodes:
        ready = why_none(lb) or (_NO_MACHINES if is_for_machines(lb) else _no_nodes(seen))
    if ready is None and seen.refused:
        ready = Problem(
            "WaitingForNodes",
            f"{_listed(seen.refusing)} sent back what came for the address: kube-proxy there has not taken it up. If "
            "this stays, look at kube-proxy, and whether the Service's status shows the address.",
        )
    if ready is None and seen.answerers:
        ready = Problem(
            "AddressClaimedByNode",
            f"{_listed(seen.answerers)} answered for an address of the cluster instead of host {node}: clients that "
            "believe it are served by that node alone. If kube-proxy there runs in mode ipvs, set its strictARP to "
            "true. This is said for a while after the last time.",
        )
    fine = f"Forwarding on host {node}. {_modes(seen)}".rstrip()
    if seen.refusing and not seen.refused:
        fine = f"{fine} Left out: {_listed(seen.refusing)}, which sent back what came for the address."
    if seen.awaited is not None:
        fine = f"{fine} The address that is to take over is not up: {seen.awaited.message}"
    fine = " ".join((fine, *seen.beware))
    conditions = [
        _condition(lb, PROGRAMMED, seen.problem, fine),
        _condition(lb, READY, ready, "The address is announced and forwarded."),
    ]
    if seen.hides_clients:
        conditions.append(
            condition(
                CLIENT_ADDRESS_NOT_PRESERVED,
                "True",
                "Masquerade",
                "Mode nat masquerades here: servers see an address of the host, not the client's, and"
                " connections end when the host dies.",
                generation=lb.metadata.generation,
            )
        )
    return conditions


_NO_MACHINES: Final = Problem(
    "AddressNotOnNetwork",
    "None of the virtual machines can be sent to, connections are refused: in mode nat the address of one must lie in"
    " the network of this host's own address there (see the agent's networks file), and be nobody else's before.",
)


def _no_nodes(seen: Observation) -> Problem:
    return Problem(
        "NoNodes",
        "No node of the guest cluster takes traffic; connections are refused. Check the nodes' readiness, "
        "their exclude labels and, for externalTrafficPolicy Local, where the pods run."
        + (" In mode dsr a node must answer on the address's own network." if seen.mode == "dsr" else ""),
    )


def _modes(seen: Observation) -> str:
    """Which modes, and why."""
    said: dict[str, list[str]] = {}
    for address in seen.addresses:
        if (choice := seen.choices.get(address)) is not None:
            said.setdefault(f"mode {choice.mode} ({choice.reason})", []).append(str(address))
    if len(said) == 1:
        return f"M{next(iter(said)).removeprefix('m')}."
    return " ".join(f"{', '.join(addresses)}: {mode}." for mode, addresses in said.items())


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "Every node"


def _judged(backend: Backend) -> Backend:
    """What of a backend is the agent's word."""
    return Backend(name=backend.name, health=backend.health)


def _controllers(lb: LoadBalancer, condition: Condition) -> bool:
    """Whether ``Ready`` is the controller's word: it says so only while there is no address."""
    return condition.type == READY and not lb.status.addresses


def _condition(
    lb: LoadBalancer, kind: Literal["Leased", "Programmed", "Ready"], problem: Problem | None, fine: str
) -> Condition:
    return condition(
        kind,
        "False" if problem else "True",
        problem.reason if problem else kind,
        problem.message if problem else fine,
        generation=lb.metadata.generation,
    )
