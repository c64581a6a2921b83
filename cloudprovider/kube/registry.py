"""What one program exports to Prometheus: a registry of its own, filled by nothing but definitions of
:mod:`cloudprovider.core.metrics`.

What is counted as it happens are prometheus_client's counters and histograms; what stands somewhere already (in caches,
in a kernel) is read at each scrape, by a reader. A scrape takes turns with the program's work: it never holds the event
loop for longer than some CHUNK lines take, about a millisecond.
"""

import asyncio
import platform
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from inspect import isawaitable
from itertools import chain, count, islice
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from cloudprovider.core.metrics.common import BUILD_INFO
from cloudprovider.core.metrics.definition import OTHER, Metric

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
"""https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format"""
CHUNK: Final = 250
"""Lines that are written without a pause."""

Series = Mapping[tuple[str, ...], float]
"""Values by those of the labels, in the order of the definition."""
Readings = Iterable[tuple[Metric, Series]]
Reader = Callable[[], Readings | Awaitable[Readings]]


class Registry:
    """``program`` and ``version`` are exported as ``cloudprovider_build_info``."""

    def __init__(self, program: str, version: str) -> None:
        self._registry = CollectorRegistry()
        self._readers: list[Reader] = []
        ProcessCollector(registry=self._registry)
        self.gauge(BUILD_INFO).labels(program, version, platform.python_version()).set(1)

    def counter(self, metric: Metric) -> Counter:
        """Return what counts ``metric``."""
        _expect(metric, "counter")
        return Counter(metric.name, metric.help, metric.labels, registry=self._registry)

    def gauge(self, metric: Metric) -> Gauge:
        """Return what tells ``metric``."""
        _expect(metric, "gauge")
        return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)

    def histogram(self, metric: Metric) -> Histogram:
        """Return what observes ``metric``."""
        _expect(metric, "histogram")
        return Histogram(metric.name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets)

    def read(self, reader: Reader) -> None:
        """Have ``reader`` asked at each scrape. What two of them say of one metric is put together."""
        self._readers.append(reader)

    async def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        read: dict[Metric, dict[tuple[str, ...], float]] = {}
        for reader in self._readers:
            found = reader()
            for metric, series in await found if isawaitable(found) else found:
                read.setdefault(metric, {}).update(series)
        written: list[bytes] = []
        counted = (_lines(family, family.samples) for family in self._registry.collect())
        for lines in chain(
            counted, (_lines(_family(metric), _samples(metric, series)) for metric, series in read.items())
        ):
            for some in lines:
                written.append(some)
                await asyncio.sleep(0)
        return b"".join(written)


class Names:
    """A label's values: the ``most`` that come first are told as they are, all others as "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[str] = set()

    def of(self, name: str) -> str:
        """What to tell for ``name``."""
        if name in self._known:
            return name
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(name)
        return name


class _One(Collector):
    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterator[Family]:  # type: ignore[explicit-override] # typing.override is of Python 3.12
        yield self._family


def _expect(metric: Metric, kind: str) -> None:
    if metric.kind != kind:
        raise ValueError(f"{metric.name} is a {metric.kind}, no {kind}")


def _family(metric: Metric) -> Family:
    if metric.kind == "histogram":
        raise ValueError(f"{metric.name} is a histogram: those are observed, not read")
    return Family(metric.name.removesuffix("_total"), metric.help, metric.kind)


def _samples(metric: Metric, series: Series) -> Iterator[Sample]:
    for values, value in series.items():
        yield Sample(metric.name, dict(zip(metric.labels, values, strict=True)), value)


def _lines(family: Family, samples: Iterable[Sample]) -> Iterator[bytes]:
    """The family's text, CHUNK lines at a time. OpenMetrics' times of creation are left out: they are no metrics."""
    left = (sample for sample in samples if not sample.name.endswith("_created"))
    for number in count():
        part = Family(family.name, family.documentation, family.type)
        part.samples = list(islice(left, CHUNK))
        if number == 0:
            yield generate_latest(_One(part))
        elif part.samples:
            yield generate_latest(_One(part)).split(b"\n", 2)[2]  # without HELP and TYPE
        if len(part.samples) < CHUNK:
            return
