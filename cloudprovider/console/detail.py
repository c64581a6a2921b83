"""One load balancer as its page tells of it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from cloudprovider.console import rows
from cloudprovider.console.plot import Plot, plot
from cloudprovider.core.api.loadbalancer import Backend, LoadBalancer
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import PoolReason
from cloudprovider.core.pools import survey
from cloudprovider.core.selection import NoPool, request_of, select

Mark = Literal["ready", "degraded", "failed", "pending"]

# What each condition means when it holds, and when it does not.
_MEANINGS: Final[Mapping[str, tuple[str, str]]] = {
    "Allocated": ("It has an address", "It has no address"),
    "Leased": ("The DHCP server has given a lease", "There is no lease of a DHCP server"),
    "BackendsFound": ("There are virtual machines to send to", "There is no virtual machine to send to"),
    "Owned": ("There is a host to serve it", "There is no host to serve it"),
    "Programmed": ("A host has the address up and forwards", "No host forwards it"),
    "Ready": ("It takes traffic", "It takes no traffic"),
}
_DRAWBACKS: Final[Mapping[str, tuple[str, str]]] = {
    "ClientAddressNotPreserved": ("Servers see a host's address, not their client's", "Servers see their clients"),
}
"""Conditions that are better when they do not hold."""
_ORDER: Final[Sequence[str]] = (
    "Allocated",
    "Leased",
    "BackendsFound",
    "Owned",
    "Programmed",
    "Ready",
    "ClientAddressNotPreserved",
)


@dataclass(frozen=True)
class Step:
    """A condition in words. ``since``: RFC 3339, empty where nothing is known."""

    mark: Mark
    text: str
    kind: str
    reason: str
    message: str
    since: str


@dataclass(frozen=True)
class BackendView:
    """A backend in words. ``why``: the check's last message, or why nothing is sent to it."""

    backend: Backend
    mark: Mark
    word: str
    why: str
    since: str
    plot: Plot | None


def steps(lb: LoadBalancer) -> Sequence[Step]:
    """Return where a load balancer stands, from the address to the traffic."""
    wanted = [kind for kind in _ORDER if kind not in {"Leased", "Owned", "ClientAddressNotPreserved"}]
    if lb.spec.ipam == "dhcp":
        wanted.insert(1, "Leased")
    known = {c.type: c for c in lb.status.conditions}
    kinds = [k for k in _ORDER if k in wanted or k in known]
    kinds += sorted(k for k in known if k not in _ORDER)
    found: list[Step] = []
    for kind in kinds:
        step = _step(lb, kind)
        same = any(s.message == step.message and s.message for s in found)
        found.append(replace(step, message="for the same reason") if same else step)
    return found


def _step(lb: LoadBalancer, kind: str) -> Step:
    condition = find(lb.status.conditions, kind)
    drawback = kind in _DRAWBACKS
    yes, no = _DRAWBACKS.get(kind) or _MEANINGS.get(kind) or (kind, f"Not: {kind}")
    if condition is None or condition.status == "Unknown":
        said = condition.message if condition is not None else "nobody has reported yet"
        return Step("pending", f"{yes}: not known", kind, condition.reason if condition else "", said, "")
    holds = condition.status == "True"
    mark: Mark = "ready" if holds != drawback else "degraded" if drawback else "failed"
    if mark == "failed" and kind in {"Allocated", "Leased"}:
        mark = "pending"
    text = yes if holds else no
    return Step(mark, text, kind, condition.reason, condition.message, condition.last_transition_time)


def backends(lb: LoadBalancer, now: datetime) -> Sequence[BackendView]:
    """Return the backends: what is wrong first, then by name."""
    found = [_backend(b, now) for b in lb.status.backends]
    return sorted(found, key=lambda v: (v.mark in {"ready", "pending"}, v.backend.name))


def _backend(backend: Backend, now: datetime) -> BackendView:
    health = backend.health
    drawn = plot(health, now) if health is not None else None
    since = health.since if health is not None else ""
    if backend.reason:
        return BackendView(backend, "failed", "Not used", f"{backend.reason}: {backend.message}", since, drawn)
    if health is None:
        return BackendView(backend, "pending", "Not checked", "", "", None)
    mark: Mark = "ready" if health.healthy else "failed"
    return BackendView(backend, mark, "Healthy" if health.healthy else "Failed", health.message, since, drawn)


def pool_reasons(lb: LoadBalancer, pools: Sequence[IPPool]) -> Sequence[PoolReason]:
    """Return pool by pool why one that waits has no address: as far as the pools alone can tell."""
    if lb.status.addresses or lb.spec.ipam == "dhcp" or lb.spec.workload_type == "cluster" or not pools:
        return ()
    try:
        found = select(request_of(lb), survey(pools).values())
    except ValueError:
        return ()  # what is wrong with the addresses asked for, the condition says
    return found.reasons if isinstance(found, NoPool) else ()


def heading(lb: LoadBalancer) -> tuple[str, str, str]:
    """The state, its word and the reason, as in the list."""
    state, reason = rows.state_of(lb)
    return state, rows.WORDS[state], reason
