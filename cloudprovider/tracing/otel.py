"""Spans by OpenTelemetry's SDK: ids, clock and sampling are its own, and no global of it is set."""

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.trace import Span as OtelSpan

from cloudprovider.core.tracing import REASON, Attributes, Kind, Span
from cloudprovider.tracing.delivery import Delivery

SCOPE: Final = "cloudprovider"
DELIVERY_SECONDS: Final = 5.0
"""How long one delivery may take, tries of the exporter's own in it."""
END_SECONDS: Final = 2.0
"""How long a program that ends waits for its last spans to be delivered."""
_KINDS: Final[dict[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "client": SpanKind.CLIENT,
    "server": SpanKind.SERVER,
}
_NOWHERE: Final = Context()
"""Not what happens to be current: parents are named."""


class _Span:
    """Meets :class:`cloudprovider.core.tracing.Span`."""

    def __init__(self, span: OtelSpan) -> None:
        self._span = span

    @property
    def context(self) -> str:
        found = self._span.get_span_context()
        if not found.trace_flags.sampled:
            return ""
        return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"

    def set(self, attribute: str, value: str | int) -> None:
        self._span.set_attribute(attribute, value)

    def fail(self, reason: str) -> None:
        self._span.set_attribute(REASON, reason)
        self._span.set_status(Status(StatusCode.ERROR, reason))


class OtelTracer:
    """A :class:`cloudprovider.core.tracing.Tracer` over a provider of spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self._sampler = provider.sampler
        self._tracer = provider.get_tracer(SCOPE)

    @property
    def enabled(self) -> bool:
        """See Tracer."""
        return True

    def now(self) -> int:
        """See Tracer."""
        return time.time_ns()

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
        said = {key: value for key, value in (attributes or {}).items() if value != ""}
        context = self._parent(parent, name, foreign=foreign) if parent else _NOWHERE
        begun = self._tracer.start_span(
            name, context, kind=_KINDS[kind], attributes=said, start_time=since or None, record_exception=False
        )
        return _ended(begun)

    def _parent(self, text: str, name: str, *, foreign: bool) -> Context:
        _, trace, span, flags = text.split("-")
        sampled = bool(int(flags, 16) & TraceFlags.SAMPLED)
        if foreign:
            decision = self._sampler.should_sample(_NOWHERE, int(trace, 16), name).decision
            sampled = decision is Decision.RECORD_AND_SAMPLE
        given = TraceFlags(TraceFlags.SAMPLED if sampled else TraceFlags.DEFAULT)
        known = SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=given)
        return set_span_in_context(NonRecordingSpan(known), _NOWHERE)


@contextmanager
def _ended(span: OtelSpan) -> Iterator[Span]:
    wrapped = _Span(span)
    try:
        yield wrapped
    except BaseException as error:
        wrapped.fail(type(error).__name__)
        raise
    finally:
        span.end()


@asynccontextmanager
async def opened(program: str, version: str, endpoint: str, *, rng: random.Random) -> AsyncIterator[OtelTracer]:
    """A tracer whose spans go to ``endpoint``, in batches out of a bounded queue, from a thread of their own."""
    # What the exporter says of every try, Delivery says once.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
    name = os.environ.get("OTEL_SERVICE_NAME", program)
    unmetered = NoOpMeterProvider()
    provider = TracerProvider(
        resource=Resource.create({"service.name": name, "service.version": version}),
        shutdown_on_exit=False,
        meter_provider=unmetered,
    )
    exporter = OTLPSpanExporter(timeout=DELIVERY_SECONDS, meter_provider=unmetered)
    delivery = Delivery(exporter, endpoint, rng=rng)
    provider.add_span_processor(BatchSpanProcessor(delivery, meter_provider=unmetered))
    try:
        yield OtelTracer(provider)
    finally:
        # A thread of its own, as the loop's would be waited for to its end.
        ending = threading.Thread(target=provider.shutdown, name="traces' end", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, END_SECONDS)
