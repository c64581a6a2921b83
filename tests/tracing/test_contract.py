"""What every tracer does, whoever records."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

from cloudprovider.core.tracing import NO_TRACER, Tracer, well_formed
from cloudprovider.tracing.fake import MemoryTracer
from cloudprovider.tracing.otel import OtelTracer

STRANGER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{}"


@dataclass(frozen=True)
class Seen:
    """A span, whoever has recorded it."""

    name: str
    trace: str
    parent: str
    begun: int
    ended: int
    attributes: dict[str, object]
    failed: bool


@dataclass(frozen=True)
class Recorder:
    tracer: Tracer
    seen: Callable[[], list[Seen]]


def memory() -> Recorder:
    tracer = MemoryTracer()

    def seen() -> list[Seen]:
        return [
            Seen(
                s.name,
                s.trace,
                s.parent.split("-")[2] if s.parent else "",
                s.begun,
                s.ended,
                {**s.attributes},
                bool(s.error),
            )
            for s in tracer.spans
        ]

    return Recorder(tracer, seen)


def otel(sampler: Sampler | None = None) -> Recorder:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=sampler or ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def seen() -> list[Seen]:
        return [
            Seen(
                s.name,
                f"{s.context.trace_id:032x}",
                "" if s.parent is None else f"{s.parent.span_id:016x}",
                s.start_time or 0,
                s.end_time or 0,
                dict(s.attributes or {}),
                not s.status.is_ok,
            )
            for s in exporter.get_finished_spans()
        ]

    return Recorder(OtelTracer(provider), seen)


@pytest.fixture(params=[memory, otel])
def recorder(request: pytest.FixtureRequest) -> Recorder:
    make: Callable[[], Recorder] = request.param
    return make()


def test_children_are_their_parents(recorder: Recorder) -> None:
    begun = recorder.tracer.now()
    with recorder.tracer.span("root", since=begun, attributes={"a": "b", "empty": ""}) as root:
        assert well_formed(root.context)
        root.set("number", 3)
        with recorder.tracer.span("child", parent=root.context, kind="client"):
            pass
    child, first = recorder.seen()
    assert (first.name, first.parent, first.attributes, first.failed) == ("root", "", {"a": "b", "number": 3}, False)
    assert first.begun == begun
    assert first.trace == child.trace == root.context.split("-")[1]
    assert child.parent == root.context.split("-")[2]
    assert first.begun <= child.begun <= child.ended <= first.ended


def test_what_is_not_under_a_parent_begins_a_trace(recorder: Recorder) -> None:
    with recorder.tracer.span("one"), recorder.tracer.span("other"):
        pass
    other, one = recorder.seen()
    assert other.trace != one.trace
    assert other.parent == one.parent == ""


def test_a_failure_is_told_by_its_kind_and_passed_on(recorder: Recorder) -> None:
    with pytest.raises(ValueError, match="secret"), recorder.tracer.span("failing"):
        raise ValueError("secret")
    (span,) = recorder.seen()
    assert span.failed
    assert span.attributes == {"cloudprovider.reason": "ValueError"}


def test_nothing_costs_and_records_nothing() -> None:
    assert not NO_TRACER.enabled
    with NO_TRACER.span("nothing", parent="", attributes={"a": "b"}) as span:
        span.set("a", "b")
        span.fail("Because")
        assert span.context == ""


@pytest.mark.parametrize("flags", ["00", "01"])
@pytest.mark.parametrize("sampler", [ParentBased(ALWAYS_ON), ParentBased(ALWAYS_OFF), ALWAYS_ON, ALWAYS_OFF])
def test_a_strangers_wish_to_be_recorded_does_not_count(sampler: Sampler, flags: str) -> None:
    recorder = otel(sampler)
    with recorder.tracer.span("call", parent=STRANGER.format(flags), foreign=True) as span:
        pass
    on = "AlwaysOn" in sampler.get_description().split(",")[0]
    assert bool(span.context) == bool(recorder.seen()) == on


@pytest.mark.parametrize("flags", ["00", "01"])
def test_ones_own_wish_does(flags: str) -> None:
    recorder = otel()
    with recorder.tracer.span("own", parent=STRANGER.format(flags)):
        pass
    assert bool(recorder.seen()) == (flags == "01")
