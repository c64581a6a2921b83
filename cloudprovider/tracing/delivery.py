"""Spans to the collector. One that is down costs no more than a try now and then, and is told once."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from typing_extensions import override

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 300.0


class Delivery(SpanExporter):
    """Hands spans to ``exporter``; after a failure none until a pause is over, and those meanwhile are dropped.

    Called by the batch processor's thread. ``clock``: monotonic, in seconds.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        endpoint: str,
        *,
        rng: random.Random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._rng = rng
        self._clock = clock
        self._failures = 0
        self._dropped = 0
        self._until = 0.0

    @override
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """See SpanExporter."""
        if self._failures and self._clock() < self._until:
            self._dropped += len(spans)
            return SpanExportResult.FAILURE
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            if self._failures:
                log.info("Traces are delivered again.", extra={"endpoint": self._endpoint, "dropped": self._dropped})
            self._failures = self._dropped = 0
            return result
        pause = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 16))
        pause *= self._rng.uniform(0.5, 1.0)
        self._until = self._clock() + pause
        self._failures += 1
        self._dropped += len(spans)
        if self._failures == 1:
            extra = {"endpoint": self._endpoint, "retry_in": round(pause, 1)}
            log.warning("Traces can't be delivered: they are dropped, and tried again ever more seldom.", extra=extra)
        return result

    @override
    def shutdown(self) -> None:
        """See SpanExporter."""
        self._exporter.shutdown()
