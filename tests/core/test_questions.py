"""What a load balancer's check asks, read from its spec."""

import pytest

from cloudprovider.core.api.loadbalancer import HealthCheck
from cloudprovider.core.health import Check
from cloudprovider.core.questions import (
    EXPECTED_CODES,
    GrpcHealth,
    HttpGet,
    Question,
    TcpConnect,
    Tls,
    codes_of,
    is_host,
    pace_of,
    question_of,
)


@pytest.mark.parametrize(
    ("check", "question"),
    [
        (HealthCheck(port=80, path="/x", host="h", grpc_service="s"), TcpConnect()),
        (HealthCheck(protocol="HTTP"), HttpGet("/", "", EXPECTED_CODES)),
        (
            HealthCheck(protocol="HTTPS", path="/a", host="h", expected_codes=["204"], verify_certificate=True),
            HttpGet("/a", "h", ((204, 204),), Tls(verify=True)),
        ),
        (HealthCheck(protocol="GRPC", grpc_service="s", host="h"), GrpcHealth("s", "h")),
        (HealthCheck(protocol="GRPCS", certificate_authority="pem"), GrpcHealth("", "", Tls(False, "pem"))),
    ],
)
def test_each_kind(check: HealthCheck, question: Question) -> None:
    assert question_of(check) == question


def test_the_pace_is_as_harvester_documents_it() -> None:
    assert pace_of(HealthCheck()) == Check(period=5, timeout=3, failure_threshold=3, success_threshold=1)
    other = HealthCheck(period_seconds=7, timeout_seconds=2, failure_threshold=4, success_threshold=6)
    assert pace_of(other) == Check(period=7, timeout=2, failure_threshold=4, success_threshold=6)


def test_codes() -> None:
    assert codes_of([]) == ((200, 399),)
    assert codes_of(["200", "300-302"]) == ((200, 200), (300, 302))


@pytest.mark.parametrize("text", ["", "20", "600", "099", "200-", "-200", "200-600", "2xx", "200 ", "٢٠٠", "299-200"])
def test_what_is_no_code(text: str) -> None:
    with pytest.raises(ValueError, match=r"no code|backwards"):
        codes_of([text])


@pytest.mark.parametrize("text", ["example.org", "10.0.0.1", "fd00::1", "a"])
def test_hosts(text: str) -> None:
    assert is_host(text)


@pytest.mark.parametrize("text", ["", "a b", "a\r\nX: y", "a:80", "[::1]", "fe80::1%eth0", "é", "-a", "a/b"])
def test_what_is_no_host(text: str) -> None:
    assert not is_host(text)


@pytest.mark.parametrize(
    "check",
    [
        HealthCheck(protocol="HTTP", path="x"),
        HealthCheck(protocol="HTTP", path="/a b"),
        HealthCheck(protocol="HTTP", path="/a\r\nX: y"),
        HealthCheck(protocol="HTTPS", host="a\nb"),
        HealthCheck(protocol="HTTP", expected_codes=["9"]),
        HealthCheck(protocol="GRPC", host="a b"),
    ],
)
def test_what_no_request_can_be_made_of_is_refused(check: HealthCheck) -> None:
    with pytest.raises(ValueError, match=r"path|host|code"):
        question_of(check)
