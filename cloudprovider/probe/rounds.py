"""Who is probed when: each subject once a period, spread over it, and no more of them at once than is bearable."""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import methodcaller
from typing import Final, Generic, TypeVar

from cloudprovider.core.health import Answer
from cloudprovider.probe.api import Prober, Target
from cloudprovider.probe.ring import Ring

K = TypeVar("K", bound=Hashable)

_TICK: Final = 0.025
"""Seconds between two looks at who is due, at least: at 1,000 nodes and 0.01 probes cost a third more."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How a subject is probed: what it is asked, and in seconds how often and how long."""

    target: Target
    period: float
    timeout: float


class _Subject:
    """One that is followed; one that has gone and come again is another."""

    __slots__ = ("asking", "turn")

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.asking = False


class Rounds(Generic[K]):
    """Probes of many subjects. Made in a running event loop; works while ``run`` runs. ``ended`` is told every answer
    of a subject that is still followed.

    ``at_once`` bounds the probes under way, and so the open sockets: with more silent subjects than that allows
    (``at_once / timeout`` a second) the period grows for all, and no verdict comes of it.
    """

    def __init__(
        self, prober: Prober, key: Callable[[K], bytes], ended: Callable[[K, Answer], None], *, at_once: int
    ) -> None:
        """``key``: another one for each subject, the same at every start: it says where in the period it is asked."""
        self._prober = prober
        self._key = key
        self._ended = ended
        self._at_once = at_once
        self._under_way = 0
        self._loop = asyncio.get_running_loop()
        self._subjects: dict[K, _Subject] = {}
        self._rings: dict[float, Ring[K]] = {}
        self._waiting: asyncio.Future[None] | None = None

    def follow(self, wanted: Mapping[K, Turn]) -> None:
        """Probe just these from now on, the whole set each time. One whose turn is another has begun anew."""
        before = self._subjects
        if len(before) == len(wanted) and all(k in before and before[k].turn == t for k, t in wanted.items()):
            return
        self._subjects = {
            k: s if (s := before.get(k)) is not None and s.turn == turn else _Subject(turn)
            for k, turn in wanted.items()
        }
        members: dict[float, list[K]] = {}
        for k, turn in wanted.items():
            members.setdefault(turn.period, []).append(k)
        now = self._loop.time()
        self._rings = {p: self._rings.get(p) or Ring(p, self._key, now) for p in members}
        for period, ring in self._rings.items():
            ring.follow(members[period])
        self._wake()

    async def run(self) -> None:
        """Probe until cancelled. Closing the prober is its maker's."""
        while True:
            now = self._loop.time()
            for ring in sorted(self._rings.values(), key=methodcaller("next_at")):  # who waits longest is first
                for subject in ring.take(now, self._at_once - self._under_way):
                    if subject in self._subjects:  # may have gone while another probe began
                        await self._begin(subject, self._subjects[subject])
            await self._sleep(now)

    async def _begin(self, key: K, subject: _Subject) -> None:
        if subject.asking:  # a timeout longer than the period
            return
        subject.asking = True
        self._under_way += 1
        turn = subject.turn
        try:
            await self._prober.begin(turn.target, turn.timeout, partial(self._answered, key, subject))
        except BaseException:
            subject.asking = False
            self._under_way -= 1
            raise

    def _answered(self, key: K, subject: _Subject, answer: Answer) -> None:
        subject.asking = False
        if self._under_way == self._at_once:
            self._wake()
        self._under_way -= 1
        if self._subjects.get(key) is subject:
            self._ended(key, answer)

    async def _sleep(self, now: float) -> None:
        """Until somebody is due, a tick at least; ``_wake`` ends it too."""
        self._waiting = self._loop.create_future()
        due = min((ring.next_at() for ring in self._rings.values()), default=inf)
        due = due if self._under_way < self._at_once else inf
        timer = self._loop.call_at(max(due, now + _TICK), self._wake) if due < inf else None
        try:
            await self._waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
