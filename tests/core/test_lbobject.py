from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import permutations
from typing import Any, cast

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import (
    CLUSTER_LABEL,
    FINALIZER,
    NETWORK_ANNOTATION,
    Address,
    Holder,
    LoadBalancer,
    LoadBalancerStatus,
)
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.exchange import GivenAddress, Listener, LoadBalancerRequest, ServiceKey, StateCondition, Tenant
from cloudprovider.core.lbobject import difference, merge_patch, object_key, service_of, stands_for, wanted_object
from cloudprovider.core.lbstate import state_of

TENANT = Tenant("team-a", "blue")
SERVICE = ServiceKey("default", "web", "11111111-2222-3333-4444-555555555555")
REQUEST = LoadBalancerRequest(
    listeners=(Listener("http", "TCP", 80, 30080), Listener("dns", "UDP", 53, None)),
    ip_pool="pool-1",
    network="default/vlan1",
    addresses=(ip_address("10.0.0.9"),),
    ip_families=("IPv4",),
    external_traffic_policy="Local",
    endpoint_nodes=("n1", "n2"),
    health_check_node_port=32000,
    affinity_seconds=60,
    sources=(ip_network("192.0.2.0/24"),),
)
SHARING = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),), primary_service="default/main")
DHCP = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),), ipam="dhcp", dhcp_hostname="web.example")
PLAIN = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))


def build(request: LoadBalancerRequest = REQUEST, service: ServiceKey = SERVICE) -> LoadBalancer:
    return wanted_object(TENANT, service, request, cluster_uid="cu", limits=GuestClusterSpec(default_mode="nat"))


def patched(lb: LoadBalancer, patch: dict[str, object]) -> LoadBalancer:
    """RFC 7386's own algorithm, to hold ours against."""

    def apply(target: Any, change: Any) -> Any:
        if not isinstance(change, dict):
            return change
        result = dict(target) if isinstance(target, dict) else {}
        for key, value in change.items():
            if value is None:
                result.pop(key, None)
            else:
                result[key] = apply(result.get(key), value)
        return result

    return msgspec.convert(apply(msgspec.to_builtins(lb), patch), LoadBalancer)


class TestObject:
    def test_it_has_harvesters_name_labels_and_annotations_and_our_finalizer(self) -> None:
        lb = build()
        assert lb.key == object_key(TENANT, SERVICE)
        assert lb.metadata.name.startswith("blue-default-web-")
        assert lb.metadata.labels == {
            "cloudprovider.harvesterhci.io/cluster": "blue",
            "cloudprovider.harvesterhci.io/serviceNamespace": "default",
            "cloudprovider.harvesterhci.io/serviceName": "web",
        }
        assert lb.metadata.annotations == {
            "loadbalancer.harvesterhci.io/network": "default/vlan1",
            "loadbalancer.harvesterhci.io/cluster": "blue",
        }
        assert lb.metadata.finalizers == [FINALIZER]

    def test_the_whole_request_is_in_the_spec(self) -> None:
        spec = build().spec
        assert [(one.name, one.port, one.protocol, one.backend_port) for one in spec.listeners] == [
            ("http", 80, "TCP", 30080),
            ("dns", 53, "UDP", None),
        ]
        assert (spec.workload_type, spec.ipam, spec.ip_pool, spec.addresses) == (
            "cluster",
            "pool",
            "pool-1",
            ["10.0.0.9"],
        )
        assert (spec.ip_families, spec.ip_family_policy, spec.mode) == (["IPv4"], "SingleStack", "nat")
        assert (spec.external_traffic_policy, spec.endpoint_nodes, spec.health_check_node_port) == (
            "Local",
            ["n1", "n2"],
            32000,
        )
        assert (spec.session_affinity, spec.session_affinity_timeout_seconds) == ("ClientIP", 60)
        assert spec.source_ranges == ["192.0.2.0/24"]
        assert spec.service is not None
        assert (spec.service.uid, spec.service.cluster_uid) == (SERVICE.uid, "cu")

    @pytest.mark.parametrize(
        ("request_", "said"),
        [(PLAIN, ("pool", "", "")), (SHARING, ("pool", "default/main", "")), (DHCP, ("dhcp", "", "web.example"))],
    )
    def test_who_gives_the_address_is_in_the_spec(
        self, request_: LoadBalancerRequest, said: tuple[str, str, str]
    ) -> None:
        spec = build(request_).spec
        assert (spec.ipam, spec.primary_service, spec.dhcp_hostname) == said

    def test_a_mode_asked_for_wins_over_the_tenants_default(self) -> None:
        assert build(replace(REQUEST, mode="dsr")).spec.mode == "dsr"


class TestIdentity:
    def test_it_is_what_the_bridge_wrote(self) -> None:
        assert service_of(build()) == (TENANT, SERVICE)
        assert stands_for(build(), TENANT, SERVICE)

    def test_another_uid_cluster_or_namespace_is_another(self) -> None:
        lb = build()
        assert not stands_for(lb, TENANT, replace(SERVICE, uid="other"))
        assert not stands_for(lb, replace(TENANT, cluster="red"), SERVICE)
        assert not stands_for(lb, replace(TENANT, namespace="team-b"), SERVICE)

    @pytest.mark.parametrize("path", [("metadata", "labels"), ("spec", "service"), ("spec", "workloadType")])
    def test_an_object_of_a_stock_provider_stands_for_none_of_ours(self, path: tuple[str, str]) -> None:
        raw = msgspec.to_builtins(build())
        del raw[path[0]][path[1]]
        assert service_of(msgspec.convert(raw, LoadBalancer)) is None

    def test_labels_that_do_not_fit_the_reference_stand_for_none(self) -> None:
        raw = msgspec.to_builtins(build())
        raw["metadata"]["labels"]["cloudprovider.harvesterhci.io/serviceName"] = "other"
        assert service_of(msgspec.convert(raw, LoadBalancer)) is None


class TestDifference:
    def test_none_for_what_is_as_wanted_whatever_others_added(self) -> None:
        raw = msgspec.to_builtins(build())
        raw["metadata"]["labels"]["someone"] = "else"
        raw["metadata"]["annotations"]["someone"] = "else"
        raw["metadata"]["finalizers"].append("someone/else")
        raw["metadata"]["uid"] = "lb-uid"
        assert difference(msgspec.convert(raw, LoadBalancer), build()) == {}

    def test_a_change_is_only_what_differs_under_the_uid(self) -> None:
        have = msgspec.convert({**msgspec.to_builtins(build())}, LoadBalancer)
        patch = difference(have, build(replace(REQUEST, affinity_seconds=None, network="")))
        assert patched(have, patch).spec.session_affinity == "None"
        assert cast("dict[str, object]", patch["spec"]).keys() == {"sessionAffinity", "sessionAffinityTimeoutSeconds"}
        assert patch["metadata"] == {"annotations": {NETWORK_ANNOTATION: None}, "uid": ""}

    def test_a_finalizer_and_labels_taken_away_come_back_beside_others(self) -> None:
        raw = msgspec.to_builtins(build())
        raw["metadata"]["finalizers"] = ["someone/else"]
        del raw["metadata"]["labels"][CLUSTER_LABEL]
        patch = difference(msgspec.convert(raw, LoadBalancer), build())
        assert patch["metadata"] == {
            "labels": {CLUSTER_LABEL: "blue"},
            "finalizers": ["someone/else", FINALIZER],
            "uid": "",
        }

    @pytest.mark.parametrize(
        ("have", "want", "fields"),
        [
            (PLAIN, SHARING, {"primaryService": "default/main"}),
            (SHARING, PLAIN, {"primaryService": None}),
            (PLAIN, DHCP, {"ipam": "dhcp", "dhcpHostname": "web.example"}),
            (DHCP, PLAIN, {"ipam": "pool", "dhcpHostname": None}),
            (DHCP, replace(DHCP, dhcp_hostname="www"), {"dhcpHostname": "www"}),
        ],
    )
    def test_another_giver_of_the_address_is_just_that(
        self, have: LoadBalancerRequest, want: LoadBalancerRequest, fields: dict[str, str | None]
    ) -> None:
        assert difference(build(have), build(want))["spec"] == fields

    @pytest.mark.parametrize(("have", "want"), list(permutations((REQUEST, PLAIN, SHARING, DHCP), 2)))
    def test_the_patch_leads_to_what_is_wanted(self, have: LoadBalancerRequest, want: LoadBalancerRequest) -> None:
        assert patched(build(have), difference(build(have), build(want))) == build(want)

    json_leaves = st.integers(0, 2) | st.lists(st.integers(0, 2), max_size=2)
    json_values = json_leaves | st.dictionaries(st.sampled_from("abc"), json_leaves, max_size=3)
    json_objects = st.dictionaries(st.sampled_from("abcd"), json_values, max_size=4)

    @settings(suppress_health_check=[HealthCheck.too_slow])
    @given(json_objects, json_objects)
    def test_merge_patch_is_rfc_7386(self, have: dict[str, object], want: dict[str, object]) -> None:
        def apply(target: object, change: object) -> object:
            if not isinstance(change, dict):
                return change
            result: dict[str, object] = dict(target) if isinstance(target, dict) else {}
            for key, value in change.items():
                if value is None:
                    result.pop(key, None)
                else:
                    result[key] = apply(result.get(key), value)
            return result

        assert apply(have, merge_patch(have, want)) == want
        assert bool(merge_patch(have, want)) == (have != want)


class TestState:
    STATUS = LoadBalancerStatus(
        addresses=[Address(ip="10.0.0.9", ip_pool="pool-1", prefix_length=24)],
        conditions=[
            Condition(type="Ready", status="False", reason="Programmed", message="m", last_transition_time="t"),
            Condition(type="Allocated", status="True", reason="Allocated", message=""),
        ],
    )

    def test_an_address_counts_once_a_host_has_it_up(self) -> None:
        lb = msgspec.structs.replace(build(), status=self.STATUS)
        state = state_of(lb, SERVICE)
        assert (state.addresses, state.mode) == ((), "")
        held = msgspec.structs.replace(
            self.STATUS, holder=Holder(node="h1", generation=1, addresses=["10.0.0.9"], mode="nat")
        )
        state = state_of(msgspec.structs.replace(lb, status=held), SERVICE)
        assert state.addresses == (GivenAddress(ip_address("10.0.0.9"), "pool-1"),)
        assert state.mode == "nat"
        assert state.host_object == f"team-a/{lb.metadata.name}"
        assert state.conditions == (
            StateCondition("Allocated", "True", "Allocated", ""),
            StateCondition("Ready", "False", "Programmed", "m"),
        )

    def test_an_address_going_away_is_given_no_longer(self) -> None:
        raw = msgspec.to_builtins(
            msgspec.structs.replace(
                build(),
                status=msgspec.structs.replace(
                    self.STATUS, holder=Holder(node="h1", addresses=["10.0.0.9"], mode="nat")
                ),
            )
        )
        raw["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        state = state_of(msgspec.convert(raw, LoadBalancer), SERVICE)
        assert (state.addresses, state.mode) == ((), "")
