"""The seam to the watch over other hosts, met by the real one (:mod:`cloudprovider.liveness.bfd`) and by the shipped
fake (:mod:`cloudprovider.liveness.fake`).

What it says is a hint that comes fast, never a right: whoever takes an address from a host that is down asks for it
first, and the Lease decides where the two differ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from cloudprovider.core.plan import IPAddress


class Liveness(Enum):
    """What is known of a host on one network."""

    UP = "up"
    """It is heard, and hears us."""
    DOWN = "down"
    """It was up, and fell silent without a word: it is dead, cut off, or hangs. Where all are at once, we are."""
    UNKNOWN = "unknown"
    """Never up yet, or it said that it stops, or nobody watches."""


@dataclass(frozen=True, slots=True)
class PeerState:
    """How it stands with a host, and since when (monotonic clock, seconds; 0 where it is unknown)."""

    liveness: Liveness = Liveness.UNKNOWN
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often somebody is to be heard. ``interval``: milliseconds; ``multiplier``: so many silent ones: down."""

    interval: int
    multiplier: int


class PeerWatch(Protocol):
    """Watches hosts on one network. All but ``run`` return at once; it watches while ``run`` runs."""

    def follow(self, peers: Mapping[str, IPAddress], rhythms: Mapping[str, Rhythm] = {}) -> None:
        """Watch these hosts, by their own addresses on the network; the whole set each time. Watching takes two: a
        host that does not follow us stays unknown. So does one that can't be watched: by an address of a family that
        we have none of, by ours, or by one that another host has too. A host that comes with another address begins
        anew. ``rhythms``: of those that have another one than the hosts among them."""
        ...

    def state(self, name: str) -> PeerState:
        """How it stands with a host; unknown for one that is not followed."""
        ...

    def on_change(self, callback: Callable[[str], None]) -> None:
        """Call back with a host's name, in the event loop but never from within ``follow``, when its liveness has
        changed. One callback: the last one given. It may call ``follow``."""
        ...

    async def run(self) -> None:
        """Watch until cancelled. The others are told that it stops, so that they don't take it for a death."""
        ...
