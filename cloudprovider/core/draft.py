"""One batch of decisions over the blocks: what they would be after it. Nothing here is kept beyond the batch."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from cloudprovider.core.api.meta import ObjectMeta, OwnerReference
from cloudprovider.core.api.pool import BLOCK_POOL_LABEL, AddressConflict, Allocation, IPBlock, IPBlockSpec
from cloudprovider.core.blocktext import BlockText
from cloudprovider.core.claims import Claims
from cloudprovider.core.ledger import Held, Ledger
from cloudprovider.core.naming import block_name, label_value
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import BlockId, PoolRanges, Version, bit_of, block_of
from cloudprovider.core.records import has, replaced, without
from cloudprovider.core.refusals import WAITING, exhausted, not_in_pool, quota_exceeded
from cloudprovider.core.wants import Granted, Refused, Release, Reopen, Want

MAX_SHARERS = 31
"""Beside the owner: what a block's schema takes."""

Search = tuple[str, Version]
"""Each IP version of a pool is searched by itself: the other's address says nothing of where to go on."""


class _Place(NamedTuple):
    """Which block of a pool an address belongs to."""

    pool: str
    block: BlockId
    name: str
    text: BlockText


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
    """The blocks as they would be after the batch. ``cursors`` is changed.

    All that the batch gives back comes before the first grant: what a search has passed it does not look at again.
    """

    ledger: Ledger
    pools: Mapping[str, PoolView]
    cursors: dict[Search, IPAddress]
    now: str
    claims: Claims
    searched: dict[str, IPAddress] = field(default_factory=dict)
    _pages: dict[str, _Page] = field(default_factory=dict)
    _places: dict[tuple[str, BlockId], _Place] = field(default_factory=dict)
    _new: dict[BlockId, set[str]] = field(default_factory=dict)
    _searches: dict[Search, Iterator[IPAddress]] = field(default_factory=dict)
    _holdings: dict[str, list[Held]] = field(default_factory=dict)
    _counted: Counter[tuple[str, str]] = field(default_factory=Counter)

    def release(self, release: Release) -> str:
        """Take an address back; return the block that this depends on, empty if it was not held."""
        address = release.address
        place = self._place(release.pool, address)
        name, key = place.name, place.text.write(address)
        record = self._records(name).get(key)
        if record is None or not has(record, release.owner, release.uid):
            block = self.ledger.block(name)
            before = block.spec.allocations.get(key) if block is not None else None
            return name if before is not None and has(before, release.owner, release.uid) else ""
        page = self._page(place)
        page.changed = True
        if release.conflict:
            gone = [record.owner, *record.sharers]
            page.conflicts[key] = AddressConflict(hardware_address=release.conflict, until=release.until)
        else:
            gone = [release.owner]
            if (left := without(record, release.owner)) is not None:
                page.allocations[key] = left
        for owner in gone:
            self._holdings[owner] = [h for h in self._held_by(owner) if (h.pool, h.address) != (release.pool, address)]
        if page.allocations.get(key) is record:
            del page.allocations[key]
            self._count(release.pool, record.tenant, -1)
            if not release.conflict:
                page.history[key] = release.owner
                page.mask &= ~bit_of(address)
        return name

    def reopen(self, reopen: Reopen) -> None:
        """Let an address that somebody else had be handed out again."""
        place = self._place(reopen.pool, reopen.address)
        key = place.text.write(reopen.address)
        block = self.ledger.block(place.name)
        if block is None or key not in block.spec.conflicts:
            return
        page = self._page(place)
        del page.conflicts[key]
        if key not in page.allocations:
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
            if self._is_recorded(want.pool, adopt):  # whether its request is for another one is to be asked first
                return Refused(want, "AddressInUse", self._in_use(want, adopt, view))
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
            address = next(self._search(want, view, view.ranges), None)
            if address is None:
                return Refused(want, "PoolExhausted", exhausted(want, view))
            granted = self._take(want, address)
            self.searched[granted.block] = self.cursors[want.pool, want.version] = address
            return granted
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

    def _held_by(self, owner: str) -> Sequence[Held]:
        """What an owner has now; what the batch has given it comes first."""
        held = self._holdings.get(owner)
        return self.ledger.held_by(owner) if held is None else held

    def _held(self, want: Want, address: IPAddress | None = None) -> Held | None:
        """What the owner has of the pool and version wanted; ``address``: only that one."""
        held = self._held_by(want.owner)
        if not held:
            return None
        return next(
            (
                h
                for h in held
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
        place = self._place(held.pool, held.address)
        if held.uid != want.uid:
            page, key = self._page(place), place.text.write(held.address)
            record = page.allocations[key]
            if record.owner == want.owner:
                record = replaced(record, uid=want.uid, since=self.now)
            else:
                record = replaced(record, sharers={**record.sharers, want.owner: want.uid})
            page.allocations[key] = record
            page.changed = True
            self._remember(want, held.address)
        pending = place.name in self._pages and self._pages[place.name].changed
        return Granted(want, held.address, place.name if pending else "")

    def _join(self, want: Want, address: IPAddress) -> Granted | Refused | None:
        """Share an address that one of the want's group has; None: nobody of them has it."""
        if not want.group:
            return None
        place = self._place(want.pool, address)
        key = place.text.write(address)
        record = self._records(place.name).get(key)
        if record is None or want.group.isdisjoint((record.owner, *record.sharers)):
            return None
        if len(record.sharers) >= MAX_SHARERS:
            message = f"{address} is shared by {MAX_SHARERS + 1} load balancers already: no more than these can be"
            return Refused(want, "TooManySharers", message)
        page = self._page(place)
        page.allocations[key] = replaced(record, sharers={**record.sharers, want.owner: want.uid})
        page.changed = True
        self._remember(want, address)
        return Granted(want, address, place.name)

    def _spent(self, want: Want, view: PoolView) -> Refused | None:
        """Refuse what is beyond a quota. What an owner is about to move from does not count twice."""
        if not want.tenant:
            return None
        held, before = self._held_by(want.owner), self.ledger.held_by(want.owner)
        replaced_too = {h.address.version for h in held if h not in before or h.address not in want.leaving}
        for pool, limit in (("", want.quota), (want.pool, view.pool.spec.addresses_per_tenant or None)):
            if limit is None:
                continue
            count = self.ledger.count(want.tenant, pool) + self._counted[want.tenant, pool]
            moves = sum(
                (h.address.version == want.version or (h.address.version in replaced_too and h.address in want.leaving))
                and pool in ("", h.pool)
                and self.ledger.owners_of(h.pool, h.address) == (want.owner,)
                for h in held
            )
            if count - moves >= limit:
                return Refused(want, "QuotaExceeded", quota_exceeded(want, pool, limit))
        return None

    def _search(self, want: Want, view: PoolView, ranges: PoolRanges) -> Iterator[IPAddress]:
        """The search of the want's pool, which goes on through the batch: what it has passed is taken, and stays so."""
        key = want.pool, want.version
        search = self._searches.get(key)
        if search is None:
            search = self._searches[key] = ranges.free_after(
                want.version,
                self.cursors.get(key),
                lambda block: (
                    self._taken(block, view.network) | self.claims.mask(view.name, block) | view.reserved_mask(block)
                ),
            )
        return search

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
        place = self._place(want.pool, address)
        page, key, bit = self._page(place), place.text.write(address), bit_of(address)
        page.allocations[key] = Allocation(owner=want.owner, uid=want.uid, since=self.now, tenant=want.tenant)
        page.history.pop(key, None)
        page.mask |= bit
        page.changed = True
        self._count(want.pool, want.tenant, 1)
        self._remember(want, address)
        return Granted(want, address, place.name)

    def _remember(self, want: Want, address: IPAddress) -> None:
        held = Held(want.pool, address, want.owner, want.uid)
        self._holdings[want.owner] = [held, *self._held_by(want.owner)]

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

    def _is_recorded(self, pool: str, address: IPAddress) -> bool:
        place = self._place(pool, address)
        return place.text.write(address) in self._records(place.name)

    def _conflict(self, pool: str, address: IPAddress) -> AddressConflict | None:
        place = self._place(pool, address)
        page, block = self._pages.get(place.name), self.ledger.block(place.name)
        conflicts = page.conflicts if page is not None else block.spec.conflicts if block is not None else {}
        return conflicts.get(place.text.write(address))

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

    def _place(self, pool: str, address: IPAddress) -> _Place:
        """Where an address is recorded; made once in a batch, as many addresses are of one block."""
        block = block_of(address)
        place = self._places.get((pool, block))
        if place is None:
            name = block_name(pool, block.address)
            place = self._places[pool, block] = _Place(pool, block, name, BlockText(block))
        return place

    def _records(self, name: str) -> Mapping[str, Allocation]:
        page, block = self._pages.get(name), self.ledger.block(name)
        return page.allocations if page is not None else block.spec.allocations if block is not None else {}

    def _page(self, place: _Place) -> _Page:
        name = place.name
        page = self._pages.get(name)
        if page is None:
            block = self.ledger.block(name)
            if block is None:
                block = self._new_block(place)
                self._new.setdefault(place.block, set()).add(name)
            spec = block.spec
            page = _Page(
                block, self.ledger.mask(name), dict(spec.allocations), dict(spec.history), dict(spec.conflicts)
            )
            self._pages[name] = page
        return page

    def _new_block(self, place: _Place) -> IPBlock:
        owner = self.pools[place.pool].pool
        version = "loadbalancer.harvesterhci.io/v1beta1"
        reference = OwnerReference(api_version=version, kind="IPPool", name=place.pool, uid=owner.metadata.uid)
        labels = {BLOCK_POOL_LABEL: label_value(place.pool)}
        return IPBlock(
            api_version=version,
            kind="IPBlock",
            metadata=ObjectMeta(name=place.name, labels=labels, owner_references=[reference]),
            spec=IPBlockSpec(pool=place.pool, first=str(place.block.address)),
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
