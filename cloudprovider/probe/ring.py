"""When whom to probe: each member once a period, at an offset of its own. Pure."""

from bisect import bisect_right, insort
from collections.abc import Callable, Collection, Hashable
from math import inf
from typing import Final, Generic, TypeVar
from zlib import crc32

T = TypeVar("T", bound=Hashable)

Place = tuple[int, bytes]
"""Where in the period: a hash of the member's key, then the key, so that no two share a place."""

_LATE: Final = 1 / 20
"""How much of the period somebody may be late without all being put off: a busy machine is no hold-up."""


class Ring(Generic[T]):
    """Members in the order of their offsets, which are spread by a hash of their keys and so stay the same whoever
    comes or goes, and a hand that goes round once a period.

    Where the hand is held up, all are put off by as much. So there is nothing to catch up with: they come no faster
    than ever, and nobody is due again long before a period is over.
    """

    def __init__(self, period: float, key: Callable[[T], bytes], now: float) -> None:
        self._period = period
        self._key = key
        self._start = now
        """When turn 0 began, had all turns since been on time."""
        self._places: list[Place] = []
        self._members: dict[Place, T] = {}
        self._place_of: dict[T, Place] = {}
        self._turn = 0
        self._hand: Place = (0, b"")
        """The last place that was handed out, in this turn."""

    def __len__(self) -> int:
        return len(self._places)

    def follow(self, members: Collection[T]) -> None:
        """Have just these from now on. Who comes new is due within a period."""
        wanted = set(members)
        gone = {self._place_of.pop(member) for member in self._place_of.keys() - wanted}
        if gone:
            self._places = [place for place in self._places if place not in gone]
            for place in gone:
                del self._members[place]
        for member in wanted - self._place_of.keys():
            place = self._place(member)
            self._place_of[member] = place
            self._members[place] = member
            insort(self._places, place)

    def next_at(self) -> float:
        """When the next one is due; infinity where there is nobody."""
        return self._next()[0] if self._places else inf

    def take(self, now: float, most: int) -> list[T]:
        """Who is due by ``now``, ``most`` at most; the others stay due."""
        taken: list[T] = []
        while self._places and len(taken) < most:
            due, turn, place = self._next()
            if due > now:
                break
            if now - due > _LATE * self._period:
                self._start += now - due
            self._turn, self._hand = turn, place
            taken.append(self._members[place])
        return taken

    def _next(self) -> tuple[float, int, Place]:
        """When, in which turn, and who."""
        index = bisect_right(self._places, self._hand)
        turn = self._turn
        if index == len(self._places):
            index, turn = 0, turn + 1
        place = self._places[index]
        return self._start + (turn + place[0] / 2**32) * self._period, turn, place

    def _place(self, member: T) -> Place:
        key = self._key(member)
        return crc32(key), key
