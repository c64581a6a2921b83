"""Maglev hashing: which node a flow goes to, the same on every host that knows the same nodes.

D. E. Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4
(https://www.usenix.org/conference/nsdi16/technical-sessions/presentation/eisenbud). Each node has a permutation of
the table's slots, taken from its address (IP or MAC) alone; the nodes take turns, each claiming the first slot of its
permutation that is still free. So all nodes get an equal share (within one slot), and when a node comes or goes, little
more than its own share of the slots changes hands.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from cloudprovider.core.plan import Member

SIZES: Final = (1_021, 4_099, 10_007, 65_537)
"""The table sizes in use, ascending. Primes, so that every step size visits every slot."""

_UP_TO: Final = ((1, 1_021), (20, 4_099), (100, 10_007))
"""So many nodes, that size. Each node has 100 slots and more, and one that leaves N moves at most 1/N of the flows and
two points (one of ten: 11 %). Between two sizes nearly all flows move, so there is one for all but big clusters; a
single node has all of a small table, too, and of that nothing moves but the next one's share. No bigger than needed:
the kernel takes 80 bytes a slot, and reads a set back in a time that grows with the square of it."""


def table_size(nodes: int) -> int:
    """The size for so many nodes; the biggest there is for more than 100."""
    return next((size for most, size in _UP_TO if nodes <= most), SIZES[-1])


def lookup_table(nodes: Sequence[Member], size: int) -> "array[int]":
    """Give each of ``size`` slots (a prime) the index of a node in ``nodes``.

    Hosts agree only when they give the nodes in the same order: sort them. Raises ValueError without nodes, or with
    more nodes than slots.
    """
    if not 1 <= len(nodes) <= size:
        msg = f"a Maglev table of {size} slots can't be filled with {len(nodes)} nodes; it takes 1 to {size}"
        raise ValueError(msg)
    positions: list[int] = []
    steps: list[int] = []
    for node in nodes:
        digest = blake2b(node.packed, digest_size=16).digest()
        positions.append(int.from_bytes(digest[:8], "big") % size)
        steps.append(int.from_bytes(digest[8:], "big") % (size - 1) + 1)
    table = [-1] * size
    left = size
    while True:
        for index, step in enumerate(steps):
            slot = positions[index]
            while table[slot] >= 0:
                slot += step
                if slot >= size:
                    slot -= size
            table[slot] = index
            positions[index] = slot
            left -= 1
            if not left:
                return array("H" if size <= 1 << 16 else "I", table)
