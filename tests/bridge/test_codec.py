"""Who gives the address, on the wire: what is written is read, and what can't be is refused by its field."""

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudprovider.bridge import codec
from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.core import exchange
from cloudprovider.core.errors import InvalidRequest
from cloudprovider.core.exchange import Listener, LoadBalancerRequest
from tests.bridge.backend_contract import REQUEST, WEB

LABELS = st.from_regex(r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")
COMMON = {
    "listeners": st.lists(
        st.builds(
            Listener,
            name=LABELS,
            protocol=st.sampled_from(["TCP", "UDP"]),
            port=st.integers(1, 65535),
            node_port=st.none() | st.integers(1, 65535),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda each: (each.protocol, each.port),
    ).map(tuple),
    "mode": st.sampled_from([None, "auto", "dsr", "nat"]),
    "affinity_seconds": st.none() | st.integers(1, 86400),
    "drain_seconds": st.none() | st.integers(0, 86400),
    "health_check": st.none()
    | st.builds(
        exchange.HealthCheck,
        port=st.integers(1, 65535),
        success_threshold=st.integers(1, 100),
        failure_threshold=st.integers(1, 100),
        period_seconds=st.integers(1, 3600),
        timeout_seconds=st.integers(1, 3600),
        failed_connections=st.sampled_from(["Keep", "Reset"]),
    )
    | st.builds(
        exchange.HealthCheck,
        port=st.integers(1, 65535),
        protocol=st.sampled_from(["HTTP", "HTTPS"]),
        path=st.sampled_from(["", "/", "/ready?deep=1"]),
        host=st.sampled_from(["", "shop.example.org", "fd00::1"]),
        expected_codes=st.sampled_from([(), ("200",), ("200-299", "404")]),
    )
    | st.builds(
        exchange.HealthCheck,
        port=st.integers(1, 65535),
        protocol=st.just("GRPCS"),
        grpc_service=st.sampled_from(["", "shop.Cart"]),
        verify_certificate=st.booleans(),
    ),
    "sources": st.lists(st.just(ip_network("192.0.2.0/24")), max_size=2).map(tuple),
}
FAMILIES = st.sampled_from([(), ("IPv4",), ("IPv6",), ("IPv4", "IPv6"), ("IPv6", "IPv4")])
POLICIES = st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"])
REQUESTS = st.one_of(
    st.builds(
        LoadBalancerRequest,
        **COMMON,
        ip_pool=LABELS | st.just(""),
        network=st.builds("{}/{}".format, LABELS, LABELS) | st.just(""),
        scope_project=st.sampled_from(["", "c-1/p-2"]),
        scope_namespace=LABELS | st.just(""),
        addresses=st.sampled_from(
            [(), (ip_address("192.0.2.9"),), (ip_address("192.0.2.9"), ip_address("2001:db8::9"))]
        ),
        ip_families=FAMILIES,
        ip_family_policy=POLICIES,
    ),
    st.builds(
        LoadBalancerRequest,
        **COMMON,
        ipam=st.just("dhcp"),
        network=st.builds("{}/{}".format, LABELS, LABELS) | st.just(""),
        dhcp_hostname=st.lists(LABELS, max_size=3).map(".".join),
        ip_families=st.sampled_from([(), ("IPv4",)]),
    ),
    st.builds(
        LoadBalancerRequest,
        **COMMON,
        primary_service=st.builds("{}/{}".format, LABELS, LABELS),
        ip_families=FAMILIES,
        ip_family_policy=POLICIES,
    ),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text drawn builds a table of all characters
@given(REQUESTS)
def test_what_is_written_is_read(request_: LoadBalancerRequest) -> None:
    sent = codec.ensure_to_wire(WEB, request_, ()).SerializeToString()
    assert codec.ensure_from_wire(pb.EnsureLoadBalancerRequest.FromString(sent)) == (WEB, request_, ())


def asked(spec: pb.LoadBalancerSpec) -> pb.EnsureLoadBalancerRequest:
    message = codec.ensure_to_wire(WEB, REQUEST, ())
    message.spec.ipam = pb.IPAM_UNSPECIFIED
    message.spec.MergeFrom(spec)
    return message


def refused(spec: pb.LoadBalancerSpec) -> list[tuple[str, str, str]]:
    with pytest.raises(InvalidRequest) as e:
        codec.ensure_from_wire(asked(spec))
    return [(v.field, v.reason, v.message) for v in e.value.violations]


LONG = ".".join(["n" * 63] * 4)
NO_DHCP = "the DHCP server chooses the address: remove this, or do without DHCP"
NO_DUAL = (
    "DHCP here is IPv4 only, so RequireDualStack can't be met: use SingleStack or PreferDualStack, or do without DHCP"
)
PRIMARYS = "the address is the one of the Service default/main: remove this here, or set it on default/main"


@pytest.mark.parametrize(
    ("spec", "violation"),
    [
        (
            pb.LoadBalancerSpec(primary_service="main"),
            ("spec.primaryService", "Malformed", "'main' is no \"namespace/name\" of a Service"),
        ),
        (
            pb.LoadBalancerSpec(primary_service="a/b/c"),
            ("spec.primaryService", "Malformed", "'a/b/c' is no \"namespace/name\" of a Service"),
        ),
        (
            pb.LoadBalancerSpec(primary_service=f"{'n' * 63}/{'n' * 64}"),
            ("spec.primaryService", "TooLong", "has 128 characters, 127 are allowed"),
        ),
        (
            pb.LoadBalancerSpec(primary_service=WEB.path),
            (
                "spec.primaryService",
                "PrimaryIsItself",
                "default/web is this Service itself: name the one whose address it is to share, or remove this",
            ),
        ),
        (
            pb.LoadBalancerSpec(ipam=pb.IPAM_PRIMARY_SERVICE),
            ("spec.primaryService", "Required", "must name the Service whose address is shared"),
        ),
        (
            pb.LoadBalancerSpec(primary_service="default/main", ipam=pb.IPAM_POOL),
            ("spec.ipam", "NotWithPrimaryService", PRIMARYS),
        ),
        (
            pb.LoadBalancerSpec(primary_service="default/main", ipam=pb.IPAM_DHCP),
            ("spec.ipam", "NotWithPrimaryService", PRIMARYS),
        ),
        (
            pb.LoadBalancerSpec(primary_service="default/main", ip_pool="p"),
            ("spec.ipPool", "NotWithPrimaryService", PRIMARYS),
        ),
        (
            pb.LoadBalancerSpec(primary_service="default/main", network="a/b"),
            ("spec.network", "NotWithPrimaryService", PRIMARYS),
        ),
        (
            pb.LoadBalancerSpec(primary_service="default/main", scope_project="c-1/p-1"),
            ("spec.project", "NotWithPrimaryService", PRIMARYS),
        ),
        (
            pb.LoadBalancerSpec(primary_service="default/main", scope_namespace="a"),
            ("spec.namespace", "NotWithPrimaryService", PRIMARYS),
        ),
        (
            pb.LoadBalancerSpec(primary_service="default/main", addresses=["192.0.2.1"]),
            ("spec.addresses", "NotWithPrimaryService", PRIMARYS),
        ),
        (
            pb.LoadBalancerSpec(ipam=pb.IPAM_DHCP, dhcp_hostname="a_b"),
            ("spec.dhcpHostname", "Malformed", "'a_b' is no host name"),
        ),
        (
            pb.LoadBalancerSpec(ipam=pb.IPAM_DHCP, dhcp_hostname=LONG),
            ("spec.dhcpHostname", "TooLong", "has 255 characters, 253 are allowed"),
        ),
        (
            pb.LoadBalancerSpec(drain_seconds=86401),
            ("spec.drainSeconds", "OutOfRange", "86401 is more than a day: use 0 to 86400"),
        ),
        (
            pb.LoadBalancerSpec(health_check=pb.HealthCheck()),
            ("spec.healthCheck.port", "OutOfRange", "0 is not a number from 1 to 65535"),
        ),
        (
            pb.LoadBalancerSpec(health_check=pb.HealthCheck(port=1, period_seconds=3601)),
            ("spec.healthCheck.periodSeconds", "OutOfRange", "3601 is not a number from 1 to 3600"),
        ),
        (
            pb.LoadBalancerSpec(
                health_check=pb.HealthCheck(port=1, protocol=pb.HEALTH_CHECK_PROTOCOL_HTTP, host="a\r\nX: y")
            ),
            ("spec.healthCheck.host", "MalformedValue", '"a\r\nX: y" is neither a host\'s name nor an address'),
        ),
        (
            pb.LoadBalancerSpec(health_check=pb.HealthCheck(port=1, protocol=99)),  # type: ignore[arg-type]
            (
                "spec.healthCheck.protocol",
                "Unsupported",
                "value 99 is not known to this host, whose program may be older",
            ),
        ),
        (
            pb.LoadBalancerSpec(dhcp_hostname="web"),
            ("spec.dhcpHostname", "Unexpected", "is for ipam dhcp only"),
        ),
        (pb.LoadBalancerSpec(ipam=pb.IPAM_DHCP, ip_pool="p"), ("spec.ipPool", "NotWithDHCP", NO_DHCP)),
        (pb.LoadBalancerSpec(ipam=pb.IPAM_DHCP, addresses=["192.0.2.1"]), ("spec.addresses", "NotWithDHCP", NO_DHCP)),
        (
            pb.LoadBalancerSpec(ipam=pb.IPAM_DHCP, ip_families=[pb.IP_FAMILY_IPV6]),
            ("spec.ipFamilies", "NotWithDHCP", "DHCP here is IPv4 only: ask for IPv4 alone, or do without DHCP"),
        ),
        (
            pb.LoadBalancerSpec(ipam=pb.IPAM_DHCP, ip_family_policy=pb.IP_FAMILY_POLICY_REQUIRE_DUAL_STACK),
            (
                "spec.ipFamilyPolicy",
                "NotWithDHCP",
                NO_DUAL,
            ),
        ),
    ],
)
def test_what_can_not_stand_is_refused_by_its_field(spec: pb.LoadBalancerSpec, violation: tuple[str, str, str]) -> None:
    assert refused(spec) == [violation]


@pytest.mark.parametrize(
    "families", [[], [pb.IP_FAMILY_IPV4, pb.IP_FAMILY_IPV6], [pb.IP_FAMILY_IPV6, pb.IP_FAMILY_IPV4]]
)
def test_dhcp_for_a_guest_that_prefers_two_families_is_ipv4(families: list[pb.IpFamily.ValueType]) -> None:
    """Whatever program the guest runs: the host would wait for the other family, which DHCP does not have."""
    policy = pb.IP_FAMILY_POLICY_PREFER_DUAL_STACK
    spec = pb.LoadBalancerSpec(ipam=pb.IPAM_DHCP, ip_families=families, ip_family_policy=policy)
    _, read, _ = codec.ensure_from_wire(asked(spec))
    assert (read.ipam, read.ip_families, read.ip_family_policy) == ("dhcp", ("IPv4",), "SingleStack")


def test_all_is_told_at_once() -> None:
    spec = pb.LoadBalancerSpec(
        primary_service="default/main", ip_pool="p", network="a/b", addresses=["nowhere"], dhcp_hostname="-"
    )
    assert [(field, reason) for field, reason, _ in refused(spec)] == [
        ("spec.addresses[0]", "Malformed"),
        ("spec.dhcpHostname", "Malformed"),
        ("spec.dhcpHostname", "Unexpected"),
        ("spec.ipPool", "NotWithPrimaryService"),
        ("spec.network", "NotWithPrimaryService"),
        ("spec.addresses", "NotWithPrimaryService"),
    ]


def test_who_leaves_ipam_out_may_share() -> None:
    _, read, _ = codec.ensure_from_wire(asked(pb.LoadBalancerSpec(primary_service="default/main")))
    assert (read.ipam, read.primary_service) == ("pool", "default/main")


def test_a_host_that_can_not_share_refuses_who_wants_to() -> None:
    """It passes over the field that it does not know, but not over the value: the Service would get an address of its
    own, which is not what it asked for."""
    spec = codec.ensure_to_wire(WEB, replace(REQUEST, primary_service="default/main"), ()).spec
    assert spec.ipam not in (pb.IPAM_UNSPECIFIED, pb.IPAM_POOL, pb.IPAM_DHCP)


def test_a_check_without_numbers_has_harvesters_and_a_guest_without_one_has_none() -> None:
    _, read, _ = codec.ensure_from_wire(asked(pb.LoadBalancerSpec(health_check=pb.HealthCheck(port=80))))
    assert read.health_check == exchange.HealthCheck(
        port=80, success_threshold=1, failure_threshold=3, period_seconds=5, timeout_seconds=3
    )
    _, read, _ = codec.ensure_from_wire(asked(pb.LoadBalancerSpec()))
    assert read.health_check is None
