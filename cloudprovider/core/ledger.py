"""Who holds which address: the contents of all blocks, indexed. Nothing here decides anything."""

from collections import defaultdict
from dataclasses import dataclass
from ipaddress import ip_address

from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.naming import block_name
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.ranges import BlockId, bit_of, block_of


@dataclass(frozen=True, slots=True)
class Held:
    """One allocation: ``owner`` is "namespace/name" of a LoadBalancer (or "agent/NODE"), ``uid`` its UID."""

    pool: str
    address: IPAddress
    owner: str
    uid: str


class Ledger:
    """All blocks as they were last read from, or written to, the API server."""

    def __init__(self) -> None:
        self._blocks: dict[str, IPBlock] = {}
        self._ids: dict[str, BlockId] = {}
        self._masks: dict[str, int] = {}
        self._by_id: defaultdict[BlockId, set[str]] = defaultdict(set)
        self._by_pool: defaultdict[str, set[str]] = defaultdict(set)
        self._held: defaultdict[str, dict[tuple[str, IPAddress], Held]] = defaultdict(dict)
        self._history: defaultdict[tuple[str, str], set[IPAddress]] = defaultdict(set)

    def load(self, block: IPBlock) -> None:
        """Take over a block as read or written. Raises ValueError when it is none: its name must be that of its pool
        and first address, or there could be two truths about one address."""
        name = block.metadata.name
        first = ip_address(block.spec.first)
        identity = block_of(first)
        if identity.first != int(first):
            raise ValueError(f"IPBlock {name}: spec.first {first} is no multiple of 256")
        if name != (expected := block_name(block.spec.pool, first)):
            raise ValueError(f"IPBlock {name}: it must be named {expected}, or be deleted")
        self.drop(name)
        self._blocks[name] = block
        self._ids[name] = identity
        self._by_id[identity].add(name)
        self._by_pool[block.spec.pool].add(name)
        mask = 0
        for held in allocations(block):
            mask |= bit_of(held.address)
            self._held[held.owner][held.pool, held.address] = held
        self._masks[name] = mask
        for text, owner in block.spec.history.items():
            if (address := _address_in(identity, text)) is not None:
                self._history[block.spec.pool, owner].add(address)

    def drop(self, name: str) -> None:
        """Forget a block whose object is gone; unknown names are ignored."""
        block = self._blocks.pop(name, None)
        if block is None:
            return
        identity = self._ids.pop(name)
        pool = block.spec.pool
        del self._masks[name]
        self._by_id[identity].discard(name)
        self._by_pool[pool].discard(name)
        for held in allocations(block):
            owned = self._held[held.owner]
            owned.pop((held.pool, held.address), None)
            if not owned:
                del self._held[held.owner]
        for text, owner in block.spec.history.items():
            if (address := _address_in(identity, text)) is not None:
                remembered = self._history[pool, owner]
                remembered.discard(address)
                if not remembered:
                    del self._history[pool, owner]

    def block(self, name: str) -> IPBlock | None:
        """Return a block by name."""
        return self._blocks.get(name)

    def mask(self, name: str) -> int:
        """Return which addresses of a block are taken; 0 for a block that does not exist."""
        return self._masks.get(name, 0)

    def names_at(self, identity: BlockId) -> frozenset[str]:
        """Return the blocks of all pools (on whichever network) that stand for these addresses."""
        return frozenset(self._by_id.get(identity, ()))

    def blocks_of(self, pool: str) -> list[IPBlock]:
        """Return the pool's blocks in the order of their addresses."""
        return [self._blocks[n] for n in sorted(self._by_pool.get(pool, ()), key=lambda n: self._ids[n])]

    def held_by(self, owner: str) -> tuple[Held, ...]:
        """Return what an owner holds, in the order of pool and address."""
        held = self._held.get(owner)
        return tuple(sorted(held.values(), key=lambda h: (h.pool, h.address.version, int(h.address)))) if held else ()

    def owners(self) -> frozenset[str]:
        """Return everybody who holds something."""
        return frozenset(self._held)

    def history(self, pool: str, owner: str) -> list[IPAddress]:
        """Return the addresses of ``pool`` that ``owner`` gave back and nobody had since, lowest first."""
        return sorted(self._history.get((pool, owner), ()), key=lambda a: (a.version, int(a)))


def allocations(block: IPBlock) -> list[Held]:
    """Return what is allocated in a block. A key that is no address of the block is left alone, and so left out."""
    identity = block_of(ip_address(block.spec.first))
    found = []
    for text, allocation in block.spec.allocations.items():
        address = _address_in(identity, text)
        if address is not None:
            found.append(Held(block.spec.pool, address, allocation.owner, allocation.uid))
    return found


def _address_in(identity: BlockId, text: str) -> IPAddress | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return address if block_of(address) == identity and str(address) == text else None
