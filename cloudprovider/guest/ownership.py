"""Who writes a Service's addresses: us, or somebody else, whom we report and never fight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.api.kubernetes import LoadBalancerIngress, Service
from cloudprovider.core.conditions import find
from cloudprovider.guest.records import Record
from cloudprovider.guest.servicestatus import FOREIGN_OWNER, READY, Problem

CLEARED_LIMIT: Final = 300.0
"""Seconds, at most, between two attempts to write addresses that somebody keeps emptying."""
CLEARED_FORGET: Final = 600.0
"""Seconds without that after which it is forgotten."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the addresses are ours to write; if not (now), ``problem`` says why, or ``wait`` how many seconds to
    leave them."""

    ours: bool
    problem: Problem | None = None
    wait: float | None = None


def judge(service: Service, ingress: Sequence[LoadBalancerIngress], record: Record, now: float) -> Verdict:
    """Judge whether ``ingress`` may replace what ``service`` shows.

    Somebody else's are addresses that stand where we wrote others, and those of a Service that never had our
    condition. What somebody has emptied is written again, ever more slowly.
    """
    shown = service.status.load_balancer.ingress
    if list(shown) == list(ingress):
        return Verdict(ours=True)
    if not shown:
        if record.wrote and now < record.cleared_at + _pause(record.cleared):
            return Verdict(ours=False, wait=record.cleared_at + _pause(record.cleared) - now)
        return Verdict(ours=True)
    if _places(shown) == _places(ingress) or holds(service, record):
        return Verdict(ours=True)
    theirs, own = ", ".join(sorted(_places(shown))), ", ".join(sorted(_places(ingress)))
    return Verdict(
        ours=False,
        problem=Problem(
            FOREIGN_OWNER,
            f"status.loadBalancer shows {theirs}, written by another controller; this load balancer has {own} and does"
            " not overwrite it. Turn the other one off for this Service (or give the Service that one's"
            " loadBalancerClass), then empty status.loadBalancer",
        ),
    )


def holds(service: Service, record: Record) -> bool:
    """Whether the addresses that ``service`` shows are ours; those of a Service that shows none are."""
    shown = service.status.load_balancer.ingress
    if not shown:
        return True
    if record.wrote is not None:
        return list(shown) == list(record.wrote)
    before = find(service.status.conditions, READY)
    return before is not None and before.reason != FOREIGN_OWNER


def wrote(service: Service, ingress: Sequence[LoadBalancerIngress], record: Record, now: float) -> None:
    """Remember that ``ingress`` was written over what ``service`` showed."""
    if record.wrote and not service.status.load_balancer.ingress:
        record.cleared = record.cleared + 1 if now < record.cleared_at + CLEARED_FORGET else 1
        record.cleared_at = now
    record.wrote = tuple(ingress)


def _pause(times: int) -> float:
    return min(CLEARED_LIMIT, 2.0**times) if times else 0.0


def _places(ingress: Sequence[LoadBalancerIngress]) -> set[str]:
    return {entry.ip or entry.hostname for entry in ingress}
