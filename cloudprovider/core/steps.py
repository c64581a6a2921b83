"""From a Service to a packet, step by step: what an explanation is made of, and which reason belongs to which step."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from cloudprovider.core import guestreasons, reasons
from cloudprovider.core.api.kubernetes import Lease
from cloudprovider.core.hosts import NODE_ANNOTATION
from cloudprovider.core.rulings import ALLOWED, Meaning, by_word
from cloudprovider.core.times import parse_time

State = Literal["ok", "wrong", "waiting", "unknown"]
"""``waiting``: it comes by itself, or after the first step that is wrong. ``unknown``: it can't be seen from here."""

Name = Literal[
    "read",
    "translated",
    "sent",
    "accepted",
    "pool",
    "address",
    "holder",
    "programmed",
    "announced",
    "backends",
    "shown",
]

TITLES: Final[Mapping[Name, str]] = {
    "read": "read",
    "translated": "translated",
    "sent": "sent over the bridge",
    "accepted": "accepted",
    "pool": "pool chosen",
    "address": "address allocated",
    "holder": "a host holds it",
    "programmed": "programmed",
    "announced": "announced",
    "backends": "backends",
    "shown": "shown in the Service",
}


class Step(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One step. ``reason``: the condition's word for programs, empty where it is fine; ``todo``: what to do."""

    name: Name
    state: State
    message: str = ""
    reason: str = ""
    todo: str = ""

    @property
    def title(self) -> str:
        """What the step is called."""
        return TITLES[self.name]


class Explanation(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All steps of one load balancer, in order. ``wrong``: the first that is not fine."""

    kind: Literal["Service", "LoadBalancer"]
    namespace: str
    name: str
    steps: list[Step]
    wrong: Name | None = None


def explanation(kind: Literal["Service", "LoadBalancer"], key: tuple[str, str], steps: Sequence[Step]) -> Explanation:
    """Put steps together, and find the first that is not fine: a wrong one, else one that is waited for."""
    found = next((s for s in steps if s.state == "wrong"), None) or next(
        (s for s in steps if s.state == "waiting"), None
    )
    return Explanation(
        kind=kind, namespace=key[0], name=key[1], steps=list(steps), wrong=found.name if found is not None else None
    )


_ANYWHERE: Final = frozenset({"InvalidSpec"})
"""Its message names the field."""

_TENANTS: Final[tuple[guestreasons.BridgeReason, ...]] = (
    "UnknownTenant",
    "ClusterMismatch",
    "IdentityMismatch",
    "TenantTerminating",
)

_GROUPS: Final[tuple[tuple[Name, Mapping[str, Meaning]], ...]] = (
    ("announced", {word: reasons.PROGRAMMED[word] for word in ("AddressConflict", "HeldByAnotherHost")}),
    ("holder", by_word(reasons.OWNED)),
    ("shown", {"ForeignOwner": guestreasons.SERVICE["ForeignOwner"]}),
    ("backends", by_word(reasons.BACKEND)),
    ("backends", by_word(reasons.MACHINE)),
    ("pool", {word: reasons.POOL[word] for word in ("NoPoolMatches", "PoolNotFound", "PoolNotPermitted")}),
    ("programmed", {word: m for word, m in reasons.PROGRAMMED.items() if word not in _ANYWHERE}),
    ("address", {word: m for word, m in reasons.ADDRESS.items() if word not in _ANYWHERE}),
    ("address", {word: m for word, m in reasons.LEASE.items() if word not in _ANYWHERE}),
    ("address", {"DHCPNotPermitted": ALLOWED["DHCPNotPermitted"], "Moving": reasons.FINE["Moving"]}),
    ("address", {"AddressKept": reasons.FINE["AddressKept"]}),
    ("accepted", {word: guestreasons.BRIDGE[word] for word in _TENANTS}),
    ("sent", by_word(guestreasons.BRIDGE)),
    ("backends", by_word(reasons.PLACE)),
)
"""A word of several groups speaks of the first."""

_STEPS: Final[Mapping[str, Name]] = {word: name for name, group in reversed(_GROUPS) for word in group}
_MEANINGS: Final[Mapping[str, Meaning]] = {word: m for _, group in reversed(_GROUPS) for word, m in group.items()}


def todo_of(reason: str, at: Name | None = None) -> str:
    """Return what to do about a reason that stops a load balancer ``at`` a step; empty where its message says so
    itself."""
    of_step = (group[reason] for name, group in _GROUPS if name == at and reason in group)
    found = next(of_step, None) or _MEANINGS.get(reason)
    return found.todo if found is not None else ""


def step_of(reason: str, otherwise: Name) -> Name:
    """Return the step that a condition's reason speaks of."""
    return _STEPS.get(reason, otherwise)


LEASE_SLACK: Final = timedelta(seconds=10)
"""Beyond a Lease's duration: its holder may be late, and the server says the time in whole seconds."""


def is_fresh(lease: Lease, now: datetime) -> bool:
    """Whether somebody holds a Lease, by the API server's clock."""
    spec = lease.spec
    renewed = parse_time(spec.renew_time or "")
    if not spec.holder_identity or renewed is None:
        return False
    return now - renewed <= timedelta(seconds=spec.lease_duration_seconds) + LEASE_SLACK


def running(program: str, leases: Iterable[Lease] | None, now: datetime, *, node: str = "") -> tuple[State, str]:
    """Whether a program of ours runs, by its Lease ("cloudprovider-host", or with "cloudprovider-agent" any that begins
    so), and a sentence on it. ``node``: on that host. ``leases`` None: they can't be read."""
    if leases is None:
        return "unknown", f"whether {program} runs can't be seen: its Lease can't be read"
    found = [x for x in leases if x.metadata.name == program or x.metadata.name.startswith(f"{program}-")]
    if node:
        found = [x for x in found if x.metadata.annotations.get(NODE_ANNOTATION) == node]
    alive = sorted({x.spec.holder_identity.partition("_")[0] for x in found if is_fresh(x, now)})
    if alive:
        return "ok", f"{program} runs on {', '.join(alive)}"
    if any(x.spec.holder_identity for x in found):
        last = max((x.spec.renew_time or "" for x in found), default="")
        return "wrong", f"{program} has not renewed its Lease since {last.partition('.')[0]}Z"
    return "wrong", f"{program} does not run"
