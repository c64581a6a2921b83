"""What a load balancer should have, and what its tenant may: by its request, the pools and what is taken."""

from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.api.pool import IPPool
from tests.host.walks.handed import handed
from tests.host.walks.scene import BLUE, GREEN, TENANTS
from tests.host.walks.state import Record, State, path, tenant

OPEN = {"p": {BLUE.path, GREEN.path, "team-a"}, "q": {BLUE.path}, "r": {BLUE.path, GREEN.path, "team-a"}}
"""Whom each pool's scope lets in, by tenant."""


def reserved(pool: IPPool, lb: LoadBalancer) -> dict[str, bool]:
    """The addresses that a pool keeps, and whether for this one."""
    found = {}
    for one in pool.spec.reservations:
        if one.load_balancer:
            mine = one.load_balancer == lb.metadata.name
        else:
            service = lb.spec.service
            mine = (
                service is not None
                and tenant(lb) == f"{one.namespace}/{one.guest_cluster}"
                and one.service == f"{service.namespace}/{service.name}"
            )
        found[one.address] = mine
    return found


def fits(lb: LoadBalancer, pool: str, ip: str, network: str) -> bool:
    """Whether an address is what a load balancer asks for, of what it asks for by itself."""
    spec = lb.spec
    wanted = lb.metadata.annotations.get(NETWORK_ANNOTATION, "")
    version = ip_address(ip).version
    fixed = [a for a in spec.addresses if ip_address(a).version == version]
    # Without a word a guest's Service is of the management network, a machine's load balancer of whichever.
    anywhere = not wanted and (spec.service is None or bool(spec.ip_pool or spec.primary_service))
    return (
        spec.ipam != "dhcp"
        and spec.ip_pool in ("", pool)
        and (not fixed or ip in fixed)
        and (anywhere or wanted == network)
        and version in (*must(lb, {4, 6}, {version}), *may(lb))
    )


def must(lb: LoadBalancer, offered: set[int], have: set[int]) -> set[int]:
    """The versions that it needs. ``offered``: by its pool; ``have``: what fits of what it has."""
    if lb.spec.ip_family_policy == "RequireDualStack":
        return {4, 6}
    named: set[int] = {ip_address(a).version for a in lb.spec.addresses}
    named |= {4 if f == "IPv4" else 6 for f in lb.spec.ip_families[:1]}
    if named:
        return named
    return {min(have)} if have else {4 if 4 in offered else 6}


def may(lb: LoadBalancer) -> set[int]:
    return {4, 6} if lb.spec.ip_family_policy == "PreferDualStack" else set()


def chosen(state: State, lb: LoadBalancer) -> IPPool | None:
    """The pool that serves a load balancer."""
    network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "")
    found = []
    for pool in state.pools.values():
        name, hands = pool.metadata.name, handed(pool, state.pools.values())
        named = lb.spec.ip_pool == name
        if lb.spec.ip_pool and not named:
            continue
        if state.network(name) != network and (network or not named):
            continue
        if tenant(lb) not in OPEN[name] and not (named and tenant(lb) not in {t.path for t in TENANTS}):
            continue
        if hands is None:
            continue
        offered: set[int] = {ip_address(a).version for a in hands}
        named_versions = must(lb, offered, set()) if lb.spec.addresses or lb.spec.ip_families else set()
        if lb.spec.ip_family_policy == "RequireDualStack":
            named_versions = {4, 6}
        if not named_versions <= offered or not set(lb.spec.addresses) <= hands:
            continue
        kept = any(mine for ip, mine in reserved(pool, lb).items() if ip in hands)
        found.append((not kept, name == "r", -pool.spec.selector.priority, name))
    return state.pools[min(found)[-1]] if found else None


def free(state: State, pool: IPPool, lb: LoadBalancer, version: int) -> set[str]:
    """What a pool could give it."""
    kept = reserved(pool, lb)
    fixed = [a for a in lb.spec.addresses if ip_address(a).version == version]
    return {
        ip
        for ip in handed(pool, state.pools.values()) or ()
        if ip_address(ip).version == version
        and (pool.spec.selector.network, ip) not in state.taken
        and kept.get(ip, True)
        and (not fixed or ip in fixed)
    }


def right(state: State, lb: LoadBalancer) -> list[Record]:
    """What of it a load balancer has and is to have, by its own request and its group."""
    named = lb.spec.primary_service
    group = state.group(lb)
    found = []
    for record in state.held(lb):
        others = {owner for owner, _ in record.owners} - {path(lb)}
        if named:
            if group and all(path(g) not in others for g in group if _service(g) == named):
                continue
        elif not fits(lb, record.pool, record.ip, state.network(record.pool)):
            continue
        elif record.owners[0][0] != path(lb) and others.isdisjoint({path(g) for g in group}):
            continue  # it had joined others, and no longer belongs to them
        found.append(record)
    return found


def _service(lb: LoadBalancer) -> str:
    return "" if lb.spec.service is None else f"{lb.spec.service.namespace}/{lb.spec.service.name}"


def could_have(state: State, lb: LoadBalancer, *, two_families: bool = True) -> str:
    """Say what a load balancer lacks and could have; empty: nothing."""
    if lb.spec.ipam == "dhcp" or lb.metadata.deletion_timestamp:
        return ""
    if lb.spec.primary_service:
        return _could_share(state, lb)
    if any(state.held(other) for other in state.group(lb)) or any(len(r.owners) > 1 for r in state.held(lb)):
        return ""  # a primary joins those that share, or waits for them; or others are about to leave it
    pool = chosen(state, lb)
    if pool is None:
        return ""
    name = pool.metadata.name
    have = {r.version for r in right(state, lb)}
    offered: set[int] = {ip_address(ip).version for ip in handed(pool, state.pools.values()) or ()}
    missing = must(lb, offered, have) - have
    optional = (may(lb) & offered) - have - missing if two_families else set()
    leaving = [r for r in state.held(lb) if r not in right(state, lb) and len(r.owners) == 1]
    for versions in (missing, missing | optional):
        if not versions or not all(free(state, pool, lb, v) for v in versions):
            continue
        if all(
            count + sum(not any(r.version == v and where in ("", r.pool) for r in leaving) for v in versions) <= limit
            for where, count, limit in limits(state, lb, name)
        ):
            return f"IPv{versions} of {name}: {[sorted(free(state, pool, lb, v)) for v in versions]}"
    return ""


def _could_share(state: State, lb: LoadBalancer) -> str:
    primaries = [
        g for g in state.group(lb) if _service(g) == lb.spec.primary_service and not g.metadata.deletion_timestamp
    ]
    if not primaries or primaries[0].spec.primary_service or primaries[0].spec.ipam == "dhcp":
        return ""
    shared = right(state, primaries[0])
    if not shared or right(state, lb):
        return ""  # of two it may have one: it was there before the other one came
    ports = {(x.protocol, x.port) for x in lb.spec.listeners}
    for other in state.group(lb):
        on_it = any(r in state.held(other) for r in shared)
        if on_it and ports & {(x.protocol, x.port) for x in other.spec.listeners}:
            return ""
    return f"{[r.ip for r in shared]} of {lb.spec.primary_service}"


def limits(state: State, lb: LoadBalancer, pool: str) -> Iterator[tuple[str, int, int]]:
    """Yield (pool or "", how many addresses its tenant has, how many it may)."""
    counted = counts(state)
    cluster = state.clusters.get(tenant(lb))
    if cluster is not None:
        yield "", counted[tenant(lb), ""], cluster.spec.quota.addresses
    if most := state.pools[pool].spec.addresses_per_tenant:
        yield pool, counted[tenant(lb), pool], most


def counts(state: State) -> Counter[tuple[str, str]]:
    """How many addresses each tenant has, of each pool and ("") of all, leased ones among them."""
    found: Counter[tuple[str, str]] = Counter()
    for record in state.records:
        for whose in {tenant(state.lbs[owner]) for owner, _ in record.owners if owner in state.lbs}:
            found[whose, ""] += 1
            found[whose, record.pool] += 1
    for lb in state.lbs.values():
        found[tenant(lb), ""] += lb.spec.ipam == "dhcp"
    return found


def settled_counts(state: State) -> Counter[tuple[str, str]]:
    """The same without what a load balancer is about to leave: it counts once while it moves."""
    found = counts(state)
    for lb in state.lbs.values():
        keeps = right(state, lb)
        for record in state.held(lb):
            if record not in keeps and len(record.owners) == 1 and (keeps or lb.spec.ipam == "dhcp"):
                found[tenant(lb), ""] -= 1
                found[tenant(lb), record.pool] -= 1
    return found
