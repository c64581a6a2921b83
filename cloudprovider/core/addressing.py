"""One load balancer's way to its addresses: what it asks for, which of what it has fits that, and what it lacks.

What stands in the blocks is the truth. An address moves only where the request is for another one: by pool, network,
mode, address, family, or the Service to share with. A pool that would be chosen today instead, or limits that have
become narrower, move nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.api.pool import Reservation
from cloudprovider.core.audit import owner_of, shown_by
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.ledger import Held
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import Version
from cloudprovider.core.reasons import AllocationReason, Heard
from cloudprovider.core.wants import Want


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a load balancer gets no address, or not all: a condition's reason and message."""

    reason: AllocationReason | Heard
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


def missing_versions(lb: LoadBalancer, fit: Sequence[Held], view: PoolView | None) -> tuple[Version, ...]:
    """Return the IP versions that it still needs an address of. ``fit``: what it has and may keep; ``view``: the pool
    that it would get them from."""
    if lb.spec.ipam == "dhcp":
        return ()
    required, optional = versions_of(lb)
    have = {h.address.version for h in fit}
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


def misfit(lb: LoadBalancer, held: Held, views: Mapping[str, PoolView]) -> str:
    """Say what the request asks for that an address is not; empty where it fits.

    What follows from the request alone: whether an address is shared with the right ones is for
    :func:`~cloudprovider.core.sharing.stranger`.
    """
    spec = lb.spec
    if spec.ipam == "dhcp":
        return "an address by DHCP"
    if spec.ip_pool and spec.ip_pool != held.pool:
        return f'the pool "{spec.ip_pool}"'
    asked = [text for text in spec.addresses if _parse(text).version == held.address.version]
    if asked and _parse(asked[0]) != held.address:
        return f"the address {asked[0]}"
    network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "")
    view = views.get(held.pool)
    if view is None or view.network == network:
        return ""
    if network:
        return f'the network "{network}"'
    # Without a word it is the management network, but for who names a pool (that is on its own), or a Service to share
    # with. A machine's may be of times when nobody asked: Harvester gives it an address of whichever network.
    guests_own = spec.workload_type == "cluster" and not spec.ip_pool and not spec.primary_service
    return "the management network" if guests_own else ""


def is_optional(lb: LoadBalancer, version: Version, have: Iterable[Version]) -> bool:
    """Whether it can do without an address of this version: the second one of PreferDualStack. ``have``: of which it
    has one, or gets one."""
    required, optional = versions_of(lb)
    return version in optional and (bool(required) or any(other != version for other in have))


def adoptions(lb: LoadBalancer, held: Sequence[Held], group: frozenset[str] = frozenset()) -> tuple[Want, ...]:
    """Return the wants for what its status shows and no block records: taken back before anybody gets it.

    Without our list of addresses Harvester's own record counts. What somebody else was found to have is not, nor a
    second one of its family. ``group``: whose addresses it may share.
    """
    visible = shown(lb)
    have = {(h.pool, h.address) for h in held}
    versions = {address.version for pool, address in visible if (pool, address) in have}
    foreign = {f.ip for f in lb.status.foreign_addresses}
    return tuple(
        Want(
            owner=owner_of(lb),
            uid=lb.metadata.uid,
            pool=pool,
            version=address.version,
            adopt=address,
            group=group,
            tenant=tenant_of(lb),
        )
        for pool, address in visible
        if (pool, address) not in have and address.version not in versions and str(address) not in foreign
    )


def wants(
    lb: LoadBalancer,
    pool: str,
    versions: Iterable[Version],
    *,
    preferred: Sequence[IPAddress] = (),
    reserved: Sequence[IPAddress] = (),
    leaving: frozenset[IPAddress] = frozenset(),
    quota: int | None = None,
    leased: int = 0,
) -> tuple[Want, ...]:
    """Return the wants for new addresses from one pool. ``reserved``: what the pool keeps for it; ``leaving``: what
    they replace; ``quota``: addresses of pools that its tenant may have, beside those ``leased``."""
    fixed = {a.version: a for a in (_parse(text) for text in lb.spec.addresses)}
    return tuple(
        Want(
            owner=owner_of(lb),
            uid=lb.metadata.uid,
            pool=pool,
            version=version,
            fixed=fixed.get(version),
            preferred=tuple(a for a in preferred if a.version == version),
            reserved=tuple(a for a in reserved if a.version == version),
            leaving=leaving,
            tenant=tenant_of(lb),
            quota=quota,
            leased=leased,
        )
        for version in versions
    )


def tenant_of(lb: LoadBalancer) -> str:
    """Return whom its addresses count for: "namespace/cluster" of a guest cluster, or the namespace."""
    found = service_of(lb)
    return lb.metadata.namespace if found is None else found[0].path


def reserved_for(lb: LoadBalancer, views: Iterable[PoolView]) -> tuple[IPAddress, ...]:
    """Return the addresses that pools keep for it."""
    return tuple(a for view in views for a, reservation in view.reserved.items() if _is_for(reservation, lb))


def _is_for(reservation: Reservation, lb: LoadBalancer) -> bool:
    if reservation.namespace != lb.metadata.namespace:
        return False
    if reservation.load_balancer:
        return reservation.load_balancer == lb.metadata.name
    found = service_of(lb)
    return found is not None and (reservation.guest_cluster, reservation.service) == (found[0].cluster, found[1].path)


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


def _parse(text: str) -> IPAddress:
    """An address of a spec; what the API server lets in (CEL ``isIP``) parses."""
    return ip_address(text)
