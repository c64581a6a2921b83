"""Which load balancers are refused, which are only warned of, and in which words."""

from ipaddress import ip_address

import msgspec
import pytest

from cloudprovider.core.api.loadbalancer import HealthCheck, Listener, LoadBalancer, LoadBalancerSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPPool
from cloudprovider.core.pools import survey
from cloudprovider.core.rules.holdings import Holding
from cloudprovider.core.rules.loadbalancers import advise, check_load_balancer, check_quota, choose_pool, violations_of
from cloudprovider.core.rules.verdict import Verdict
from tests.core.pools import pool

HTTP = Listener(name="http", port=80, backend_port=8080)


def fields(found: list[object]) -> list[tuple[str, str]]:
    return [(getattr(v, "field", ""), getattr(v, "reason", "")) for v in found]


def test_sound_load_balancers() -> None:
    assert violations_of(LoadBalancerSpec(listeners=[HTTP])) == []
    assert violations_of(LoadBalancerSpec(workload_type="cluster", listeners=[])) == []
    both = [
        Listener(name="dns", port=53, backend_port=53),
        Listener(name="dns-udp", port=53, protocol="UDP", backend_port=53),
    ]
    assert violations_of(LoadBalancerSpec(listeners=both, health_check=HealthCheck(port=53))) == []
    assert violations_of(LoadBalancerSpec(listeners=[HTTP], ipam="dhcp", ip_families=["IPv4"], dhcp_hostname="x")) == []
    assert violations_of(LoadBalancerSpec(listeners=[HTTP], ipam="pool", ip_pool="a", addresses=["10.0.0.5"])) == []
    assert violations_of(LoadBalancerSpec(workload_type="cluster", primary_service="shop/web")) == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (LoadBalancerSpec(), [("spec.listeners", "Required")]),
        (
            LoadBalancerSpec(listeners=[HTTP, Listener(name="http", port=81, backend_port=81)]),
            [("spec.listeners[0].name", "Duplicate"), ("spec.listeners[1].name", "Duplicate")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP, Listener(name="x", port=80, backend_port=81)]),
            [("spec.listeners[0].port", "Duplicate"), ("spec.listeners[1].port", "Duplicate")],
        ),
        (LoadBalancerSpec(listeners=[Listener(port=80)]), [("spec.listeners[0].backendPort", "Required")]),
        (
            LoadBalancerSpec(listeners=[HTTP], health_check=HealthCheck(port=80)),
            [("spec.healthCheck.port", "NotAListener")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], addresses=["banana"]),
            [("spec.addresses[0]", "InvalidAddress")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], addresses=["10.0.0.9", "10.0.0.10"]),
            [("spec.addresses[1]", "Duplicate")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], addresses=["fd00::9"], ip_families=["IPv4"]),
            [("spec.addresses[0]", "FamilyMismatch")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], ipam="dhcp", ip_families=["IPv4", "IPv6"]),
            [("spec.ipFamilies", "NotWithDHCP")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], ipam="dhcp", ip_family_policy="RequireDualStack"),
            [("spec.ipFamilyPolicy", "NotWithDHCP")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], ipam="dhcp", ip_pool="a", addresses=["10.0.0.5"]),
            [("spec.ipPool", "NotWithDHCP"), ("spec.addresses", "NotWithDHCP")],
        ),
        (
            LoadBalancerSpec(listeners=[HTTP], primary_service="shop/web"),
            [("spec.primaryService", "NotForVirtualMachines")],
        ),
        (LoadBalancerSpec(listeners=[HTTP], source_ranges=["x"]), [("spec.sourceRanges[0]", "InvalidCIDR")]),
    ],
)
def test_wrong_load_balancers(spec: LoadBalancerSpec, expected: list[tuple[str, str]]) -> None:
    assert fields([*violations_of(spec)]) == expected


def load_balancer(name: str = "web", **spec: object) -> LoadBalancer:
    wanted = msgspec.structs.replace(LoadBalancerSpec(listeners=[HTTP]), **spec)
    return LoadBalancer(metadata=ObjectMeta(name=name, namespace="team"), spec=wanted)


def test_all_that_is_wrong_is_told_at_once() -> None:
    verdict = check_load_balancer(load_balancer(listeners=[], addresses=["x"], ipam="dhcp"), None)
    assert {v.field for v in verdict.violations} == {"spec.listeners", "spec.addresses[0]", "spec.addresses"}


def test_what_was_wrong_before_is_a_warning() -> None:
    old = load_balancer(ipam="dhcp", ip_pool="a")
    verdict = check_load_balancer(load_balancer(ipam="dhcp", ip_pool="a", description="x"), old)
    assert verdict.violations == ()
    assert verdict.warnings == (
        'spec.ipPool: the DHCP server chooses the address, not the pool "a": leave it out, or set ipam to "pool"',
    )


def chosen(lb: LoadBalancer, *pools: IPPool) -> tuple[str, tuple[str, ...]]:
    view, verdict = choose_pool(lb, survey(pools))
    assert verdict.violations == ()
    return (view.name if view is not None else "", verdict.warnings)


def test_a_pool_that_may_still_come_is_a_warning() -> None:
    assert chosen(load_balancer(ip_pool="b"), pool("a")) == (
        "",
        ('no address yet: there is no pool "b" on this host: name one of a, or leave it out',),
    )
    name, warnings = chosen(load_balancer(ip_pool="a", addresses=["10.9.9.9"]), pool("a"))
    assert not name
    assert "the address asked for, 10.9.9.9, is not one that it hands out" in warnings[0]


def test_a_pool_that_serves_it_is_no_reason_to_warn() -> None:
    assert chosen(load_balancer(ip_pool="a", addresses=["10.0.0.9"]), pool("a"), pool("b", "10.1.0.0/24")) == ("a", ())
    assert chosen(load_balancer(), pool("a")) == ("a", ())
    assert chosen(load_balancer(ipam="dhcp"), pool("a", "banana")) == ("", ())


def limited(limit: int) -> IPPool:
    base = pool("a")
    return msgspec.structs.replace(base, spec=msgspec.structs.replace(base.spec, addresses_per_tenant=limit))


HELD = [
    Holding(ip_address("10.0.0.5"), "team/one", "1", "team"),
    Holding(ip_address("10.0.0.6"), "team/two", "2", "team"),
    Holding(ip_address("10.0.0.7"), "team/blue-default-x-1", "3", "team/blue"),  # a guest cluster's, with its own
    Holding(ip_address("10.0.0.8"), "other/x", "4", "other"),
]


@pytest.mark.parametrize("limit", [0, 3])
def test_a_quota_that_is_not_reached(limit: int) -> None:
    assert check_quota(load_balancer(ip_pool="a"), limited(limit), HELD) == Verdict()


def test_a_quota_that_is_reached() -> None:
    (violation,) = check_quota(load_balancer(ip_pool="a"), limited(2), HELD).violations
    assert (violation.field, violation.reason) == ("spec.ipPool", "QuotaExceeded")
    assert violation.message == (
        'the pool "a" gives a namespace\'s load balancers at most 2 addresses (its addressesPerTenant), and "team" has'
        " 2: delete one of them, use another pool, or ask an operator for more"
    )


def test_what_it_has_already_counts_once() -> None:
    assert check_quota(load_balancer("two", ip_pool="a"), limited(2), HELD) == Verdict()


def test_two_families_are_two_addresses() -> None:
    assert check_quota(load_balancer(ip_pool="a", ip_family_policy="RequireDualStack"), limited(3), HELD).violations
    assert check_quota(load_balancer(ip_pool="a", addresses=["10.0.0.9", "fd00::9"]), limited(3), HELD).violations


def test_the_quota_of_a_pool_that_nobody_named_is_a_warning() -> None:
    verdict = check_quota(load_balancer(), limited(2), HELD)
    assert verdict.violations == ()
    assert verdict.warnings[0].startswith('no address yet: the pool "a" gives a namespace')


DNS = Listener(name="dns", port=53, protocol="UDP", backend_port=53)
PEM = "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIU\nAAAA\n-----END CERTIFICATE-----\n"


def checked(*listeners: Listener, **check: object) -> LoadBalancerSpec:
    fields = {"port": 8080, **check}
    return LoadBalancerSpec(
        listeners=list(listeners) or [HTTP],
        backend_server_selector={"app": ["web"]},
        health_check=HealthCheck(**fields),  # type: ignore[arg-type]
    )


def selecting(selector: dict[str, list[str]]) -> LoadBalancerSpec:
    return LoadBalancerSpec(listeners=[HTTP], backend_server_selector=selector)


@pytest.mark.parametrize(
    "spec",
    [
        checked(DNS, port=9090),  # a server of datagrams is checked at whatever else it listens on
        checked(protocol="HTTP", path="/ready", host="shop.example", expected_codes=["200", "204-299"]),
        checked(protocol="HTTPS", verify_certificate=True, certificate_authority=PEM + PEM),
        checked(protocol="GRPC", grpc_service="shop.Cart"),
        checked(port=None, path="/ready"),  # nothing is checked
    ],
)
def test_sound_health_checks(spec: LoadBalancerSpec) -> None:
    assert violations_of(spec) == []


@pytest.mark.parametrize(
    ("spec", "field", "reason"),
    [
        (checked(HTTP, DNS, port=53), "port", "NotAListener"),
        (checked(path="/ready"), "path", "NotWithProtocol"),
        (checked(expected_codes=["200"]), "expectedCodes", "NotWithProtocol"),
        (checked(host="shop.example"), "host", "NotWithProtocol"),
        (checked(protocol="HTTP", verify_certificate=True), "verifyCertificate", "NotWithProtocol"),
        (checked(protocol="HTTP", certificate_authority=PEM), "certificateAuthority", "NotWithProtocol"),
        (checked(protocol="HTTP", grpc_service="x"), "grpcService", "NotWithProtocol"),
        (checked(protocol="HTTP", expected_codes=["299-200"]), "expectedCodes", "MalformedValue"),
        (checked(protocol="HTTP", path="no slash"), "path", "MalformedValue"),
        (checked(protocol="HTTPS", certificate_authority="nonsense"), "certificateAuthority", "MalformedValue"),
        (checked(protocol="HTTPS", certificate_authority=PEM[:50]), "certificateAuthority", "MalformedValue"),
        (checked(protocol="HTTPS", certificate_authority=PEM + "x"), "certificateAuthority", "MalformedValue"),
        (
            checked(protocol="HTTPS", certificate_authority=PEM.replace("MIIB", "AAAA")),
            "certificateAuthority",
            "MalformedValue",
        ),
    ],
)
def test_health_checks_that_contradict_themselves(spec: LoadBalancerSpec, field: str, reason: str) -> None:
    assert fields(list(violations_of(spec))) == [(f"spec.healthCheck.{field}", reason)]


def test_a_guests_check_is_judged_where_its_service_is_read() -> None:
    spec = msgspec.structs.replace(checked(port=1, path="/x"), workload_type="cluster")
    assert violations_of(spec) == []


def advice(spec: LoadBalancerSpec) -> tuple[str, ...]:
    lb = LoadBalancer(metadata=ObjectMeta(name="lb"), spec=spec)
    assert check_load_balancer(lb, None) == Verdict()
    return advise(lb).warnings


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (checked(timeout_seconds=20), "silent is out after some 60 seconds"),
        (checked(protocol="HTTPS", certificate_authority=PEM), "counts for nothing while verifyCertificate is not set"),
        (checked(port=None, path="/ready"), "without a port nothing is checked"),
        (selecting({}), "names no labels"),
        (selecting({"app": []}), "[app]: has no value"),
        (selecting({"app": ["v" * 64]}), "can't be a label's value"),
        (selecting({"k" * 64: ["web"]}), "can't be a label's name"),
        (selecting({"Example.com/app": ["web"]}), "can't be a label's name"),
    ],
)
def test_what_its_author_may_not_have_meant(spec: LoadBalancerSpec, says: str) -> None:
    (warning,) = advice(spec)
    assert says in warning


def test_labels_of_63_characters_are_labels() -> None:
    longest = f"{'d' * 63}.{'d' * 63}.{'d' * 63}.{'d' * 61}/{'k' * 63}"
    assert advice(selecting({longest: ["v" * 63, ""], "harvesterhci.io/vmName": ["web_1.a"]})) == ()
    assert advice(checked()) == ()
