"""Where a trace begins: with a Service that its users have changed. What follows from that is part of it."""

from contextlib import AbstractContextManager

from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.tracing import SERVICE_NAME, SERVICE_NAMESPACE, Attributes, Kind, Span, Tracer, Trails
from cloudprovider.guest.hostview import Name


class ServiceTraces:
    """The spans of the guest program."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._trails: Trails[Name] = Trails(tracer)
        self._begun: dict[Name, int] = {}

    def changed(self, old: Service | None, new: Service | None, *, listed: bool) -> None:
        """Take note of a change. ``listed``: the Service was there before anybody watched, so it is no news."""
        if not self._tracer.enabled:
            return
        if new is None:
            if old is not None:
                self._begun.pop(old.key, None)
                self._trails.end(old.key)
        elif not listed and (old is None or _asks(old) != _asks(new)):
            self._begun[new.key] = self._tracer.now()

    def handled(self, name: Name) -> AbstractContextManager[Span]:
        """What a Service's change has led to at once: the trace's first span."""
        begun = self._begun.pop(name, 0)
        if not begun:
            return self._trails.nothing()
        said = {SERVICE_NAMESPACE: name[0], SERVICE_NAME: name[1]}
        return self._trails.root(name, "Service changed", since=begun, attributes=said)

    def follow(
        self, name: Name, what: str, *, kind: Kind = "internal", attributes: Attributes | None = None
    ) -> AbstractContextManager[Span]:
        """A span of what follows."""
        return self._trails.follow(name, what, kind=kind, attributes=attributes)


def _asks(service: Service) -> tuple[object, ...]:
    """What of a Service its users decide; all else is written by programs, this one among them."""
    meta = service.metadata
    return service.spec, meta.annotations, meta.uid, bool(meta.deletion_timestamp)
