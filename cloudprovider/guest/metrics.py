"""What the guest program counts as it happens."""

from datetime import datetime

from cloudprovider.core.metrics import guest as metrics
from cloudprovider.kube.registry import Registry


class GuestMetrics:
    """Made once for a program: what is counted goes on when another copy has led meanwhile."""

    def __init__(self, registry: Registry) -> None:
        self._addresses = registry.histogram(metrics.TIME_TO_ADDRESS)

    def address_after(self, seconds: float) -> None:
        """Count a Service that got its address, so many seconds after it was first seen."""
        self._addresses.observe(seconds)


class BridgeCalls:
    """Counts what clients of the bridge do. Meets :class:`~cloudprovider.bridge.observer.ClientObserver`."""

    def __init__(self, registry: Registry) -> None:
        self._calls = registry.counter(metrics.BRIDGE_CALLS)
        self._seconds = registry.histogram(metrics.BRIDGE_CALL_SECONDS)
        self._expiry = registry.gauge(metrics.CERTIFICATE_EXPIRY)

    def called(self, method: str, code: str, seconds: float | None) -> None:
        """See ClientObserver."""
        self._calls.labels(method, code).inc()
        if seconds is not None:
            self._seconds.labels(method).observe(seconds)

    def certified(self, not_after: datetime) -> None:
        """See ClientObserver."""
        self._expiry.set(not_after.timestamp())
