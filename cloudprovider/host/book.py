"""The address book: which pools there are and what is allocated of them, as the caches tell, and what to ask for."""

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from ipaddress import ip_address

from cloudprovider.core.addressing import Refusal, adoptions, is_optional, misfit, missing_versions, reserved_for, wants
from cloudprovider.core.allocation import Allocator, Proposal
from cloudprovider.core.api.kubernetes import Node
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import Allocation, IPBlock, IPPool
from cloudprovider.core.audit import owner_of
from cloudprovider.core.claims import Claims
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.ledger import Held, Ledger
from cloudprovider.core.naming import block_name
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView, survey
from cloudprovider.core.ranges import PoolRanges, Version, bit_of, block_of
from cloudprovider.core.selection import NoPool, Request, TenantLimits, is_open, request_of, select
from cloudprovider.core.sharing import Group, Member, is_left_over, join, stranger
from cloudprovider.core.times import parse_time
from cloudprovider.core.wants import Release, Reopen, Want
from cloudprovider.host.caches import Caches, addresses_of
from cloudprovider.host.hints import Hints

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What to ask the allocator for. ``refusal``: why nothing can be asked. Both empty: nothing more to be had."""

    wants: tuple[Want, ...] = ()
    refusal: Refusal | None = None


class Room(Enum):
    """Why a request refused before may be granted now."""

    FREED = "freed"
    POOLS_CHANGED = "pools-changed"


class AddressBook:
    """Follows the caches of pools and blocks; decides nothing that is not written in a block.

    What a guest shows and no block records (``hints``) is kept for it as well.

    ``on_room`` is called when a request refused before may be granted now, ``on_pool`` with a pool whose summary may
    differ, ``on_unrecorded`` with all owners of a record that one of them is gone from (by us, or by hand) and
    ``on_recorded`` with that of a new one.
    """

    def __init__(self, caches: Caches, hints: Hints) -> None:
        self._caches = caches
        self._hints = hints
        self._allocator = Allocator()
        self._views: Mapping[str, PoolView] | None = None
        self._proposal: Proposal | None = None
        self._room: list[Callable[[Room], None]] = []
        self._pools: list[Callable[[str], None]] = []
        self._unrecorded: list[Callable[[tuple[str, str]], None]] = []
        self._recorded: list[Callable[[tuple[str, str]], None]] = []
        caches.pools.on_change(self._pool_changed)
        caches.blocks.on_change(self._block_changed)
        caches.nodes.on_change(self._node_changed)
        hints.on_dropped(self._freed)

    @property
    def ledger(self) -> Ledger:
        """What stands in the blocks."""
        return self._allocator.ledger

    def on_room(self, callback: Callable[[Room], None]) -> None:
        """See the class."""
        self._room.append(callback)

    def on_pool(self, callback: Callable[[str], None]) -> None:
        """See the class."""
        self._pools.append(callback)

    def on_unrecorded(self, callback: Callable[[tuple[str, str]], None]) -> None:
        """See the class."""
        self._unrecorded.append(callback)

    def on_recorded(self, callback: Callable[[tuple[str, str]], None]) -> None:
        """See the class."""
        self._recorded.append(callback)

    def views(self) -> Mapping[str, PoolView]:
        """Return the pools as they may be used, by name."""
        if self._views is None:
            self._views = survey(self._caches.pools.objects.values(), self._caches.host_addresses())
            self._allocator.set_pools(self._views)
        return self._views

    def held(self, lb: LoadBalancer) -> tuple[Held, ...]:
        """Return what the blocks record for exactly this object."""
        return tuple(h for h in self.ledger.held_by(owner_of(lb)) if h.uid == lb.metadata.uid)

    def count(self, tenant: Tenant) -> int:
        """Return how many addresses a tenant has, from pools (shared ones count once) and by DHCP."""
        return self.ledger.count(tenant.path) + self._caches.leases_of(tenant)

    def misfits(self, lb: LoadBalancer) -> frozenset[Held]:
        """Return what of it the object's request no longer wants: to be replaced."""
        held = self.held(lb)
        if not held:
            return frozenset()
        group = self.group(lb)
        return frozenset(
            h
            for h in held
            if misfit(lb, h, self.views()) or stranger(lb, group, h, self.ledger.owners_of(h.pool, h.address))
        )

    def lacks(self, lb: LoadBalancer) -> bool:
        """Whether a load balancer may have to get (or to take back) an address."""
        held = self.held(lb)
        return bool(self._adoptions(lb, held) or missing_versions(lb, self._fit(lb, held), None))

    def group(self, lb: LoadBalancer) -> Group:
        """Return the others that share an address with it, or could."""
        found = service_of(lb)
        if found is None:
            return Group()
        tenant, service = found
        named = lb.spec.primary_service
        found_others = self._caches.sharing_with(tenant, named or service.path)
        primary: Member | None = None
        for one in self._caches.standing_for(tenant, named) if named else ():
            if not one.metadata.deletion_timestamp:
                primary = self._member(one)
            else:
                found_others.append(one)
        group = Group(primary, tuple(self._member(o) for o in found_others if o.metadata.uid != lb.metadata.uid))
        if not named or primary is not None:
            return group
        owners_of = self.ledger.owners_of
        fit = tuple(h for h in self._member(lb).fit if not is_left_over(lb, group, owners_of(h.pool, h.address)))
        return replace(group, follower=Member(lb, fit))

    def choose(self, lb: LoadBalancer) -> Choice:
        """Return what to ask for on behalf of ``lb``, by its request and the pools as they are now."""
        held = self.held(lb)
        group = self.group(lb)
        if again := self._adoptions(lb, held, group.owners):
            return Choice(again)
        if lb.spec.ipam == "dhcp":
            return Choice()  # an agent's business
        limits: TenantLimits | None = None
        quota, leased = None, 0
        if lb.spec.workload_type == "cluster":
            owner = service_of(lb)
            cluster = None if owner is None else self._caches.guest_cluster(owner[0])
            if cluster is None:
                message = "its guest cluster has no GuestCluster object on this host: an operator must create it"
                return Choice(refusal=Refusal("NoPoolMatches", message))
            limits, leased = TenantLimits.of(cluster.spec), self._caches.leases_of(Tenant(*cluster.key))
            quota = max(0, cluster.spec.quota.addresses - leased)
        views = self.views()
        joined = join(lb, group, held, views)
        if isinstance(joined, Refusal):
            return Choice(refusal=joined)
        if joined is not None and (joined or lb.spec.primary_service):
            return Choice(joined)  # a primary that has all there is to share may need one of another family besides
        reserved = reserved_for(lb, views.values())
        preferred = self._hints.of(lb.key)
        try:
            request = request_of(
                lb,
                project=self._caches.project_of(lb.metadata.namespace),
                limits=limits,
                preferred=(*preferred, *reserved),
            )
        except ValueError as wrong:
            return Choice(refusal=Refusal("InvalidSpec", f"spec.addresses: {wrong}"))
        found = select(request, views.values())
        if isinstance(found, NoPool):
            return Choice(refusal=Refusal(found.reason, found.text))
        view, misfits = views[found.pool], self.misfits(lb)
        return Choice(
            wants(
                lb,
                found.pool,
                missing_versions(lb, [h for h in held if h not in misfits], view),
                preferred=preferred,
                reserved=[a for a in reserved if a in view.reserved],
                leaving=frozenset(h.address for h in misfits),
                quota=quota,
                leased=leased,
            )
        )

    def is_optional(self, want: Want, lb: LoadBalancer, granted: Iterable[Version] = ()) -> bool:
        """Whether a load balancer can do without the address wanted. ``granted``: of which it gets one now."""
        return is_optional(lb, want.version, (*granted, *(h.address.version for h in self._fit(lb, self.held(lb)))))

    def expired_conflicts(self, now: datetime) -> list[Reopen]:
        """Return the addresses that somebody else had, and that may be tried again."""
        return [Reopen(pool=p, address=a) for p, a, c in self.ledger.conflicts() if _is_past(c.until, now)]

    def propose(
        self, asked: Iterable[Want], releases: Iterable[Release], reopened: Iterable[Reopen], *, now: str
    ) -> Proposal:
        """See :meth:`Allocator.propose`."""
        self.views()
        return self._allocator.propose(asked, releases, reopened, now=now, claims=self._claims())

    def written(self, proposal: Proposal, block: IPBlock) -> None:
        """Take over a block of ``proposal`` as the API server returned it."""
        self._proposal = proposal
        self._caches.blocks.observe(block)
        if self._proposal is not None:  # the watch was quicker: the cache has it, or something newer
            self._proposal = None
            self._allocator.written(proposal, self._caches.blocks.get("", block.metadata.name) or block)

    def doubt(self, name: str) -> None:
        """Record that nobody knows whether a write of a block has happened: see :meth:`Allocator.doubt`."""
        self._allocator.doubt(name)

    def doubted(self) -> frozenset[str]:
        """Return the blocks that must be read anew before the next proposal."""
        return self._allocator.doubted

    def reread(self, name: str, block: IPBlock | None) -> None:
        """Take over a block as it was just read; None: there is none."""
        if block is not None:
            self._caches.blocks.observe(block)
        newest = self._caches.blocks.get("", name) or block
        if block is None or newest is None:
            self._allocator.drop(name)
        else:
            self._load(newest)

    def last_allocated(self, pool: str) -> IPAddress | None:
        """See :meth:`Allocator.last_allocated`."""
        return self._allocator.last_allocated(pool)

    def resume(self) -> None:
        """After a start: let every pool's search go on from where its status says that it was."""
        for pool in self._caches.pools.objects.values():
            with suppress(ValueError):  # empty, or written by somebody else: begin anew
                self._allocator.resume_after(pool.metadata.name, ip_address(pool.status.last_allocated))

    def is_allocated(self, address: IPAddress, network: str | None = None) -> bool:
        """Whether a pool of the network (None: any pool) has given the address to somebody."""
        bit = bit_of(address)
        return any(
            self.ledger.given(name) & bit and (network is None or self._network_of(name) == network)
            for name in self.ledger.names_at(block_of(address))
        )

    def gateways(self, network: str | None = None) -> frozenset[IPAddress]:
        """Return the gateways of the pools of a network (None: of all)."""
        return frozenset(
            gateway
            for view in self.views().values()
            if view.configured is not None and (network is None or view.network == network)
            for gateway in view.configured.gateways
        )

    def may_take_back(self, lb: LoadBalancer) -> bool:
        """Whether it shows an address that no block records for anybody."""
        return bool(self._adoptions(lb, self.held(lb)))

    def anothers(self, lb: LoadBalancer) -> frozenset[str]:
        """Return what its status shows and somebody else has by right: not to be used any longer."""
        held = self.held(lb)
        asked = adoptions(lb, held)
        if not any(self.ledger.owners_of(w.pool, w.adopt) for w in asked if w.adopt is not None):
            return frozenset()
        kept = {w.adopt for w in self._adoptions(lb, held, self.group(lb).owners)}
        return frozenset(str(w.adopt) for w in asked if w.adopt not in kept)

    def _adoptions(
        self, lb: LoadBalancer, held: tuple[Held, ...], group: frozenset[str] = frozenset()
    ) -> tuple[Want, ...]:
        """What it may take back: not what a block gives to somebody else."""
        found = []
        for want in adoptions(lb, held, group):
            owners = () if want.adopt is None else self.ledger.owners_of(want.pool, want.adopt)
            mates = {want.owner, *(group or (self.group(lb).owners if owners else ()))}
            if not owners or not mates.isdisjoint(owners):
                found.append(want)
        return tuple(found)

    def _network_of(self, block_name: str) -> str | None:
        """The network of a block's pool; None if the pool is gone."""
        block = self.ledger.block(block_name)
        view = self.views().get(block.spec.pool) if block is not None else None
        return None if view is None else view.network

    def _fit(self, lb: LoadBalancer, held: Iterable[Held]) -> tuple[Held, ...]:
        misfits = self.misfits(lb)
        return tuple(h for h in held if h not in misfits)

    def _member(self, lb: LoadBalancer) -> Member:
        views = self.views()
        return Member(lb, tuple(h for h in self.held(lb) if not misfit(lb, h, views)))

    def _claims(self) -> Claims:
        """What guests show of pools that are open to them, and no block records: one address of a version for each."""
        owners: dict[tuple[str, IPAddress], str] = {}
        open_to: dict[Tenant, list[tuple[str, PoolRanges]]] = {}
        for hint in self._hints.unsettled():
            owner = "/".join(hint.key)
            lb = self._caches.load_balancers.get(*hint.key)
            versions = {a.version: a for a in reversed(hint.shown)}
            rest = set(versions.values()) - {h.address for h in self.ledger.held_by(owner)}
            if not rest or (lb is not None and not self.lacks(lb)):
                self._hints.settle(hint.key)
                continue
            if hint.tenant not in open_to:
                open_to[hint.tenant] = self._open_to(hint.tenant)
            for address in rest:
                for pool, ranges in open_to[hint.tenant]:
                    block = block_of(address)
                    if address in ranges and not self.ledger.mask(block_name(pool, block.address)) & bit_of(address):
                        owners.setdefault((pool, address), owner)
        if owners:
            self._hints.suspect()
        return Claims(owners, complete=not self._hints.may_be_more)

    def _open_to(self, tenant: Tenant) -> list[tuple[str, PoolRanges]]:
        cluster = self._caches.guest_cluster(tenant)
        if cluster is None:
            return []
        asker = Request(
            namespace=tenant.namespace,
            project=self._caches.project_of(tenant.namespace),
            cluster=tenant.cluster,
            guest=True,
            tenant=TenantLimits.of(cluster.spec),
        )
        return [(v.name, v.ranges) for v in self.views().values() if v.ranges is not None and is_open(asker, v)]

    def _pool_changed(self, old: IPPool | None, new: IPPool | None) -> None:
        if old is not None and new is not None and _essence(old) == _essence(new):
            return  # our own summary
        self._views = None
        changed = new or old
        if changed is not None:
            # Overlaps: a pool's change can be another pool's news.
            for name in {*(key[1] for key in self._caches.pools.objects), changed.metadata.name}:
                self._tell_pool(name)
        for callback in self._room:
            callback(Room.POOLS_CHANGED)

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        if addresses_of(old) != addresses_of(new):
            self._pool_changed(None, None)

    def _block_changed(self, old: IPBlock | None, new: IPBlock | None) -> None:
        before = _taken(old) if old is not None else frozenset()
        after = _taken(new) if new is not None else frozenset()
        if new is not None:
            self._load(new)
        elif old is not None:
            self._allocator.drop(old.metadata.name)
        changed = new or old
        if changed is not None:
            self._tell_pool(changed.spec.pool)
        left = new.spec.allocations if new is not None else {}
        if old is not None:
            for address, record in old.spec.allocations.items():
                if (now := left.get(address)) is not record:
                    before_it, after_it = _owners(record), _owners(now) if now is not None else frozenset()
                    if not before_it <= after_it:  # whoever stays may keep now what was another's
                        _tell(self._unrecorded, before_it)
        known = old.spec.allocations if old is not None else {}
        for address in left.keys() - known.keys():
            _tell(self._recorded, _owners(left[address]))
        if before - after or (old is not None and old.spec.allocations.keys() - left.keys()):
            self._freed()  # also where an address is somebody else's now: it no longer counts for its tenant

    def _freed(self) -> None:
        for callback in self._room:
            callback(Room.FREED)

    def _load(self, block: IPBlock) -> None:
        proposal, self._proposal = self._proposal, None
        try:
            if proposal is not None:
                self._allocator.written(proposal, block)
            else:
                self._allocator.load(block)
        except ValueError as wrong:
            _log.error(
                "A block can't be read: none of its addresses is given until it is corrected or deleted.",
                extra={"block": block.metadata.name, "error": str(wrong)},
            )
            self._allocator.drop(block.metadata.name)

    def _tell_pool(self, name: str) -> None:
        for callback in self._pools:
            callback(name)


def _tell(callbacks: Iterable[Callable[[tuple[str, str]], None]], owners: Iterable[str]) -> None:
    for owner in owners:
        namespace, _, name = owner.partition("/")
        for callback in callbacks:
            callback((namespace, name))


def _taken(block: IPBlock) -> frozenset[str]:
    return frozenset((*block.spec.allocations, *block.spec.conflicts))


def _owners(record: Allocation) -> frozenset[str]:
    return frozenset((record.owner, *record.sharers))


def _is_past(time: str, now: datetime) -> bool:
    moment = parse_time(time)
    return moment is None or moment <= now  # where somebody else wrote what is none, there is nothing to wait for


def _essence(pool: IPPool) -> tuple[object, ...]:
    return pool.spec, pool.metadata.deletion_timestamp
