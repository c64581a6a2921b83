"""The states of one tenant's load balancers, and what changed since when: what a watch stream is read from.

A log keeps, for every load balancer, its last state and the revision of its last change, in order of revision. A
reader that stands at revision *r* gets what changed after *r*, each load balancer once with its newest state; so
there is no queue per reader that could grow, and a slow reader skips what is already outdated. Removals are
remembered for the last ``removals`` of them; a reader that stands before the oldest starts anew.
"""

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from types import MappingProxyType
from typing import Self

from cloudprovider.core.exchange import LoadBalancerState, ServiceKey


@dataclass(frozen=True, slots=True)
class Batch:
    """What changed. ``token``: where to resume after it, empty while a snapshot is under way; ``synced``: with this
    batch the snapshot is whole (once, and never for a reader that resumed)."""

    updated: tuple[LoadBalancerState, ...]
    removed: tuple[ServiceKey, ...]
    token: str
    synced: bool


class StateLog:
    """States by Service, with revisions. Made for one event loop."""

    def __init__(self, *, removals: int = 10_000) -> None:
        self._epoch = secrets.token_hex(8)
        self._states: dict[ServiceKey, LoadBalancerState] = {}
        self._changed: dict[ServiceKey, int] = {}  # ascending by revision: a change moves its key to the end
        self._removed: dict[ServiceKey, int] = {}  # likewise
        self._removals = removals
        self._forgotten = 0  # the revision of the youngest removal that is no longer remembered
        self._readers: set[Reader] = set()
        self.revision = 0
        self.states: Mapping[ServiceKey, LoadBalancerState] = MappingProxyType(self._states)

    def publish(self, state: LoadBalancerState) -> None:
        """Record a state; a state equal to the last one changes nothing."""
        key = state.service
        if self._states.get(key) == state:
            return
        self.revision += 1
        self._states[key] = state
        self._changed.pop(key, None)
        self._changed[key] = self.revision
        self._removed.pop(key, None)
        self._wake()

    def remove(self, service: ServiceKey) -> None:
        """Record that a load balancer is gone; also of one never known, since somebody may wait to hear it."""
        self.revision += 1
        self._states.pop(service, None)
        self._changed.pop(service, None)
        self._removed.pop(service, None)
        self._removed[service] = self.revision
        if len(self._removed) > self._removals:
            self._forgotten = self._removed.pop(next(iter(self._removed)))
        self._wake()

    def changed_at(self, service: ServiceKey) -> int:
        """Return the revision of the last change of one load balancer; 0 if none is remembered."""
        return self._changed.get(service) or self._removed.get(service, 0)

    def changes_since(self, revision: int) -> list[tuple[int, ServiceKey]]:
        """Return what changed after ``revision``, oldest first. Costs what changed, not what there is."""
        return sorted(
            (at, key)
            for log in (self._changed, self._removed)
            for key, at in takewhile(lambda item: item[1] > revision, reversed(log.items()))
        )

    def knows(self, revision: int) -> bool:
        """Whether all that changed after ``revision`` is still remembered."""
        return self._forgotten <= revision <= self.revision

    def token(self, revision: int) -> str:
        """Return the resume token that stands for ``revision`` of this log."""
        return f"{self._epoch}.{revision}"

    def parse_token(self, token: str) -> int | None:
        """Return the revision that ``token`` stands for; None if it is not of this log, or too old."""
        epoch, _, digits = token.partition(".")
        if epoch != self._epoch or not (digits.isascii() and digits.isdigit() and len(digits) < 20):
            return None
        revision = int(digits)
        return revision if self.knows(revision) else None

    def attach(self, reader: "Reader") -> None:
        """Wake ``reader`` at every change from now on."""
        self._readers.add(reader)

    def detach(self, reader: "Reader") -> None:
        """Forget ``reader``."""
        self._readers.discard(reader)

    def _wake(self) -> None:
        for reader in self._readers:
            reader.wake()


class Reader:
    """One reader's place in a log, as a context manager.

    ``resumed`` says whether it goes on after ``token``; else it starts with a snapshot.
    """

    def __init__(self, log: StateLog, token: str = "") -> None:
        self._log = log
        revision = log.parse_token(token)
        self.resumed = revision is not None
        self._revision = log.revision if revision is None else revision
        self._snapshot = not self.resumed
        self._pending: list[tuple[int, ServiceKey]] = (
            [(log.changed_at(key), key) for key in log.states] if self._snapshot else log.changes_since(self._revision)
        )
        self._pending.reverse()
        self._event = asyncio.Event()

    def __enter__(self) -> Self:
        self._log.attach(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._log.detach(self)

    def wake(self) -> None:
        """Let :meth:`wait` return: there is something new."""
        self._event.set()

    async def wait(self) -> None:
        """Return when :meth:`next` may have something."""
        await self._event.wait()

    def next(self, limit: int) -> Batch | None:
        """Return the next at most ``limit`` changes, or None if there is nothing new.

        Raises LookupError when so much was removed since the last call that the log no longer remembers it all: open
        a new reader.
        """
        self._event.clear()
        if not self._pending and not self._snapshot:
            if not self._log.knows(self._revision):
                raise LookupError("the reader fell behind what the log remembers")
            self._pending = self._log.changes_since(self._revision)
            self._pending.reverse()
            if not self._pending:
                return None
        updated: list[LoadBalancerState] = []
        removed: list[ServiceKey] = []
        while self._pending and len(updated) + len(removed) < limit:
            at, key = self._pending.pop()
            if not self._snapshot:
                self._revision = at
            if self._log.changed_at(key) != at:
                continue  # changed again since: it comes with its later revision
            state = self._log.states.get(key)
            if state is None:
                removed.append(key)
            else:
                updated.append(state)
        synced = self._snapshot and not self._pending
        if synced:
            self._snapshot = False
        if self._pending:
            self.wake()
        token = "" if self._snapshot else self._log.token(self._revision)
        if self._revision < self._log.revision:
            self.wake()
        return Batch(tuple(updated), tuple(removed), token, synced)
