"""What pools hand out, by their specs alone: slow, simple, and nothing of the code that decides."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from cloudprovider.core.api.pool import IPPool, Range
from cloudprovider.core.plan import IPAddress


def _listed(one: Range) -> tuple[set[IPAddress], IPAddress] | None:
    """What a range names (its gateway and exclusions left out), and its gateway; None: it is wrong."""
    subnet = ip_network(one.subnet)
    hosts: list[IPAddress] = list(subnet.hosts())  # without the routers' anycast address of IPv6
    low, high = ip_address(one.range_start or str(hosts[0])), ip_address(one.range_end or str(hosts[-1]))
    gateway = ip_address(one.gateway or str(hosts[0]))
    if not {low, high, gateway} <= set(hosts):
        return None
    closed: set[IPAddress] = {gateway}
    for text in one.exclude:
        first, dash, last = text.partition("-")
        ends = (ip_address(first), ip_address(last)) if dash else (ip_network(text)[0], ip_network(text)[-1])
        closed |= {a for a in hosts if int(ends[0]) <= int(a) <= int(ends[1])}
    return {a for a in hosts if int(low) <= int(a) <= int(high)} - closed, gateway


def _named(pool: IPPool) -> tuple[set[IPAddress], set[IPAddress]] | None:
    found: tuple[set[IPAddress], set[IPAddress]] = set(), set()
    for one in pool.spec.ranges:
        if (part := _listed(one)) is None:
            return None
        found[0].update(part[0])
        found[1].add(part[1])
    addresses = {a for a in found[0] if a not in found[1]}
    if any(ip_address(r.address) not in addresses for r in pool.spec.reservations):
        return None
    return addresses, found[1]


def handed(pool: IPPool, pools: Iterable[IPPool]) -> set[str] | None:
    """What a pool hands out beside the others; None: its ranges are wrong."""
    mine = _named(pool)
    if mine is None:
        return None
    left = set(mine[0])
    for other in pools:
        theirs = _named(other)
        if theirs is None or other.spec.selector.network != pool.spec.selector.network:
            continue
        left -= theirs[1]
        if _age(other) < _age(pool):
            left -= theirs[0]
    return {str(a) for a in left}


def _age(pool: IPPool) -> tuple[str, str]:
    return pool.metadata.creation_timestamp, pool.metadata.name


def size(pool: IPPool) -> int:
    named = _named(pool)
    return 0 if named is None else len(named[0])
