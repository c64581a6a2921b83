"""Services that share an address (annotation ``primary-service``): who belongs together, and who may join.

A group is a primary Service and all that name it. Whoever of them has an address lets the others share it, so the
order in which they come and go does not matter, and the address stays until the last one leaves. A listener (protocol
and port) belongs to the one that was there first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cloudprovider.core.addressing import Refusal, misfit, tenant_of
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.audit import owner_of
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.ledger import Held
from cloudprovider.core.pools import PoolView
from cloudprovider.core.wants import Want


@dataclass(frozen=True)
class Member:
    """A load balancer of a group, and what it has and may keep."""

    lb: LoadBalancer
    fit: tuple[Held, ...]


@dataclass(frozen=True)
class Group:
    """The others of a load balancer's group. ``primary`` None: it is the primary itself, or there is none (yet); then
    ``follower`` is the load balancer itself, if it names one."""

    primary: Member | None = None
    others: tuple[Member, ...] = ()
    follower: Member | None = None

    @property
    def owners(self) -> frozenset[str]:
        """Whose addresses may be shared."""
        return frozenset(owner_of(m.lb) for m in self._members)

    @property
    def _members(self) -> tuple[Member, ...]:
        return self.others if self.primary is None else (self.primary, *self.others)

    def address_key(self, lb: LoadBalancer) -> str:
        """Return what decides which host owns ``lb``'s addresses: the same for all of a group."""
        keys = [m.lb.status.address_key or m.lb.metadata.uid for m in self._members if m.lb.status.addresses]
        return keys[0] if keys else lb.status.address_key or lb.metadata.uid

    def shared(self) -> tuple[Held, ...]:
        """Return the addresses to share: the primary's, or without one those of the oldest that has any, which all of
        the group must agree about."""
        if self.primary is not None:
            return self.primary.fit
        rest = self.others if self.follower is None else (self.follower, *self.others)
        return next((m.fit for m in sorted(rest, key=lambda m: _age(m.lb)) if m.fit), ())


def join(
    lb: LoadBalancer, group: Group, held: Sequence[Held], views: Mapping[str, PoolView]
) -> tuple[Want, ...] | Refusal | None:
    """Return how ``lb`` gets the addresses of its group; None: it is a primary that has to get some of its own."""
    named = lb.spec.primary_service
    primary = group.primary
    if named and primary is not None and primary.lb.spec.primary_service:
        message = (
            f'the Service "{named}" shares the address of "{primary.lb.spec.primary_service}" itself: name that one'
        )
        return Refusal("PrimaryIsShared", message)
    if named and primary is not None and primary.lb.spec.ipam == "dhcp":
        return Refusal("PrimaryUsesDHCP", f'the Service "{named}" has its address by DHCP, which can\'t be shared')
    shared = group.shared()
    if not shared:
        if not named:
            return None
        if primary is None:
            message = f'there is no Service "{named}" with a load balancer in the guest cluster: create it'
            return Refusal("PrimaryNotFound", message)
        return Refusal("WaitingForPrimary", f'the Service "{named}", whose address it is to share, has none yet')
    if not named:
        own = {h.address.version for h in held if not misfit(lb, h, views)}
        shared = tuple(h for h in shared if h.address.version not in own)  # its group comes to what it has itself
        if not shared or not _suits(lb, shared, views):
            return None
    if (taken := _taken(lb, group, shared)) is not None:
        return taken
    have = {(h.pool, h.address) for h in held}
    return tuple(
        Want(
            owner=owner_of(lb),
            uid=lb.metadata.uid,
            pool=h.pool,
            version=h.address.version,
            fixed=h.address,
            group=group.owners,
            tenant=tenant_of(lb),
        )
        for h in shared
        if (h.pool, h.address) not in have
    )


def stranger(lb: LoadBalancer, group: Group, held: Held, owners: Sequence[str]) -> str:
    """Say why an address is not to be shared with those who have it (any more); empty where it is right.

    ``owners``: everybody who has it, the record's owner first: who joined others leaves them, not they it.
    """
    named = lb.spec.primary_service
    shared = group.shared()
    if named and shared and all((h.pool, h.address) != (held.pool, held.address) for h in shared):
        return f'the address of the Service "{named}"'
    return "an address of its own" if is_left_over(lb, group, owners) else ""


def is_left_over(lb: LoadBalancer, group: Group, owners: Sequence[str]) -> bool:
    """Whether it had joined those who have an address, and none of them belongs to its group any more."""
    return len(owners) > 1 and owners[0] != owner_of(lb) and group.owners.isdisjoint(owners)


def _suits(lb: LoadBalancer, shared: Iterable[Held], views: Mapping[str, PoolView]) -> bool:
    """Whether a primary that asks for something of its own can have what its group has already: what it would give
    back at once it must not join."""
    asked = set(lb.spec.addresses)
    return all(not misfit(lb, h, views) and (not asked or str(h.address) in asked) for h in shared)


def _taken(lb: LoadBalancer, group: Group, shared: Sequence[Held]) -> Refusal | None:
    """Refuse a listener that another one on the address has."""
    mine = {(x.protocol, x.port) for x in lb.spec.listeners}
    places = {(h.pool, h.address) for h in shared}
    members = group.others if group.primary is None else (group.primary, *group.others)
    for member in sorted(members, key=lambda m: _age(m.lb)):
        if places.isdisjoint((h.pool, h.address) for h in member.fit):
            continue
        both = sorted(mine.intersection((x.protocol, x.port) for x in member.lb.spec.listeners))
        if both:
            found = service_of(member.lb)
            who = f'the Service "{found[1].path}"' if found is not None else "another load balancer"
            ports = ", ".join(f"{protocol} {port}" for protocol, port in both)
            message = f"{who} has {ports} of {shared[0].address} already: use another port, or an address of its own"
            return Refusal("PortConflict", message)
    return None


def _age(lb: LoadBalancer) -> tuple[str, str]:
    return lb.metadata.creation_timestamp, lb.metadata.uid
