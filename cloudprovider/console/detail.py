"""One load balancer as its page tells of it. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from cloudprovider.console import rows
from cloudprovider.console.plot import Plot, plot
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import Backend, BackendHealth, LoadBalancer
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.backends import is_checked, passes
from cloudprovider.core.checks import NOT_CHECKED
from cloudprovider.core.conditions import find
from cloudprovider.core.errors import PoolReason
from cloudprovider.core.nodehealth import nodes_wanted
from cloudprovider.core.overview import Count
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
    not_asked = {"Leased", "Owned", "ClientAddressNotPreserved"}
    if lb.spec.workload_type == "cluster":  # of a guest's nodes its GuestCluster tells
        not_asked.add("BackendsFound")
    wanted = [kind for kind in _ORDER if kind not in not_asked]
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


def backends(lb: LoadBalancer, cluster: GuestCluster | None, now: datetime) -> Sequence[BackendView]:
    """Return the backends: what is wrong first, then by name. ``cluster``: the guest's, as far as it may be seen."""
    if lb.spec.workload_type == "cluster":
        found = list(_checked_nodes(lb, now)) if cluster is None else list(_nodes(lb, cluster, now))
    else:
        found = [_backend(lb, b, now) for b in lb.status.backends]
    return sorted(found, key=lambda v: (v.mark in {"ready", "pending"}, v.backend.name))


def _backend(lb: LoadBalancer, backend: Backend, now: datetime) -> BackendView:
    health = backend.health
    if backend.reason:
        why = f"{backend.reason}: {backend.message}"
        return replace(_view(backend, health, now, "failed", why), word="Not used")
    if health is None or not is_checked(lb):  # what a check said that is no more does not count
        return replace(_view(backend, None, now, "pending", ""), word=NOT_CHECKED if is_checked(lb) else "Not checked")
    return _verdict(backend, health, now, health.message, good=passes(lb, health))


def _checked_nodes(lb: LoadBalancer, now: datetime) -> Iterator[BackendView]:
    """The nodes of a guest cluster as its load balancer's own check knows them."""
    for b in lb.status.backends:
        if b.health is not None:
            yield _verdict(b, b.health, now, b.health.message, good=passes(lb, b.health))


def _nodes(lb: LoadBalancer, cluster: GuestCluster, now: datetime) -> Iterator[BackendView]:
    """The nodes of a guest cluster: by its load balancer's own check, and by the probes of all of its nodes."""
    wanted, checked = nodes_wanted(lb), is_checked(lb)
    taking = wanted.taking(cluster)
    by_check = {b.name: b.health for b in lb.status.backends}
    by_probe = {each.name: each.health for each in cluster.status.node_health}
    for node in wanted.of(cluster):
        backend = Backend(name=node.name, addresses=node.addresses)
        check, probe = by_check.get(node.name), by_probe.get(node.name)
        if checked and not passes(lb, check):
            yield _verdict(backend, check, now, NOT_CHECKED if check is None else check.message, good=False)
        elif probe is None or probe.healthy:
            yield _verdict(backend, check if checked else probe, now, "", good=True)
        elif node.name in taking:
            why = f"{probe.message}. It is kept, as no node is better"
            yield replace(_view(backend, probe, now, "degraded", why), word="Kept")
        else:
            yield replace(_view(backend, probe, now, "failed", probe.message), word="Left out")


def _verdict(backend: Backend, health: BackendHealth | None, now: datetime, why: str, *, good: bool) -> BackendView:
    view = _view(backend, health, now, "ready" if good else "failed", why)
    return replace(view, word="Healthy" if good else "Failed")


def _view(backend: Backend, health: BackendHealth | None, now: datetime, mark: Mark, why: str) -> BackendView:
    since = health.since if health is not None else ""
    return BackendView(backend, mark, "", why, since, plot(health, now) if health is not None else None)


def pool_reasons(lb: LoadBalancer, pools: Sequence[IPPool]) -> Sequence[PoolReason]:
    """Return pool by pool why one that waits has no address: as far as the pools alone can tell."""
    if lb.status.addresses or lb.spec.ipam == "dhcp" or lb.spec.workload_type == "cluster" or not pools:
        return ()
    try:
        found = select(request_of(lb), survey(pools).values())
    except ValueError:
        return ()  # what is wrong with the addresses asked for, the condition says
    return found.reasons if isinstance(found, NoPool) else ()


def heading(lb: LoadBalancer, counted: Count) -> tuple[str, str, str]:
    """The state, its word and the reason, as in the list. ``counted``: its backends."""
    state, reason = rows.state_of(lb, counted)
    return state, rows.WORDS[state], reason
