"""Traces: the way of one change of a Service through all programs, as spans. Pure: no OpenTelemetry here.

A span's *context* is text, as W3C Trace Context writes it (``traceparent``, version 00): it goes over the bridge as
metadata, and from the bridge to the host's controller and the agents in an annotation of the LoadBalancer.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, Generic, Literal, Protocol, TypeVar

from cloudprovider.core.api.loadbalancer import TRACE_ANNOTATION, LoadBalancer

K = TypeVar("K")

Kind = Literal["internal", "client", "server"]
Attributes = Mapping[str, str | int]

SERVICE_NAMESPACE: Final = "k8s.namespace.name"
SERVICE_NAME: Final = "k8s.service.name"
LOAD_BALANCER: Final = "cloudprovider.load_balancer"
"""``namespace/name`` of the host's object."""
TENANT: Final = "cloudprovider.tenant"
NETWORK: Final = "cloudprovider.network"
ADDRESSES: Final = "cloudprovider.addresses"
REASON: Final = "cloudprovider.reason"
"""Why something is not as it was asked for: a condition's reason, or an error's kind."""

FOLLOWED_SECONDS: Final = 60
"""What happens to a load balancer within this time after a change counts as its consequence."""

_CONTEXT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def well_formed(context: str) -> str:
    """Return ``context`` if it is one (W3C Trace Context section 3.2, version 00), else ""."""
    return context if _CONTEXT.fullmatch(context) else ""


class Span(Protocol):
    """Something that has begun, and ends with its ``with`` block; an exception ends it as failed."""

    @property
    def context(self) -> str:
        """What its children name as their parent; "" where it is not recorded, and so are they not."""
        ...

    def set(self, attribute: str, value: str | int) -> None:
        """Say more of it."""
        ...

    def fail(self, reason: str) -> None:
        """It did not do what it should."""
        ...


class Tracer(Protocol):
    """Records spans. Never raises, never waits.

    Shipped: :class:`NoTracer`, :class:`cloudprovider.tracing.otel.OtelTracer`, and in memory
    :class:`cloudprovider.tracing.fake.MemoryTracer`.
    """

    @property
    def enabled(self) -> bool:
        """Whether anything is recorded at all."""
        ...

    def now(self) -> int:
        """The wall clock, in nanoseconds; 0 where nothing is recorded."""
        ...

    def span(
        self,
        name: str,
        *,
        parent: str = "",
        since: int = 0,
        kind: Kind = "internal",
        foreign: bool = False,
        attributes: Attributes | None = None,
    ) -> AbstractContextManager[Span]:
        """Begin a span, now or at ``since`` (see :meth:`now`). Without a ``parent``, a well formed context, it begins
        a trace. ``foreign``: the parent is somebody's whose word on what is recorded does not count here."""
        ...


class _NoSpan:
    context = ""

    def set(self, attribute: str, value: str | int) -> None:
        pass

    def fail(self, reason: str) -> None:
        pass


_NOTHING: Final = nullcontext(_NoSpan())


class NoTracer:
    """A :class:`Tracer` that records nothing."""

    @property
    def enabled(self) -> bool:
        """See Tracer."""
        return False

    def now(self) -> int:
        """See Tracer."""
        return 0

    def span(
        self,
        name: str,
        *,
        parent: str = "",
        since: int = 0,
        kind: Kind = "internal",
        foreign: bool = False,
        attributes: Attributes | None = None,
    ) -> AbstractContextManager[Span]:
        """See Tracer."""
        return _NOTHING


NO_TRACER: Final = NoTracer()


@dataclass(frozen=True, slots=True)
class Trail:
    """A trace that something is followed in: the context of what caused it, since when, and what it is."""

    context: str
    since: int
    attributes: Attributes


class Trails(Generic[K]):
    """Which objects are followed, by key: from a change that was traced, for FOLLOWED_SECONDS."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._trails: dict[K, Trail] = {}

    def __bool__(self) -> bool:
        return bool(self._trails)

    def begin(self, key: K, context: str, attributes: Attributes) -> None:
        """Something has changed; without a ``context`` nobody wants to know what follows. ``attributes``: of every
        span of it."""
        if context:
            self._trails[key] = Trail(context, self._tracer.now(), attributes)
        else:
            self._trails.pop(key, None)

    @contextmanager
    def root(self, key: K, name: str, *, since: int, attributes: Attributes) -> Iterator[Span]:
        """A trace's first span, in which the object is followed from now on."""
        with self._tracer.span(name, since=since, attributes=attributes) as span:
            self.begin(key, span.context, attributes)
            yield span

    @staticmethod
    def nothing() -> AbstractContextManager[Span]:
        """A span of nothing."""
        return _NOTHING

    def end(self, key: K) -> None:
        """It is gone."""
        self._trails.pop(key, None)

    def since(self, key: K) -> int:
        """When what an object is followed for began; 0 where it is not followed."""
        trail = self.of(key)
        return 0 if trail is None else trail.since

    def of(self, key: K) -> Trail | None:
        """Return what an object is followed in now."""
        if not self._trails:
            return None
        trail = self._trails.get(key)
        if trail is not None and self._tracer.now() - trail.since > FOLLOWED_SECONDS * 1_000_000_000:
            del self._trails[key]
            return None
        return trail

    def follow(
        self,
        key: K,
        name: str,
        *,
        since: int = 0,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
    ) -> AbstractContextManager[Span]:
        """A span of what happens to an object; nothing where it is not followed."""
        trail = self.of(key)
        if trail is None:
            return _NOTHING
        said = {**trail.attributes, **(attributes or {})}
        return self._tracer.span(name, parent=trail.context, since=since, kind=kind, attributes=said)


class LoadBalancerTrails(Trails[tuple[str, str]]):
    """The load balancers that are followed: what the bridge has changed brings the context of it along."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__(tracer)
        self._enabled = tracer.enabled

    def changed(self, old: LoadBalancer | None, new: LoadBalancer | None, *, listed: bool) -> None:
        """Take note of a change. ``listed``: it was there before anybody watched, so it is no news."""
        if not self._enabled:
            return
        if new is None:
            if old is not None:
                self.end(old.key)
        elif not listed and (old is None or _written(old) != _written(new)):
            self.begin(new.key, _brought(new), described(new))


def _brought(lb: LoadBalancer) -> str:
    """The context that the bridge has left. Nobody else's counts: what machines' load balancers say is their users'."""
    return well_formed(lb.metadata.annotations.get(TRACE_ANNOTATION, "")) if lb.spec.service is not None else ""


def _written(lb: LoadBalancer) -> tuple[int, str]:
    return lb.metadata.generation, lb.metadata.deletion_timestamp


def described(lb: LoadBalancer) -> dict[str, str | int]:
    """What a span says of a load balancer: its object, and the Service that it stands for."""
    said: dict[str, str | int] = {LOAD_BALANCER: "/".join(lb.key)}
    if lb.spec.service is not None:
        said |= {SERVICE_NAMESPACE: lb.spec.service.namespace, SERVICE_NAME: lb.spec.service.name}
    return said
