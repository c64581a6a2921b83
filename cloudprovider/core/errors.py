"""The project's one exception tree.

::

    CloudProviderError
    ├── InvalidRequest            what a user or a tenant asked for can't be done as asked
    │   └── NotPermitted          a tenant asked for something outside its limits
    ├── AllocationError           no address can be given (yet); carries one reason per pool
    ├── KubeError                 an API server refused or did not answer
    │   ├── NotFound
    │   ├── AlreadyExists
    │   ├── Conflict              compare-and-swap lost, or a precondition failed
    │   ├── Invalid               schema or admission refused the object
    │   ├── Forbidden             credentials missing, wrong, or not enough
    │   ├── Gone                  a watch's resourceVersion is too old: list again
    │   └── Unavailable           time-out, connection refused, 429, 5xx
    ├── BridgeError               the bridge refused or did not answer
    ├── DataPlaneError            the kernel refused
    └── ConfigurationError        a program was started with settings it can't work with

Every message says what is wrong, where, and what to do about it.
"""

from dataclasses import dataclass

from cloudprovider.core.reasons import Heard, VerdictReason
from cloudprovider.core.rulings import RequestReason


class CloudProviderError(Exception):
    """Base of every error that this package raises on purpose."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One thing wrong with a request.

    ``field`` is the path as the user wrote it (``spec.ports[1].protocol``,
    ``metadata.annotations[cloudprovider.harvesterhci.io/ipam]``), ``reason`` a CamelCase word for programs,
    ``message`` a sentence for people, with what to do.
    """

    field: str
    reason: RequestReason | Heard
    message: str


class InvalidRequest(CloudProviderError):
    """A request that can't be carried out until its author changes it."""

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(f"{v.field}: {v.message}" for v in violations))
        self.violations = violations


class NotPermitted(InvalidRequest):
    """A tenant asked for something outside its limits."""


@dataclass(frozen=True, kw_only=True)
class PoolReason:
    """Why one pool did not serve a request, and what would change that."""

    pool: str
    reason: VerdictReason
    message: str


class AllocationError(CloudProviderError):
    """No address can be given now. ``reasons`` has one entry per pool that was looked at."""

    def __init__(self, summary: str, reasons: tuple[PoolReason, ...] = ()) -> None:
        super().__init__(summary + "".join(f"; pool {r.pool}: {r.message}" for r in reasons))
        self.summary = summary
        self.reasons = reasons


class KubeError(CloudProviderError):
    """An API server refused a request or did not answer it.

    ``status`` is the HTTP status (0 when there was no answer), ``retry_after`` seconds the server asked to wait,
    ``causes`` what it found wrong, field by field, where it says so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        retry_after: float | None = None,
        causes: tuple[Violation, ...] = (),
    ) -> None:
        super().__init__(message)
        self.causes = causes
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class NotFound(KubeError):
    """HTTP 404."""


class AlreadyExists(KubeError):
    """HTTP 409 with reason AlreadyExists."""


class Conflict(KubeError):
    """HTTP 409: somebody else wrote in between, or a precondition (UID, resourceVersion) failed."""


class Invalid(KubeError):
    """HTTP 400 or 422: schema, CEL rule or admission refused the object."""


class Forbidden(KubeError):
    """HTTP 401 or 403."""


class Gone(KubeError):
    """HTTP 410: the resourceVersion is too old to watch or list from."""


class Unavailable(KubeError):
    """No answer in time, connection refused, HTTP 429 or 5xx: worth trying again later."""


class BridgeError(CloudProviderError):
    """The bridge refused a call or did not answer; ``retryable`` says whether time alone may heal it.

    ``retry_after``: seconds the host asks to wait, None where it names none.
    """

    def __init__(
        self, message: str, *, reason: str = "", retryable: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.retryable = retryable
        self.retry_after = retry_after


class DataPlaneError(CloudProviderError):
    """The kernel refused a change. ``errno`` as in errno(3), 0 when there is none."""

    def __init__(self, message: str, *, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class ConfigurationError(CloudProviderError):
    """A program was given settings that it can't work with."""
