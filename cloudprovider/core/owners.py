"""Which host a load balancer's addresses belong to.

Rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998) with weights
(Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005): each host draws for each key, the highest
draw wins. So all who know the same hosts agree without a word, and of a host that goes only its own share moves.

By itself that is even only on average: of 1,000 keys on ten hosts one host in twenty has a fifth too many or too few.
So :class:`Owners` bounds what a host may have (Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded
loads", 2018), and remembers who has what: a key moves only when its owner can't keep it, or to fill up another host.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

_SPAN: Final = float(1 << 64)

MOST: Final = 1.1
"""So many times its fair share a host may have, rounded up, as long as others have room."""
LEAST: Final = 0.9
"""With less than so many times its fair share a host comes first with new keys, and may pull others'."""
_SLACK: Final = 1e-6
"""Shares are sums of fractions."""

_NOBODY: Final[AbstractSet[str]] = frozenset()

Networks = frozenset[str]
"""Those that a key stands on, all at once: its owner must stand on each."""


def draw(key: str, host: str, weight: float = 1.0) -> float:
    """What a host draws for a key: the higher, the more it is its. ``weight`` above 0: its share, to the others'."""
    return _Lots(host).draw(key, weight)


def successor(key: str, hosts: Iterable[str]) -> str:
    """Who of these takes what somebody else has lost; "" where there is nobody."""
    return max(hosts, key=lambda host: (draw(key, host), host), default="")


def ranking(key: str, weights: Mapping[str, float]) -> list[str]:
    """All hosts of a weight above 0, the best first."""
    able = (host for host, weight in weights.items() if weight > 0)
    return sorted(able, key=lambda host: (-draw(key, host, weights[host]), host))


class _Lots:
    """What one host draws; the part of the hash that all its draws share is computed once."""

    def __init__(self, host: str) -> None:
        self._begun = blake2b(f"{host}\0".encode(), digest_size=8)

    def number(self, key: str) -> int:
        """Below 2 to the 64th. Of one host, a higher number is a higher draw."""
        lot = self._begun.copy()
        lot.update(key.encode())
        return int.from_bytes(lot.digest(), "big")

    def draw(self, key: str, weight: float) -> float:
        return -weight / math.log((self.number(key) + 1) / (_SPAN + 2))


@dataclass
class _Field:
    """Those hosts that stand on all of some networks, with their weights, and how many keys stand there.

    ``takers``: those that take keys; ``keepers``: those that may keep what they have.
    """

    networks: Networks
    takers: dict[str, float] = field(default_factory=dict)
    keepers: frozenset[str] = frozenset()
    total: float = 0.0
    count: int = 0


@dataclass
class _Key:
    field: _Field
    owner: str = ""
    holder: str = ""


class Owners:
    """The owner of each key. Nothing is decided before :meth:`set_hosts` has told which hosts there are.

    What one key's change costs grows with the hosts alone; a change of hosts looks at every key once, and draws for
    those that move, or that a host chooses from. The same calls in the same order come to the same owners.
    """

    def __init__(self) -> None:
        self._keys: dict[str, _Key] = {}
        self._fields: dict[Networks, _Field] = {}
        self._able: Mapping[str, Mapping[str, float]] = {}
        self._waiting: AbstractSet[str] = frozenset()
        self._loads: defaultdict[str, int] = defaultdict(int)
        self._shares: defaultdict[str, float] = defaultdict(float)
        self._lots: dict[str, _Lots] = {}

    def owner(self, key: str) -> str:
        """Whose a key is; "" where it is nobody's (yet)."""
        found = self._keys.get(key)
        return "" if found is None else found.owner

    def load(self, host: str) -> int:
        """How many keys are a host's."""
        return self._loads.get(host, 0)

    def share(self, host: str) -> float:
        """How many it should be, by its weight among those that stand where it does."""
        return self._shares.get(host, 0.0)

    def can_take(self, networks: Networks) -> bool:
        """Whether there is a host for what stands on all of these networks."""
        return bool((self._fields.get(networks) or self._filled(networks)).takers)

    def put(self, key: str, networks: Networks, *, owner: str = "", holder: str = "") -> str:
        """Take a key as it is now, and return its owner. ``owner``: whose it was said to be, for one not known yet;
        ``holder``: who has its addresses up, preferred to all others when it needs another owner."""
        known = self._keys.get(key)
        if known is None:
            known = self._keys[key] = _Key(self._field(networks))
            self._count(known.field, 1)
            self._give(known, owner)
        elif known.field.networks != networks:
            self._count(known.field, -1)
            self._tidy(known.field)
            known.field = self._field(networks)
            self._count(known.field, 1)
        known.holder = holder
        self._settle(key, known)
        return known.owner

    def remove(self, key: str) -> None:
        """A key is no more; nothing else moves."""
        known = self._keys.pop(key, None)
        if known is not None:
            self._give(known, "")
            self._count(known.field, -1)
            self._tidy(known.field)

    def taken_over(self, key: str, host: str) -> bool:
        """A host has taken a key over by itself: it is its own from now on, if that host may keep it. Say whether
        that is news."""
        known = self._keys.get(key)
        if known is None or known.owner == host or host not in known.field.keepers:
            return False
        self._give(known, host)
        return True

    def set_hosts(
        self, able: Mapping[str, Mapping[str, float]], waiting: AbstractSet[str] = frozenset()
    ) -> frozenset[str]:
        """Take the hosts as they are now, and return the keys that have another owner by it.

        ``able``: by network, the weight of each host that serves there; 0: it takes nothing, and gives up what it has
        if there is another. ``waiting``: hosts that have only just come: they keep what they have, and take nothing as
        long as there is another. What a host that comes (back) still has up becomes its own: nothing moves for that.
        """
        before = {networks: (place.takers, place.keepers) for networks, place in self._fields.items()}
        self._able, self._waiting = able, frozenset(waiting)
        self._lots = {host: self._lots.get(host) or _Lots(host) for hosts in able.values() for host in hosts}
        for found in self._fields.values():
            self._fill(found)
        self._shares.clear()
        for found in self._fields.values():
            self._spread(found, found.count)
        # Where nobody was before, nothing was taken from anybody: what is recorded stays.
        come = {n: place.keepers - before[n][1] if before[n][1] else _NOBODY for n, place in self._fields.items()}
        moved = {key for key in sorted(self._keys) if self._settle(key, self._keys[key], come)}
        # Where one that takes has less weight than before, others have a greater share; that one has gone is no reason.
        changed = any(
            weight != before[networks][0].get(host, 0.0)
            for networks, place in self._fields.items()
            for host, weight in place.takers.items()
        )
        if changed:
            moved |= self.balance()
        return frozenset(moved)

    def balance(self) -> frozenset[str]:
        """Let hosts with too little pull from those with too much, and return what has moved: of what it may have,
        each takes first what it ranks best among its own draws, and so what would have been its in the first place."""
        moved: set[str] = set()
        for taker in sorted(host for host in self._shares if self._is_short(host)):
            number = self._lots[taker].number
            offers = [
                (number(key), key)
                for key, known in self._keys.items()
                if taker in known.field.takers and self._can_give(known.owner, taker)
            ]
            for _, key in sorted(offers, reverse=True):
                if self.load(taker) + 1 > self.share(taker) + _SLACK:
                    break
                if self._can_give(self._keys[key].owner, taker):
                    self._give(self._keys[key], taker)
                    moved.add(key)
        return frozenset(moved)

    # --- one key -------------------------------------------------------------------------------------------------

    def _settle(self, key: str, known: _Key, come: Mapping[Networks, AbstractSet[str]] | None = None) -> bool:
        """Give it an owner that can have it, if it has none; say whether that is another one. ``come``: the hosts that
        have come, which own what they have up."""
        place = known.field
        is_back = come is not None and known.holder in come[place.networks]
        if not place.takers or (known.owner in place.keepers and not is_back):
            return False
        before = known.owner
        self._give(known, known.holder if known.holder in place.keepers else self._choose(key, place))
        return known.owner != before

    def _choose(self, key: str, place: _Field) -> str:
        """Who comes short, else who has room, else who has least to its share; of these, the highest draw.

        The key counts in the shares already, and not yet in what anybody has.
        """
        hosts = place.takers
        best = [host for host in hosts if self._is_short(host)] or [host for host in hosts if self._has_room(host)]
        if best:
            return max(best, key=lambda host: (self._lots[host].draw(key, hosts[host]), host))
        return min(hosts, key=lambda host: (self.load(host) / self.share(host), host))

    def _is_short(self, host: str) -> bool:
        return self.load(host) + _SLACK < LEAST * self.share(host)

    def _has_room(self, host: str) -> bool:
        return self.load(host) < math.ceil(MOST * self.share(host) - _SLACK)

    def _can_give(self, giver: str, taker: str) -> bool:
        """Whether both come nearer to their shares if one gives a key to the other; one that has just come keeps it."""
        if giver in self._waiting:
            return False
        excess = self.load(giver) - self.share(giver)
        return giver != taker and excess > _SLACK and excess - (self.load(taker) - self.share(taker)) > 1 + _SLACK

    def _give(self, known: _Key, owner: str) -> None:
        if known.owner:
            self._loads[known.owner] -= 1
            if not self._loads[known.owner]:
                del self._loads[known.owner]
        known.owner = owner
        if owner:
            self._loads[owner] += 1

    # --- hosts and networks --------------------------------------------------------------------------------------

    def _field(self, networks: Networks) -> _Field:
        found = self._fields.get(networks)
        if found is None:
            found = self._fields[networks] = self._filled(networks)
        return found

    def _filled(self, networks: Networks) -> _Field:
        found = _Field(networks)
        self._fill(found)
        return found

    def _tidy(self, place: _Field) -> None:
        if not place.count:
            self._fields.pop(place.networks, None)

    def _fill(self, place: _Field) -> None:
        there = [self._able.get(network, {}) for network in place.networks]
        first = there[0] if there else {}
        weights = {
            host: min(hosts[host] for hosts in there)
            for host in sorted(first)
            if all(host in hosts for hosts in there) and min(hosts[host] for hosts in there) > 0
        }
        settled = {host: weight for host, weight in weights.items() if host not in self._waiting}
        place.takers, place.keepers = settled or weights, frozenset(weights)
        place.total = sum(place.takers.values())

    def _count(self, place: _Field, change: int) -> None:
        place.count += change
        self._spread(place, change)

    def _spread(self, place: _Field, count: int) -> None:
        for host, weight in place.takers.items():
            self._shares[host] += count * weight / place.total
