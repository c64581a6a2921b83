"""When a pool may be created, changed or deleted.

Ranges, exclusions and reservations must be sound; on one network pools don't overlap, have priorities of their own,
and one of them is global. What is allocated stays: no change takes an address from under its holder. Growing is always
fine.

These rules look at one moment. An address allocated between that look and the write is kept by the controller all the
same, which says so in the pool's condition.
"""

from collections.abc import Iterable, Sequence
from itertools import groupby

from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import parse_reservations
from cloudprovider.core.ranges import PoolRanges, Segment, intersection, overlaps, parse_ranges
from cloudprovider.core.rules.holdings import Holding, listed
from cloudprovider.core.rules.verdict import Verdict, worsened
from cloudprovider.core.selection import is_global

_NOTHING = PoolRanges((), ())


def check_pool(new: IPPool, old: IPPool | None, others: Iterable[IPPool], held: Sequence[Holding]) -> Verdict:
    """Judge a pool that is created (``old`` None) or changed. ``others``: the host's pools, itself included or not;
    ``held``: what is allocated from it."""
    neighbours = sorted(
        (p for p in others if p.metadata.name != new.metadata.name and _network(p) == _network(new)),
        key=lambda p: p.metadata.name,
    )
    verdict = worsened(_by_itself(new), _by_itself(old) if old is not None else ())
    beside = old if old is not None and _network(old) == _network(new) else None  # on another network nothing counts
    verdict += _overlaps(new, beside, neighbours)
    verdict += worsened(_selectors(new, neighbours), _selectors(beside, neighbours) if beside is not None else ())
    if old is not None:
        verdict += Verdict((*_fallen_out(new, old, held), *_network_changed(new, old, held)))
    return verdict


def looks_at_holders(new: IPPool, old: IPPool | None) -> bool:
    """Whether :func:`check_pool` needs to know what is allocated."""
    return old is not None and (new.spec.ranges != old.spec.ranges or _network(new) != _network(old))


def check_deletion(name: str, held: Sequence[Holding]) -> Verdict:
    """Judge the deletion of a pool."""
    if not held:
        return Verdict()
    message = (
        f'the pool "{name}" is in use: {listed(held)}; delete these first, or have them take addresses of another pool'
    )
    return Verdict((Violation(field="metadata.name", reason="InUse", message=message),))


def _by_itself(pool: IPPool) -> Sequence[Violation]:
    try:
        parse_reservations(pool.spec.reservations, parse_ranges(pool.spec.ranges))
    except InvalidRequest as wrong:
        return wrong.violations
    return ()


def _overlaps(new: IPPool, old: IPPool | None, neighbours: Sequence[IPPool]) -> Verdict:
    """Refuse what the change adds to what two pools hand out; warn of what they had in common already."""
    before = _ranges(old) if old is not None else _NOTHING
    kept, added = _ranges(new), _ranges(new).without(before.segments)
    kept = kept.without(added.segments)
    refused, warned = [], []
    for other in neighbours:
        theirs, name = _ranges(other), other.metadata.name
        for common in overlaps(added, theirs):
            message = f'{common.text} is in the pool "{name}" on this network too: take it out of one of them'
            refused.append(Violation(field="spec.ranges", reason="Overlap", message=message))
        for common in overlaps(kept, theirs):
            message = f'{common.text} is still in the pool "{name}" on this network too: the older pool hands it out'
            warned.append(f"spec.ranges: {message}")
    return Verdict(tuple(refused), tuple(warned))


def _selectors(pool: IPPool, neighbours: Sequence[IPPool]) -> list[Violation]:
    found = []
    priority = pool.spec.selector.priority
    for other in neighbours:
        name = other.metadata.name
        if priority and priority == other.spec.selector.priority:
            message = f'{priority} is the pool "{name}"\'s priority on this network too: choose another, or 0 for none'
            found.append(Violation(field="spec.selector.priority", reason="Duplicate", message=message))
        if is_global(pool) and is_global(other):
            message = (
                f'the pool "{name}" is the global pool (one scope, "*" three times) of this network already: there can'
                " be one; narrow the scope of one of them"
            )
            found.append(Violation(field="spec.selector.scope", reason="Duplicate", message=message))
    return found


def _fallen_out(new: IPPool, old: IPPool, held: Sequence[Holding]) -> Iterable[Violation]:
    """What is allocated and would no longer be in the ranges, by the field that takes it out."""
    try:
        after = parse_ranges(new.spec.ranges)
    except InvalidRequest:
        return  # told already; what a pool hands out whose ranges are wrong is not known
    before = _ranges(old)
    lost = [h for h in held if h.address not in after and (h.address in before or not before.ranges)]
    fields = {h.address: _taken_out_by(after, h.address) for h in lost}
    for field, group in groupby(sorted(lost, key=lambda h: fields[h.address]), key=lambda h: fields[h.address]):
        message = (
            f"this takes out what is in use: {listed(list(group))}; keep it in the ranges until its holder is deleted"
            " or has another address"
        )
        yield Violation(field=field, reason="InUse", message=message)


def _taken_out_by(ranges: PoolRanges, address: IPAddress) -> str:
    place = Segment(address.version, int(address), int(address))
    for i, part in enumerate(ranges.ranges):
        if address == part.gateway:
            return f"spec.ranges[{i}].gateway"
        if any(intersection(place, excluded) for excluded in part.excluded):
            return f"spec.ranges[{i}].exclude"
    return "spec.ranges"


def _network_changed(new: IPPool, old: IPPool, held: Sequence[Holding]) -> Iterable[Violation]:
    if _network(new) != _network(old) and held:
        message = (
            f'it can\'t become "{_network(new)}" while addresses are in use on "{_network(old)}": {listed(held)};'
            " make another pool for the other network"
        )
        yield Violation(field="spec.selector.network", reason="InUse", message=message)


def _network(pool: IPPool) -> str:
    return pool.spec.selector.network


def _ranges(pool: IPPool) -> PoolRanges:
    """Return a pool's ranges; none when they are wrong, since then it hands out nothing."""
    try:
        return parse_ranges(pool.spec.ranges)
    except InvalidRequest:
        return _NOTHING
