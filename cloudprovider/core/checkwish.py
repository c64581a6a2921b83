"""The health check that a Service's annotations ask for. Pure."""

from dataclasses import replace
from typing import Final, cast

from cloudprovider.core.annotations import HEALTH_CHECKS, HEALTHCHECK
from cloudprovider.core.checkrules import MOST, PROTOCOLS, Part, violations
from cloudprovider.core.exchange import CheckProtocol, FailedConnections, HealthCheck
from cloudprovider.core.findings import Findings, annotation_field, listed

_NAMES: Final[dict[Part, str]] = {
    "port": HEALTHCHECK + "port",
    "protocol": HEALTHCHECK + "protocol",
    "path": HEALTHCHECK + "path",
    "host": HEALTHCHECK + "host",
    "expected_codes": HEALTHCHECK + "expected-codes",
    "verify_certificate": HEALTHCHECK + "verify-certificate",
    "grpc_service": HEALTHCHECK + "grpc-service",
    "success_threshold": HEALTHCHECK + "success-threshold",
    "failure_threshold": HEALTHCHECK + "failure-threshold",
    "period_seconds": HEALTHCHECK + "periodseconds",
    "timeout_seconds": HEALTHCHECK + "timeoutseconds",
    "failed_connections": HEALTHCHECK + "failed-connections",
}
_FAILED_CONNECTIONS: Final = ("Keep", "Reset")
_DEFAULTS: Final = HealthCheck(port=1)


def check_wish(found: Findings) -> HealthCheck | None:
    """Read the check of a Service; None: there is none, and the probes of nodes decide."""
    if not found.annotation(_NAMES["port"]):
        for name in HEALTH_CHECKS:
            if found.annotation(name):
                message = f"says nothing without a port that is checked: add {_NAMES['port']}, or remove this"
                found.refuse_annotation(name, "Required", message)
        return None
    refused = len(found.violations)
    codes = found.annotation(_NAMES["expected_codes"])
    check = HealthCheck(
        port=_number(found, "port", _DEFAULTS.port),
        protocol=cast("CheckProtocol", _one_of(found, "protocol", PROTOCOLS, _DEFAULTS.protocol)),
        path=found.annotation(_NAMES["path"]),
        host=found.annotation(_NAMES["host"]),
        expected_codes=tuple(code.strip() for code in codes.split(",")) if codes else (),
        verify_certificate=_one_of(found, "verify_certificate", ("true", "false"), "false") == "true",
        grpc_service=found.annotation(_NAMES["grpc_service"]),
        success_threshold=_number(found, "success_threshold", _DEFAULTS.success_threshold),
        failure_threshold=_number(found, "failure_threshold", _DEFAULTS.failure_threshold),
        period_seconds=_number(found, "period_seconds", _DEFAULTS.period_seconds),
        timeout_seconds=_number(found, "timeout_seconds", _DEFAULTS.timeout_seconds),
        failed_connections=cast(
            "FailedConnections",
            _one_of(found, "failed_connections", _FAILED_CONNECTIONS, _DEFAULTS.failed_connections),
        ),
    )
    if len(found.violations) == refused:
        found.violations.extend(violations(check, lambda part: annotation_field(_NAMES[part])))
    return _at_the_nodes(found, check)


def _at_the_nodes(found: Findings, check: HealthCheck) -> HealthCheck:
    """A TCP port of the Service is checked by its node port; any other port is one of the nodes themselves."""
    for port in found.service.spec.ports:
        if port.port == check.port and port.protocol == "TCP":
            if not port.node_port:
                message = (
                    f"port {port.port} of the Service has no node port that could be checked; set"
                    " spec.allocateLoadBalancerNodePorts to true, or name another port of the nodes"
                )
                found.refuse_annotation(_NAMES["port"], "Required", message)
                return check
            return replace(check, port=port.node_port)
    return check


def _number(found: Findings, part: Part, default: int) -> int:
    value = found.annotation(_NAMES[part])
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and 1 <= int(value) <= MOST[part]):
        found.refuse_annotation(_NAMES[part], "OutOfRange", f'"{value}" is not a number from 1 to {MOST[part]}')
        return default
    return int(value)


def _one_of(found: Findings, part: Part, allowed: tuple[str, ...], default: str) -> str:
    value = found.annotation(_NAMES[part])
    if value and value not in allowed:
        found.refuse_annotation(_NAMES[part], "UnsupportedValue", f'"{value}" is not one of {listed(allowed)}')
        return default
    return value or default
