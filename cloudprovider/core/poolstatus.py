"""A pool's status: the summary of its blocks that ``kubectl get ippool`` shows. Never the truth, and never read back
but for ``lastAllocated`` after a start."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address

from cloudprovider.core.api.meta import Condition
from cloudprovider.core.api.pool import IPBlock, IPPoolStatus
from cloudprovider.core.ledger import Ledger
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import block_of

MAX_ENTRIES = 1000
_INT64 = 2**63 - 1  # what an integer of an API object holds; an IPv6 /64 has more addresses


def summarize(
    ledger: Ledger, view: PoolView, last_allocated: IPAddress | None, conditions: Sequence[Condition] = ()
) -> IPPoolStatus:
    """Return the pool's status. ``total`` is what its ranges hold, ``available`` what can still be handed out: not
    what is allocated, nor what an older pool on its network hands out."""
    blocks = ledger.blocks_of(view.name)
    total = view.configured.size if view.configured is not None else 0
    available = 0
    if view.ranges is not None:
        available = view.ranges.size
        for block in blocks:
            usable = view.ranges.mask(block_of(ip_address(block.spec.first)))
            available -= (ledger.mask(block.metadata.name) & usable).bit_count()
    allocated = _first(blocks, lambda b: {a: record.owner for a, record in b.spec.allocations.items()})
    history = _first(blocks, lambda b: b.spec.history)
    return IPPoolStatus(
        total=min(total, _INT64),
        available=min(available, _INT64),
        last_allocated=str(last_allocated) if last_allocated is not None else "",
        allocated=allocated,
        allocated_history=history,
        truncated=sum(len(b.spec.allocations) for b in blocks) > len(allocated)
        or sum(len(b.spec.history) for b in blocks) > len(history),
        conditions=list(conditions),
    )


def _first(blocks: Iterable[IPBlock], entries: Callable[[IPBlock], Mapping[str, str]]) -> dict[str, str]:
    """The first entries in the order of addresses (the blocks come in that order)."""
    found: dict[str, str] = {}
    for block in blocks:
        of_block = entries(block)
        for address in sorted(of_block, key=_number):
            if len(found) == MAX_ENTRIES:
                return found
            found[address] = of_block[address]
    return found


def _number(text: str) -> int:
    try:
        return int(ip_address(text))
    except ValueError:
        return 0
