"""What the health check of a load balancer for virtual machines may say. A guest's Service is checked where it is read,
by the same rules (``core.checkrules``)."""

import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Final

from cloudprovider.core.api.loadbalancer import HealthCheck, LoadBalancerSpec
from cloudprovider.core.checkrules import KINDS_OF, Part, violations
from cloudprovider.core.errors import Violation

_AT: Final = "spec.healthCheck"
_TLS: Final = KINDS_OF["verify_certificate"]
_PEM: Final = re.compile(r"\s*-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----\s*")
_SEQUENCE: Final = b"\x30"
"""What every certificate begins with in DER (ITU-T X.690, RFC 5280 section 4.1)."""


def health_check_violations(spec: LoadBalancerSpec) -> Iterator[Violation]:
    """Yield what is wrong with the check of machines; without a port nothing is checked, and nothing is wrong."""
    check = spec.health_check
    if check is None or check.port is None or spec.workload_type == "cluster":
        return
    ports = sorted({x.backend_port for x in spec.listeners if x.protocol == "TCP" and x.backend_port is not None})
    if ports and check.port not in ports:
        message = (
            f"{check.port} is no TCP listener's backendPort, and what is checked is what traffic goes to: choose one of"
            f" {', '.join(map(str, ports))}"
        )
        yield Violation(field=f"{_AT}.port", reason="NotAListener", message=message)
    yield from violations(check, _field)
    if not check.certificate_authority:
        return
    at = f"{_AT}.certificateAuthority"
    if check.protocol not in _TLS:
        message = f"is for {' and '.join(_TLS)} only, and the check is by {check.protocol}: remove it"
        yield Violation(field=at, reason="NotWithProtocol", message=message)
    if not _is_pem(check.certificate_authority):
        message = 'is no certificate in PEM: paste it whole, from "-----BEGIN CERTIFICATE-----" to its end'
        yield Violation(field=at, reason="MalformedValue", message=message)


def health_check_advice(spec: LoadBalancerSpec) -> Iterator[str]:
    """Yield what the author of a sound check may not have meant."""
    check = spec.health_check
    if check is None or spec.workload_type == "cluster":
        return
    if check.port is None:
        if check != HealthCheck():
            yield f"{_AT}: without a port nothing is checked, and every machine counts as healthy"
        return
    if check.timeout_seconds > check.period_seconds:
        yield (
            f"{_AT}.timeoutSeconds: is longer than periodSeconds; as nobody is asked twice at a time, a machine that"
            f" falls silent is out after some {check.failure_threshold * check.timeout_seconds} seconds"
        )
    if check.certificate_authority and not check.verify_certificate and check.protocol in _TLS:
        yield f"{_AT}.certificateAuthority: counts for nothing while verifyCertificate is not set"


def _field(part: Part) -> str:
    first, *rest = part.split("_")
    return f"{_AT}.{first}{''.join(word.capitalize() for word in rest)}"


def _is_pem(text: str) -> bool:
    """Whether a text is one certificate or more, as far as can be told without reading what is in them."""
    at = 0
    while at < len(text):
        found = _PEM.match(text, at)
        if found is None:
            return False
        try:
            if not b64decode("".join(found[1].split()), validate=True).startswith(_SEQUENCE):
                return False
        except ValueError:
            return False
        at = found.end()
    return at > 0
