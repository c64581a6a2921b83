"""A de-duplicating work queue of keys, as client-go's: level-triggered work, one worker per key, backoff per key.

Bounded by nature: a key stands in it once, however often it is added. Time is the event loop's (``loop.time()``).
"""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from cloudprovider.core.errors import BridgeError, CloudProviderError, KubeError
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
        self._rows: OrderedDict[Hashable, dict[K, float]] = OrderedDict()
        self._row_of: dict[K, Hashable] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    def __contains__(self, key: K) -> bool:
        return key in self._row_of

    @property
    def oldest(self) -> float | None:
        """Since when the key has waited that waits longest."""
        return min((next(iter(row.values())) for row in self._rows.values()), default=None)

    def push(self, key: K, now: float) -> None:
        """Let ``key`` wait at the end of its group's row; if it stands there already, it keeps its place."""
        group = self._group(key)
        if key in self._row_of:
            if self._row_of[key] == group:
                return
            self._leave(key)
        self._row_of[key] = group
        self._rows.setdefault(group, {})[key] = now

    def pop(self) -> K:
        group, row = next(iter(self._rows.items()))
        key = next(iter(row))
        self._leave(key)
        if group in self._rows:
            self._rows.move_to_end(group)
        return key

    def _leave(self, key: K) -> None:
        group = self._row_of.pop(key)
        row = self._rows[group]
        del row[key]
        if not row:
            del self._rows[group]


@dataclass(frozen=True)
class QueueStats:
    """How a queue stands: keys ready, delayed and being worked on, keys that failed last time, failures in all; and for
    how many seconds the ``oldest`` that is ready has waited."""

    ready: int
    oldest: float
    delayed: int
    active: int
    failing: int
    failures: int


class WorkQueue(Generic[K]):
    """Calls ``handle(key)`` for every key added, never for one key twice at a time.

    A key added while it is being handled is handled once more afterwards. ``handle`` returns None, or seconds after
    which it wants to see the key again. If it raises, the key comes back after ``backoff`` (or later, where a
    KubeError or BridgeError carries ``retry_after``); adding the key sooner, because something has changed, tries
    sooner.
    ``group`` (of a key when it is added, say its tenant) shares the workers fairly: groups take turns.
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
        self.name = name
        self._handle = handle
        self._workers = workers
        self._rng = rng
        self._backoff = backoff
        self._drain_seconds = drain_seconds
        self._ready: _Fair[K] = _Fair(group or _one_group)
        self._active: dict[K, asyncio.Task[None]] = {}
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._failed = 0
        self._running = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def stats(self) -> QueueStats:
        """How the queue stands, for metrics."""
        began = self._ready.oldest
        return QueueStats(
            ready=len(self._ready),
            oldest=0.0 if began is None else asyncio.get_running_loop().time() - began,
            delayed=len(self._timers),
            active=len(self._active),
            failing=len(self._failures),
            failures=self._failed,
        )

    def add(self, key: K) -> None:
        """Have ``key`` handled as soon as a worker is free (once, if it waits already)."""
        self._stop_timer(key)
        if key in self._active:
            self._again.add(key)
        else:
            self._ready.push(key, asyncio.get_running_loop().time())
            self._idle.clear()
            self._dispatch()

    def add_after(self, key: K, seconds: float) -> None:
        """Have ``key`` handled after ``seconds``; does nothing if it is to be handled sooner anyway."""
        if key in self._ready or key in self._again:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + seconds:
            return
        self._stop_timer(key)
        self._timers[key] = loop.call_later(seconds, self.add, key)

    def forget(self, key: K) -> None:
        """Forget the failures of ``key`` and its delayed return: what it stood for is gone."""
        self._failures.pop(key, None)
        self._stop_timer(key)

    async def idle(self) -> None:
        """Wait until no key is ready or being handled (delayed ones don't count)."""
        await self._idle.wait()

    async def run(self) -> None:
        """Work until cancelled; then take nothing new, let handlers finish for ``drain_seconds``, cancel the rest, and
        return when all have ended. What was not handled stays in the queue, for another :meth:`run`."""
        if self._running:
            raise RuntimeError(f"queue {self.name} is already running")
        self._running = True
        try:
            self._dispatch()
            await asyncio.get_running_loop().create_future()
        finally:
            self._running = False
            try:
                if self._active:
                    await asyncio.wait(self._active.values(), timeout=self._drain_seconds)
            finally:
                rest = list(self._active.values())
                for task in rest:
                    task.cancel()
                if rest:
                    await asyncio.wait(rest)

    def _dispatch(self) -> None:
        while self._running and self._ready and len(self._active) < self._workers:
            key = self._ready.pop()
            self._active[key] = asyncio.get_running_loop().create_task(self._work(key), name=f"{self.name} {key}")
        if not self._ready and not self._active:
            self._idle.set()

    async def _work(self, key: K) -> None:
        delay: float | None = None
        try:
            delay = await self._handle(key)
            self._failures.pop(key, None)
        except asyncio.CancelledError as error:
            if not self._running:
                self._again.add(key)  # unfinished: it belongs to the next run
                raise
            delay = self._failure(key, error)  # something that the handler waited for was cancelled, not the handler
        except Exception as error:  # noqa: BLE001 - one key's bug must not stop the others; it is logged and retried
            delay = self._failure(key, error)
        finally:
            del self._active[key]
            if key in self._again:
                self._again.remove(key)
                self.add(key)
            elif delay is not None:
                self.add_after(key, delay)
            self._dispatch()

    def _failure(self, key: K, error: BaseException) -> float:
        """Seconds until the next try."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._failed += 1
        delay = self._backoff.delay(failures, self._rng)
        if isinstance(error, KubeError | BridgeError) and error.retry_after is not None:
            delay = max(delay, error.retry_after)
        expected = isinstance(error, CloudProviderError)
        _log.log(
            logging.WARNING if expected else logging.ERROR,
            "Work on a key failed; it will be tried again.",
            extra={
                "queue": self.name,
                "key": str(key),
                "error": str(error),
                "failures": failures,
                "delay": round(delay, 3),
            },
            exc_info=None if expected else error,
        )
        return delay

    def _stop_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()


def _one_group(_: Hashable) -> Hashable:
    return None
