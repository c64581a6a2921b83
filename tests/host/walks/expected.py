"""What must hold of a host cluster at rest, found by counting everything: slow, simple, and nothing of the code that
decides. Addresses are compared by network, as two networks may have the same ones."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.api.pool import IPBlock, IPPool, Range
from cloudprovider.core.conditions import find
from cloudprovider.core.plan import IPAddress
from tests.host.walks.scene import BLUE, GREEN, TENANTS

Place = tuple[str, str]
"""(network, address)."""
OPEN = {"p": {BLUE.path, GREEN.path, "team-a"}, "q": {BLUE.path}, "r": {BLUE.path, GREEN.path, "team-a"}}
"""Whom each pool's scope lets in, by tenant."""


@dataclass(frozen=True)
class Record:
    """One address in a block, and everybody who has it."""

    pool: str
    ip: str
    owners: tuple[tuple[str, str], ...]

    @property
    def version(self) -> int:
        return ip_address(self.ip).version


@dataclass(frozen=True)
class State:
    """All objects at one moment."""

    pools: Mapping[str, IPPool]
    blocks: Sequence[IPBlock]
    lbs: Mapping[str, LoadBalancer]
    clusters: Mapping[str, GuestCluster]

    @cached_property
    def records(self) -> tuple[Record, ...]:
        return tuple(records(self.blocks))

    def held(self, lb: LoadBalancer) -> list[Record]:
        return [r for r in self.records if (path(lb), lb.metadata.uid) in r.owners]

    def network(self, pool: str) -> str:
        return self.pools[pool].spec.selector.network

    @cached_property
    def taken(self) -> frozenset[Place]:
        conflicts = ((self.network(b.spec.pool), ip) for b in self.blocks for ip in b.spec.conflicts)
        return frozenset((*((self.network(r.pool), r.ip) for r in self.records), *conflicts))

    def group(self, lb: LoadBalancer) -> list[LoadBalancer]:
        """The others that share with it, or would: its primary, and all that name the same one."""
        service = lb.spec.service
        if service is None:
            return []
        root = lb.spec.primary_service or f"{service.namespace}/{service.name}"
        return [
            other
            for other in self.lbs.values()
            if other.spec.service is not None
            and other.metadata.uid != lb.metadata.uid
            and tenant(other) == tenant(lb)
            and root in (other.spec.primary_service, f"{other.spec.service.namespace}/{other.spec.service.name}")
        ]


def path(lb: LoadBalancer) -> str:
    return f"{lb.metadata.namespace}/{lb.metadata.name}"


def tenant(lb: LoadBalancer) -> str:
    cluster = lb.metadata.labels.get("cloudprovider.harvesterhci.io/cluster", "")
    return f"{lb.metadata.namespace}/{cluster}" if cluster else lb.metadata.namespace


def records(blocks: Iterable[IPBlock]) -> Iterator[Record]:
    for block in blocks:
        for ip, one in block.spec.allocations.items():
            yield Record(block.spec.pool, ip, ((one.owner, one.uid), *one.sharers.items()))


# --- what pools hand out -----------------------------------------------------------------------------------------


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


# --- what a load balancer should have ----------------------------------------------------------------------------


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


# --- what is wrong -----------------------------------------------------------------------------------------------


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
        if lb.spec.ip_family_policy == "PreferDualStack":
            continue  # it may keep one of a family of which it can't have another, and do without
        if told is not None and told.reason == "Allocated" and others.isdisjoint({path(s) for s in sharers}):
            yield f"{record.ip} is shared by {path(lb)}, which has nothing to do with {[path(s) for s in sharers]}"


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
    if leased != ([] if status.lease is None else [status.lease.ip]):
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
