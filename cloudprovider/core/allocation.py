"""Handing out addresses and taking them back: what to write into which block, so that one write of a block is one
decision. Pure: the caller writes the blocks by compare-and-swap and tells what became of it.

::

    proposal = allocator.propose(wants, releases, now=...)
    for block in proposal.writes:           # create without, replace with a resourceVersion
        written:  allocator.written(proposal, block as the API server returned it)
        lost:     allocator.load(block as read anew) or allocator.drop(name): and propose again
        unknown:  allocator.doubt(name), until it has been read anew
    an outcome holds once its block (if any) is written

Until then nothing has changed here: a proposal that is thrown away leaves no trace. One proposal at a time.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cloudprovider.core.api.meta import ObjectMeta, OwnerReference
from cloudprovider.core.api.pool import BLOCK_POOL_LABEL, Allocation, IPBlock, IPBlockSpec
from cloudprovider.core.claims import Claims
from cloudprovider.core.ledger import Held, Ledger
from cloudprovider.core.naming import block_name, label_value
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import BlockId, Version, bit_of, block_of

Refusal = Literal["PoolNotFound", "PoolExhausted", "AddressInUse", "AddressNotInPool", "WaitingForGuests"]

_NO_CLAIMS = Claims()


@dataclass(frozen=True, slots=True, kw_only=True)
class Want:
    """One address that somebody needs.

    ``fixed``: this one or none. ``preferred``: these first, if they are free and the pool hands them out. ``adopt``:
    an address that its owner already uses, before all else; taken even where the pool's ranges no longer reach, as
    long as it lies in one of its subnets. ``uid`` empty: the owner is no object, but a host ("agent/NODE").
    """

    owner: str
    uid: str
    pool: str
    version: Version = 4
    fixed: IPAddress | None = None
    preferred: tuple[IPAddress, ...] = ()
    adopt: IPAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """An address that somebody gives back. It stays where it is if ``owner`` and ``uid`` do not hold it."""

    pool: str
    address: IPAddress
    owner: str
    uid: str


@dataclass(frozen=True, slots=True)
class Granted:
    """``block``: the write that this depends on; empty when it stands already."""

    want: Want
    address: IPAddress
    block: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No address, and why. It may stand once pools or allocations have changed."""

    want: Want
    reason: Refusal
    message: str


@dataclass(frozen=True)
class Proposal:
    """What to write, and what then holds. ``released``: (release, block) of all that is given back or never was
    held (block empty). ``searched``: how far the search has come in each block."""

    outcomes: tuple[Granted | Refused, ...]
    released: tuple[tuple[Release, str], ...]
    writes: tuple[IPBlock, ...]
    searched: Mapping[str, IPAddress]


class Allocator:
    """Decides over all pools, from their blocks."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self._pools: Mapping[str, PoolView] = {}
        self._cursors: dict[str, IPAddress] = {}
        self._doubted: set[str] = set()

    @property
    def doubted(self) -> frozenset[str]:
        """The blocks to read (``load`` or ``drop``) before the next proposal."""
        return frozenset(self._doubted)

    def set_pools(self, pools: Mapping[str, PoolView]) -> None:
        """Replace what is known of the pools (:func:`cloudprovider.core.pools.survey`).

        An address is handed out by one pool, and so guarded by one block's compare-and-swap, as long as the ranges
        stay. Where one moves to another pool, who decides must know that pool's old blocks: one controller at a time.
        """
        self._pools = pools
        self._cursors = {name: at for name, at in self._cursors.items() if name in pools}

    def load(self, block: IPBlock) -> None:
        """Take over a block as read. Raises ValueError when it is not one of ours."""
        self.ledger.load(block)
        self._doubted.discard(block.metadata.name)

    def written(self, proposal: Proposal, block: IPBlock) -> None:
        """Take over a block of ``proposal`` as the API server returned it."""
        self.load(block)
        at = proposal.searched.get(block.metadata.name)
        if at is not None:
            self._cursors[block.spec.pool] = at

    def drop(self, name: str) -> None:
        """Forget a block that no longer exists."""
        self.ledger.drop(name)
        self._doubted.discard(name)

    def doubt(self, name: str) -> None:
        """Record that a write of a block may or may not have happened (no answer came). Deciding without knowing
        could give an owner a second address in another block."""
        self._doubted.add(name)

    def last_allocated(self, pool: str) -> IPAddress | None:
        """Return where the pool's search goes on from."""
        return self._cursors.get(pool)

    def resume_after(self, pool: str, address: IPAddress) -> None:
        """Tell, after a start, where the pool's search had come to."""
        self._cursors.setdefault(pool, address)

    def propose(
        self, wants: Iterable[Want], releases: Iterable[Release] = (), *, now: str, claims: Claims = _NO_CLAIMS
    ) -> Proposal:
        """Decide over a batch; what is released in it is free for it. ``now``: RFC 3339, for the records.

        Raises RuntimeError while a block is in doubt.
        """
        if self._doubted:
            raise RuntimeError(f"blocks must be read first: {', '.join(sorted(self._doubted))}")
        draft = _Draft(self.ledger, self._pools, dict(self._cursors), now, claims)
        released = tuple((release, draft.release(release)) for release in releases)
        outcomes = tuple(draft.grant(want) for want in wants)
        return Proposal(outcomes, released, draft.writes(), draft.searched)


@dataclass
class _Page:
    """One block under change."""

    base: IPBlock
    mask: int
    allocations: dict[str, Allocation]
    history: dict[str, str]
    changed: bool = False


@dataclass
class _Draft:
    """The blocks as they would be after the batch."""

    ledger: Ledger
    pools: Mapping[str, PoolView]
    cursors: dict[str, IPAddress]
    now: str
    claims: Claims
    pages: dict[str, _Page] = field(default_factory=dict)
    new: dict[BlockId, set[str]] = field(default_factory=dict)
    granted: dict[tuple[str, str], list[Held]] = field(default_factory=dict)
    freed: set[tuple[str, IPAddress]] = field(default_factory=set)
    searched: dict[str, IPAddress] = field(default_factory=dict)

    def release(self, release: Release) -> str:
        name = block_name(release.pool, block_of(release.address).address)
        block = self.ledger.block(name)
        key = str(release.address)
        record = block.spec.allocations.get(key) if block is not None else None
        if record is None or record.owner != release.owner or record.uid != release.uid:
            return ""
        page = self._page(name, release.pool, block_of(release.address))
        if page.allocations.pop(key, None) is not None:
            page.history[key] = release.owner
            page.mask &= ~bit_of(release.address)
            page.changed = True
            self.freed.add((release.pool, release.address))
        return name

    def grant(self, want: Want) -> Granted | Refused:
        view = self.pools.get(want.pool)
        adopt = want.adopt
        if adopt is not None and (known := self._held(want, adopt)) is not None:
            return self._keep(want, known)
        if adopt is not None and view is not None and self._adoptable(adopt, view) and self._free(adopt, view):
            return self._take(want, adopt)
        held = self._held(want)
        if held is not None:
            return self._keep(want, held)
        if view is None or view.ranges is None or view.configured is None:
            what = "does not exist" if view is None else f"has wrong ranges ({view.error})"
            return Refused(want, "PoolNotFound", f'the pool "{want.pool}" {what}: an operator must correct that')
        if not self.claims.complete and want.fixed not in (None, *want.preferred):
            return Refused(want, "WaitingForGuests", _WAITING)
        if want.fixed is not None:
            return self._fixed(want, want.fixed, view)
        history = self.ledger.history(want.pool, want.owner) if self.claims.complete else ()
        address = next((a for a in (*want.preferred, *history) if self._is_open(want, a, view)), None)
        if address is None and not self.claims.complete:
            return Refused(want, "WaitingForGuests", _WAITING)
        if address is None:
            address = view.ranges.next_free(
                want.version,
                self.cursors.get(want.pool),
                lambda block: self._taken(block, view.network) | self.claims.mask(want.pool, block),
            )
            if address is None:
                return Refused(want, "PoolExhausted", _exhausted(want, view))
            self.cursors[want.pool] = address
            self.searched[block_name(want.pool, block_of(address).address)] = address
        return self._take(want, address)

    def writes(self) -> tuple[IPBlock, ...]:
        out = []
        for page in self.pages.values():
            if page.changed:
                base = page.base.spec
                spec = IPBlockSpec(pool=base.pool, first=base.first, allocations=page.allocations, history=page.history)
                head = page.base
                out.append(IPBlock(api_version=head.api_version, kind=head.kind, metadata=head.metadata, spec=spec))
        return tuple(out)

    def _held(self, want: Want, address: IPAddress | None = None) -> Held | None:
        """What the owner has of the pool and version wanted; ``address``: only that one."""
        before = (h for h in self.ledger.held_by(want.owner) if (h.pool, h.address) not in self.freed)
        return next(
            (
                h
                for h in (*self.granted.get((want.pool, want.owner), ()), *before)
                if h.pool == want.pool
                and h.address.version == want.version
                and bool(h.uid) == bool(want.uid)
                and address in (None, h.address)
            ),
            None,
        )

    def _keep(self, want: Want, held: Held) -> Granted:
        """What an owner has it keeps. A namesake of yesterday is gone (a name is free only once its object is): what
        it held goes over to the new one."""
        name = block_name(held.pool, block_of(held.address).address)
        if held.uid != want.uid:
            page = self._page(name, held.pool, block_of(held.address))
            page.allocations[str(held.address)] = Allocation(owner=want.owner, uid=want.uid, since=self.now)
            page.changed = True
            self.granted.setdefault((held.pool, want.owner), []).insert(
                0, Held(held.pool, held.address, want.owner, want.uid)
            )
        pending = name in self.pages and self.pages[name].changed
        return Granted(want, held.address, name if pending else "")

    def _fixed(self, want: Want, address: IPAddress, view: PoolView) -> Granted | Refused:
        if view.ranges is None or address not in view.ranges:
            return Refused(want, "AddressNotInPool", _not_in_pool(address, view))
        if not self._free(address, view) or self.claims.is_anothers(want.pool, address, want.owner):
            return Refused(want, "AddressInUse", self._in_use(want, address, view))
        return self._take(want, address)

    def _is_open(self, want: Want, address: IPAddress, view: PoolView) -> bool:
        """Whether the pool can give just this address for the want."""
        return (
            address.version == want.version
            and view.ranges is not None
            and address in view.ranges
            and self._free(address, view)
            and not self.claims.is_anothers(want.pool, address, want.owner)
        )

    def _take(self, want: Want, address: IPAddress) -> Granted:
        identity = block_of(address)
        name = block_name(want.pool, identity.address)
        page = self._page(name, want.pool, identity)
        page.allocations[str(address)] = Allocation(owner=want.owner, uid=want.uid, since=self.now)
        page.history.pop(str(address), None)
        page.mask |= bit_of(address)
        page.changed = True
        held = Held(want.pool, address, want.owner, want.uid)
        self.granted.setdefault((want.pool, want.owner), []).insert(0, held)
        return Granted(want, address, name)

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

    def _taken(self, identity: BlockId, network: str) -> int:
        """What is taken of a block by any pool on the network; a pool that is not known might be on it."""
        mask = 0
        for name in self.ledger.names_at(identity) | self.new.get(identity, set()):
            page = self.pages.get(name)
            block = page.base if page is not None else self.ledger.block(name)
            if block is not None:
                pool = self.pools.get(block.spec.pool)
                if pool is None or pool.network == network:
                    mask |= page.mask if page is not None else self.ledger.mask(name)
        return mask

    def _page(self, name: str, pool: str, identity: BlockId) -> _Page:
        page = self.pages.get(name)
        if page is None:
            block = self.ledger.block(name)
            if block is None:
                block = self._new_block(name, pool, identity)
                self.new.setdefault(identity, set()).add(name)
            page = _Page(block, self.ledger.mask(name), dict(block.spec.allocations), dict(block.spec.history))
            self.pages[name] = page
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
        for name in sorted(self.ledger.names_at(block_of(address)) | self.new.get(block_of(address), set())):
            page = self.pages.get(name)
            block = self.ledger.block(name)
            records = page.allocations if page is not None else block.spec.allocations if block is not None else {}
            if key in records:
                owner = records[key].owner
                known = owner.partition("/")[0] == want.owner.partition("/")[0]
                whom = f'the load balancer "{owner}"' if known else "somebody else"
                return f"{address} is in use by {whom}: ask for another address, or for none"
        return f'{address} of the pool "{view.name}" is in use: ask for another address, or for none'


_WAITING = (
    "the host has lost records of addresses (was it restored from a backup?), so nobody is given a new one before every"
    " guest cluster has said which it uses; that takes less than a minute, and nothing is to be done"
)


def _not_in_pool(address: IPAddress, view: PoolView) -> str:
    for overlap in view.overlaps:
        if any(s.version == address.version and s.low <= int(address) <= s.high for s in overlap.segments):
            return f'{address} is handed out by the older pool "{overlap.other}": name that pool'
    if view.configured is not None and address in view.configured.gateways:
        return f"{address} is a gateway: ask for another address"
    return f'{address} is not in the ranges of the pool "{view.name}": ask for one that is, or for none'


def _exhausted(want: Want, view: PoolView) -> str:
    ranges = view.ranges
    size = 0 if ranges is None else sum(s.high - s.low + 1 for s in ranges.segments if s.version == want.version)
    if ranges is not None and not ranges.segments and view.overlaps:
        return f'older pools hand out all that the pool "{view.name}" names: an operator must correct the ranges'
    if size == 0:
        return f'the pool "{view.name}" has no IPv{want.version} address to hand out: an operator must add a range'
    return (
        f'all {size} IPv{want.version} addresses of the pool "{view.name}" are allocated: '
        "delete a load balancer that uses it, or an operator must add a range"
    )
