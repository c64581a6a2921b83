"""One batch of decisions over the blocks: what they would be after it. Nothing here is kept beyond the batch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudprovider.core.api.meta import ObjectMeta, OwnerReference
from cloudprovider.core.api.pool import BLOCK_POOL_LABEL, AddressConflict, Allocation, IPBlock, IPBlockSpec
from cloudprovider.core.claims import Claims
from cloudprovider.core.ledger import Held, Ledger
from cloudprovider.core.naming import block_name, label_value
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import BlockId, bit_of, block_of
from cloudprovider.core.refusals import WAITING, exhausted, not_in_pool, quota_exceeded
from cloudprovider.core.wants import Granted, Refused, Release, Reopen, Want

MAX_SHARERS = 31
"""Beside the owner: what a block's schema takes."""


@dataclass
class _Page:
    """One block under change."""

    base: IPBlock
    mask: int
    allocations: dict[str, Allocation]
    history: dict[str, str]
    conflicts: dict[str, AddressConflict]
    changed: bool = False


@dataclass
class Draft:
    """The blocks as they would be after the batch. ``cursors`` (where each pool's search goes on) is changed."""

    ledger: Ledger
    pools: Mapping[str, PoolView]
    cursors: dict[str, IPAddress]
    now: str
    claims: Claims
    searched: dict[str, IPAddress] = field(default_factory=dict)
    _pages: dict[str, _Page] = field(default_factory=dict)
    _names: dict[tuple[str, BlockId], str] = field(default_factory=dict)
    _new: dict[BlockId, set[str]] = field(default_factory=dict)
    _granted: dict[tuple[str, str], list[Held]] = field(default_factory=dict)
    _freed: set[tuple[str, str, IPAddress]] = field(default_factory=set)
    _counted: Counter[tuple[str, str]] = field(default_factory=Counter)

    def release(self, release: Release) -> str:
        """Take an address back; return the block that this depends on, empty if it was not held."""
        address, key = release.address, str(release.address)
        name = self._name(release.pool, block_of(address))
        record = self._records(name).get(key)
        if record is None or not _has(record, release.owner, release.uid):
            block = self.ledger.block(name)
            before = block.spec.allocations.get(key) if block is not None else None
            return name if before is not None and _has(before, release.owner, release.uid) else ""
        page = self._page(name, release.pool, block_of(address))
        page.changed = True
        if release.conflict:
            gone = [record.owner, *record.sharers]
            page.conflicts[key] = AddressConflict(hardware_address=release.conflict, until=release.until)
        else:
            gone = [release.owner]
            if (left := _without(record, release.owner)) is not None:
                page.allocations[key] = left
        self._freed.update((owner, release.pool, address) for owner in gone)
        if page.allocations.get(key) is record:
            del page.allocations[key]
            self._count(release.pool, record.tenant, -1)
            if not release.conflict:
                page.history[key] = release.owner
                page.mask &= ~bit_of(address)
        return name

    def reopen(self, reopen: Reopen) -> None:
        """Let an address that somebody else had be handed out again."""
        identity = block_of(reopen.address)
        name = self._name(reopen.pool, identity)
        block = self.ledger.block(name)
        if block is None or str(reopen.address) not in block.spec.conflicts:
            return
        page = self._page(name, reopen.pool, identity)
        del page.conflicts[str(reopen.address)]
        if str(reopen.address) not in page.allocations:
            page.mask &= ~bit_of(reopen.address)
        page.changed = True

    def grant(self, want: Want) -> Granted | Refused:
        """Give an address, or say why not."""
        view = self.pools.get(want.pool)
        adopt = want.adopt
        if adopt is not None and (known := self._held(want, adopt)) is not None:
            return self._keep(want, known)
        if adopt is not None and view is not None:
            if (joined := self._join(want, adopt)) is not None:
                return joined
            if self._adoptable(adopt, view) and self._free(adopt, view):
                return self._take(want, adopt)
        held = self._held(want, want.fixed)
        if held is not None:
            return self._keep(want, held)
        if view is None or view.ranges is None or view.configured is None:
            what = "does not exist" if view is None else f"has wrong ranges ({view.error})"
            return Refused(want, "PoolNotFound", f'the pool "{want.pool}" {what}: an operator must correct that')
        if want.fixed is not None and (joined := self._join(want, want.fixed)) is not None:
            return joined
        if (spent := self._spent(want, view)) is not None:
            return spent
        if not self.claims.complete and want.fixed not in (None, *want.preferred):
            return Refused(want, "WaitingForGuests", WAITING)
        if want.fixed is not None:
            return self._fixed(want, want.fixed, view)
        history = self.ledger.history(want.pool, want.owner) if self.claims.complete else ()
        address: IPAddress | None = None
        for wished in (*want.preferred, *want.reserved, *history):
            if self._is_open(want, wished, view):
                address = wished
                break
        if address is None and not self.claims.complete:
            return Refused(want, "WaitingForGuests", WAITING)
        if address is None:
            address = view.ranges.next_free(
                want.version,
                self.cursors.get(want.pool),
                lambda block: (
                    self._taken(block, view.network) | self.claims.mask(want.pool, block) | view.reserved_mask(block)
                ),
            )
            if address is None:
                return Refused(want, "PoolExhausted", exhausted(want, view))
            self.cursors[want.pool] = address
            self.searched[self._name(want.pool, block_of(address))] = address
        return self._take(want, address)

    def writes(self) -> tuple[IPBlock, ...]:
        """Return the blocks to write."""
        out = []
        for page in self._pages.values():
            if page.changed:
                head, base = page.base, page.base.spec
                spec = IPBlockSpec(
                    pool=base.pool,
                    first=base.first,
                    allocations=page.allocations,
                    history=page.history,
                    conflicts=page.conflicts,
                )
                out.append(IPBlock(api_version=head.api_version, kind=head.kind, metadata=head.metadata, spec=spec))
        return tuple(out)

    def _held(self, want: Want, address: IPAddress | None = None) -> Held | None:
        """What the owner has of the pool and version wanted; ``address``: only that one."""
        granted, held = self._granted.get((want.pool, want.owner), ()), self.ledger.held_by(want.owner)
        if not granted and not held:
            return None
        before = (h for h in held if (want.owner, h.pool, h.address) not in self._freed)
        return next(
            (
                h
                for h in (*granted, *before)
                if h.pool == want.pool
                and h.address.version == want.version
                and h.address not in want.leaving
                and bool(h.uid) == bool(want.uid)
                and address in (None, h.address)
            ),
            None,
        )

    def _keep(self, want: Want, held: Held) -> Granted:
        """What an owner has it keeps. A namesake of yesterday is gone (a name is free only once its object is): what
        it held goes over to the new one."""
        name = self._name(held.pool, block_of(held.address))
        if held.uid != want.uid:
            page = self._page(name, held.pool, block_of(held.address))
            record = page.allocations[str(held.address)]
            if record.owner == want.owner:
                record = _replaced(record, uid=want.uid, since=self.now)
            else:
                record = _replaced(record, sharers={**record.sharers, want.owner: want.uid})
            page.allocations[str(held.address)] = record
            page.changed = True
            self._remember(want, held.address)
        pending = name in self._pages and self._pages[name].changed
        return Granted(want, held.address, name if pending else "")

    def _join(self, want: Want, address: IPAddress) -> Granted | Refused | None:
        """Share an address that one of the want's group has; None: nobody of them has it."""
        if not want.group:
            return None
        identity = block_of(address)
        name = self._name(want.pool, identity)
        record = self._records(name).get(str(address))
        if record is None or want.group.isdisjoint((record.owner, *record.sharers)):
            return None
        if len(record.sharers) >= MAX_SHARERS:
            message = f"{address} is shared by {MAX_SHARERS + 1} load balancers already: no more than these can be"
            return Refused(want, "TooManySharers", message)
        page = self._page(name, want.pool, identity)
        page.allocations[str(address)] = _replaced(record, sharers={**record.sharers, want.owner: want.uid})
        page.changed = True
        self._remember(want, address)
        return Granted(want, address, name)

    def _spent(self, want: Want, view: PoolView) -> Refused | None:
        """Refuse what is beyond a quota. What an owner is about to move from does not count twice."""
        if not want.tenant:
            return None
        for pool, limit in (("", want.quota), (want.pool, view.pool.spec.addresses_per_tenant or None)):
            if limit is None:
                continue
            count = self.ledger.count(want.tenant, pool) + self._counted[want.tenant, pool]
            moves = any(
                h.address.version == want.version
                and pool in ("", h.pool)
                and (want.owner, h.pool, h.address) not in self._freed
                and len(self.ledger.owners_of(h.pool, h.address)) == 1
                for h in self.ledger.held_by(want.owner)
            )
            if count - moves >= limit:
                return Refused(want, "QuotaExceeded", quota_exceeded(want, pool, limit))
        return None

    def _fixed(self, want: Want, address: IPAddress, view: PoolView) -> Granted | Refused:
        if view.ranges is None or address not in view.ranges:
            return Refused(want, "AddressNotInPool", not_in_pool(address, view))
        if (conflict := self._conflict(want.pool, address)) is not None:
            message = (
                f"{address} is used on the network by {conflict.hardware_address}, which is not one of ours: free it"
                f" there, or ask for another address; it is handed out again at {conflict.until}"
            )
            return Refused(want, "AddressConflict", message)
        if not self._free(address, view) or self.claims.is_anothers(want.pool, address, want.owner):
            return Refused(want, "AddressInUse", self._in_use(want, address, view))
        if address in view.reserved and address not in want.reserved:
            message = f'{address} of the pool "{view.name}" is reserved: ask for another address, or for none'
            return Refused(want, "AddressReserved", message)
        return self._take(want, address)

    def _is_open(self, want: Want, address: IPAddress, view: PoolView) -> bool:
        """Whether the pool can give just this address for the want."""
        return (
            address.version == want.version
            and view.ranges is not None
            and address in view.ranges
            and self._free(address, view)
            and (address not in view.reserved or address in want.reserved)
            and not self.claims.is_anothers(want.pool, address, want.owner)
        )

    def _take(self, want: Want, address: IPAddress) -> Granted:
        identity = block_of(address)
        name = self._name(want.pool, identity)
        page = self._page(name, want.pool, identity)
        key = str(address)
        page.allocations[key] = Allocation(owner=want.owner, uid=want.uid, since=self.now, tenant=want.tenant)
        page.history.pop(key, None)
        page.mask |= bit_of(address)
        page.changed = True
        self._count(want.pool, want.tenant, 1)
        self._remember(want, address)
        return Granted(want, address, name)

    def _remember(self, want: Want, address: IPAddress) -> None:
        held = Held(want.pool, address, want.owner, want.uid)
        self._granted.setdefault((want.pool, want.owner), []).insert(0, held)
        self._freed.discard((want.owner, want.pool, address))

    def _count(self, pool: str, tenant: str, by: int) -> None:
        if tenant:
            self._counted[tenant, ""] += by
            self._counted[tenant, pool] += by

    def _adoptable(self, address: IPAddress, view: PoolView) -> bool:
        configured = view.configured
        if configured is None or address in configured.gateways:
            return False
        place = configured.range_of(address)
        return place is not None and (
            place.subnet.num_addresses <= 2
            or address not in (place.subnet.network_address, place.subnet.broadcast_address)
        )

    def _free(self, address: IPAddress, view: PoolView) -> bool:
        return not self._taken(block_of(address), view.network) & bit_of(address)

    def _conflict(self, pool: str, address: IPAddress) -> AddressConflict | None:
        name = self._name(pool, block_of(address))
        page, block = self._pages.get(name), self.ledger.block(name)
        conflicts = page.conflicts if page is not None else block.spec.conflicts if block is not None else {}
        return conflicts.get(str(address))

    def _taken(self, identity: BlockId, network: str) -> int:
        """What is taken of a block by any pool on the network; a pool that is not known might be on it."""
        mask = 0
        for name in self.ledger.names_at(identity) | self._new.get(identity, set()):
            page = self._pages.get(name)
            block = page.base if page is not None else self.ledger.block(name)
            if block is not None:
                pool = self.pools.get(block.spec.pool)
                if pool is None or pool.network == network:
                    mask |= page.mask if page is not None else self.ledger.mask(name)
        return mask

    def _name(self, pool: str, identity: BlockId) -> str:
        """The name of a block; made once in a batch, as many addresses are of one."""
        name = self._names.get((pool, identity))
        if name is None:
            name = self._names[pool, identity] = block_name(pool, identity.address)
        return name

    def _records(self, name: str) -> Mapping[str, Allocation]:
        page, block = self._pages.get(name), self.ledger.block(name)
        return page.allocations if page is not None else block.spec.allocations if block is not None else {}

    def _page(self, name: str, pool: str, identity: BlockId) -> _Page:
        page = self._pages.get(name)
        if page is None:
            block = self.ledger.block(name)
            if block is None:
                block = self._new_block(name, pool, identity)
                self._new.setdefault(identity, set()).add(name)
            spec = block.spec
            page = _Page(
                block, self.ledger.mask(name), dict(spec.allocations), dict(spec.history), dict(spec.conflicts)
            )
            self._pages[name] = page
        return page

    def _new_block(self, name: str, pool: str, identity: BlockId) -> IPBlock:
        owner = self.pools[pool].pool
        version = "loadbalancer.harvesterhci.io/v1beta1"
        reference = OwnerReference(api_version=version, kind="IPPool", name=pool, uid=owner.metadata.uid)
        return IPBlock(
            api_version=version,
            kind="IPBlock",
            metadata=ObjectMeta(name=name, labels={BLOCK_POOL_LABEL: label_value(pool)}, owner_references=[reference]),
            spec=IPBlockSpec(pool=pool, first=str(identity.address)),
        )

    def _in_use(self, want: Want, address: IPAddress, view: PoolView) -> str:
        key = str(address)
        for name in sorted(self.ledger.names_at(block_of(address)) | self._new.get(block_of(address), set())):
            if (record := self._records(name).get(key)) is not None:
                whom = f'the load balancer "{record.owner}"' if _may_know(want, record) else "somebody else"
                return f"{address} is in use by {whom}: ask for another address, or for none"
        return f'{address} of the pool "{view.name}" is in use: ask for another address, or for none'


def _may_know(want: Want, record: Allocation) -> bool:
    """Who holds an address is told only within a tenant."""
    if want.tenant or record.tenant:
        return want.tenant == record.tenant
    return record.owner.partition("/")[0] == want.owner.partition("/")[0]


def _has(record: Allocation, owner: str, uid: str) -> bool:
    return (record.owner, record.uid) == (owner, uid) or record.sharers.get(owner) == uid


def _without(record: Allocation, owner: str) -> Allocation | None:
    """The record once ``owner`` has left; the first of the others takes over. None: nobody is left."""
    if record.owner != owner:
        return _replaced(record, sharers={k: v for k, v in record.sharers.items() if k != owner})
    if not record.sharers:
        return None
    heir = min(record.sharers)
    rest = {k: v for k, v in record.sharers.items() if k != heir}
    return _replaced(record, owner=heir, uid=record.sharers[heir], sharers=rest)


def _replaced(
    record: Allocation,
    *,
    owner: str | None = None,
    uid: str | None = None,
    since: str | None = None,
    sharers: dict[str, str] | None = None,
) -> Allocation:
    return Allocation(
        owner=record.owner if owner is None else owner,
        uid=record.uid if uid is None else uid,
        since=record.since if since is None else since,
        tenant=record.tenant,
        sharers=record.sharers if sharers is None else sharers,
    )
