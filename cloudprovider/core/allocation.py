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
from dataclasses import dataclass

from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.claims import Claims
from cloudprovider.core.draft import Draft, Search
from cloudprovider.core.ledger import Ledger
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.wants import Granted, Refused, Release, Reopen, Want

_NO_CLAIMS = Claims()


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
        self._cursors: dict[Search, IPAddress] = {}
        self._last: dict[str, IPAddress] = {}
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
        self._cursors = {search: at for search, at in self._cursors.items() if search[0] in pools}
        self._last = {name: at for name, at in self._last.items() if name in pools}

    def load(self, block: IPBlock) -> None:
        """Take over a block as read. Raises ValueError when it is not one of ours."""
        self.ledger.load(block)
        self._doubted.discard(block.metadata.name)

    def written(self, proposal: Proposal, block: IPBlock) -> None:
        """Take over a block of ``proposal`` as the API server returned it."""
        self.load(block)
        at = proposal.searched.get(block.metadata.name)
        if at is not None:
            self._cursors[block.spec.pool, at.version] = self._last[block.spec.pool] = at

    def drop(self, name: str) -> None:
        """Forget a block that no longer exists."""
        self.ledger.drop(name)
        self._doubted.discard(name)

    def doubt(self, name: str) -> None:
        """Record that a write of a block may or may not have happened (no answer came). Deciding without knowing
        could give an owner a second address in another block."""
        self._doubted.add(name)

    def last_allocated(self, pool: str) -> IPAddress | None:
        """Return the address that a search of the pool has found last."""
        return self._last.get(pool)

    def resume_after(self, pool: str, address: IPAddress) -> None:
        """Tell, after a start, where a search of the pool had come to."""
        self._cursors.setdefault((pool, address.version), address)
        self._last.setdefault(pool, address)

    def propose(
        self,
        wants: Iterable[Want],
        releases: Iterable[Release] = (),
        reopened: Iterable[Reopen] = (),
        *,
        now: str,
        claims: Claims = _NO_CLAIMS,
    ) -> Proposal:
        """Decide over a batch; what is released or reopened in it is free for it. ``now``: RFC 3339, for the records.

        Raises RuntimeError while a block is in doubt.
        """
        if self._doubted:
            raise RuntimeError(f"blocks must be read first: {', '.join(sorted(self._doubted))}")
        draft = Draft(self.ledger, self._pools, dict(self._cursors), now, claims)
        released = tuple((release, draft.release(release)) for release in releases)
        for one in reopened:
            draft.reopen(one)
        outcomes = tuple(draft.grant(want) for want in wants)
        return Proposal(outcomes, released, draft.writes(), draft.searched)
