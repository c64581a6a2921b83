"""The bridge's two seams: what the server asks of the host (:class:`TenantBackend`), and what the guest asks of the
bridge (:class:`BridgeClient`). Both speak the plain data of :mod:`cloudprovider.core.exchange`.

Shipped implementations: :class:`cloudprovider.bridge.fake.MemoryBackend` (as strict as the host), and
:class:`cloudprovider.bridge.local.LocalBridge` (a client on a backend, without a wire) beside
:class:`cloudprovider.bridge.client.GrpcBridge`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from cloudprovider.bridge.statelog import StateLog
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import (
    Inventory,
    InventoryResult,
    LoadBalancerRequest,
    LoadBalancerState,
    RejectedNode,
    ReportedNode,
    ServiceKey,
    Tenant,
)
from cloudprovider.core.plan import IPAddress

PROTOCOL_VERSION = 1
"""The highest version of ``bridge.proto`` that this code speaks; it is also the lowest."""

TRACE_KEY = "traceparent"
"""The metadata that says which trace a call belongs to (W3C Trace Context)."""


class Reason(StrEnum):
    """``BridgeError.reason``, and ErrorInfo.reason on the wire."""

    CERTIFICATE_INVALID = "CERTIFICATE_INVALID"
    CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
    CERTIFICATE_REVOKED = "CERTIFICATE_REVOKED"
    TLS_VERSION = "TLS_VERSION"
    UNKNOWN_TENANT = "UNKNOWN_TENANT"
    CLUSTER_MISMATCH = "CLUSTER_MISMATCH"
    NOT_CONNECTED = "NOT_CONNECTED"
    STALE_LEADER = "STALE_LEADER"
    IDENTITY_MISMATCH = "IDENTITY_MISMATCH"
    UNSUPPORTED_VERSION = "UNSUPPORTED_VERSION"
    TENANT_TERMINATING = "TENANT_TERMINATING"
    RENEWAL_NOT_OFFERED = "RENEWAL_NOT_OFFERED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RATE_LIMITED = "RATE_LIMITED"
    UNAVAILABLE = "UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    INTERNAL = "INTERNAL"


class QuotaExceeded(BridgeError):
    """A bound of the tenant is reached. ``subject`` names it as in GuestCluster.spec.quota (``loadBalancers``).

    A bound on one request alone (ports, source ranges) is a NotPermitted instead: waiting does not heal it.
    """

    def __init__(self, message: str, *, subject: str, retry_after: float) -> None:
        super().__init__(message, reason=Reason.QUOTA_EXCEEDED, retryable=True, retry_after=retry_after)
        self.subject = subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """How a guest introduces itself: the UID of its kube-system namespace, and its program's version."""

    cluster_uid: str
    guest_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """The host's answer: whom it takes the guest for, and the most listeners that one load balancer may have."""

    host_version: str
    tenant: Tenant
    max_ports: int


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """A client certificate, as far as it matters. ``fingerprint``: SHA-256 of the DER in hex."""

    tenant: Tenant
    fingerprint: str
    not_before: datetime
    not_after: datetime
    trust_domain: str


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """What :meth:`BridgeClient.renew_certificate` brings, PEM. ``certificate`` is empty where none was asked for;
    ``authorities``: all CAs that a guest is to trust."""

    certificate: bytes
    authorities: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantPolicy:
    """What the server must know of a tenant at every call, from the GuestCluster in the host's cache.

    ``cluster_uid`` is empty until the first Connect has bound it. ``revoked_fingerprints``: SHA-256 of the DER, hex.
    """

    cluster_uid: str = ""
    revoked_fingerprints: frozenset[str] = frozenset()
    revoked_before: datetime | None = None
    calls_per_second: int = 500
    streams: int = 4


class TenantBackend(Protocol):
    """What the server asks of the host.

    Every call comes with a tenant that has been authenticated, whose certificate is not revoked, and (but for
    ``connect``) whose cluster UID is the bound one; every request is well formed by itself (port ranges, addresses
    that parse, unique listeners). What depends on the tenant's limits is the backend's to check.

    Calls raise InvalidRequest, NotPermitted, QuotaExceeded, BridgeError (with a :class:`Reason`), or KubeError
    (reaches the guest as UNAVAILABLE without its text); anything else is a fault, reaches the guest as INTERNAL, and
    is logged. Calls are idempotent, may come at the same time, and may be cancelled at a deadline.
    """

    def policy(self, tenant: Tenant) -> TenantPolicy | None:
        """Return the tenant's policy from the cache, at once; None if there is no such GuestCluster.

        It must show what ``connect`` has bound as soon as ``connect`` has returned.
        """
        ...

    def on_policy_change(self, listener: Callable[[Tenant], None]) -> Callable[[], None]:
        """Call ``listener`` whenever a tenant's policy may have changed or gone; return what ends that."""
        ...

    def states(self, tenant: Tenant) -> StateLog:
        """Return the log of the tenant's states; always the same one while the tenant lives.

        The backend feeds it; it must be complete (the host's cache has synced) before the server starts.
        """
        ...

    async def connect(self, tenant: Tenant, hello: Hello, certificate: PeerCertificate | None = None) -> Welcome:
        """Bind the cluster UID at first use. ``certificate``: what the guest has shown, where there is a wire.

        Raises BridgeError CLUSTER_MISMATCH, UNKNOWN_TENANT, TENANT_TERMINATING."""
        ...

    async def renew_certificate(self, certificate: PeerCertificate, request: bytes) -> IssuedCertificate:
        """Sign ``request`` for the tenant of ``certificate``, for as long as that was made for; see
        :func:`cloudprovider.bridge.authority.renew`. Raises InvalidRequest, BridgeError RENEWAL_NOT_OFFERED."""
        ...

    async def ensure(
        self,
        tenant: Tenant,
        service: ServiceKey,
        request: LoadBalancerRequest,
        shown_addresses: tuple[IPAddress, ...],
        *,
        trace: str = "",
    ) -> LoadBalancerState:
        """Make the Service's load balancer be as described; return its state once the API server has the object.

        ``shown_addresses`` are what the Service shows: taken back into use if the host's record of them is lost.
        ``trace``: the context of the span that this is part of (:mod:`cloudprovider.core.tracing`), "" for none.
        Raises InvalidRequest, NotPermitted, QuotaExceeded, BridgeError IDENTITY_MISMATCH, TENANT_TERMINATING.
        """
        ...

    async def delete(self, tenant: Tenant, service: ServiceKey, *, trace: str = "") -> None:
        """Mark the load balancer for deletion; fine if there is none. The log's removal tells when it is gone: if
        there was none, the backend must publish that removal at once (``StateLog.remove``)."""
        ...

    async def report_nodes(self, tenant: Tenant, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """Replace the cluster's nodes; return the addresses that are not accepted, the others are in use."""
        ...

    async def report_inventory(self, tenant: Tenant, inventory: Inventory) -> InventoryResult:
        """Delete what the guest no longer has. Raises BridgeError STALE_LEADER."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The stream stands (again). ``resumed``: what is known stays known; otherwise a snapshot follows, then a
    :class:`StateChange` with ``synced``."""

    welcome: Welcome
    resumed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """States that are new, and load balancers that are gone with their addresses given back.

    ``synced`` comes once after a stream that did not resume: everything sent since :class:`Connected` is all there
    is, what the receiver knows beyond it is gone.
    """

    updated: tuple[LoadBalancerState, ...] = ()
    removed: tuple[ServiceKey, ...] = ()
    synced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The stream broke, or could not be had; the next attempt comes in ``retry_in`` seconds."""

    error: BridgeError
    retry_in: float


BridgeEvent = Connected | StateChange | Disconnected


class BridgeClient(Protocol):
    """What a guest asks of its host. Each call has a deadline, none repeats itself: callers own a queue with backoff.

    Calls raise InvalidRequest (with the host's violations), NotPermitted, QuotaExceeded, or BridgeError, whose
    ``retryable`` says whether time alone may heal it and whose text says what is wrong and what to do.
    """

    async def ensure(
        self,
        service: ServiceKey,
        request: LoadBalancerRequest,
        shown_addresses: tuple[IPAddress, ...] = (),
        *,
        trace: str = "",
    ) -> LoadBalancerState:
        """Make the Service's load balancer be as described. ``trace``: the context of the span that this is part of
        (:mod:`cloudprovider.core.tracing`), "" for none; it goes to the host."""
        ...

    async def delete(self, service: ServiceKey, *, trace: str = "") -> None:
        """Ask for the load balancer's end; ``removed`` comes by :meth:`watch`."""
        ...

    async def report_nodes(self, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """Replace the nodes that take traffic; return the addresses that the host refuses."""
        ...

    async def report_inventory(self, inventory: Inventory) -> InventoryResult:
        """Tell every load-balancer Service there is."""
        ...

    async def renew_certificate(self, request: bytes) -> IssuedCertificate:
        """Have ``request`` (PKCS #10, PEM) signed; empty: only ask for the authorities. Raises BridgeError
        RENEWAL_NOT_OFFERED, and UNSUPPORTED_VERSION by a host that does not know the call."""
        ...

    def watch(self) -> AsyncIterator[BridgeEvent]:
        """Yield states for ever, healing the connection with jittered backoff. One watch at a time."""
        ...

    async def close(self) -> None:
        """Let go of the connection; a running watch ends."""
        ...
