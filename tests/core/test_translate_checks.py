"""The health check that a Service's annotations ask for, and what they can't, each refused with its sentence."""

from dataclasses import replace
from typing import Any

import pytest

from cloudprovider.core import annotations as a
from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.exchange import HealthCheck, ServiceKey, Tenant
from cloudprovider.core.lbobject import wanted_object
from cloudprovider.core.questions import GrpcHealth, HttpGet, Tls, question_of
from cloudprovider.core.translate import translate
from tests.core.services import only, refused, service

PORT = a.HEALTHCHECK + "port"
DNS = [{"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30053}]


def asked(annotations: dict[str, str], **spec: Any) -> HealthCheck | None:
    named = {a.HEALTHCHECK + name: value for name, value in annotations.items()}
    return translate(service(named, **spec)).health_check


def test_without_annotations_there_is_no_check() -> None:
    assert asked({}) is None
    assert asked(dict.fromkeys(("port", "path"), "")) is None


def test_harvesters_annotations_and_their_defaults() -> None:
    assert asked({"port": "9000"}) == HealthCheck(
        port=9000, success_threshold=1, failure_threshold=3, period_seconds=5, timeout_seconds=3
    )
    everything = {
        "port": "9000",
        "success-threshold": "2",
        "failure-threshold": "4",
        "periodseconds": "10",
        "timeoutseconds": "1",
    }
    assert asked(everything) == HealthCheck(
        port=9000, success_threshold=2, failure_threshold=4, period_seconds=10, timeout_seconds=1
    )


def test_a_tcp_port_of_the_service_is_checked_by_its_node_port_and_any_other_is_the_nodes() -> None:
    assert asked({"port": "80"}) == HealthCheck(port=30080)
    assert asked({"port": "30080"}) == HealthCheck(port=30080)
    assert asked({"port": "53"}, ports=DNS) == HealthCheck(port=53)
    both = [*DNS, {"name": "tcp", "port": 53, "nodePort": 30054}]
    assert asked({"port": "53"}, ports=both) == HealthCheck(port=30054)


def test_a_tcp_port_without_node_port_can_not_be_checked() -> None:
    ports = [{"name": "web", "port": 80}]
    found = only(refused({PORT: "80", a.MODE: "dsr"}, ports=ports))
    assert (found.field, found.reason) == (f"metadata.annotations[{PORT}]", "Required")
    assert found.message.startswith("port 80 of the Service has no node port that could be checked")


def test_http() -> None:
    check = asked(
        {
            "port": "80",
            "protocol": "HTTPS",
            "path": "/ready?deep=1",
            "host": "shop.example.org",
            "expected-codes": "200, 204,300-399",
            "verify-certificate": "true",
            "failed-connections": "Reset",
        }
    )
    assert check == HealthCheck(
        port=30080,
        protocol="HTTPS",
        path="/ready?deep=1",
        host="shop.example.org",
        expected_codes=("200", "204", "300-399"),
        verify_certificate=True,
        failed_connections="Reset",
    )


def test_grpc() -> None:
    check = asked({"port": "80", "protocol": "GRPC", "grpc-service": "shop.Cart"})
    assert check == HealthCheck(port=30080, protocol="GRPC", grpc_service="shop.Cart")


@pytest.mark.parametrize(
    ("name", "value", "reason", "says"),
    [
        ("port", "0", "OutOfRange", '"0" is not a number from 1 to 65535'),
        ("port", "http", "OutOfRange", '"http" is not'),
        ("success-threshold", "0", "OutOfRange", "from 1 to 100"),
        ("failure-threshold", "101", "OutOfRange", "from 1 to 100"),
        ("periodseconds", "1.5", "OutOfRange", "from 1 to 3600"),
        ("timeoutseconds", "-1", "OutOfRange", "from 1 to 3600"),
        ("timeoutseconds", "\u0661", "OutOfRange", "from 1 to 3600"),
        ("protocol", "http", "UnsupportedValue", '"http" is not one of "TCP", "HTTP", "HTTPS", "GRPC", "GRPCS"'),
        ("path", "ready", "MalformedValue", '"ready" is no path'),
        ("path", "/a b", "MalformedValue", '"/a b" is no path'),
        ("path", "/a\r\nX: y", "MalformedValue", "is no path"),
        ("path", "/" + "a" * 2048, "MalformedValue", "up to 2048 characters"),
        ("host", "shop.example.org:80", "MalformedValue", "neither a host's name nor an address"),
        ("expected-codes", "200,,204", "MalformedValue", '"" is no code'),
        ("expected-codes", "2xx", "MalformedValue", '"2xx" is no code'),
        ("expected-codes", "299-200", "MalformedValue", '"299-200" runs backwards'),
        ("expected-codes", ",".join(["200"] * 17), "TooMany", "17 codes; a check takes up to 16"),
        ("verify-certificate", "yes", "UnsupportedValue", '"yes" is not one of "true", "false"'),
        ("failed-connections", "reset", "UnsupportedValue", '"reset" is not one of "Keep", "Reset"'),
        ("grpc-service", "shop.Cart", "NotWithProtocol", "is for GRPC and GRPCS only, and the check is by HTTPS"),
    ],
)
def test_a_bad_value_is_refused_by_its_annotation(name: str, value: str, reason: str, says: str) -> None:
    annotations = {PORT: "80", a.HEALTHCHECK + "protocol": "HTTPS", a.HEALTHCHECK + name: value}
    found = only(refused(annotations))
    assert (found.field, found.reason) == (f"metadata.annotations[{a.HEALTHCHECK}{name}]", reason)
    assert says in found.message


@pytest.mark.parametrize("name", ["path", "host", "expected-codes", "grpc-service", "verify-certificate"])
def test_what_a_connection_alone_does_not_have(name: str) -> None:
    value = {"expected-codes": "200", "verify-certificate": "true"}.get(name, "/a" if name == "path" else "a")
    found = only(refused({PORT: "80", a.HEALTHCHECK + name: value}))
    assert (found.field, found.reason) == (f"metadata.annotations[{a.HEALTHCHECK}{name}]", "NotWithProtocol")


@pytest.mark.parametrize("name", [name for name in a.HEALTH_CHECKS if name != PORT])
def test_any_of_them_without_a_port_says_nothing(name: str) -> None:
    found = only(refused({name: "1"}))
    assert (found.field, found.reason) == (f"metadata.annotations[{name}]", "Required")
    assert found.message == f"says nothing without a port that is checked: add {PORT}, or remove this"


def test_every_violation_is_named() -> None:
    found = refused({PORT: "x", a.HEALTHCHECK + "protocol": "y", a.HEALTHCHECK + "periodseconds": "z"})
    assert [each.reason for each in found] == ["OutOfRange", "UnsupportedValue", "OutOfRange"]


@pytest.mark.parametrize(
    "check",
    [
        HealthCheck(port=80, protocol="HTTPS", path="/a", host="h", expected_codes=("200",), verify_certificate=True),
        HealthCheck(port=80, protocol="GRPCS", grpc_service="s", failed_connections="Reset", period_seconds=7),
    ],
)
def test_the_whole_check_is_in_the_hosts_object(check: HealthCheck) -> None:
    request = replace(translate(service()), health_check=check)
    made = wanted_object(
        Tenant("t", "c"), ServiceKey("d", "w", "u"), request, cluster_uid="x", limits=GuestClusterSpec()
    )
    assert made.spec.health_check is not None
    fields = {name: getattr(made.spec.health_check, name) for name in check.__slots__}
    assert fields == {name: getattr(check, name) for name in check.__slots__} | {
        "expected_codes": list(check.expected_codes)
    }
    wanted: HttpGet | GrpcHealth = HttpGet("/a", "h", ((200, 200),), Tls(verify=True))
    if check.protocol == "GRPCS":
        wanted = GrpcHealth("s", tls=Tls())
    assert question_of(made.spec.health_check) == wanted
