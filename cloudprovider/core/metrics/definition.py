"""What a metric is: plain data, from which programs export, dashboard and alert rules are checked, and docs are made.

Names as Prometheus wants them: https://prometheus.io/docs/practices/naming/. All begin with ``cloudprovider_`` and the
program's name (those that all programs have: without it), in base units; counters end in ``_total``.
"""

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "cloudprovider_"

MOST_TENANTS: Final = 500
"""Guest clusters that have series of their own; the others are added up as "other"."""
MOST_POOLS: Final = 500
"""Pools that have series of their own; the others are added up as "other"."""
MOST_REASONS: Final = 64
"""Reasons that have series of their own; the others are added up as "other"."""
MOST_BALANCERS: Final = 2000
"""Load balancers (and nodes) of one network that have series of their own; the others are added up as "other"."""
OTHER: Final = "other"
"""The label's value of what has no series of its own."""

PROVISIONING_BUCKETS: Final = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Seconds, for what a user waits for."""
CALL_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds, for calls over a network."""
KERNEL_BUCKETS: Final = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds, for changes of a kernel."""

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """``help`` is one sentence. ``bound`` says how many series the labels make, "" without labels. ``buckets``: upper
    bounds of a histogram, without the last, infinite one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    bound: str = ""
    buckets: tuple[float, ...] = ()


class Group:
    """Collects the definitions whose names begin alike."""

    def __init__(self, program: str = "") -> None:
        self._prefix = f"{PREFIX}{program}_" if program else PREFIX
        self._defined: list[Metric] = []

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """All that have been defined."""
        return tuple(self._defined)

    def counter(self, name: str, text: str, *labels: str, bound: str = "") -> Metric:
        """Define what only grows, but for restarts."""
        return self._define(Metric(f"{self._prefix}{name}", "counter", text, labels, bound))

    def gauge(self, name: str, text: str, *labels: str, bound: str = "") -> Metric:
        """Define what goes up and down."""
        return self._define(Metric(f"{self._prefix}{name}", "gauge", text, labels, bound))

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str, bound: str = "") -> Metric:
        """Define a distribution."""
        return self._define(Metric(f"{self._prefix}{name}", "histogram", text, labels, bound, buckets))

    def _define(self, metric: Metric) -> Metric:
        if bool(metric.labels) != bool(metric.bound):
            raise ValueError(f"{metric.name}: labels want a bound, and only they")
        self._defined.append(metric)
        return metric
