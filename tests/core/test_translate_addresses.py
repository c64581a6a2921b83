"""Where a Service wants its address from, and what it can't ask for together, each refused with its sentence."""

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from cloudprovider.core import annotations as a
from cloudprovider.core.exchange import IPFamily, Listener, LoadBalancerRequest
from cloudprovider.core.translate import translate
from tests.core.services import only, refused, service

PLAIN = LoadBalancerRequest(listeners=(Listener("web", "TCP", 80, 30080),), ip_families=("IPv4",))
KUBE_VIP = "kube-vip.io/loadbalancerIPs"
METALLB = "metallb.universe.tf/loadBalancerIPs"


def at(name: str) -> str:
    return f"metadata.annotations[{name}]"


Said = tuple[str, str, str]


def said(annotations: dict[str, str], **spec: Any) -> list[Said]:
    return [(v.field, v.reason, v.message) for v in refused(annotations, **spec)]


@pytest.mark.parametrize("name", a.FIXED_ADDRESSES)
def test_fixed_addresses(name: str) -> None:
    asked = translate(service({name: "192.0.2.7, 2001:db8::7"}, ipFamilies=["IPv4", "IPv6"]))
    assert asked.addresses == (ip_address("192.0.2.7"), ip_address("2001:db8::7"))


def test_the_same_fixed_addresses_twice_are_one_wish() -> None:
    asked = service(
        {"metallb.io/loadBalancerIPs": "2001:db8::7,192.0.2.7", "kube-vip.io/loadbalancerIPs": "192.0.2.7,2001:db8::7"},
        ipFamilies=["IPv4", "IPv6"],
    )
    assert set(translate(asked).addresses) == {ip_address("192.0.2.7"), ip_address("2001:db8::7")}


def test_fixed_addresses_that_contradict() -> None:
    found = only(refused({"metallb.universe.tf/loadBalancerIPs": "192.0.2.8"}, loadBalancerIP="192.0.2.7"))
    assert found.reason == "Conflict"
    assert found.message.startswith("asks for 192.0.2.8, but spec.loadBalancerIP for 192.0.2.7")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("192.0.2.300", "MalformedValue"),
        ("fe80::1%eth0", "MalformedValue"),
        ("192.0.2.1,", "MalformedValue"),
        ("::", "InvalidValue"),
        ("127.0.0.1", "InvalidValue"),
        ("224.0.0.5", "InvalidValue"),
        ("169.254.0.1", "InvalidValue"),
        ("192.0.2.1,192.0.2.2", "TooMany"),
        ("2001:db8::1", "FamilyMismatch"),
    ],
)
def test_bad_fixed_addresses(text: str, reason: str) -> None:
    assert only(refused(loadBalancerIP=text)).reason == reason


@pytest.mark.parametrize("name", [a.LOAD_BALANCER_IPS, "metallb.io/loadBalancerIPs", METALLB])
def test_zero_asks_for_dhcp_only_as_kube_vip_spells_it(name: str) -> None:
    message = f"0.0.0.0 is no address; for DHCP, set the annotation {a.IPAM} to dhcp instead"
    assert said({name: "0.0.0.0"}) == [(at(name), "InvalidValue", message)]


@pytest.mark.parametrize(
    ("annotations", "address"),
    [
        ({a.IPAM: "dhcp"}, ""),
        ({KUBE_VIP: "0.0.0.0"}, ""),
        ({}, "0.0.0.0"),
        ({KUBE_VIP: " 0.0.0.0 "}, "0.0.0.0"),
        ({a.IPAM: "dhcp", KUBE_VIP: "0.0.0.0"}, ""),
    ],
)
def test_dhcp(annotations: dict[str, str], address: str) -> None:
    wanted = replace(PLAIN, ipam="dhcp", network="lan/vlan-10", dhcp_hostname="Web-1.example")
    annotations |= {a.NETWORK: "lan/vlan-10", a.KUBE_VIP_HOSTNAME: "Web-1.example"}
    assert translate(service(annotations, loadBalancerIP=address)) == wanted


@pytest.mark.parametrize("ipam", ["", "pool", "ippool"])
def test_pool(ipam: str) -> None:
    """A host name is for the DHCP server; kube-vip's annotation says nothing else, whatever is in it."""
    assert translate(service({a.IPAM: ipam, a.KUBE_VIP_HOSTNAME: "no_name"})) == PLAIN


@pytest.mark.parametrize(
    ("families", "served"),
    [(["IPv4", "IPv6"], ("IPv4",)), (["IPv6", "IPv4"], ("IPv4",)), (["IPv4"], ("IPv4",)), ([], ("IPv4",))],
)
def test_dhcp_serves_who_prefers_two_families_with_ipv4(families: list[str], served: tuple[IPFamily, ...]) -> None:
    asked = service({a.IPAM: "dhcp"}, ipFamilies=families, ipFamilyPolicy="PreferDualStack")
    assert translate(asked) == replace(PLAIN, ipam="dhcp", ip_families=served)


NO_DHCP = "the DHCP server chooses the address: remove this, or do without DHCP"
IPV4_ONLY = "DHCP here is IPv4 only: ask for IPv4 alone, or do without DHCP"
NO_DUAL = (
    "DHCP here is IPv4 only, so RequireDualStack can't be met: use SingleStack or PreferDualStack, or do without DHCP"
)
NOT_BOTH = f"0.0.0.0 asks for DHCP, but the annotation {a.IPAM} for a pool; say the same, or only one"
NO_HOST = (
    "is not a host name (RFC 1123): labels of letters, digits and hyphens with dots between them, at most 63 characters"
    " a label and 253 in all"
)
DHCP = {a.IPAM: "dhcp"}


@pytest.mark.parametrize(
    ("annotations", "spec", "violation"),
    [
        (DHCP, {"ipFamilies": ["IPv6"]}, ("spec.ipFamilies", "NotWithDHCP", IPV4_ONLY)),
        (
            DHCP,
            {"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"},
            ("spec.ipFamilies", "NotWithDHCP", IPV4_ONLY),
        ),
        (DHCP, {"ipFamilies": ["IPv4", "IPv6"]}, ("spec.ipFamilies", "NotWithDHCP", IPV4_ONLY)),
        ({KUBE_VIP: "0.0.0.0"}, {"ipFamilies": ["IPv6"]}, ("spec.ipFamilies", "NotWithDHCP", IPV4_ONLY)),
        (
            DHCP,
            {"ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack"},
            ("spec.ipFamilyPolicy", "NotWithDHCP", NO_DUAL),
        ),
        (DHCP | {a.IP_POOL: "public"}, {}, (at(a.IP_POOL), "NotWithDHCP", NO_DHCP)),
        (DHCP, {"loadBalancerIP": "192.0.2.7"}, ("spec.loadBalancerIP", "NotWithDHCP", NO_DHCP)),
        (DHCP | {KUBE_VIP: "192.0.2.7"}, {}, (at(KUBE_VIP), "NotWithDHCP", NO_DHCP)),
        (DHCP | {METALLB: "192.0.2.7"}, {}, (at(METALLB), "NotWithDHCP", NO_DHCP)),
        (DHCP | {a.LOAD_BALANCER_IPS: "192.0.2.7"}, {}, (at(a.LOAD_BALANCER_IPS), "NotWithDHCP", NO_DHCP)),
        ({KUBE_VIP: "0.0.0.0,192.0.2.7"}, {}, (at(KUBE_VIP), "NotWithDHCP", NO_DHCP)),
        ({KUBE_VIP: "192.0.2.7"}, {"loadBalancerIP": "0.0.0.0"}, (at(KUBE_VIP), "NotWithDHCP", NO_DHCP)),
        ({a.IPAM: "pool", KUBE_VIP: "0.0.0.0"}, {}, (at(KUBE_VIP), "Conflict", NOT_BOTH)),
        ({a.IPAM: "ippool"}, {"loadBalancerIP": "0.0.0.0"}, ("spec.loadBalancerIP", "Conflict", NOT_BOTH)),
        (DHCP | {a.KUBE_VIP_HOSTNAME: "a_b"}, {}, (at(a.KUBE_VIP_HOSTNAME), "MalformedValue", f'"a_b" {NO_HOST}')),
        (DHCP | {a.KUBE_VIP_HOSTNAME: "a..b"}, {}, (at(a.KUBE_VIP_HOSTNAME), "MalformedValue", f'"a..b" {NO_HOST}')),
        (DHCP | {a.KUBE_VIP_HOSTNAME: "-a"}, {}, (at(a.KUBE_VIP_HOSTNAME), "MalformedValue", f'"-a" {NO_HOST}')),
    ],
)
def test_what_dhcp_can_not_do(annotations: dict[str, str], spec: dict[str, Any], violation: Said) -> None:
    assert said(annotations, **spec) == [violation]


@pytest.mark.parametrize(("length", "fits"), [(63, True), (64, False)])
def test_labels_of_host_names(length: int, fits: bool) -> None:
    annotations = DHCP | {a.KUBE_VIP_HOSTNAME: "n" * length + ".example"}
    if fits:
        assert translate(service(annotations)).dhcp_hostname == annotations[a.KUBE_VIP_HOSTNAME]
    else:
        assert only(refused(annotations)).reason == "MalformedValue"


@pytest.mark.parametrize(("rest", "fits"), [(61, True), (62, False)])
def test_host_names_of_253_characters(rest: int, fits: bool) -> None:
    name = ".".join([*["n" * 63] * 3, "n" * rest])
    annotations = DHCP | {a.KUBE_VIP_HOSTNAME: name}
    if fits:
        assert len(translate(service(annotations)).dhcp_hostname) == 253
    else:
        assert only(refused(annotations)).reason == "MalformedValue"


@pytest.mark.parametrize(
    ("value", "path"), [("shop/main", "shop/main"), ("other/web", "other/web"), ("main", "shop/main"), ("", "")]
)
def test_sharing_an_address(value: str, path: str) -> None:
    assert translate(service({a.PRIMARY_SERVICE: value})) == replace(PLAIN, primary_service=path)


PRIMARY = {a.PRIMARY_SERVICE: "main"}
PRIMARYS = "the address is the one of the Service shop/main: remove this here, or set it on shop/main"
ITSELF = "shop/web is this Service itself: name the one whose address it is to share, or remove this"
NO_SERVICE = 'is not "namespace/name" of a Service of this cluster, nor the name of one in this namespace'


@pytest.mark.parametrize(
    ("annotations", "spec", "violation"),
    [
        ({a.PRIMARY_SERVICE: "web"}, {}, (at(a.PRIMARY_SERVICE), "PrimaryIsItself", ITSELF)),
        ({a.PRIMARY_SERVICE: "shop/web"}, {}, (at(a.PRIMARY_SERVICE), "PrimaryIsItself", ITSELF)),
        ({a.PRIMARY_SERVICE: "a/b/c"}, {}, (at(a.PRIMARY_SERVICE), "MalformedValue", f'"a/b/c" {NO_SERVICE}')),
        ({a.PRIMARY_SERVICE: "Main"}, {}, (at(a.PRIMARY_SERVICE), "MalformedValue", f'"Main" {NO_SERVICE}')),
        ({a.PRIMARY_SERVICE: "/main"}, {}, (at(a.PRIMARY_SERVICE), "MalformedValue", f'"/main" {NO_SERVICE}')),
        (PRIMARY | {a.IPAM: "pool"}, {}, (at(a.IPAM), "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY | {a.IPAM: "dhcp"}, {}, (at(a.IPAM), "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY | {KUBE_VIP: "0.0.0.0"}, {}, (at(KUBE_VIP), "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY | {a.IP_POOL: "public"}, {}, (at(a.IP_POOL), "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY | {a.NETWORK: "lan/vlan-10"}, {}, (at(a.NETWORK), "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY | {a.PROJECT: "c-1/p-1"}, {}, (at(a.PROJECT), "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY | {a.NAMESPACE: "prod"}, {}, (at(a.NAMESPACE), "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY, {"loadBalancerIP": "192.0.2.7"}, ("spec.loadBalancerIP", "NotWithPrimaryService", PRIMARYS)),
        (PRIMARY | {METALLB: "192.0.2.7"}, {}, (at(METALLB), "NotWithPrimaryService", PRIMARYS)),
        (
            PRIMARY | {a.LOAD_BALANCER_IPS: "192.0.2.7"},
            {},
            (at(a.LOAD_BALANCER_IPS), "NotWithPrimaryService", PRIMARYS),
        ),
    ],
)
def test_what_who_shares_can_not_ask_for(annotations: dict[str, str], spec: dict[str, Any], violation: Said) -> None:
    assert said(annotations, **spec) == [violation]


def test_all_that_contradicts_is_told_at_once() -> None:
    with_dhcp = DHCP | {a.IP_POOL: "no_such", KUBE_VIP: "192.0.2.7", a.KUBE_VIP_HOSTNAME: "-", a.MODE: "tunnel"}
    assert {(field, reason) for field, reason, _ in said(with_dhcp, ipFamilyPolicy="RequireDualStack")} == {
        ("spec.ipFamilyPolicy", "NotWithDHCP"),
        (at(a.IP_POOL), "MalformedValue"),
        (at(a.IP_POOL), "NotWithDHCP"),
        (at(KUBE_VIP), "NotWithDHCP"),
        (at(a.KUBE_VIP_HOSTNAME), "MalformedValue"),
        (at(a.MODE), "UnsupportedValue"),
    }
    with_primary = PRIMARY | {a.IPAM: "dhcp", a.IP_POOL: "public", a.NETWORK: "lan/vlan-10", METALLB: "192.0.2.7"}
    assert {(field, reason) for field, reason, _ in said(with_primary, loadBalancerIP="192.0.2.8")} == {
        *((at(name), "NotWithPrimaryService") for name in (a.IPAM, a.IP_POOL, a.NETWORK, METALLB)),
        ("spec.loadBalancerIP", "NotWithPrimaryService"),
        (at(METALLB), "Conflict"),
    }


@pytest.mark.parametrize(
    ("name", "read"),
    [
        (a.PREFIX + "anything", True),
        (a.KUBE_VIP_HOSTNAME, True),
        (KUBE_VIP, True),
        (a.SOURCE_RANGES, True),
        ("kubectl.kubernetes.io/last-applied-configuration", False),
    ],
)
def test_which_annotations_are_read(name: str, read: bool) -> None:
    assert a.is_read(name) is read
