"""What a guest's health check may say. Pure.

The same rules are held against a Service as its user wrote it, and against what came over the bridge.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal, Protocol, get_args

from cloudprovider.core.errors import Violation
from cloudprovider.core.exchange import CheckProtocol
from cloudprovider.core.questions import PATH, codes_of, is_host
from cloudprovider.core.rulings import RequestReason

Part = Literal[
    "port",
    "protocol",
    "path",
    "host",
    "expected_codes",
    "verify_certificate",
    "grpc_service",
    "success_threshold",
    "failure_threshold",
    "period_seconds",
    "timeout_seconds",
    "failed_connections",
]
"""A field of HealthCheck."""

MOST: Final[dict[Part, int]] = {
    "port": 65535,
    "success_threshold": 100,
    "failure_threshold": 100,
    "period_seconds": 3600,
    "timeout_seconds": 3600,
}
"""The numbers, each from 1 to this."""
PROTOCOLS: Final[tuple[CheckProtocol, ...]] = get_args(CheckProtocol)
_MOST_CODES: Final = 16
KINDS_OF: Final[dict[Part, tuple[CheckProtocol, ...]]] = {
    "path": ("HTTP", "HTTPS"),
    "expected_codes": ("HTTP", "HTTPS"),
    "host": ("HTTP", "HTTPS", "GRPC", "GRPCS"),
    "verify_certificate": ("HTTPS", "GRPCS"),
    "grpc_service": ("GRPC", "GRPCS"),
}
"""The fields that only some kinds of check read."""


class CheckFields(Protocol):
    """A check, as the bridge's messages have it, or the API."""

    @property
    def port(self) -> int | None: ...  # noqa: D102
    @property
    def protocol(self) -> CheckProtocol: ...  # noqa: D102
    @property
    def path(self) -> str: ...  # noqa: D102
    @property
    def host(self) -> str: ...  # noqa: D102
    @property
    def expected_codes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def verify_certificate(self) -> bool: ...  # noqa: D102
    @property
    def grpc_service(self) -> str: ...  # noqa: D102
    @property
    def success_threshold(self) -> int: ...  # noqa: D102
    @property
    def failure_threshold(self) -> int: ...  # noqa: D102
    @property
    def period_seconds(self) -> int: ...  # noqa: D102
    @property
    def timeout_seconds(self) -> int: ...  # noqa: D102


def violations(check: CheckFields, field: Callable[[Part], str]) -> Iterator[Violation]:
    """Yield what of ``check`` can't be done; ``field`` gives a part's path as its author knows it."""

    def bad(part: Part, reason: RequestReason, message: str) -> Violation:
        return Violation(field=field(part), reason=reason, message=message)

    numbers: dict[Part, int] = {
        "port": check.port or 0,
        "success_threshold": check.success_threshold,
        "failure_threshold": check.failure_threshold,
        "period_seconds": check.period_seconds,
        "timeout_seconds": check.timeout_seconds,
    }
    for part, number in numbers.items():
        if not 1 <= number <= MOST[part]:
            yield bad(part, "OutOfRange", f"{number} is not a number from 1 to {MOST[part]}")
    said: dict[Part, bool] = {
        "path": bool(check.path),
        "host": bool(check.host),
        "expected_codes": bool(check.expected_codes),
        "verify_certificate": check.verify_certificate,
        "grpc_service": bool(check.grpc_service),
    }
    for part, kinds in KINDS_OF.items():
        if said[part] and check.protocol not in kinds:
            message = f"is for {' and '.join(kinds)} only, and the check is by {check.protocol}: remove it"
            yield bad(part, "NotWithProtocol", message)
    if check.path and (len(check.path) > 2048 or not PATH.fullmatch(check.path)):
        message = f'"{check.path[:64]}" is no path: write up to 2048 characters of ASCII without spaces, "/" first'
        yield bad("path", "MalformedValue", message)
    if check.host and not is_host(check.host):
        yield bad("host", "MalformedValue", f'"{check.host[:64]}" is neither a host\'s name nor an address')
    if len(check.grpc_service) > 253 or not check.grpc_service.isprintable():
        yield bad("grpc_service", "MalformedValue", f"{check.grpc_service[:64]!r} is no name of up to 253 characters")
    if len(check.expected_codes) > _MOST_CODES:
        yield bad("expected_codes", "TooMany", f"{len(check.expected_codes)} codes; a check takes up to {_MOST_CODES}")
    for text in check.expected_codes[:_MOST_CODES]:
        try:
            codes_of((text[:64],))
        except ValueError as error:
            yield bad("expected_codes", "MalformedValue", str(error))
