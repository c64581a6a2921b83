"""What a load balancer's status says of its addresses, and which of what it has it can give back.

An address that is to be replaced stays in ``status.addresses`` until the holder has the new one up, which stands in
``status.nextAddresses`` so long; only then it is given back. So clients always find one that answers, and the guest's
Service changes once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from msgspec import structs

from cloudprovider.core.addressing import Refusal, versions_of
from cloudprovider.core.agentstatus import LEASED
from cloudprovider.core.api.loadbalancer import Address, AllocatedAddress, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.backends import Chosen, shown
from cloudprovider.core.conditions import carry_times, condition, find
from cloudprovider.core.ledger import Held
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import Version
from cloudprovider.core.reasons import Heard
from cloudprovider.core.standing import OWNED, Ownership

ALLOCATED = "Allocated"
READY = "Ready"
MOVING = "Moving"


@dataclass(frozen=True)
class Placement:
    """``addresses``: those to use; ``following``: those that take the place of one of them once they are up;
    ``surplus``: what it has beyond these. ``recorded``: what it uses stands in blocks, or is leased."""

    addresses: tuple[Address, ...]
    following: tuple[Address, ...] = ()
    surplus: tuple[Held, ...] = ()
    recorded: bool = True


@dataclass(frozen=True)
class _Option:
    address: Address
    fits: bool

    @property
    def version(self) -> Version:
        return ip_address(self.address.ip).version


def place(
    lb: LoadBalancer,
    held: Sequence[Held],
    misfits: frozenset[Held],
    views: Mapping[str, PoolView],
    anothers: frozenset[str] = frozenset(),
) -> Placement:
    """Choose from all that a load balancer has. ``misfits``: what it should move away from; ``anothers``: what it shows
    and somebody else has.

    What the status shows already stays where no block says otherwise (its pool is gone): the address is in use.
    """
    options = [_Option(_address(lb, h, views.get(h.pool)), h not in misfits) for h in held]
    unrecorded = [a for a in _unrecorded(lb, held) if a.ip not in anothers]
    options += [_Option(a, lb.spec.ipam != "dhcp") for a in unrecorded]
    if (leased := _leased(lb)) is not None:
        options.append(_Option(leased, lb.spec.ipam == "dhcp"))
    chosen: list[tuple[Version, Address, Address | None]] = []
    for version in (4, 6):
        found = _choose(lb, [o for o in options if o.version == version])
        if found is not None:
            chosen.append((version, *found))
    required, optional = versions_of(lb)
    wished = (*required, *optional)
    if any(version in wished for version, _, following in chosen if following is None):
        chosen = [one for one in chosen if one[0] in wished]  # of a family that it no longer wants, and can do without
    fit = {o.version for o in options if o.fits}
    if not wished and fit:
        chosen = [one for one in chosen if one[0] in fit]  # one of either family will do: not the one that it leaves
    place_of = {_identity(a): i for i, a in enumerate(lb.status.addresses)}
    rank = {v: i for i, v in enumerate(wished)}
    chosen.sort(key=lambda c: (place_of.get(_identity(c[1]), 2), rank.get(c[0], 2)))
    kept = {_identity(a) for _, *pair in chosen for a in pair if a is not None}
    return Placement(
        addresses=tuple(a for _, a, _ in chosen),
        following=tuple(f for _, _, f in chosen if f is not None),
        surplus=tuple(h for h in held if (h.pool, str(h.address)) not in kept),
        recorded=not unrecorded,
    )


def disposable(lb: LoadBalancer, surplus: Iterable[Held]) -> tuple[Held, ...]:
    """Return what of the surplus may be given back now: what the status no longer names and no holder has up."""
    named = [_identity(a) for a in (*lb.status.addresses, *lb.status.next_addresses)]
    # The holder says no network: where one of the named is the same address on another one, that is up besides.
    others = Counter(ip for _, ip in named)
    up = _up(lb)
    return tuple(
        h for h in surplus if (h.pool, str(h.address)) not in named and up[str(h.address)] <= others[str(h.address)]
    )


def conflicts(lb: LoadBalancer, held: Iterable[Held]) -> tuple[tuple[Held, str], ...]:
    """Return what somebody else was found to have, and who (the hardware address): to be replaced. An address that was
    asked for by name is not, nor one that is up."""
    foreign = {f.ip: f.hardware_address for f in lb.status.foreign_addresses}
    up = _up(lb)
    return tuple(
        (h, mac)
        for h in held
        if (mac := foreign.get(str(h.address))) and str(h.address) not in up and str(h.address) not in lb.spec.addresses
    )


def controlled_status(
    lb: LoadBalancer,
    placement: Placement,
    refusal: Refusal | None,
    *,
    key: str,
    now: str,
    chosen: Chosen | None = None,
    ownership: Ownership | None = None,
) -> LoadBalancerStatus:
    """Return the part of the status that is the controller's. ``key``: what decides which host owns the addresses.
    ``now``: RFC 3339. ``chosen``: the virtual machines, where it sends to such. ``ownership``: which host is to have
    the addresses up, or to lease them; None: nobody knows yet, or there is nothing to have."""
    addresses = list(placement.addresses)
    if refusal is None and lb.spec.ipam == "dhcp" and _leased(lb) is None:
        refusal = _no_lease(lb)
    ownership = ownership or Ownership()
    said = [
        *_conditions(lb, placement, refusal),
        *(() if chosen is None else (chosen.condition,)),
        *ownership.conditions,
    ]
    status = LoadBalancerStatus(
        conditions=carry_times(lb.status.conditions, said, now),
        backends=[] if chosen is None else list(chosen.backends),
        backend_servers=[] if chosen is None else chosen.addresses,
        owner=ownership.host,
    )
    if not addresses:  # what is to be leased has its owner before it has an address
        return structs.replace(status, address_key=key) if ownership.host else status
    first = addresses[0]
    return structs.replace(
        status,
        address=first.ip,
        allocated_address=AllocatedAddress(
            ip_pool=first.ip_pool, ip=first.ip, mask=_mask(first), gateway=first.gateway
        ),
        addresses=addresses,
        next_addresses=list(placement.following),
        address_key=key,
    )


def is_current(lb: LoadBalancer, wanted: LoadBalancerStatus) -> bool:
    """Whether the object shows the controller's part as wanted.

    A Ready=False from before it had an address needs no look: the apply that gives the address takes it away.
    """
    have = lb.status
    named = {c.type: c for c in have.conditions}
    return (
        _addresses(have) == _addresses(wanted)
        and (shown(lb), have.backend_servers) == (tuple(wanted.backends), wanted.backend_servers)
        and all(named.get(c.type) == c for c in wanted.conditions)
        and (OWNED in named) == any(c.type == OWNED for c in wanted.conditions)
    )


def _addresses(status: LoadBalancerStatus) -> tuple[object, ...]:
    return (status.address, status.allocated_address, status.addresses, status.next_addresses, *_whose(status))


def _whose(status: LoadBalancerStatus) -> tuple[str, str]:
    return status.address_key, status.owner


def _choose(lb: LoadBalancer, options: Sequence[_Option]) -> tuple[Address, Address | None] | None:
    """Of one family: the address to use, and the one that replaces it."""
    shown = [_identity(a) for a in lb.status.addresses]
    named = [*shown, *(_identity(a) for a in lb.status.next_addresses)]
    fit = [o.address for o in options if o.fits]
    best = min(fit, key=lambda a: named.index(_identity(a)) if _identity(a) in named else len(named)) if fit else None
    current = next((o.address for o in options if _identity(o.address) in shown), None)
    if current is None:
        return None if best is None else (best, None)
    if best is None or _identity(best) == _identity(current):
        return current, None
    is_up = _is_of_now(lb) and _up(lb)[best.ip] > (best.ip == current.ip)  # the same on another network is up itself
    return (best, None) if is_up else (current, best)


def _identity(address: Address) -> tuple[str, str]:
    """Its pool and the address: networks may have the same ones."""
    return address.ip_pool, address.ip


def _up(lb: LoadBalancer) -> Counter[str]:
    """How often each address is up: on two networks an agent lists it twice."""
    return Counter(lb.status.holder.addresses if lb.status.holder is not None else ())


def _is_of_now(lb: LoadBalancer) -> bool:
    """Whether the holder speaks of what is asked for now: before, it may name an address that it is withdrawing."""
    return lb.status.holder is not None and lb.status.holder.generation == lb.metadata.generation


def _unrecorded(lb: LoadBalancer, held: Sequence[Held]) -> list[Address]:
    if held or lb.status.lease is not None:
        return []
    foreign = {f.ip for f in lb.status.foreign_addresses}
    return [a for a in lb.status.addresses if a.ip_pool and a.ip not in foreign]


def _leased(lb: LoadBalancer) -> Address | None:
    lease = lb.status.lease
    if lease is None:
        return None
    said = find(lb.status.conditions, LEASED)
    named = {a.ip for a in (*lb.status.addresses, *lb.status.next_addresses) if not a.ip_pool}
    if lease.ip not in named and (said is None or said.observed_generation != lb.metadata.generation):
        return None  # what an agent said before it knew of this: it may be about to give that lease back
    return Address(ip=lease.ip, prefix_length=lease.prefix_length, gateway=lease.gateway, network=lease.network)


def _no_lease(lb: LoadBalancer) -> Refusal:
    if "IPv6" in lb.spec.ip_families[:1] or lb.spec.ip_family_policy == "RequireDualStack":
        message = 'DHCP gives IPv4 addresses only: ask for the family IPv4 alone, or set ipam to "pool"'
        return Refusal("UnsupportedIPAM", message)
    said = find(lb.status.conditions, LEASED)
    if said is not None and said.status == "False":
        return Refusal(Heard(said.reason), said.message)
    return Refusal("WaitingForLease", "no agent on the network has got a lease from a DHCP server yet")


def _conditions(lb: LoadBalancer, placement: Placement, refusal: Refusal | None) -> list[Condition]:
    given = _listed(placement.addresses)
    if refusal is None:
        if placement.following:
            message = f"{given}; {_listed(placement.following)} takes its place as soon as a host has it up"
            return [condition("Allocated", "True", "Moving", message)]
        return [condition("Allocated", "True", "Allocated", given)]
    required, _ = versions_of(lb)
    have = {ip_address(a.ip).version for a in placement.addresses}
    if have and have >= set(required) and placement.recorded:
        message = f"it keeps {given}, as what is asked for now can't be had: {refusal.message}"
        return [condition("Allocated", "True", "AddressKept", message)]
    message = f"it keeps {given}, but {refusal.message}" if given else refusal.message
    found = [condition("Allocated", "False", refusal.reason, message)]
    if not placement.addresses:
        found.append(condition("Ready", "False", refusal.reason, message))
    return found


def _listed(addresses: Iterable[Address]) -> str:
    return " and ".join(f"{a.ip} from pool {a.ip_pool}" if a.ip_pool else f"{a.ip} by DHCP" for a in addresses)


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
    known = next((a for a in lb.status.addresses if _identity(a) == (held.pool, str(held.address))), None)
    if known is not None:
        return known
    network = "" if view is None else view.network  # its ranges may reach no longer: it is on its network all the same
    return Address(ip=str(held.address), ip_pool=held.pool, prefix_length=held.address.max_prefixlen, network=network)


def _mask(address: Address) -> str:
    """As Harvester writes it: dotted for IPv4, the same in hex groups for IPv6."""
    width = ip_address(address.ip).max_prefixlen
    bits = ((1 << address.prefix_length) - 1) << (width - address.prefix_length)
    return str(ip_address(bits.to_bytes(width // 8)))
