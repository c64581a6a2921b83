"""Which of many addresses answer on a link, and with which MAC: whom to ask next, and what an answer means.

Pure: time (seconds of a monotonic clock) and chance are arguments, and frames are somebody else's
(:mod:`cloudprovider.dataplane.nodes`). The states are those of RFC 4861 section 7.3.2, for both families:

- unknown: asked by broadcast, twice in the first second, then less and less often;
- known: asked by unicast every ``confirm`` seconds, unless it has been heard meanwhile;
- doubtful: still known, but did not answer: asked again each ``answer`` seconds; then unknown.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from types import MappingProxyType
from typing import Final, NamedTuple

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress

_BURST: Final = 0.1
"""Seconds' worth of frames that may go out at once."""


@dataclass(frozen=True)
class Pace:
    """How nodes are asked. Times in seconds."""

    confirm: float = 5.0
    answer: float = 1.0
    tries: int = 3
    """Questions to a known node that stay unanswered until it counts as lost."""
    first: float = 0.5
    slowest: float = 30.0
    """Between two questions by broadcast: from ``first``, doubled each time, to ``slowest``."""
    settle: float = 1.0
    """How long an address has been asked for until its silence means something."""
    per_second: int = 500
    """Frames at most, of all nodes: beyond 2,500 nodes ``confirm`` stretches."""


class Ask(NamedTuple):
    """A question to be sent: to the node itself, or by broadcast."""

    address: IPAddress
    to: MACAddress | None


@dataclass(eq=False, slots=True)
class _Node:
    address: IPAddress
    mac: MACAddress | None = None
    first_asked: float | None = None
    heard: float = 0.0
    fresh: bool = False
    """Whether it was heard since it was learnt, or asked."""
    unanswered: int = 0
    gap: float = 0.0
    entry: int = 0
    """Its one valid entry in the queue; 0: followed no longer."""


class NodeWatch:
    """The state of all nodes that are followed. ``chance``: a number in [0, 1), as ``random.random`` gives."""

    def __init__(self, pace: Pace, chance: Callable[[], float]) -> None:
        self._pace = pace
        self._chance = chance
        self._nodes: dict[IPAddress, _Node] = {}
        self._known: dict[IPAddress, MACAddress] = {}
        self._queue: list[tuple[float, int, _Node]] = []
        self._settling: deque[tuple[float, _Node]] = deque()
        """Those that have been asked for the first time, and when: in that order."""
        self._entries = count(1)
        self._budget = 0.0
        self._counted: float | None = None

    @property
    def known(self) -> Mapping[IPAddress, MACAddress]:
        """Who answers, and with which MAC: a view of what is so now."""
        return MappingProxyType(self._known)

    def follow(self, addresses: Iterable[IPAddress], now: float) -> bool:
        """Follow these addresses and no others; True when ``known`` has changed."""
        wanted = frozenset(addresses)
        changed = False
        for gone in self._nodes.keys() - wanted:
            self._nodes.pop(gone).entry = 0
            changed |= self._known.pop(gone, None) is not None
        for new in wanted - self._nodes.keys():
            node = self._nodes[new] = _Node(new, gap=self._pace.first)
            self._put(node, now)
        return changed

    def hear(self, address: IPAddress, mac: MACAddress, now: float) -> bool:
        """The node was heard to have the address; True when ``known`` has changed."""
        node = self._nodes.get(address)
        if node is None:
            return False
        node.heard, node.fresh, node.unanswered = now, node.mac is not None, 0
        if node.mac == mac:
            return False
        if node.mac is None:  # anywhere in the period, so that those who come together are not asked together
            self._put(node, now + 0.9 * self._pace.confirm * self._chance())
        node.mac = self._known[address] = mac
        return True

    def settled(self, address: IPAddress, now: float) -> bool:
        """Whether it is known, or has been asked for so long that its silence means something."""
        node = self._nodes.get(address)
        if node is None:
            return False
        return node.mac is not None or (node.first_asked is not None and node.first_asked + self._pace.settle <= now)

    def restart(self, now: float) -> None:
        """The link has come up: ask again for all, as silence so far means nothing."""
        self._queue.clear()
        for node in self._nodes.values():
            node.gap, node.fresh, node.unanswered = self._pace.first, False, 0
            if node.mac is None:
                node.first_asked = None
                self._put(node, now)
            else:
                self._put(node, now + self._pace.answer * self._chance())

    def asks(self, now: float) -> tuple[list[Ask], bool]:
        """What to ask now, as far as the pace allows; and whether ``known`` has changed (a node is lost), or somebody's
        silence has come to mean something."""
        self._earn(now)
        asks: list[Ask] = []
        changed = self._settle(now)
        while self._queue and self._queue[0][0] <= now and self._budget >= 1:
            _, entry, node = heapq.heappop(self._queue)
            if entry != node.entry:
                continue
            if node.mac is not None and node.fresh:
                node.fresh = False
                rested = node.heard + self._pace.confirm * (0.8 + 0.2 * self._chance())
                if rested > now:
                    self._put(node, rested)
                    continue
            if node.unanswered >= self._pace.tries:
                node.mac, node.unanswered, node.gap = None, 0, self._pace.first
                del self._known[node.address]
                changed = True
            self._budget -= 1
            asks.append(self._ask(node, now))
        return asks, changed

    def due(self, now: float) -> float | None:
        """When to call ``asks`` again; None: when more is followed."""
        if not self._queue:
            return None
        self._earn(now)
        asks = max(self._queue[0][0], now + (1 - self._budget) / self._pace.per_second)
        return min(asks, self._settling[0][0] + self._pace.settle) if self._settling else asks

    def _ask(self, node: _Node, now: float) -> Ask:
        if node.first_asked is None:
            node.first_asked = now
            if node.mac is None:
                self._settling.append((now, node))
        if node.mac is not None:
            node.unanswered += 1
            self._put(node, now + self._pace.answer)
        else:
            self._put(node, now + node.gap * (1 + 0.1 * self._chance()))
            node.gap = min(2 * node.gap, self._pace.slowest)
        return Ask(node.address, node.mac)

    def _settle(self, now: float) -> bool:
        silent = False
        while self._settling and self._settling[0][0] + self._pace.settle <= now:
            first_asked, node = self._settling.popleft()
            silent |= node.entry != 0 and node.first_asked == first_asked and node.mac is None
        return silent

    def _put(self, node: _Node, due: float) -> None:
        node.entry = next(self._entries)
        heapq.heappush(self._queue, (due, node.entry, node))

    def _earn(self, now: float) -> None:
        most = max(1.0, self._pace.per_second * _BURST)
        earned = most if self._counted is None else (now - self._counted) * self._pace.per_second
        self._budget = min(most, self._budget + earned)
        self._counted = now
