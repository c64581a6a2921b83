"""What a health check asks a backend: plain data, one type a kind."""

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, TypeAlias

from cloudprovider.core.api.loadbalancer import HealthCheck
from cloudprovider.core.health import Check
from cloudprovider.core.patterns import HOSTNAME

Codes: TypeAlias = tuple[tuple[int, int], ...]
"""Ranges of HTTP status codes, both ends included."""

EXPECTED_CODES: Final[Codes] = ((200, 399),)
PATH: Final = re.compile(r"/[!-~]*")
"""What may stand in a request line as it is (RFC 9112 section 3.2): printable ASCII without spaces."""
CODES: Final = re.compile(r"[1-5][0-9]{2}(-[1-5][0-9]{2})?")


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is secured. ``verify``: the certificate must be valid for the name that is asked for, and signed
    by ``authority`` (PEM; empty: by somebody whom the system trusts)."""

    verify: bool = False
    authority: str = ""


@dataclass(frozen=True, slots=True)
class TcpConnect:
    """A connection comes about."""


@dataclass(frozen=True, slots=True)
class HttpGet:
    """A GET is answered with one of ``codes``. ``host`` empty: the address and port. ``tls`` None: plain text."""

    path: str = "/"
    host: str = ""
    codes: Codes = EXPECTED_CODES
    tls: Tls | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no request can be made of."""
        if not PATH.fullmatch(self.path):
            raise ValueError(f"path {self.path!r} is none; use ASCII without spaces that begins with /")
        _check_host(self.host)


@dataclass(frozen=True, slots=True)
class GrpcHealth:
    """grpc.health.v1.Health/Check says SERVING for ``service`` (empty: for the server as a whole)."""

    service: str = ""
    host: str = ""
    tls: Tls | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for what no request can be made of."""
        _check_host(self.host)


Question: TypeAlias = TcpConnect | HttpGet | GrpcHealth


def is_host(text: str) -> bool:
    """Whether a text is a host's name or an address."""
    return HOSTNAME.fullmatch(text) is not None or _is_address(text)


def codes_of(texts: list[str] | tuple[str, ...]) -> Codes:
    """Read "200" and "200-299"; empty: what is expected where nothing is said. Raises ValueError."""
    found: list[tuple[int, int]] = []
    for text in texts:
        if not CODES.fullmatch(text):
            raise ValueError(f'"{text}" is no code; write "200" or "200-299", of 100 to 599')
        first, _, last = text.partition("-")
        if int(last or first) < int(first):
            raise ValueError(f'"{text}" runs backwards; write the smaller code first')
        found.append((int(first), int(last or first)))
    return tuple(found) or EXPECTED_CODES


def question_of(check: HealthCheck) -> Question:
    """What a load balancer's check asks. Raises ValueError for what no request can be made of."""
    tls = Tls(check.verify_certificate, check.certificate_authority)
    match check.protocol:
        case "HTTP" | "HTTPS":
            codes = codes_of(check.expected_codes)
            return HttpGet(check.path or "/", check.host, codes, tls if check.protocol == "HTTPS" else None)
        case "GRPC" | "GRPCS":
            return GrpcHealth(check.grpc_service, check.host, tls if check.protocol == "GRPCS" else None)
        case "TCP":
            return TcpConnect()


@dataclass(frozen=True, slots=True)
class BackendCheck:
    """A load balancer's check: what is asked at which port of each backend, how often, and what turns its verdict."""

    port: int
    question: Question
    pace: Check


def check_of(check: HealthCheck | None) -> BackendCheck | None:
    """Read a load balancer's check; None where nothing is checked. Raises ValueError for what can't be asked."""
    if check is None or check.port is None:
        return None
    return BackendCheck(check.port, question_of(check), pace_of(check))


def pace_of(check: HealthCheck) -> Check:
    """How often a load balancer's check asks, and how many answers turn its verdict."""
    return Check(
        period=float(check.period_seconds),
        timeout=float(check.timeout_seconds),
        failure_threshold=check.failure_threshold,
        success_threshold=check.success_threshold,
    )


def _check_host(host: str) -> None:
    if host and not is_host(host):
        raise ValueError(f"host {host!r} is neither a name nor an address")


def _is_address(text: str) -> bool:
    try:
        return not getattr(ip_address(text), "scope_id", None)
    except ValueError:
        return False
