"""Addresses in use that no block records: their records are lost, and those who use them have said so."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cloudprovider.core.plan import IPAddress
from cloudprovider.core.ranges import BlockId, bit_of, block_of


@dataclass(frozen=True)
class Claims:
    """``owners``: whose they are, by pool and address; nobody else is given them.

    ``complete``: whether all are known. While they are not, any address may be somebody's, so that an owner is given
    only what it has, adopts or prefers.
    """

    owners: Mapping[tuple[str, IPAddress], str] = field(default_factory=dict)
    complete: bool = True

    def is_anothers(self, pool: str, address: IPAddress, owner: str) -> bool:
        """Whether somebody else than ``owner`` claims the address."""
        return self.owners.get((pool, address), owner) != owner

    def mask(self, pool: str, block: BlockId) -> int:
        """Return the mask of what is claimed of a block."""
        return self._masks.get((pool, block), 0)

    @cached_property
    def _masks(self) -> Mapping[tuple[str, BlockId], int]:
        masks: defaultdict[tuple[str, BlockId], int] = defaultdict(int)
        for pool, address in self.owners:
            masks[pool, block_of(address)] |= bit_of(address)
        return masks
