"""What the guest program counts, in Prometheus' text format."""

from typing import Final

ADDRESS_BUCKETS: Final = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds."""

_NAME: Final = "cloudprovider_guest_address_seconds"


class GuestMetrics:
    """Seconds from a Service's first sight to its address in the status, as a histogram."""

    def __init__(self) -> None:
        self._counts = [0] * (len(ADDRESS_BUCKETS) + 1)
        self._sum = 0.0

    def address_after(self, seconds: float) -> None:
        """Count a Service that got its address."""
        bucket = next((i for i, limit in enumerate(ADDRESS_BUCKETS) if seconds <= limit), len(ADDRESS_BUCKETS))
        self._counts[bucket] += 1
        self._sum += seconds

    @property
    def addresses(self) -> int:
        """How many Services got their address."""
        return sum(self._counts)

    def exposition(self, gauges: dict[str, tuple[str, float]]) -> str:
        """The histogram and ``gauges`` (name to help and value)."""
        lines = [
            f"# HELP {_NAME} Seconds from the first sight of a Service to its address in the status.",
            f"# TYPE {_NAME} histogram",
        ]
        total = 0
        for limit, count in zip((*map(str, ADDRESS_BUCKETS), "+Inf"), self._counts, strict=True):
            total += count
            lines.append(f'{_NAME}_bucket{{le="{limit}"}} {total}')
        lines += [f"{_NAME}_sum {self._sum}", f"{_NAME}_count {total}"]
        for name, (text, value) in gauges.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", f"{name} {value:.15g}"]
        return "\n".join(lines) + "\n"
