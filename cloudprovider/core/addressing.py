"""One load balancer's way to its addresses: what it still needs, and what its status says about it.

What stands in the blocks is the truth. An address that a load balancer has it keeps, whatever its request has become:
moving would cut its clients off, so a request that no longer fits is said in the condition.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import (
    NETWORK_ANNOTATION,
    Address,
    AllocatedAddress,
    LoadBalancer,
    LoadBalancerStatus,
)
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.audit import owner_of, shown_by
from cloudprovider.core.conditions import carry_times
from cloudprovider.core.exchange import ADDRESS_KEPT
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.ledger import Held
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import Version
from cloudprovider.core.wants import Want

ALLOCATED = "Allocated"
READY = "Ready"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a load balancer gets no address, or not all: a condition's reason and message."""

    reason: str
    message: str


def is_ours(lb: LoadBalancer) -> bool:
    """Whether this program gives the load balancer addresses: ``vm`` objects, and what the bridge made.

    An object that a stock cloud provider made (``cluster`` without our reference to a Service) is left as it is.
    """
    return lb.spec.workload_type != "cluster" or service_of(lb) is not None


def versions_of(lb: LoadBalancer) -> tuple[tuple[Version, ...], tuple[Version, ...]]:
    """Return the IP versions that it must have and those that it may have. Both empty: one, whichever the pool has.

    As a Service's ``ipFamilies`` and ``ipFamilyPolicy`` (KEP-563).
    """
    spec = lb.spec
    named: list[Version] = [4 if f == "IPv4" else 6 for f in spec.ip_families]
    asked: list[Version] = [_parse(a).version for a in spec.addresses]
    wished = list(dict.fromkeys([*named, *asked]))
    both: tuple[Version, ...] = (wished[0], 10 - wished[0]) if wished else (4, 6)  # type: ignore[assignment]
    if spec.ip_family_policy == "RequireDualStack":
        return both, ()
    required = tuple(dict.fromkeys([*named[:1], *asked]))
    optional = (v for v in both if v not in required)
    return required, tuple(optional) if spec.ip_family_policy == "PreferDualStack" else ()


def missing_versions(lb: LoadBalancer, held: Sequence[Held], view: PoolView | None) -> tuple[Version, ...]:
    """Return the IP versions that it still needs an address of. ``view``: the pool that it would get them from."""
    required, optional = versions_of(lb)
    have = {h.address.version for h in held}
    offered = view.ranges.versions if view is not None and view.ranges is not None else frozenset({4, 6})
    if not required:
        if have:
            required = ()
        elif optional:
            required = tuple(v for v in optional if v in offered)[:1] or optional[:1]
        else:
            required = (4,) if 4 in offered else (6,)
    wished = [*required, *(v for v in optional if v not in required and v in offered)]
    return tuple(v for v in wished if v not in have)


def is_optional(lb: LoadBalancer, version: Version, held: Iterable[Held]) -> bool:
    """Whether it can do without an address of this version: the second one of PreferDualStack."""
    required, optional = versions_of(lb)
    return version in optional and (bool(required) or any(h.address.version != version for h in held))


def adoptions(lb: LoadBalancer, held: Sequence[Held]) -> tuple[Want, ...]:
    """Return the wants for what its status shows and no block records: taken back before anybody gets it.

    Without our list of addresses Harvester's own record counts.
    """
    have = {(h.pool, h.address) for h in held}
    versions = {h.address.version for h in held}
    return tuple(
        Want(owner=owner_of(lb), uid=lb.metadata.uid, pool=pool, version=address.version, adopt=address)
        for pool, address in shown(lb)
        if (pool, address) not in have and address.version not in versions
    )


def wants(lb: LoadBalancer, pool: str, versions: Iterable[Version], preferred: Sequence[IPAddress]) -> tuple[Want, ...]:
    """Return the wants for new addresses from one pool."""
    fixed = {a.version: a for a in (_parse(text) for text in lb.spec.addresses)}
    return tuple(
        Want(
            owner=owner_of(lb),
            uid=lb.metadata.uid,
            pool=pool,
            version=version,
            fixed=fixed.get(version),
            preferred=tuple(a for a in preferred if a.version == version),
        )
        for version in versions
    )


def shown(lb: LoadBalancer) -> tuple[tuple[str, IPAddress], ...]:
    """Return (pool, address) of all that the status says it has from pools."""
    ours = shown_by(lb)
    theirs = lb.status.allocated_address
    if ours or theirs is None or not theirs.ip_pool:
        return ours
    try:
        return ((theirs.ip_pool, ip_address(theirs.ip)),)
    except ValueError:
        return ()


# --- the status --------------------------------------------------------------------------------------------------


def controlled_status(
    lb: LoadBalancer, held: Sequence[Held], views: Mapping[str, PoolView], refusal: Refusal | None, now: str
) -> LoadBalancerStatus:
    """Return the part of the status that is the controller's. ``now``: RFC 3339.

    What the status shows already stays where no block says otherwise (its pool is gone): the address is in use.
    """
    addresses = [_address(lb, h, views.get(h.pool)) for h in _ordered(lb, held)]
    unrecorded = not addresses and bool(lb.status.addresses)
    if unrecorded:
        addresses = lb.status.addresses
    conditions = _conditions(lb, addresses, refusal, _mismatch(lb, held, views))
    known = lb.status.conditions
    if not addresses:
        return LoadBalancerStatus(conditions=carry_times(known, conditions, now))
    first = addresses[0]
    return LoadBalancerStatus(
        address=first.ip,
        allocated_address=AllocatedAddress(
            ip_pool=first.ip_pool, ip=first.ip, mask=_mask(first), gateway=first.gateway
        ),
        addresses=addresses,
        address_key=lb.status.address_key or lb.metadata.uid,
        conditions=carry_times(known, conditions, now),
    )


def is_current(lb: LoadBalancer, wanted: LoadBalancerStatus) -> bool:
    """Whether the object shows the controller's part as wanted.

    A Ready=False from before it had an address needs no look: the apply that gives the address takes it away.
    """
    have = lb.status
    named = {c.type: c for c in have.conditions}
    return (have.address, have.allocated_address, have.addresses, have.address_key) == (
        wanted.address,
        wanted.allocated_address,
        wanted.addresses,
        wanted.address_key,
    ) and all(named.get(c.type) == c for c in wanted.conditions)


def _conditions(
    lb: LoadBalancer, addresses: Sequence[Address], refusal: Refusal | None, mismatch: str
) -> list[Condition]:
    given = " and ".join(f"{a.ip} from pool {a.ip_pool}" for a in addresses)
    if refusal is None:
        if mismatch:
            return [Condition(type=ALLOCATED, status="True", reason=ADDRESS_KEPT, message=f"{given}; {mismatch}")]
        return [Condition(type=ALLOCATED, status="True", reason="Allocated", message=given)]
    message = f"it keeps {given}, but {refusal.message}" if given else refusal.message
    found = [Condition(type=ALLOCATED, status="False", reason=refusal.reason, message=message)]
    if not addresses:
        found.append(Condition(type=READY, status="False", reason=refusal.reason, message=message))
    return found


def _mismatch(lb: LoadBalancer, held: Sequence[Held], views: Mapping[str, PoolView]) -> str:
    """What is asked for now and differs from what is held; a sentence, or empty."""
    found: list[str] = []
    pools = dict.fromkeys(h.pool for h in held)
    if lb.spec.ip_pool and held and any(pool != lb.spec.ip_pool for pool in pools):
        found.append(f'the pool "{lb.spec.ip_pool}"')
    have = {h.address for h in held}
    asked = [text for text in lb.spec.addresses if _parse(text) not in have]
    if asked and held:
        found.append(f"the address {' and '.join(asked)}")
    network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "")
    if network and any(pool in views and views[pool].network != network for pool in pools):
        found.append(f'the network "{network}"')
    if not found:
        return ""
    return f"the request now names {', '.join(found)}: delete and create it anew to move there"


def _ordered(lb: LoadBalancer, held: Sequence[Held]) -> list[Held]:
    """In the order that the status has them, then that of the families asked for."""
    before = {(a.ip_pool, a.ip): i for i, a in enumerate(lb.status.addresses)}
    required, optional = versions_of(lb)
    wished = {v: i for i, v in enumerate((*required, *optional))}

    def rank(h: Held) -> tuple[int, int, int]:
        place = before.get((h.pool, str(h.address)), len(before))
        return place, wished.get(h.address.version, 2), int(h.address)

    return sorted(held, key=rank)[:2]


def _address(lb: LoadBalancer, held: Held, view: PoolView | None) -> Address:
    place = view.configured.range_of(held.address) if view is not None and view.configured is not None else None
    if view is not None and place is not None:
        return Address(
            ip=str(held.address),
            ip_pool=held.pool,
            prefix_length=place.subnet.prefixlen,
            gateway="" if place.gateway is None else str(place.gateway),
            network=view.network,
        )
    known = next((a for a in lb.status.addresses if a.ip == str(held.address)), None)
    if known is not None:
        return known
    return Address(ip=str(held.address), ip_pool=held.pool, prefix_length=held.address.max_prefixlen)


def _mask(address: Address) -> str:
    """As Harvester writes it: dotted for IPv4, the same in hex groups for IPv6."""
    width = ip_address(address.ip).max_prefixlen
    bits = ((1 << address.prefix_length) - 1) << (width - address.prefix_length)
    return str(ip_address(bits.to_bytes(width // 8)))


def _parse(text: str) -> IPAddress:
    """An address of a spec; what the API server lets in (CEL ``isIP``) parses."""
    return ip_address(text)
