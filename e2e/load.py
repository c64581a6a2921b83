"""Asking an address over and over while something else happens, and what became of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import NamedTuple

from tests.lab.traffic import Answer


class Failure(NamedTuple):
    """A request that was not answered. ``began`` is of time.monotonic()."""

    began: float
    error: str


class Success(NamedTuple):
    """A request that was. ``ended`` is of time.monotonic()."""

    ended: float
    pod: str


@dataclass
class Load:
    """Requests one after the other, in a thread of their own."""

    successes: list[Success] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    _stop: Event = field(default_factory=Event)

    @property
    def count(self) -> int:
        return len(self.successes) + len(self.failures)

    @property
    def ratio(self) -> float:
        """The part of the requests that was answered."""
        return len(self.successes) / self.count

    def stop(self) -> None:
        self._stop.set()

    def run(self, ask: Callable[[], Answer], pause: float) -> None:
        while not self._stop.wait(pause):
            began = time.monotonic()
            try:
                pod = ask().pod
            except OSError as error:
                self.failures.append(Failure(began, repr(error)))
            else:
                self.successes.append(Success(time.monotonic(), pod))


@contextmanager
def load(ask: Callable[[], Answer], *, pause: float = 0.0) -> Iterator[Load]:
    """Ask until the end or :meth:`Load.stop`, with ``pause`` seconds between an answer and the next request."""
    found = Load()
    thread = Thread(target=found.run, args=(ask, pause), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.stop()
        thread.join()
