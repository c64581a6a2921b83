"""Whether there are traces at all, and what a program pays for them."""

import itertools
import logging
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import get_tracer_provider
from typing_extensions import override

from cloudprovider.core.errors import ConfigurationError
from cloudprovider.core.tracing import NO_TRACER
from cloudprovider.tracing import setup
from cloudprovider.tracing.delivery import LONGEST_PAUSE_SECONDS, Delivery
from cloudprovider.tracing.otel import END_SECONDS

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
NOBODY = "http://127.0.0.1:9"
"""The port "discard": nobody listens there."""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({ENDPOINT: ""}, ""),
        ({ENDPOINT: NOBODY}, NOBODY),
        ({ENDPOINT: "http://other", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": NOBODY}, NOBODY),
        ({ENDPOINT: NOBODY, "OTEL_SDK_DISABLED": "true"}, ""),
        ({ENDPOINT: NOBODY, "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({ENDPOINT: NOBODY, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, NOBODY),
    ],
)
def test_an_endpoint_turns_them_on(environment: Mapping[str, str], expected: str) -> None:
    assert setup.endpoint(environment) == expected


def test_a_protocol_that_is_not_spoken_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: .* set it to grpc"):
        setup.endpoint({ENDPOINT: NOBODY, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})


async def test_without_a_word_nothing_is_traced() -> None:
    async with setup.traced("p", "1", {}, rng=random.Random(1)) as tracer:
        assert tracer is NO_TRACER


async def test_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cloudprovider.tracing.otel", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigurationError, match=r"pip install cloudprovider\[traces\]"):
        async with setup.traced("p", "1", {ENDPOINT: NOBODY}, rng=random.Random(1)):
            pass


def test_programs_import_nothing_of_it_by_themselves() -> None:
    script = (
        "import sys, cloudprovider.guest.program, cloudprovider.host.program, cloudprovider.agent.program;"
        "sys.exit(', '.join(sorted(m for m in sys.modules if m.startswith('opentelemetry'))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")


async def test_a_collector_that_is_down_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ENDPOINT, NOBODY)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    before = get_tracer_provider()
    with caplog.at_level(logging.INFO):
        async with setup.traced("p", "1", {ENDPOINT: NOBODY}, rng=random.Random(1)) as tracer:
            began = time.monotonic()
            for _ in range(5000):  # more than the queue holds
                with tracer.span("one"):
                    pass
            assert time.monotonic() - began < 5.0
            began = time.monotonic()
        assert time.monotonic() - began < END_SECONDS + 1.0
    assert get_tracer_provider() is before
    assert [r for r in caplog.records if r.name.startswith("opentelemetry.exporter")] == []


class Collector(SpanExporter):
    def __init__(self) -> None:
        self.up = False
        self.asked = 0

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.asked += 1
        return SpanExportResult.SUCCESS if self.up else SpanExportResult.FAILURE


def test_a_collector_that_is_down_is_told_of_once_and_asked_ever_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    collector, clock = Collector(), [0.0]
    delivery = Delivery(collector, NOBODY, rng=random.Random(1), clock=lambda: clock[0])
    span = ReadableSpan("one")
    asked_at = []
    with caplog.at_level(logging.INFO):
        for second in range(3600):
            clock[0] = float(second)
            before = collector.asked
            delivery.export([span])
            if collector.asked > before:
                asked_at.append(second)
        assert len(asked_at) < 40
        assert max(b - a for a, b in itertools.pairwise(asked_at)) <= LONGEST_PAUSE_SECONDS + 1
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        collector.up = True
        clock[0] += LONGEST_PAUSE_SECONDS
        assert delivery.export([span]) is SpanExportResult.SUCCESS
        assert delivery.export([span]) is SpanExportResult.SUCCESS
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.records[-1].__dict__["dropped"] == 3600
