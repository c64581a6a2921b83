"""When who is due, for any number of leases; and how fast messages may follow one another."""

import heapq
from collections.abc import Hashable, Iterator
from math import inf
from typing import Final, Generic, TypeVar

T = TypeVar("T", bound=Hashable)

_SLACK: Final = 64


class Schedule(Generic[T]):
    """One time for each member, in a heap. A time that was replaced stays there until it comes or is swept."""

    def __init__(self) -> None:
        self._times: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0

    def __len__(self) -> int:
        """The size of the heap: at most twice the members and a little."""
        return len(self._heap)

    def set(self, member: T, when: float) -> None:
        """Set the member's time; infinity for never."""
        if self._times.get(member) == when:
            return
        if when == inf:
            self._times.pop(member, None)
            return
        self._times[member] = when
        self._count += 1  # members need no order among themselves
        heapq.heappush(self._heap, (when, self._count, member))
        if len(self._heap) > 2 * len(self._times) + _SLACK:
            self._heap = [entry for entry in self._heap if self._times.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def forget(self, member: T) -> None:
        """The member is gone."""
        self._times.pop(member, None)

    def next(self) -> float | None:
        """The earliest time; None where there is none."""
        while self._heap:
            when, _, member = self._heap[0]
            if self._times.get(member) == when:
                return when
            heapq.heappop(self._heap)
        return None

    def due(self, now: float, *, most: int) -> Iterator[T]:
        """Take out those whose time has come, earliest first."""
        for _ in range(most):
            when = self.next()
            if when is None or when > now:
                return
            _, _, member = heapq.heappop(self._heap)
            del self._times[member]
            yield member


class Pacer:
    """At most ``rate`` a second, of which a few may come at once after a pause."""

    _BURST: Final = 0.02
    """Seconds of pause that may be made up for."""

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self._slot = -inf

    def take(self, now: float) -> bool:
        """Whether one may go now; if so, it has gone."""
        if self._slot > now:
            return False
        self._slot = max(self._slot, now - self._BURST) + self._interval
        return True
