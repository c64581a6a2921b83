"""What must hold of a host cluster at rest, found by counting everything: slow, simple, and nothing of the code that
decides."""

from collections import Counter, defaultdict
from collections.abc import Iterator

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.conditions import find
from tests.host.walks.handed import handed, size
from tests.host.walks.state import Record, State, path, tenant
from tests.host.walks.wishes import could_have, must, right


def faults(state: State, *, served: bool) -> Iterator[str]:
    """Yield what is wrong at rest. ``served``: an agent runs, so everything can come to its end."""
    yield from _twice(state)
    for record in state.records:
        for owner, uid in record.owners:
            if owner not in state.lbs or state.lbs[owner].metadata.uid != uid:
                yield f"{record.ip} of {record.pool} is lost: its owner {owner} is gone"
        yield from _of_sharers(state, record)
    for lb in state.lbs.values():
        yield from (f"{path(lb)}: {what}" for what in _of_one(state, lb, served=served))
    for pool in state.pools.values():
        yield from (f"status of pool {pool.metadata.name}: {what}" for what in _of_status(state, pool))


def _twice(state: State) -> Iterator[str]:
    places = Counter((state.network(r.pool), r.ip) for r in state.records)
    yield from (f"{place} is in {count} blocks" for place, count in places.items() if count > 1)


def _of_sharers(state: State, record: Record) -> Iterator[str]:
    sharers = [state.lbs[owner] for owner, _ in record.owners if owner in state.lbs]
    if len({tenant(lb) for lb in sharers}) > 1:
        yield f"{record.ip} is shared by tenants: {[path(lb) for lb in sharers]}"
    for lb in sharers[1:]:
        told = find(lb.status.conditions, "Allocated")
        others = {path(other) for other in state.group(lb)}
        if lb.status.holder is not None and record.ip in lb.status.holder.addresses and not _shows(lb, record):
            continue  # it has left, and waits for an agent to withdraw it
        if lb.spec.ip_family_policy == "PreferDualStack":
            continue  # it may keep one of a family of which it can't have another, and do without
        if told is not None and told.reason == "Allocated" and others.isdisjoint({path(s) for s in sharers}):
            yield f"{record.ip} is shared by {path(lb)}, which has nothing to do with {[path(s) for s in sharers]}"


def _shows(lb: LoadBalancer, record: Record) -> bool:
    return any((a.ip_pool, a.ip) == (record.pool, record.ip) for a in lb.status.addresses)


def _of_one(state: State, lb: LoadBalancer, *, served: bool) -> Iterator[str]:
    status = lb.status
    if lb.metadata.deletion_timestamp:
        if served:
            yield "it is on its way out for ever"
        return
    held = state.held(lb)
    shown = [a for a in (*status.addresses, *status.next_addresses) if a.ip_pool]
    for address in shown:
        hands = handed(state.pools[address.ip_pool], state.pools.values())
        if hands is not None and not any((r.pool, r.ip) == (address.ip_pool, address.ip) for r in held):
            yield f"it shows {address.ip}, which no block records for it"
        if address.network != state.network(address.ip_pool):
            yield f"it shows {address.ip} on {address.network!r}"
    if status.address != (status.addresses[0].ip if status.addresses else ""):
        yield f"status.address is {status.address}"
    if served:
        if lost := {(r.pool, r.ip) for r in held} - {(a.ip_pool, a.ip) for a in shown}:
            yield f"{lost} is recorded for it, and of no use"
        up = [] if status.holder is None else status.holder.addresses
        if {*up} != {a.ip for a in status.addresses} and not status.foreign_addresses:
            yield f"{up} is up of {[a.ip for a in status.addresses]}"
        if status.next_addresses and not status.foreign_addresses:
            yield f"it is moving to {status.next_addresses} for ever"
    leased = [a.ip for a in (*status.addresses, *status.next_addresses) if not a.ip_pool]
    if leased != ([] if status.lease is None else [status.lease.ip]) and (served or leased):
        yield f"it shows {leased} by DHCP, its lease is {status.lease}"
    yield from _of_condition(state, lb)


def _of_condition(state: State, lb: LoadBalancer) -> Iterator[str]:
    told = find(lb.status.conditions, "Allocated")
    if told is None or not told.message or not told.reason:
        yield "it does not say how it stands"
        return
    if not lb.status.addresses and told.status != "False":
        yield f"it has no address, and says {told.reason}"
    if lb.spec.ipam != "dhcp" and not lb.spec.primary_service:
        have = {r.version for r in right(state, lb)}
        lacks = must(lb, {4, 6}, have) - have
        if lacks and told.reason == "Allocated":
            yield f"it lacks IPv{lacks}, and says {told.message}"
        if not lacks and told.status != "True":
            yield f"it has all, and says {told.reason}"
    if what := could_have(state, lb):
        yield f"it could have {what}, and waits: {told.reason}: {told.message}"


def _of_status(state: State, pool: IPPool) -> Iterator[str]:
    status, name = pool.status, pool.metadata.name
    blocks = [b.spec for b in state.blocks if b.spec.pool == name]
    allocated = {ip: one.owner for b in blocks for ip, one in b.allocations.items()}
    history = {ip: owner for b in blocks for ip, owner in b.history.items()}
    hands = handed(pool, state.pools.values()) or set()
    taken = {*allocated, *(ip for b in blocks for ip in b.conflicts), *(r.address for r in pool.spec.reservations)}
    told = {c.type: c.status for c in status.conditions}
    left = len(hands - taken)
    expected: defaultdict[str, object] = defaultdict(
        object, total=size(pool), available=left, allocated=allocated, allocated_history=history, truncated=False
    )
    for field, value in expected.items():
        if getattr(status, field) != value:
            yield f"{field} is {getattr(status, field)}, by its blocks {value}"
    if told.get("Ready") != ("False" if handed(pool, state.pools.values()) is None else "True"):
        yield f"Ready is {told.get('Ready')}"
    if ("Full" in told) != (bool(hands) and left == 0):
        yield f"Full is {told.get('Full')} with {left} left"
