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

SIZES: Final = (10_007, 65_537)
"""The table sizes in use, ascending. Primes, so that every step size visits every slot."""

SLOTS_PER_NODE: Final = 100
"""At this many slots a node and more, one leaving of ten moves 10.7 % of the flows (10 % is the least possible)."""


def table_size(nodes: int) -> int:
    """The smallest size in use that gives ``nodes`` 100 slots each; the biggest there is for more than 655 nodes."""
    return next((size for size in SIZES if size >= SLOTS_PER_NODE * nodes), SIZES[-1])


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
