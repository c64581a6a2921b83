"""Between the error tree and gRPC statuses with google.rpc details (AIP-193).

The server's side says only what the error says; a fault that is not in the tree, and the text of an API server's
refusal, stay on the host. The client's side gives the same errors back.
"""

from collections.abc import Iterable

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status

from cloudprovider.bridge.api import QuotaExceeded, Reason
from cloudprovider.core.errors import (
    AllocationError,
    BridgeError,
    CloudProviderError,
    InvalidRequest,
    KubeError,
    NotPermitted,
    Violation,
)

DOMAIN = "cloudprovider.harvesterhci.io"
DETAILS_KEY = "grpc-status-details-bin"
HOST_BUSY_SECONDS = 2.0
"""What a guest is asked to wait when the host's API server does not do what it is asked."""
MAX_VIOLATIONS = 16
"""Details travel in HTTP/2 trailers, which are bounded (METADATA_BYTES)."""
METADATA_BYTES = 32 * 1024
"""``grpc.max_metadata_size`` of both sides; gRPC's default of 8 KiB is less than a long list of violations."""

_CODES: dict[str, grpc.StatusCode] = {
    Reason.CERTIFICATE_INVALID: grpc.StatusCode.UNAUTHENTICATED,
    Reason.CERTIFICATE_EXPIRED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.CERTIFICATE_REVOKED: grpc.StatusCode.UNAUTHENTICATED,
    Reason.TLS_VERSION: grpc.StatusCode.UNAUTHENTICATED,
    Reason.UNKNOWN_TENANT: grpc.StatusCode.PERMISSION_DENIED,
    Reason.CLUSTER_MISMATCH: grpc.StatusCode.PERMISSION_DENIED,
    Reason.NOT_CONNECTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.STALE_LEADER: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.IDENTITY_MISMATCH: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNSUPPORTED_VERSION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TENANT_TERMINATING: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.RENEWAL_NOT_OFFERED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.RATE_LIMITED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,  # a fault of the host: time, or a newer host, heals it
    grpc.StatusCode.UNKNOWN,
}
_RETRYABLE_REASONS = {Reason.NOT_CONNECTED, Reason.TENANT_TERMINATING}


def to_status(error: CloudProviderError) -> tuple[grpc.StatusCode, Status]:
    """Return what the guest is told of an error."""
    details: list[Message] = []
    message = str(error)
    if isinstance(error, InvalidRequest):
        denied = isinstance(error, NotPermitted)
        code = grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.INVALID_ARGUMENT
        details.append(
            BadRequest(
                field_violations=[
                    BadRequest.FieldViolation(field=v.field[:256], reason=v.reason, description=v.message[:512])
                    for v in error.violations[:MAX_VIOLATIONS]
                ]
            )
        )
        message = f"{len(error.violations)} things are wrong with the request" if len(error.violations) > 1 else message
    elif isinstance(error, BridgeError):
        code = _CODES.get(error.reason, grpc.StatusCode.INTERNAL)
        details.append(_info(error.reason or Reason.INTERNAL))
        if isinstance(error, QuotaExceeded):
            details.append(
                QuotaFailure(violations=[QuotaFailure.Violation(subject=error.subject, description=str(error))])
            )
        if error.retry_after is not None:
            details.append(_retry(error.retry_after))
    elif isinstance(error, KubeError | AllocationError):
        code = grpc.StatusCode.UNAVAILABLE
        message = "the host's API server does not do what it is asked right now: try again later"
        wait = error.retry_after if isinstance(error, KubeError) else None
        details += [_info(Reason.UNAVAILABLE), _retry(HOST_BUSY_SECONDS if wait is None else wait)]
    else:
        code = grpc.StatusCode.INTERNAL
        message = "the host has a fault, which its log tells: ask its operator"
        details.append(_info(Reason.INTERNAL))
    status = Status(code=code.value[0], message=message[:1024])
    for each in details:
        status.details.append(_pack(each))
    return code, status


def from_rpc_error(error: grpc.aio.AioRpcError) -> CloudProviderError:
    """Return the error of the tree that a failed call stands for."""
    code = error.code()
    status = _status_of(error)
    text = error.details() or code.name
    reason, violations, subject, retry_after = "", None, "", None
    for detail in status.details:
        bad, info, quota, retry = BadRequest(), ErrorInfo(), QuotaFailure(), RetryInfo()
        if detail.Unpack(bad):
            violations = [
                Violation(field=v.field, reason=v.reason, message=v.description) for v in bad.field_violations
            ]
        elif detail.Unpack(info) and info.domain == DOMAIN:
            reason = info.reason
        elif detail.Unpack(quota) and quota.violations:
            subject = quota.violations[0].subject
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
    if violations:
        return (NotPermitted if code is grpc.StatusCode.PERMISSION_DENIED else InvalidRequest)(*violations)
    if reason == Reason.QUOTA_EXCEEDED:
        return QuotaExceeded(text, subject=subject, retry_after=retry_after or 0.0)
    if not reason and code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        reason = Reason(code.name)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        reason, text = Reason.UNSUPPORTED_VERSION, f"the other side is no bridge, or an older one: {text}"
    return BridgeError(
        text,
        reason=reason or code.name,
        retryable=code in _RETRYABLE or reason in _RETRYABLE_REASONS,
        retry_after=retry_after,
    )


def trailer(status: Status) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that carries a status' details."""
    return ((DETAILS_KEY, status.SerializeToString()),)


def _status_of(error: grpc.aio.AioRpcError) -> Status:
    metadata: Iterable[tuple[str, str | bytes]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()


def _info(reason: str) -> ErrorInfo:
    return ErrorInfo(reason=reason, domain=DOMAIN)


def _retry(seconds: float) -> RetryInfo:
    return RetryInfo(retry_delay=Duration(seconds=int(seconds), nanos=int(seconds % 1 * 1e9)))


def _pack(message: Message) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
