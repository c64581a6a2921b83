"""From an API server's refusal (HTTP status and a meta/v1 Status object) to the project's error tree."""

from collections.abc import Mapping

import msgspec

from cloudprovider.core.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unavailable,
    Violation,
)
from cloudprovider.core.reasons import Heard


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, rename="camel"):
    retry_after_seconds: float = 0
    causes: list[_Cause] | None = None


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""
    code: int = 0
    details: _Details | None = None


_UID = "metadata.uid"

_decode = msgspec.json.Decoder(_Status).decode

_BY_CODE: Mapping[int, type[KubeError]] = {
    400: Invalid,
    401: Forbidden,
    403: Forbidden,
    404: NotFound,
    405: Invalid,
    406: Invalid,
    408: Unavailable,
    409: Conflict,
    410: Gone,
    413: Invalid,
    415: Invalid,
    422: Invalid,
    429: Unavailable,
}


def error_of(what: str, code: int, body: bytes | msgspec.Raw, retry_after: str | None = None) -> KubeError:
    """The error that an answer stands for. ``what`` names the request in the message, ``code`` is its HTTP status
    (0: take it from the Status object, as in a watch's ERROR event), ``retry_after`` the header in seconds."""
    try:
        status = _decode(body)
    except msgspec.DecodeError:
        # Not the API server itself but something before it (a proxy, a load balancer).
        status = _Status(message=bytes(body)[:200].decode(errors="replace"))
    code = code or status.code
    kind = _BY_CODE.get(code, Unavailable)
    if kind is Conflict and status.reason == "AlreadyExists":
        kind = AlreadyExists
    elif kind is Invalid and status.details is not None and _UID in (c.field for c in status.details.causes or ()):
        kind = Conflict  # a patch with another UID is refused as if it wanted to change it: a failed precondition
    elif kind is Gone or status.reason == "Expired":
        kind = Gone
    return kind(
        f"{what}: {status.message or 'no message'} ({code} {status.reason or 'no reason'})",
        status=code,
        reason=status.reason,
        retry_after=_seconds(retry_after, status.details),
        causes=_causes(status.details),
    )


def _causes(details: _Details | None) -> tuple[Violation, ...]:
    found = details.causes if details is not None else None
    return tuple(Violation(field=c.field, reason=Heard(c.reason), message=c.message) for c in found or ())


def _seconds(header: str | None, details: _Details | None) -> float | None:
    if header is not None and header.isdecimal():
        return float(header)
    if details is not None and details.retry_after_seconds > 0:
        return details.retry_after_seconds
    return None
