"""What a Service asks for, and each thing that is refused with its sentence."""

from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudprovider.bridge.codec import ensure_from_wire, ensure_to_wire
from cloudprovider.core import annotations as a
from cloudprovider.core import translate as t
from cloudprovider.core.api.kubernetes import EndpointSlice
from cloudprovider.core.api.loadbalancer import MAX_SOURCE_RANGES
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.exchange import Listener, LoadBalancerRequest
from tests.core.services import WEB, only, refused, service


def test_a_plain_service() -> None:
    assert t.translate(service()) == LoadBalancerRequest(
        listeners=(Listener("web", "TCP", 80, 30080),), ip_families=("IPv4",)
    )


def test_every_field() -> None:
    asked = t.translate(
        service(
            {
                a.IPAM: "ippool",
                a.NETWORK: "lan/vlan-10",
                a.PROJECT: "c-m-x1/p-y2",
                a.NAMESPACE: "prod",
                a.IP_POOL: "public.v4",
                a.MODE: "dsr",
                "kube-vip.io/loadbalancerIPs": "192.0.2.7",
                "example.com/unrelated": "x",
            },
            ports=[WEB, {"name": "dns", "port": 53, "protocol": "UDP"}],
            loadBalancerIP="192.0.2.7",
            loadBalancerSourceRanges=["10.0.0.1/8", " 192.168.0.0/16", "10.0.0.0/8"],
            externalTrafficPolicy="Local",
            healthCheckNodePort=31000,
            sessionAffinity="ClientIP",
            sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        )
    )
    assert asked == LoadBalancerRequest(
        listeners=(Listener("web", "TCP", 80, 30080), Listener("dns", "UDP", 53, None)),
        ip_pool="public.v4",
        network="lan/vlan-10",
        scope_project="c-m-x1/p-y2",
        scope_namespace="prod",
        addresses=(ip_address("192.0.2.7"),),
        ip_families=("IPv4",),
        mode="dsr",
        external_traffic_policy="Local",
        health_check_node_port=31000,
        affinity_seconds=60,
        sources=(ip_network("10.0.0.0/8"), ip_network("192.168.0.0/16")),
    )


def test_names_of_63_characters_pass() -> None:
    long = "n" * 63
    assert t.translate(service({a.NETWORK: f"{long}/{long}", a.NAMESPACE: long})).network == f"{long}/{long}"
    assert only(refused({a.NAMESPACE: long + "n"})).reason == "MalformedValue"


def test_a_hundred_ports() -> None:
    ports = [{"name": f"p{i}", "port": 1000 + i, "nodePort": 30000 + i} for i in range(100)]
    assert len(t.translate(service(ports=ports)).listeners) == 100


def test_affinity_without_its_time_has_kubernetes_default() -> None:
    assert t.translate(service(sessionAffinity="ClientIP")).affinity_seconds == 10800


def test_the_health_check_node_port_belongs_to_local() -> None:
    assert t.translate(service(healthCheckNodePort=31000)).health_check_node_port is None


@pytest.mark.parametrize(
    ("annotation", "value", "reason", "says"),
    [
        ("ipam", "static", "UnsupportedValue", '"static" is not one of "pool", "dhcp"'),
        ("mode", "tunnel", "UnsupportedValue", '"auto", "dsr", "nat"'),
        ("network", "vlan-10", "MalformedValue", '"namespace/name"'),
        ("network", "a/b/c", "MalformedValue", '"namespace/name"'),
        ("project", "p-1", "MalformedValue", "c-xxx/p-yyy"),
        ("namespace", "Prod", "MalformedValue", "namespace"),
        ("ip-pool", "no_such", "MalformedValue", "IPPool"),
        ("healthcheck-port", "http", "OutOfRange", '"http" is not a number from 1 to 65535'),
        ("healthcheck-timeoutseconds", "3", "Required", f"add {a.PREFIX}healthcheck-port"),
    ],
)
def test_bad_annotations(annotation: str, value: str, reason: str, says: str) -> None:
    found = only(refused({a.PREFIX + annotation: value}))
    assert (found.field, found.reason) == (f"metadata.annotations[{a.PREFIX}{annotation}]", reason)
    assert says in found.message


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("ip-pol", a.IP_POOL),
        ("ippool", a.IP_POOL),
        ("IPAM", a.IPAM),
        ("healthcheck-timeout", a.PREFIX + "healthcheck-timeoutseconds"),
    ],
)
def test_an_unknown_annotation_names_the_nearest(typed: str, meant: str) -> None:
    found = only(refused({a.PREFIX + typed: "x"}))
    assert found.reason == "UnknownAnnotation"
    assert found.message.endswith(f"did you mean {meant}?")


def test_empty_annotations_ask_for_nothing() -> None:
    assert t.translate(service(dict.fromkeys((a.IPAM, a.NETWORK, a.MODE, a.IP_POOL), ""))) == t.translate(service())


@pytest.mark.parametrize("wrong", ["-1", "1.5", "86401", "ten", "\u0661"])
def test_a_drain_time_is_a_number_of_seconds_up_to_a_day(wrong: str) -> None:
    found = only(refused({a.DRAIN_SECONDS: wrong}))
    assert found.message == f'"{wrong}" is not a number from 0 to 86400'


def test_every_violation_is_named() -> None:
    found = refused({a.IPAM: "x", a.MODE: "y"}, loadBalancerIP="nowhere", loadBalancerSourceRanges=["10.0.0.0"])
    assert {v.field for v in found} == {
        f"metadata.annotations[{a.IPAM}]",
        f"metadata.annotations[{a.MODE}]",
        "spec.loadBalancerIP",
        "spec.loadBalancerSourceRanges[0]",
    }


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_ports_out_of_range(port: int) -> None:
    found = only(refused(ports=[{"port": port, "nodePort": 30000}]))
    assert (found.field, found.reason) == ("spec.ports[0].port", "OutOfRange")


def test_node_ports_out_of_range() -> None:
    assert only(refused(ports=[{"port": 1, "nodePort": 70000}])).field == "spec.ports[0].nodePort"


def test_no_port_at_all() -> None:
    assert only(refused(ports=[])).field == "spec.ports"


def test_nat_needs_node_ports() -> None:
    found = only(refused({a.MODE: "nat"}, ports=[{"port": 80}], allocateLoadBalancerNodePorts=False))
    assert (found.field, found.reason) == ("spec.ports[0].nodePort", "Required")
    assert t.translate(service(ports=[{"port": 80}])).listeners == (Listener("", "TCP", 80, None),)


def test_sctp_beside_tcp_leaves_the_others_served() -> None:
    mixed = service(ports=[{"port": 9, "protocol": "SCTP", "nodePort": 30009}, WEB])
    assert t.translate(mixed).listeners == (Listener("web", "TCP", 80, 30080),)
    (unserved,) = t.unserved_ports(mixed)
    assert (unserved.port, unserved.protocol, unserved.error) == (9, "SCTP", t.SCTP_ERROR)
    assert unserved.violation.field == "spec.ports[0].protocol"


def test_sctp_alone_is_refused() -> None:
    found = only(refused(ports=[{"port": 9, "protocol": "SCTP", "nodePort": 30009}]))
    assert found.reason == "UnsupportedProtocol"
    assert "use TCP or UDP" in found.message


def test_source_ranges_by_annotation_count_only_without_the_field() -> None:
    annotated = {a.SOURCE_RANGES: "10.0.0.0/8, 172.16.0.0/12"}
    assert t.translate(service(annotated)).sources == (ip_network("10.0.0.0/8"), ip_network("172.16.0.0/12"))
    assert t.translate(service(annotated, loadBalancerSourceRanges=["192.0.2.0/24"])).sources == (
        ip_network("192.0.2.0/24"),
    )


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.0/33", "everybody", "", "10.0.0.0/8/8"])
def test_bad_source_ranges(text: str) -> None:
    assert only(refused(loadBalancerSourceRanges=["192.0.2.0/24", text])).field == "spec.loadBalancerSourceRanges[1]"


def test_too_many_source_ranges() -> None:
    found = only(refused(loadBalancerSourceRanges=["10.0.0.0/8"] * (MAX_SOURCE_RANGES + 1)))
    assert (found.field, found.reason) == ("spec.loadBalancerSourceRanges", "TooMany")


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"externalTrafficPolicy": "Near"}, "spec.externalTrafficPolicy"),
        ({"sessionAffinity": "Cookie"}, "spec.sessionAffinity"),
        ({"ipFamilyPolicy": "Triple"}, "spec.ipFamilyPolicy"),
        ({"ipFamilies": ["IPv5"]}, "spec.ipFamilies[0]"),
        (
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}},
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
    ],
)
def test_values_that_a_newer_api_server_might_allow(spec: dict[str, Any], field: str) -> None:
    assert only(refused(**spec)).field == field


def slices(*endpoints: tuple[str, bool | None, bool | None, bool | None]) -> list[EndpointSlice]:
    return [
        msgspec.convert(
            {
                "endpoints": [
                    {"nodeName": node, "conditions": {"ready": ready, "serving": serving, "terminating": terminating}}
                ]
            },
            EndpointSlice,
        )
        for node, ready, serving, terminating in endpoints
    ]


@pytest.mark.parametrize(
    ("endpoints", "publish", "nodes"),
    [
        ([("b", True, True, False), ("a", True, True, False), ("a", True, True, False)], False, ("a", "b")),
        ([("a", None, None, None)], False, ("a",)),
        ([("a", False, False, False)], False, ()),
        ([("a", False, True, True), ("b", True, True, False)], False, ("b",)),
        ([("a", False, True, True), ("b", False, False, True)], False, ("a",)),
        ([("a", False, True, False)], False, ()),
        ([("a", True, False, False)], True, ("a",)),
        ([("a", True, True, True)], True, ("a",)),
        ([("", True, True, False)], False, ()),
        ([], False, ()),
    ],
)
def test_endpoint_nodes(
    endpoints: list[tuple[str, bool | None, bool | None, bool | None]], publish: bool, nodes: tuple[str, ...]
) -> None:
    local = service(externalTrafficPolicy="Local", publishNotReadyAddresses=publish)
    assert t.translate(local, slices(*endpoints)).endpoint_nodes == nodes


def test_endpoints_do_not_matter_for_policy_cluster() -> None:
    assert t.translate(service(), slices(("a", True, True, False))).endpoint_nodes == ()


def test_a_slice_without_endpoints() -> None:
    assert t.endpoint_nodes(service(), [msgspec.convert({"endpoints": None}, EndpointSlice)]) == ()


@pytest.mark.parametrize(
    ("kind", "wanted", "default", "claim"),
    [
        ("LoadBalancer", t.DEFAULT_CLASS, False, t.Claim.OURS),
        ("LoadBalancer", "", False, t.Claim.FOREIGN),
        ("LoadBalancer", "", True, t.Claim.OURS),
        ("LoadBalancer", "example.com/other", True, t.Claim.FOREIGN),
        ("NodePort", "", True, t.Claim.NONE),
    ],
)
def test_whose_service_it_is(kind: str, wanted: str, default: bool, claim: t.Claim) -> None:
    asked = service(type=kind, loadBalancerClass=wanted)
    assert t.Classes(default=default).claim(asked) is claim


def test_a_class_of_ones_own() -> None:
    asked = service(loadBalancerClass="example.com/lan")
    assert t.Classes(own="example.com/lan").claim(asked) is t.Claim.OURS


def test_shown_addresses_leave_host_names_out() -> None:
    shown = msgspec.structs.replace(
        service(),
        status=msgspec.convert(
            {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}, {"hostname": "a.example"}, {"ip": "bad"}]}},
            type(service().status),
        ),
    )
    assert t.shown_addresses(shown) == (ip_address("192.0.2.7"),)


VALUES = st.text() | st.sampled_from(
    ["dhcp", "pool", "0.0.0.0", "192.0.2.7", "2001:db8::7", "192.0.2.7,2001:db8::7", "shop/main", "shop/web", "main"]
)
SPECS = st.fixed_dictionaries(
    {},
    optional={
        "ipFamilies": st.sampled_from([[], ["IPv4"], ["IPv6"], ["IPv4", "IPv6"], ["IPv6", "IPv4"]]),
        "ipFamilyPolicy": st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"]),
        "loadBalancerIP": st.sampled_from(["", "0.0.0.0", "192.0.2.7"]),
    },
)
READ = sorted(a.KNOWN | {*a.FIXED_ADDRESSES, a.SOURCE_RANGES, a.KUBE_VIP_HOSTNAME})


@settings(suppress_health_check=[HealthCheck.too_slow])  # the first text drawn builds a table of all characters
@given(st.dictionaries(st.sampled_from(READ), VALUES), SPECS)
def test_whatever_is_annotated_is_translated_or_refused_with_sentences(
    annotations: dict[str, str], spec: dict[str, Any]
) -> None:
    violations: tuple[Violation, ...] = ()
    try:
        request = t.translate(service(annotations, **spec))
    except InvalidRequest as e:
        violations = e.violations
        assert violations
    else:
        sent = ensure_to_wire(t.service_key(service()), request, ())
        assert ensure_from_wire(sent)[1] == request, "the host's side refuses or changes it"
    assert all(v.field and v.reason and v.message for v in violations)
