"""Which pool serves a request: Harvester's policy, as a pure function that can say why.

1. A pool named by the request: that one. A tenant's is checked against the pool's scope all the same.
2. Pools of the request's network with a scope that matches, but for the global ones.
3. For guest clusters, pools of the network that match when an empty project or guestCluster in their scope counts as
   "any" (Harvester never gets here when there is a global pool).
4. The network's global pools: exactly one scope, ``*`` three times. (Harvester ignores their network.)

Of several the highest priority wins, then the name. A pool that cannot serve the request at all (being deleted, wrong
ranges, no address of the family or not the one asked for) takes no part. If the request shows an address it already
had, the pool which that is from comes first: a service that has lost its record is not renumbered.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import ip_address
from typing import Final

from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_ANNOTATION,
    NAMESPACE_ANNOTATION,
    NETWORK_ANNOTATION,
    PROJECT_ANNOTATION,
    LoadBalancer,
)
from cloudprovider.core.api.pool import IPPool, Scope
from cloudprovider.core.conditions import cut
from cloudprovider.core.errors import PoolReason
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import Version
from cloudprovider.core.reasons import NoPoolReason, VerdictReason

ANY = "*"

_TOLD: Final = 50
"""So many reasons are told to people."""
_TOLD_OF_ONE: Final = 500
"""Characters of each of them. All together stay below what a condition's message may hold."""


@dataclass(frozen=True, kw_only=True)
class TenantLimits:
    """What an operator lets a guest cluster use. An empty list limits nothing."""

    pools: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, spec: GuestClusterSpec) -> "TenantLimits":
        """Read the limits from a GuestCluster."""
        return cls(pools=frozenset(spec.pools), networks=frozenset(spec.networks))


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a pool is looked for.

    ``project``, ``namespace`` and ``cluster`` are who asks, known from the host's own objects; ``narrow_project`` and
    ``narrow_namespace`` what the user wrote, which can only make the choice smaller. ``network`` is hard (a named
    pool need only match it where one is asked for). ``tenant`` None: asked by somebody of the host's own.
    """

    namespace: str
    project: str = ""
    cluster: str = ""
    network: str = ""
    pool: str = ""
    narrow_project: str = ""
    narrow_namespace: str = ""
    versions: frozenset[Version] = frozenset()
    fixed: tuple[IPAddress, ...] = ()
    preferred: tuple[IPAddress, ...] = ()
    guest: bool = False
    tenant: TenantLimits | None = None


@dataclass(frozen=True)
class Selected:
    """The pool to take an address from."""

    pool: str


@dataclass(frozen=True)
class NoPool:
    """No pool serves the request. ``reasons``: of each pool that the asker may know of, by name; ``hidden``: how many
    more there are."""

    reason: NoPoolReason
    message: str
    reasons: tuple[PoolReason, ...] = ()
    hidden: int = 0

    @property
    def text(self) -> str:
        """For people, on one line; of very many pools those that come nearest."""
        parts = [self.message, *(f'pool "{r.pool}": {cut(r.message, _TOLD_OF_ONE)}' for r in self.reasons[:_TOLD])]
        if (more := len({r.pool for r in self.reasons[_TOLD:]})) > 0:
            parts.append(f"{more} more {'does' if more == 1 else 'do'} not match either")
        if self.hidden:
            others = "other pool is" if self.hidden == 1 else "other pools are"
            parts.append(f"{self.hidden} {others} not open to this cluster")
        return "; ".join(parts)


class _Tier(IntEnum):
    SCOPE = 0
    LOOSE = 1
    GLOBAL = 2


@dataclass
class _Verdict:
    candidate: PoolView
    tier: _Tier | None
    reasons: list[PoolReason] = field(default_factory=list)

    def refuse(self, reason: VerdictReason, message: str) -> None:
        self.reasons.append(PoolReason(pool=self.candidate.name, reason=reason, message=message))


def request_of(
    lb: LoadBalancer,
    *,
    project: str = "",
    limits: TenantLimits | None = None,
    preferred: Sequence[IPAddress] = (),
) -> Request:
    """Return what a LoadBalancer asks for. ``project``: of its namespace, "c-xxx/p-yyy".

    A ``vm`` load balancer carries only its namespace (and a network, if its user names one). Raises ValueError when
    ``spec.addresses`` holds something else than addresses.
    """
    annotations, spec = lb.metadata.annotations, lb.spec
    fixed = tuple(ip_address(a) for a in spec.addresses)
    if spec.ip_family_policy == "PreferDualStack":
        required = spec.ip_families[:1]
    elif spec.ip_family_policy == "RequireDualStack":
        required = ["IPv4", "IPv6"]
    else:
        required = spec.ip_families[:1]
    versions: set[Version] = {4 if family == "IPv4" else 6 for family in required}
    versions |= {a.version for a in fixed}
    guest = spec.workload_type == "cluster"
    return Request(
        namespace=lb.metadata.namespace,
        project=project if guest else "",
        cluster=annotations.get(CLUSTER_ANNOTATION, "") if guest else "",
        network=annotations.get(NETWORK_ANNOTATION, ""),
        pool=spec.ip_pool,
        narrow_project=annotations.get(PROJECT_ANNOTATION, "") if guest else "",
        narrow_namespace=annotations.get(NAMESPACE_ANNOTATION, "") if guest else "",
        versions=frozenset(versions),
        fixed=fixed,
        preferred=tuple(preferred),
        guest=guest,
        tenant=limits,
    )


def select(request: Request, pools: Iterable[PoolView]) -> Selected | NoPool:
    """Choose the pool for a request, or say of each why it is none, and what would change that."""
    verdicts = [_judge(request, c) for c in sorted(pools, key=lambda c: c.name)]
    fit = [v for v in verdicts if not v.reasons]
    if fit:
        best = min(fit, key=lambda v: _rank(request, v))
        return Selected(best.candidate.name)
    return _explain(request, verdicts)


def is_open(request: Request, candidate: PoolView) -> bool:
    """Whether the asker may know of the pool, and name it: scope and the tenant's limits allow it."""
    if request.tenant is None:
        return True
    spec, limits = candidate.pool.spec, request.tenant
    return (
        _tier(request, candidate.pool, narrowed=False) is not None
        and (not limits.pools or candidate.name in limits.pools)
        and (not limits.networks or spec.selector.network in limits.networks)
    )


def is_global(pool: IPPool) -> bool:
    """Whether a pool is for everybody who finds no pool of their own: exactly one scope, of three ``*``."""
    return pool.spec.selector.scope == [Scope(project=ANY, namespace=ANY, guest_cluster=ANY)]


def _judge(request: Request, candidate: PoolView) -> _Verdict:
    pool, ranges = candidate.pool, candidate.ranges
    named = request.pool == candidate.name
    tier = _tier(request, pool, narrowed=True)
    verdict = _Verdict(candidate, tier)
    if request.pool and not named:
        verdict.refuse("NotNamed", f'the request names the pool "{request.pool}"')
        return verdict
    network = pool.spec.selector.network
    if network != request.network and (request.network or not named):
        verdict.refuse(
            "WrongNetwork",
            f"it is on {_network(network)}, the request is for {_network(request.network)}: ask for the pool's network",
        )
    if not is_open(request, candidate):
        verdict.refuse("NotOpen", "it is not open to this cluster: an operator must allow it")
    elif tier is None and (request.tenant is not None or not named):
        verdict.refuse("OutOfScope", _scope_message(request, pool))
    if pool.metadata.deletion_timestamp:
        verdict.refuse("Terminating", "it is being deleted: use another pool")
    if ranges is None:
        verdict.refuse("InvalidRanges", f"its ranges are wrong ({candidate.error}): an operator must correct them")
        return verdict
    for version in sorted(request.versions - ranges.versions):
        verdict.refuse("NoSuchFamily", f"it has no IPv{version} address: ask for another family or add a range to it")
    for address in request.fixed:
        if address.version in ranges.versions and address not in ranges:
            verdict.refuse("AddressNotInPool", f"the address asked for, {address}, is not one that it hands out")
    return verdict


def _rank(request: Request, verdict: _Verdict) -> tuple[bool, int, int, str]:
    ranges = verdict.candidate.ranges
    shown = ranges is not None and any(a in ranges for a in request.preferred)
    tier = verdict.tier if verdict.tier is not None else _Tier.SCOPE
    return (not shown, tier, -verdict.candidate.pool.spec.selector.priority, verdict.candidate.name)


def _tier(request: Request, pool: IPPool, *, narrowed: bool) -> _Tier | None:
    """By which step of the policy the pool's scope lets the asker in; None: by none."""
    matches = [s for s in pool.spec.selector.scope if not narrowed or _within(request, s)]
    if is_global(pool):
        return _Tier.GLOBAL if matches else None
    if any(_matches(request, s, loose=False) for s in matches):
        return _Tier.SCOPE
    if request.guest and any(_matches(request, s, loose=True) for s in matches):
        return _Tier.LOOSE
    return None


def _matches(request: Request, scope: Scope, *, loose: bool) -> bool:
    def part(pool: str, asker: str, *, empty_is_any: bool) -> bool:
        # "*" on the asker's side counts only where nobody has to be kept out: a tenant's identity is never "*".
        either = pool == ANY or (asker == ANY and request.tenant is None)
        return either or pool == asker or (empty_is_any and not pool)

    return (
        part(scope.project, request.project, empty_is_any=loose)
        and part(scope.namespace, request.namespace, empty_is_any=False)
        and part(scope.guest_cluster, request.cluster, empty_is_any=loose)
    )


def _within(request: Request, scope: Scope) -> bool:
    """Whether what the user wrote still lets this scope in. Empty and ``*`` narrow nothing."""
    return (request.narrow_project in ("", ANY, scope.project) or scope.project in (ANY, "")) and (
        request.narrow_namespace in ("", ANY, scope.namespace) or scope.namespace == ANY
    )


def _scope_message(request: Request, pool: IPPool) -> str:
    if not pool.spec.selector.scope:
        return "its scope is empty, which matches nobody: an operator must add one"
    if _tier(request, pool, narrowed=False) is not None:
        wrote = [f'project "{request.narrow_project}"'] if request.narrow_project else []
        wrote += [f'namespace "{request.narrow_namespace}"'] if request.narrow_namespace else []
        return f"the request narrows the choice to {' and '.join(wrote)}, which leaves it out: take that away"
    who = f'namespace "{request.namespace}"'
    if request.project:
        who = f'project "{request.project}", {who}'
    if request.cluster:
        who = f'{who}, guest cluster "{request.cluster}"'
    return f"no scope of it matches {who}: an operator must add one"


def _network(network: str) -> str:
    return f'the network "{network}"' if network else "the management network"


def _farness(verdict: _Verdict) -> tuple[bool, int, str]:
    """What there is least to do about comes last: another network, then the number of reasons."""
    return any(r.reason == "WrongNetwork" for r in verdict.reasons), len(verdict.reasons), verdict.candidate.name


def _explain(request: Request, verdicts: Sequence[_Verdict]) -> NoPool:
    limits = request.tenant
    known = sorted((v for v in verdicts if is_open(request, v.candidate)), key=_farness)
    hidden = len(verdicts) - len(known)
    if request.pool:
        named = next((v for v in known if v.candidate.name == request.pool), None)
        others = [v.candidate.name for v in known]
        if named is None:
            # A pool that is not open to a tenant is told like one that does not exist: names are not for guessing.
            whose = "open to this cluster" if limits is not None else "on this host"
            more = f", {len(others) - _TOLD} more" if len(others) > _TOLD else ""
            named_ones = f"{', '.join(sorted(others)[:_TOLD])}{more}"
            hint = f"name one of {named_ones}, or leave it out" if others else "an operator must add one"
            return NoPool("PoolNotFound", f'there is no pool "{request.pool}" {whose}: {hint}', hidden=0)
        return _named_pool(request, named)
    reasons = tuple(r for v in known for r in v.reasons)
    if request.fixed and any(v.reasons and all(r.reason == "AddressNotInPool" for r in v.reasons) for v in known):
        asked = ", ".join(str(a) for a in request.fixed)
        return NoPool("AddressNotInPool", f"no pool that matches hands out {asked}", reasons, hidden)
    if not verdicts:
        return NoPool("NoPoolMatches", "there is no pool of addresses on this host: an operator must add one")
    return NoPool("NoPoolMatches", "no pool matches the request", reasons, hidden)


def _named_pool(request: Request, verdict: _Verdict) -> NoPool:
    kinds = {r.reason for r in verdict.reasons}
    reason: NoPoolReason = "NoPoolMatches"
    if "OutOfScope" in kinds:
        reason = "PoolNotPermitted"
    elif kinds == {"AddressNotInPool"}:
        reason = "AddressNotInPool"
    return NoPool(reason, f'the pool "{request.pool}" that the request names can\'t serve it', tuple(verdict.reasons))
