"""Who holds which address: the contents of all blocks, indexed. Nothing here decides anything."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from typing import Final, TypeVar

import msgspec

from cloudprovider.core.api.pool import AddressConflict, Allocation, IPBlock, IPBlockSpec
from cloudprovider.core.blocktext import BlockText
from cloudprovider.core.naming import block_name
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.ranges import BlockId, bit_of, block_of

V = TypeVar("V")

_NOTHING: Final = IPBlockSpec(pool="", first="")


class Held(msgspec.Struct, frozen=True):
    """What one owner has, alone or with others: ``owner`` is "namespace/name" of a LoadBalancer (or "agent/NODE"),
    ``uid`` its UID."""

    pool: str
    address: IPAddress
    owner: str
    uid: str


class Ledger:
    """All blocks as they were last read from, or written to, the API server."""

    def __init__(self) -> None:
        self._blocks: dict[str, IPBlock] = {}
        self._texts: dict[str, BlockText] = {}
        self._allocated: dict[str, int] = {}
        self._masks: dict[str, int] = {}
        self._by_id: defaultdict[BlockId, set[str]] = defaultdict(set)
        self._by_pool: defaultdict[str, set[str]] = defaultdict(set)
        self._held: defaultdict[str, dict[tuple[str, str], Held]] = defaultdict(dict)
        self._history: defaultdict[tuple[str, str], dict[str, IPAddress]] = defaultdict(dict)
        self._counts: Counter[tuple[str, str]] = Counter()
        self._conflicts: dict[str, tuple[tuple[IPAddress, AddressConflict], ...]] = {}

    def load(self, block: IPBlock) -> None:
        """Take over a block as read or written. Raises ValueError when it is none: its name must be that of its pool
        and first address, or there could be two truths about one address."""
        name, pool = block.metadata.name, block.spec.pool
        before = self._blocks[name].spec if name in self._blocks else _NOTHING
        if (pool, block.spec.first) != (before.pool, before.first):
            identity = _identity(block)
            self._texts[name] = BlockText(identity)
            self._by_id[identity].add(name)
            self._by_pool[pool].add(name)
        self._blocks[name] = block
        self._exchange(name, before, block.spec)

    def drop(self, name: str) -> None:
        """Forget a block whose object is gone; unknown names are ignored."""
        block = self._blocks.pop(name, None)
        if block is None:
            return
        self._exchange(name, block.spec, _NOTHING)
        self._by_id[self._texts.pop(name).block].discard(name)
        self._by_pool[block.spec.pool].discard(name)
        for index in (self._allocated, self._masks):
            del index[name]

    def _exchange(self, name: str, before: IPBlockSpec, after: IPBlockSpec) -> None:
        """Take over what differs between a block's former contents and its new ones: mostly little."""
        pool = before.pool or after.pool
        read = self._texts[name].read  # a key that is no address of the block is left alone, and so left out
        mask = self._allocated.get(name, 0)
        had, has = before.allocations, after.allocations
        for text, record in _left(had, has):
            if (address := read(text)) is not None:
                mask &= ~bit_of(address)
                self._count(pool, record, -1)
                for owner in (record.owner, *record.sharers):
                    owned = self._held[owner]
                    owned.pop((pool, text), None)
                    if not owned:
                        del self._held[owner]
        for text, record in _left(has, had):
            if (address := read(text)) is not None:
                mask |= bit_of(address)
                self._count(pool, record, 1)
                for owner, uid in ((record.owner, record.uid), *record.sharers.items()):
                    self._held[owner][pool, text] = Held(pool, address, owner, uid)
        self._allocated[name] = mask
        self._conflicts.pop(name, None)
        if after.conflicts:
            found = [(read(text), c) for text, c in after.conflicts.items()]
            self._conflicts[name] = conflicts = tuple((a, c) for a, c in found if a is not None)
            for address, _ in conflicts:
                mask |= bit_of(address)
        self._masks[name] = mask
        for text, owner in _left(before.history, after.history):
            known = self._history[pool, owner]
            known.pop(text, None)
            if not known:
                del self._history[pool, owner]
        for text, owner in _left(after.history, before.history):
            if (address := read(text)) is not None:
                self._history[pool, owner][text] = address

    def block(self, name: str) -> IPBlock | None:
        """Return a block by name."""
        return self._blocks.get(name)

    def mask(self, name: str) -> int:
        """Return which addresses of a block are allocated, or somebody else's; 0 for a block that does not exist."""
        return self._masks.get(name, 0)

    def given(self, name: str) -> int:
        """Return which addresses of a block are allocated."""
        return self._allocated.get(name, 0)

    def names_at(self, identity: BlockId) -> frozenset[str]:
        """Return the blocks of all pools (on whichever network) that stand for these addresses."""
        return frozenset(self._by_id.get(identity, ()))

    def blocks_of(self, pool: str) -> list[IPBlock]:
        """Return the pool's blocks in the order of their addresses."""
        return [self._blocks[n] for n in sorted(self._by_pool.get(pool, ()), key=lambda n: self._texts[n].block)]

    def held_by(self, owner: str) -> tuple[Held, ...]:
        """Return what an owner holds, in the order of pool and address."""
        held = self._held.get(owner)
        return tuple(sorted(held.values(), key=lambda h: (h.pool, h.address.version, int(h.address)))) if held else ()

    def owners_of(self, pool: str, address: IPAddress) -> tuple[str, ...]:
        """Return everybody who has an address, the record's owner first."""
        block = self._blocks.get(block_name(pool, block_of(address).address))
        record = block.spec.allocations.get(str(address)) if block is not None else None
        return () if record is None else (record.owner, *record.sharers)

    def owners(self) -> frozenset[str]:
        """Return everybody who holds something."""
        return frozenset(self._held)

    def count(self, tenant: str, pool: str = "") -> int:
        """Return how many addresses a tenant has, of one pool or of all; what several share counts once."""
        return self._counts[tenant, pool]

    def conflicts(self) -> Iterator[tuple[str, IPAddress, AddressConflict]]:
        """Yield (pool, address, who) of all that somebody else has."""
        for name, found in self._conflicts.items():
            for address, conflict in found:
                yield self._blocks[name].spec.pool, address, conflict

    def history(self, pool: str, owner: str) -> list[IPAddress]:
        """Return the addresses of ``pool`` that ``owner`` gave back and nobody had since, lowest first."""
        known = self._history.get((pool, owner))
        return sorted(known.values(), key=lambda a: (a.version, int(a))) if known else []

    def _count(self, pool: str, record: Allocation, by: int) -> None:
        if record.tenant:
            for key in ((record.tenant, ""), (record.tenant, pool)):
                self._counts[key] += by
                if not self._counts[key]:
                    del self._counts[key]


def _identity(block: IPBlock) -> BlockId:
    name, first = block.metadata.name, ip_address(block.spec.first)
    identity = block_of(first)
    if identity.first != int(first):
        raise ValueError(f"IPBlock {name}: spec.first {first} is no multiple of 256")
    if name != (expected := block_name(block.spec.pool, first)):
        raise ValueError(f"IPBlock {name}: it must be named {expected}, or be deleted")
    return identity


def _left(these: Mapping[str, V], those: Mapping[str, V]) -> list[tuple[str, V]]:
    """What of these is not among those just so."""
    if these.items() <= those.items():  # mostly: a third of the loop's cost
        return []
    return [(key, value) for key, value in these.items() if (other := those.get(key)) is not value and other != value]
