"""Things whose time is over at some moment, of which there may be ten thousand. Pure; time is an argument."""

from collections.abc import Hashable
from math import inf
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Deadlines(Generic[K]):
    """What ends when, in seconds of any one clock. Asking costs the same however many there are, until one is over."""

    def __init__(self) -> None:
        self._ends: dict[K, float] = {}
        self._earliest = inf
        """Nothing ends before this."""

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, what: K) -> bool:
        return what in self._ends

    def set(self, what: K, end: float) -> None:
        """It ends then, whatever was set before."""
        self._ends[what] = end
        self._earliest = min(self._earliest, end)

    def drop(self, what: K) -> None:
        """It does not end."""
        self._ends.pop(what, None)

    def over(self, now: float) -> bool:
        """Whether anything's time is over."""
        if self._earliest <= now:  # that may have been dropped, or put off
            self._earliest = min(self._ends.values(), default=inf)
        return self._earliest <= now

    def take(self, now: float) -> list[K]:
        """Return what's time is over, once."""
        if not self.over(now):
            return []
        taken = [what for what, end in self._ends.items() if end <= now]
        for what in taken:
            del self._ends[what]
        return taken
