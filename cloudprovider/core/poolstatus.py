"""A pool's status: the summary of its blocks that ``kubectl get ippool`` shows. Never the truth, and never read back
but for ``lastAllocated`` after a start."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address

from cloudprovider.core.api.meta import Condition
from cloudprovider.core.api.pool import IPBlock, IPPoolStatus
from cloudprovider.core.conditions import condition
from cloudprovider.core.ledger import Ledger
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import BlockId, bit_of, block_of

MAX_ENTRIES = 1000
NEARLY_FULL = "NearlyFull"
FULL = "Full"
_INT64 = 2**63 - 1  # what an integer of an API object holds; an IPv6 /64 has more addresses


def summarize(
    ledger: Ledger, view: PoolView, left: int, last_allocated: IPAddress | None, conditions: Sequence[Condition] = ()
) -> IPPoolStatus:
    """Return the pool's status. ``total`` is what its ranges hold, ``available`` what can still be handed out to
    anybody (``left``): not what is allocated, reserved, or somebody else's, nor what an older pool on its network hands
    out."""
    blocks = ledger.blocks_of(view.name)
    total = view.configured.size if view.configured is not None else 0
    allocated = _first(blocks, lambda b: {a: record.owner for a, record in b.spec.allocations.items()})
    history = _first(blocks, lambda b: b.spec.history)
    return IPPoolStatus(
        total=min(total, _INT64),
        available=min(left, _INT64),
        last_allocated=str(last_allocated) if last_allocated is not None else "",
        allocated=allocated,
        allocated_history=history,
        truncated=sum(len(b.spec.allocations) for b in blocks) > len(allocated)
        or sum(len(b.spec.history) for b in blocks) > len(history),
        conditions=list(conditions),
    )


def free(ledger: Ledger, view: PoolView) -> int:
    """Return how many addresses of a pool can still be handed out to anybody."""
    if view.ranges is None:
        return 0
    taken: defaultdict[BlockId, int] = defaultdict(int)
    for block in ledger.blocks_of(view.name):
        taken[block_of(ip_address(block.spec.first))] |= ledger.mask(block.metadata.name)
    for address in view.reserved:
        taken[block_of(address)] |= bit_of(address)
    return view.ranges.size - sum((mask & view.ranges.mask(block)).bit_count() for block, mask in taken.items())


def filling(view: PoolView, left: int) -> list[Condition]:
    """Return the conditions ``NearlyFull`` and ``Full``, as far as they hold. ``left``: see :func:`free`."""
    if view.ranges is None or view.ranges.size == 0:
        return []
    size, percent = view.ranges.size, view.pool.spec.nearly_full_percent
    found: list[Condition] = []
    if (size - left) * 100 >= percent * size:
        message = f"{percent} % or more of its {size} addresses are allocated or kept: an operator should add a range"
        found.append(condition("NearlyFull", "True", "AboveThreshold", message))
    if left == 0:
        message = f"all {size} addresses are allocated or kept: an operator must add a range"
        found.append(condition("Full", "True", "NoAddressLeft", message))
    return found


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
