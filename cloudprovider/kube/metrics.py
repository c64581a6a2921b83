"""What a client counts: the price of a Service is stated in API requests. And how queues and events stand."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from cloudprovider.core.metrics.common import (
    EVENTS_DROPPED,
    KUBE_REQUEST_SECONDS,
    KUBE_REQUESTS,
    QUEUE_ACTIVE,
    QUEUE_DELAYED,
    QUEUE_DEPTH,
    QUEUE_FAILING,
    QUEUE_OLDEST,
    QUEUE_RETRIES,
)
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.queue import QueueStats
from cloudprovider.kube.registry import Readings, Registry


class Request(NamedTuple):
    """The labels of one request: ``verb`` as RBAC names it (but ``apply`` apart from ``patch``), ``resource`` the
    plural with its subresource ("loadbalancers/status"), ``code`` the HTTP status, 0 when there was no answer."""

    verb: str
    resource: str
    code: int


class Queue(Protocol):
    """A work queue, of whatever keys."""

    name: str

    @property
    def stats(self) -> QueueStats:
        """How it stands."""
        ...


class RequestCounter:
    """Requests to one API server since the program started, exported by ``registry``."""

    def __init__(self, registry: Registry | None = None) -> None:
        self._counts: Counter[Request] = Counter()
        self._seconds = None
        if registry is not None:
            self._seconds = registry.histogram(KUBE_REQUEST_SECONDS)
            registry.read(self._read)

    def count(self, verb: str, resource: str, code: int, seconds: float | None = None) -> None:
        """Count one request, and how long it took, if that is not up to the API server (a watch)."""
        self._counts[Request(verb, resource, code)] += 1
        if seconds is not None and self._seconds is not None:
            self._seconds.labels(verb).observe(seconds)

    def snapshot(self) -> dict[Request, int]:
        """All counts as of now."""
        return dict(self._counts)

    def total(self, *, verb: str | None = None, resource: str | None = None, code: int | None = None) -> int:
        """How many requests carry all the labels given."""
        return sum(
            n
            for request, n in self._counts.items()
            if (verb is None or request.verb == verb)
            and (resource is None or request.resource == resource)
            and (code is None or request.code == code)
        )

    def _read(self) -> Readings:
        yield KUBE_REQUESTS, {(r.verb, r.resource, str(r.code)): n for r, n in sorted(self._counts.items())}


def read_queues(queues: Iterable[Queue]) -> Readings:
    """Tell how queues stand."""
    stats = {(queue.name,): queue.stats for queue in queues}
    yield QUEUE_DEPTH, {name: s.ready for name, s in stats.items()}
    yield QUEUE_OLDEST, {name: s.oldest for name, s in stats.items()}
    yield QUEUE_ACTIVE, {name: s.active for name, s in stats.items()}
    yield QUEUE_DELAYED, {name: s.delayed for name, s in stats.items()}
    yield QUEUE_FAILING, {name: s.failing for name, s in stats.items()}
    yield QUEUE_RETRIES, {name: s.failures for name, s in stats.items()}


def reading_events(events: Callable[[], EventRecorder | None]) -> Callable[[], Readings]:
    """Return a reader of what ``events`` (None while there is none) has dropped."""

    def read() -> Readings:
        recorder = events()
        return [(EVENTS_DROPPED, {(): recorder.dropped})] if recorder is not None else []

    return read
