"""The last moment of rest, and what may have changed since."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPBlock, IPPool
from tests.host.walks.handed import handed
from tests.host.walks.state import Place, State, records, tenant


@dataclass(frozen=True)
class Rest:
    """The last moment of rest. ``up``: which load balancer had which place up on a link."""

    state: State = field(default_factory=lambda: State({}, (), {}, {}))
    up: frozenset[tuple[tuple[str, str], Place]] = frozenset()

    def limit_of_pool(self, pool: str) -> float:
        found = self.state.pools.get(pool)
        return math.inf if found is None else found.spec.addresses_per_tenant or math.inf

    def limit_of_tenant(self, path: str) -> float:
        found = self.state.clusters.get(path)
        return math.inf if found is None else found.spec.quota.addresses


def can_be_recorded_anew(block: IPBlock, state: State) -> bool:
    """Whether all that it records is shown by its owners, who belong together and stay, and is its pool's to hand out:
    nobody promises more."""
    shown = {(name, a.ip_pool, a.ip) for name, lb in state.lbs.items() for a in lb.status.addresses}
    hands = handed(state.pools[block.spec.pool], state.pools.values()) or set()
    for record in records([block]):
        owners = [owner for owner, _ in record.owners]
        if record.ip not in hands or any((owner, record.pool, record.ip) not in shown for owner in owners):
            return False
        lbs = [state.lbs[owner] for owner in owners]
        if any(lb.metadata.deletion_timestamp for lb in lbs) or len({root(lb) for lb in lbs}) > 1:
            return False
    return True


def reaches_what_is_shown(pool: IPPool, every: Mapping[str, IPPool], lbs: Iterable[LoadBalancer]) -> bool:
    hands = handed(pool, [*(p for name, p in every.items() if name != pool.metadata.name), pool]) or set()
    return all(a.ip in hands for lb in lbs for a in lb.status.addresses if a.ip_pool == pool.metadata.name)


def differences(before: State, after: State) -> Iterator[str]:
    """Yield what a restart has changed: of the blocks nothing may, not even by a write that leaves them as they were.
    Of two reasons to refuse an address, both true, the other one may be told after it."""
    for one, other in (
        (
            {name: _essence(lb) for name, lb in before.lbs.items()},
            {name: _essence(lb) for name, lb in after.lbs.items()},
        ),
        (
            {name: pool.status for name, pool in before.pools.items()},
            {n: pool.status for n, pool in after.pools.items()},
        ),
        ({b.metadata.name: b for b in before.blocks}, {b.metadata.name: b for b in after.blocks}),
    ):
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                yield f"a restart has changed {name}:\n  {one.get(name)}\n  {other.get(name)}"


def _essence(lb: LoadBalancer) -> tuple[object, ...]:
    told = [(c.type, c.status) for c in lb.status.conditions]
    return lb.metadata.uid, lb.spec, msgspec.structs.replace(lb.status, conditions=[]), told


def root(lb: LoadBalancer) -> tuple[str, str]:
    """Whose address it shares: its own name, or that of its primary."""
    service = lb.spec.service
    own = lb.metadata.name if service is None else f"{service.namespace}/{service.name}"
    return tenant(lb), lb.spec.primary_service or own
