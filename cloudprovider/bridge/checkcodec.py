"""A health check between the bridge's message and the plain data of :mod:`cloudprovider.core.exchange`."""

from cloudprovider.bridge.checker import Checker
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.core.checkrules import violations
from cloudprovider.core.exchange import CheckProtocol, FailedConnections, HealthCheck

_CHECK_PROTOCOLS: dict[int, CheckProtocol] = {
    pb.HEALTH_CHECK_PROTOCOL_UNSPECIFIED: "TCP",
    pb.HEALTH_CHECK_PROTOCOL_TCP: "TCP",
    pb.HEALTH_CHECK_PROTOCOL_HTTP: "HTTP",
    pb.HEALTH_CHECK_PROTOCOL_HTTPS: "HTTPS",
    pb.HEALTH_CHECK_PROTOCOL_GRPC: "GRPC",
    pb.HEALTH_CHECK_PROTOCOL_GRPCS: "GRPCS",
}
_FAILED_CONNECTIONS: dict[int, FailedConnections] = {
    pb.FAILED_CONNECTIONS_UNSPECIFIED: "Keep",
    pb.FAILED_CONNECTIONS_KEEP: "Keep",
    pb.FAILED_CONNECTIONS_RESET: "Reset",
}

_CHECK_PROTOCOLS_OUT: dict[CheckProtocol, pb.HealthCheckProtocol.ValueType] = {
    "TCP": pb.HEALTH_CHECK_PROTOCOL_TCP,
    "HTTP": pb.HEALTH_CHECK_PROTOCOL_HTTP,
    "HTTPS": pb.HEALTH_CHECK_PROTOCOL_HTTPS,
    "GRPC": pb.HEALTH_CHECK_PROTOCOL_GRPC,
    "GRPCS": pb.HEALTH_CHECK_PROTOCOL_GRPCS,
}
_FAILED_CONNECTIONS_OUT: dict[FailedConnections, pb.FailedConnections.ValueType] = {
    "Keep": pb.FAILED_CONNECTIONS_KEEP,
    "Reset": pb.FAILED_CONNECTIONS_RESET,
}


def check_to_wire(wish: HealthCheck) -> pb.HealthCheck:
    """Write a check."""
    return pb.HealthCheck(
        port=wish.port,
        protocol=_CHECK_PROTOCOLS_OUT[wish.protocol],
        path=wish.path,
        host=wish.host,
        expected_codes=wish.expected_codes,
        verify_certificate=wish.verify_certificate,
        grpc_service=wish.grpc_service,
        success_threshold=wish.success_threshold,
        failure_threshold=wish.failure_threshold,
        period_seconds=wish.period_seconds,
        timeout_seconds=wish.timeout_seconds,
        failed_connections=_FAILED_CONNECTIONS_OUT[wish.failed_connections],
    )


def check_from_wire(check: Checker, message: pb.HealthCheck) -> HealthCheck:
    """Read a check; what is wrong with it is noted in ``check``."""
    at = "spec.healthCheck"
    usual = HealthCheck(port=message.port)
    wish = HealthCheck(
        port=message.port,
        protocol=check.enum(f"{at}.protocol", _CHECK_PROTOCOLS, message.protocol, "TCP"),
        path=message.path,
        host=message.host,
        expected_codes=tuple(message.expected_codes),
        verify_certificate=message.verify_certificate,
        grpc_service=message.grpc_service,
        success_threshold=message.success_threshold or usual.success_threshold,
        failure_threshold=message.failure_threshold or usual.failure_threshold,
        period_seconds=message.period_seconds or usual.period_seconds,
        timeout_seconds=message.timeout_seconds or usual.timeout_seconds,
        failed_connections=check.enum(
            f"{at}.failedConnections", _FAILED_CONNECTIONS, message.failed_connections, "Keep"
        ),
    )
    check.violations.extend(violations(wish, lambda part: f"{at}.{_camel(part)}"))
    return wish


def _camel(part: str) -> str:
    first, *rest = part.split("_")
    return first + "".join(word.capitalize() for word in rest)
