"""Every error of the tree survives the wire; what must not leave the host stays there."""

import grpc
import pytest

from cloudprovider.bridge.api import QuotaExceeded, Reason
from cloudprovider.bridge.failures import METADATA_BYTES, from_rpc_error, to_status, trailer
from cloudprovider.core.errors import (
    AllocationError,
    BridgeError,
    CloudProviderError,
    Conflict,
    DataPlaneError,
    InvalidRequest,
    KubeError,
    NotPermitted,
    Unavailable,
    Violation,
)

VIOLATION = Violation(field="spec.ports[0].protocol", reason="Unsupported", message="SCTP is not offered: use TCP")


def over_the_wire(error: CloudProviderError) -> CloudProviderError:
    code, status = to_status(error)
    metadata = grpc.aio.Metadata(*trailer(status))
    return from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, status.message, ""))


@pytest.mark.parametrize("kind", [InvalidRequest, NotPermitted])
def test_violations(kind: type[InvalidRequest]) -> None:
    error = over_the_wire(kind(VIOLATION, VIOLATION))
    assert type(error) is kind
    assert isinstance(error, InvalidRequest)
    assert error.violations == (VIOLATION, VIOLATION)


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.QUOTA_EXCEEDED])
def test_reasons(reason: Reason) -> None:
    error = over_the_wire(BridgeError("why", reason=reason, retry_after=1.5))
    assert isinstance(error, BridgeError)
    assert (error.reason, str(error), error.retry_after) == (reason, "why", 1.5)


@pytest.mark.parametrize(
    ("reason", "retryable"),
    [
        (Reason.CERTIFICATE_REVOKED, False),
        (Reason.CLUSTER_MISMATCH, False),
        (Reason.UNKNOWN_TENANT, False),
        (Reason.STALE_LEADER, False),
        (Reason.IDENTITY_MISMATCH, False),
        (Reason.UNSUPPORTED_VERSION, False),
        (Reason.NOT_CONNECTED, True),
        (Reason.RATE_LIMITED, True),
        (Reason.UNAVAILABLE, True),
        (Reason.INTERNAL, True),
        (Reason.DEADLINE_EXCEEDED, True),
    ],
)
def test_whether_time_heals(reason: Reason, retryable: bool) -> None:
    error = over_the_wire(BridgeError("why", reason=reason))
    assert isinstance(error, BridgeError)
    assert error.retryable is retryable


def test_quota() -> None:
    error = over_the_wire(QuotaExceeded("too many", subject="loadBalancers", retry_after=30.0))
    assert isinstance(error, QuotaExceeded)
    assert (error.subject, error.retry_after, str(error)) == ("loadBalancers", 30.0, "too many")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable("https://10.0.0.1:6443 secret", retry_after=7.0), Reason.UNAVAILABLE),
        (Conflict("secret"), Reason.UNAVAILABLE),
        (KubeError("secret"), Reason.UNAVAILABLE),
        (AllocationError("secret"), Reason.UNAVAILABLE),
        (DataPlaneError("secret"), Reason.INTERNAL),
    ],
)
def test_the_hosts_inside_stays_inside(error: CloudProviderError, reason: Reason) -> None:
    _, status = to_status(error)
    assert b"secret" not in status.SerializeToString()
    told = over_the_wire(error)
    assert isinstance(told, BridgeError)
    assert told.reason == reason
    assert told.retryable
    if isinstance(error, Unavailable):
        assert told.retry_after == 7.0


def test_a_thousand_violations_fit_the_trailer() -> None:
    violation = Violation(field="f" * 1000, reason="Malformed", message="m" * 10000)
    _, status = to_status(InvalidRequest(*[violation] * 1000))
    assert len(status.SerializeToString()) * 4 / 3 < METADATA_BYTES


def test_grpcs_own_failures() -> None:
    def bare(code: grpc.StatusCode) -> CloudProviderError:
        return from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "text", ""))

    unavailable, late, unknown = map(
        bare, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED)
    )
    assert isinstance(unavailable, BridgeError)
    assert unavailable.retryable
    assert isinstance(late, BridgeError)
    assert late.reason == Reason.DEADLINE_EXCEEDED
    assert isinstance(unknown, BridgeError)
    assert unknown.reason == Reason.UNSUPPORTED_VERSION
    assert not unknown.retryable
