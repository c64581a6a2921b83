"""Spans in memory, for tests: as strict as OpenTelemetry's."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cloudprovider.core.tracing import REASON, Attributes, Kind, Span, well_formed


@dataclass
class MemorySpan:
    """What has become of one span. ``error``: why it failed, "" if it did not."""

    name: str
    trace: str
    number: int
    parent: str
    kind: Kind
    begun: int
    attributes: dict[str, str | int] = field(default_factory=dict)
    ended: int = 0
    error: str = ""

    @property
    def context(self) -> str:
        """See Span."""
        return f"00-{self.trace}-{self.number:016x}-01"

    def set(self, attribute: str, value: str | int) -> None:
        """See Span."""
        self.attributes[attribute] = value

    def fail(self, reason: str) -> None:
        """See Span."""
        self.error = self.attributes[REASON] = reason


class MemoryTracer:
    """A :class:`cloudprovider.core.tracing.Tracer` that keeps what it records. ``now``: nanoseconds."""

    def __init__(self, now: Callable[[], int] | None = None) -> None:
        counted = itertools.count(1)
        self._now = now or (lambda: next(counted))
        self._numbers = itertools.count(1)
        self.spans: list[MemorySpan] = []
        """In the order of their ends."""

    @property
    def enabled(self) -> bool:
        """See Tracer."""
        return True

    def now(self) -> int:
        """See Tracer."""
        return self._now()

    @contextmanager
    def span(
        self,
        name: str,
        *,
        parent: str = "",
        since: int = 0,
        kind: Kind = "internal",
        foreign: bool = False,
        attributes: Attributes | None = None,
    ) -> Iterator[Span]:
        """See Tracer."""
        if parent and not well_formed(parent):
            raise ValueError(f"{parent!r} is no span's context")
        number = next(self._numbers)
        trace = parent.split("-")[1] if parent else f"{number:032x}"
        said = {key: value for key, value in (attributes or {}).items() if value != ""}
        found = MemorySpan(name, trace, number, parent, kind, since or self.now(), said)
        try:
            yield found
        except BaseException as error:
            found.fail(type(error).__name__)
            raise
        finally:
            found.ended = self.now()
            self.spans.append(found)
