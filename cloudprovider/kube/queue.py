"""A de-duplicating work queue of keys, as client-go's: level-triggered work, one worker per key, backoff per key.

Bounded by nature: a key stands in it once, however often it is added. Time is the event loop's (``loop.time()``).
"""

import asyncio
import heapq
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cloudprovider.core.errors import CloudProviderError, KubeError
from cloudprovider.kube.backoff import Backoff

K = TypeVar("K", bound=Hashable)

_log = logging.getLogger(__name__)

BACKOFF = Backoff(base=0.1, limit=60.0)
DRAIN_SECONDS = 2.0
"""How long handlers may go on after a cancel: far below the margin between a leader's renew deadline and its lease."""


class _Fair(Generic[K]):
    """Ready keys: first in, first out within a group, and the groups in turn."""

    def __init__(self, group: Callable[[K], Hashable]) -> None:
        self._group = group
        self._members: set[K] = set()
        self._groups: dict[Hashable, deque[K]] = {}
        self._turns: deque[Hashable] = deque()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, key: K) -> bool:
        return key in self._members

    def push(self, key: K) -> None:
        self._members.add(key)
        group = self._group(key)
        if group not in self._groups:
            self._groups[group] = deque()
            self._turns.append(group)
        self._groups[group].append(key)

    def pop(self) -> K:
        group = self._turns.popleft()
        waiting = self._groups[group]
        key = waiting.popleft()
        if waiting:
            self._turns.append(group)
        else:
            del self._groups[group]
        self._members.remove(key)
        return key


@dataclass(frozen=True)
class QueueStats:
    """How a queue stands: keys ready, delayed and being worked on, keys that failed last time, failures in all."""

    ready: int
    delayed: int
    active: int
    failing: int
    failures: int


class WorkQueue(Generic[K]):
    """Calls ``handle(key)`` for every key added, never for one key twice at a time.

    A key added while it is being handled is handled once more afterwards. ``handle`` returns None, or seconds after
    which it wants to see the key again. If it raises, the key comes back after ``backoff`` (or later, where a
    KubeError carries ``retry_after``); adding the key sooner, because something has changed, tries sooner.
    ``group`` (of a key, say its tenant) shares the workers fairly: groups take turns.
    """

    def __init__(
        self,
        handle: Callable[[K], Awaitable[float | None]],
        *,
        name: str,
        workers: int,
        rng: random.Random,
        backoff: Backoff = BACKOFF,
        group: Callable[[K], Hashable] | None = None,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        if workers < 1:
            raise ValueError(f"queue {name}: {workers} workers; at least one is needed")
        self._handle = handle
        self._name = name
        self._workers = workers
        self._rng = rng
        self._backoff = backoff
        self._drain_seconds = drain_seconds
        self._ready: _Fair[K] = _Fair(group or _same_group)
        self._active: set[K] = set()
        self._again: set[K] = set()
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0
        self._failures: dict[K, int] = {}
        self._failed = 0
        self._draining = False
        self._work = asyncio.Condition()
        self._wake_timer = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._news = asyncio.Event()

    def __len__(self) -> int:
        """Keys that wait for a worker (delayed ones apart)."""
        return len(self._ready)

    @property
    def stats(self) -> QueueStats:
        """How the queue stands, for metrics."""
        return QueueStats(
            len(self._ready), len(self._due), len(self._active), len(self._failures), self._failed
        )
