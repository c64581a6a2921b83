"""What the host program counts as it happens."""

from collections.abc import Mapping
from datetime import datetime

from cloudprovider.core.exchange import Tenant
from cloudprovider.core.metrics import host as metrics
from cloudprovider.core.metrics.definition import MOST_TENANTS, OTHER
from cloudprovider.kube.registry import Names, Registry, Series


class HostMetrics:
    """Made once for a program: what is counted goes on when another copy has led meanwhile."""

    def __init__(self, registry: Registry) -> None:
        self._addresses = registry.histogram(metrics.TIME_TO_ADDRESS)
        self._ready = registry.histogram(metrics.TIME_TO_READY)
        self._writes = registry.counter(metrics.BLOCK_WRITES)
        for outcome in ("written", "conflict", "failed"):
            self._writes.labels(outcome)
        self.bridge = BridgeCalls(registry)

    def address_after(self, seconds: float) -> None:
        """Count a load balancer that got its first address, so many seconds after it was first seen."""
        self._addresses.observe(seconds)

    def ready_after(self, seconds: float) -> None:
        """Count a load balancer that became ready, so many seconds after it was first seen."""
        self._ready.observe(seconds)

    def block_write(self, outcome: str) -> None:
        """Count a write of an IPBlock: written, conflict or failed."""
        self._writes.labels(outcome).inc()


class BridgeCalls:
    """Counts what the bridge serves. Meets :class:`~cloudprovider.bridge.observer.ServerObserver`."""

    def __init__(self, registry: Registry) -> None:
        self.open_streams: Mapping[Tenant, int] = {}
        self.shown_until: dict[Tenant, float] = {}
        """When the certificate ends that a tenant showed last, Unix time; whoever reads it takes out who is gone."""
        self._tenants = Names(MOST_TENANTS)
        self._calls = registry.counter(metrics.BRIDGE_CALLS)
        self._seconds = registry.histogram(metrics.BRIDGE_CALL_SECONDS)
        self._by_tenant = registry.counter(metrics.TENANT_CALLS)
        self._expiry = registry.gauge(metrics.BRIDGE_CERTIFICATE_EXPIRY)

    def served(self, tenant: Tenant | None, method: str, code: str, seconds: float | None) -> None:
        """See ServerObserver."""
        self._calls.labels(method, code).inc()
        if seconds is not None:
            self._seconds.labels(method).observe(seconds)
        self._by_tenant.labels(self._tenants.of(tenant.path) if tenant is not None else OTHER, code).inc()

    def shown(self, tenant: Tenant, not_after: datetime) -> None:
        """See ServerObserver."""
        self.shown_until[tenant] = not_after.timestamp()

    def certified(self, not_after: datetime) -> None:
        """See ServerObserver."""
        self._expiry.set(not_after.timestamp())

    def streams(self, open_streams: Mapping[Tenant, int]) -> None:
        """See ServerObserver."""
        self.open_streams = open_streams


class AdmissionMetrics:
    """What every copy counts, whether it leads or not."""

    def __init__(self, registry: Registry) -> None:
        self._seconds = registry.histogram(metrics.ADMISSION_REVIEW_SECONDS)
        self._registry = registry
        self._expiry = registry.gauge(metrics.WEBHOOK_CERTIFICATE_EXPIRY)

    def took(self, resource: str, seconds: float) -> None:
        """Count an answer of the webhook."""
        self._seconds.labels(resource).observe(seconds)

    def follow(self, reviews: Series) -> None:
        """Tell of answers as the webhook counts them."""
        self._registry.read(lambda: [(metrics.ADMISSION_REVIEWS, reviews)])

    def certified(self, not_after: datetime) -> None:
        """The webhook's certificate that is used from now on ends then."""
        self._expiry.set(not_after.timestamp())
