"""Forms: what is posted comes out as what is sent, and what is wrong finds its place."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.console import lbform, poolform
from cloudprovider.console.forms import cautions_in, changes, differences, merged, merged_json, rows, slot_of, sorted_in
from cloudprovider.console.lbform import LbForm
from cloudprovider.console.poolform import PoolForm
from cloudprovider.core.api.loadbalancer import HealthCheck, Listener, LoadBalancer, LoadBalancerSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPPool, IPPoolSpec, Range
from cloudprovider.core.errors import Violation
from cloudprovider.core.reasons import Heard

POSTED = {
    "namespace": "shops",
    "name": "web",
    "description": " two\r\nlines ",
    "ipam": "pool",
    "ipPool": "vlan8",
    "network": "default/vlan8",
    "listeners.0.port": "80",
    "listeners.0.protocol": "TCP",
    "listeners.0.backendPort": "8080",
    "listeners.0.name": "http",
    "listeners.7.port": "53",
    "listeners.7.protocol": "UDP",
    "listeners.7.backendPort": "5353",
    "backendServerSelector.0.key": "app",
    "backendServerSelector.0.values": "web,  shop",
    "backendServerSelector.1.key": "",
    "backendServerSelector.1.values": "",
    "healthCheck": "on",
    "healthCheck.port": "8080",
    "healthCheck.protocol": "HTTP",
    "healthCheck.path": "/healthz",
    "healthCheck.expectedCodes": "200, 204-205",
    "healthCheck.grpcService": "of another kind",
}


def test_a_load_balancer_as_it_is_posted_is_sent_so() -> None:
    form = LbForm.posted(POSTED)
    assert form.mistakes() == []
    assert form.manifest() == {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "LoadBalancer",
        "metadata": {
            "name": "web",
            "namespace": "shops",
            "annotations": {"loadbalancer.harvesterhci.io/network": "default/vlan8"},
        },
        "spec": {
            "workloadType": "vm",
            "ipam": "pool",
            "description": "two\nlines",
            "ipPool": "vlan8",
            "listeners": [
                {"name": "http", "port": 80, "protocol": "TCP", "backendPort": 8080},
                {"port": 53, "protocol": "UDP", "backendPort": 5353},
            ],
            "backendServerSelector": {"app": ["web", "shop"]},
            "healthCheck": {
                "port": 8080,
                "protocol": "HTTP",
                "successThreshold": 1,
                "failureThreshold": 3,
                "periodSeconds": 5,
                "timeoutSeconds": 3,
                "path": "/healthz",
                "expectedCodes": ["200", "204-205"],
            },
        },
    }
    assert LbForm.of(form.onto(None)).manifest() == form.manifest()
    assert form.label_selector == "app in (web,shop)"


@pytest.mark.parametrize(
    ("posted", "slot", "says"),
    [
        ({"name": "Web"}, "name", "no name"),
        ({"namespace": ""}, "namespace", "choose"),
        ({"description": "x" * 1025}, "description", "at most 1024"),
        ({"network": "vlan8"}, "network", "namespace/name"),
        ({"listeners.0.port": "0"}, "listeners.0.port", "from 1 to 65535"),
        ({"listeners.0.port": "65536"}, "listeners.0.port", "from 1 to 65535"),
        ({"listeners.0.port": "\uff18\uff10"}, "listeners.0.port", "from 1 to 65535"),
        ({"listeners.0.port": "9" * 5000}, "listeners.0.port", "from 1 to 65535"),
        ({"listeners.7.backendPort": "x"}, "listeners.1.backendPort", "from 1 to 65535"),
        ({"listeners.0.protocol": "SCTP"}, "listeners.0.protocol", "TCP or UDP"),
        ({"listeners.0.name": "n" * 64}, "listeners.0.name", "at most 63"),
        ({"backendServerSelector.0.key": "a b"}, "backendServerSelector.0.key", "match nothing"),
        ({"backendServerSelector.0.key": f"{'a' * 64}"}, "backendServerSelector.0.key", "match nothing"),
        ({"backendServerSelector.0.values": "v" * 64}, "backendServerSelector.0.values", "match nothing"),
        ({"backendServerSelector.0.values": ""}, "backendServerSelector.0.values", "at least one"),
        ({"healthCheck.port": ""}, "healthCheck.port", "from 1 to 65535"),
        ({"healthCheck.successThreshold": "101"}, "healthCheck.successThreshold", "from 1 to 100"),
        ({"healthCheck.periodSeconds": "0"}, "healthCheck.periodSeconds", "from 1 to 3600"),
        ({"healthCheck.protocol": "ICMP"}, "healthCheck.protocol", "one of"),
        ({"healthCheck.expectedCodes": "ok"}, "healthCheck.expectedCodes", "HTTP code"),
        ({"healthCheck.path": "x" * 2049}, "healthCheck.path", "at most 2048"),
    ],
)
def test_a_mistake_is_told_beside_its_field(posted: dict[str, str], slot: str, says: str) -> None:
    form = LbForm.posted(POSTED | posted)
    found = sorted_in(form.mistakes(), form.slots, lbform.ALIASES)
    assert list(found) == [slot]
    assert says in found[slot][0]


@pytest.mark.parametrize("length", [1, 63])
def test_labels_of_63_characters_are_labels(length: int) -> None:
    changed = {
        "backendServerSelector.0.key": f"example.org/{'k' * length}",
        "backendServerSelector.0.values": "v" * length,
    }
    assert LbForm.posted(POSTED | changed).mistakes() == []


@given(st.dictionaries(st.sampled_from(sorted(POSTED)), st.text(max_size=40)))
def test_whatever_is_typed_is_told_of_or_can_be_sent(posted: dict[str, str]) -> None:
    form = LbForm.posted(POSTED | posted)
    found = form.mistakes()
    assert "" not in sorted_in(found, form.slots, lbform.ALIASES), "each has a place of its own"
    if not found:
        form.onto(None)


OLD = LoadBalancer(
    metadata=ObjectMeta(name="web", namespace="shops", annotations={"other": "stays"}),
    spec=LoadBalancerSpec(
        workload_type="vm",
        ipam="pool",
        mode="nat",
        source_ranges=["10.0.0.0/8"],
        description="old",
        listeners=[Listener(port=80, backend_port=8080)],
        backend_server_selector={"app": ["web"], "tier": ["front"]},
        health_check=HealthCheck(port=8080, protocol="HTTP", path="/a", timeout_seconds=2),
    ),
)


def test_what_is_not_changed_is_not_sent() -> None:
    assert LbForm.of(OLD).patch(OLD) == {}
    assert LbForm.of(OLD).onto(OLD) == OLD


def test_an_edit_sends_its_changes_alone_and_all_else_stays() -> None:
    form = LbForm.of(OLD)
    changed = msgspec.json.decode(msgspec.json.encode(form), type=LbForm)
    assert changed == form, "as it travels in the form"
    posted = {
        **{k: "" for k in POSTED if k.startswith("listeners.7")},
        "namespace": "shops",
        "name": "web",
        "ipam": "pool",
        "network": "default/x",
        "listeners.0.port": "81",
        "listeners.0.protocol": "TCP",
        "listeners.0.backendPort": "8080",
        "backendServerSelector.0.key": "app",
        "backendServerSelector.0.values": "web",
        "healthCheck": "on",
        "healthCheck.port": "8080",
        "healthCheck.protocol": "TCP",
        "healthCheck.timeoutSeconds": "2",
    }
    posted = {k: v for k, v in posted.items() if not k.startswith("listeners.7")}
    edited = LbForm.posted(posted)
    assert edited.patch(OLD) == {
        "metadata": {"annotations": {"loadbalancer.harvesterhci.io/network": "default/x"}},
        "spec": {
            "description": None,
            "listeners": [{"port": 81, "protocol": "TCP", "backendPort": 8080}],
            "backendServerSelector": {"tier": None},
            "healthCheck": {"path": None, "protocol": "TCP"},
        },
    }
    after = edited.onto(OLD)
    assert (after.spec.mode, after.spec.source_ranges) == ("nat", ["10.0.0.0/8"])
    assert after.metadata.annotations["other"] == "stays"
    assert LbForm.of(after) == edited
    unchecked = LbForm.posted(posted | {"healthCheck": ""})
    assert unchecked.patch(OLD)["spec"]["healthCheck"] is None


def test_two_edits_are_merged_field_by_field_and_told() -> None:
    base = LbForm.of(OLD)
    theirs = LbForm.of(
        msgspec.structs.replace(OLD, spec=msgspec.structs.replace(OLD.spec, description="theirs", ip_pool="q"))
    )
    mine = LbForm.of(msgspec.structs.replace(OLD, spec=msgspec.structs.replace(OLD.spec, description="mine")))
    kept = merged(base, theirs, mine)
    assert (kept.description, kept.ip_pool) == ("mine", "q")
    assert differences(base, theirs, lbform.TITLES) == [("description", "old", "theirs"), ("pool", "none", "q")]


def test_rows_come_and_go() -> None:
    form = LbForm.posted(POSTED)
    more = form.acted("add-listener").acted("add-label")
    assert (len(more.listeners), len(more.labels)) == (3, 3)
    fewer = more.acted("remove-listener:0").acted("remove-label:0")
    assert [r["port"] for r in fewer.listeners] == ["53", ""]
    for nonsense in (
        "remove-listener:9",
        "remove-listener:x",
        "remove-listener:" + "9" * 5000,
        "drop",
        "remove-listener:-1",
    ):
        assert form.acted(nonsense) == form
    full = form
    for _ in range(400):
        full = full.acted("add-listener")
    assert len(full.listeners) == 250


def test_a_thousand_rows_are_cut() -> None:
    posted = {f"listeners.{i}.port": "1" for i in range(1000)}
    assert len(rows(posted, "listeners", ("port",))) == 300


@pytest.mark.parametrize(
    ("path", "slot"),
    [
        ("spec.listeners[1].port", "listeners.1.port"),
        ("spec.listeners[9].port", "listeners"),
        ("spec.listeners", "listeners"),
        ("spec.backendServerSelector.app", "backendServerSelector"),
        ("spec.healthCheck.expectedCodes[0]", "healthCheck.expectedCodes"),
        ("spec.healthCheck.unheardOf", "healthCheck"),
        ("metadata.name", "name"),
        ("metadata.annotations[loadbalancer.harvesterhci.io/network]", "network"),
        ("spec.mode", ""),
        ("<nil>", ""),
        ("", ""),
    ],
)
def test_a_fields_path_finds_its_slot(path: str, slot: str) -> None:
    assert slot_of(path, LbForm.posted(POSTED).slots, lbform.ALIASES) == slot


JSON: Any = st.recursive(
    st.integers() | st.text(max_size=3), lambda x: st.dictionaries(st.sampled_from("abc"), x, max_size=3)
)


@given(st.dictionaries(st.sampled_from("abc"), JSON), st.dictionaries(st.sampled_from("abc"), JSON))
def test_a_patch_makes_one_the_other(old: dict[str, object], new: dict[str, object]) -> None:
    assert merged_json(old, changes(old, new)) == new
    assert changes(new, new) == {}


POOL = IPPool(
    metadata=ObjectMeta(name="p"),
    spec=IPPoolSpec(ranges=[Range(subnet="10.0.0.0/24", exclude=["10.0.0.5", "10.0.0.8-10.0.0.9"])]),
)


def test_a_pool_travels_through_its_form_unchanged() -> None:
    form = PoolForm.of(POOL)
    assert form.patch(POOL) == {}
    assert form.onto(POOL) == POOL
    assert form.mistakes() == []
    assert form.spec()["ranges"] == [{"subnet": "10.0.0.0/24", "exclude": ["10.0.0.5", "10.0.0.8-10.0.0.9"]}]
    more = form.acted("add-ranges").acted("add-scope").acted("add-reservations")
    assert [len(x) for x in (more.ranges, more.scope, more.reservations)] == [2, 1, 1]
    assert more.acted("remove-ranges:1").ranges == form.ranges
    assert form.acted("add-name") == form


@pytest.mark.parametrize(
    ("changed", "slot"),
    [
        ({"name": "P!"}, "name"),
        ({"priority": "x"}, "priority"),
        ({"network": "x"}, "network"),
        ({"addressesPerTenant": "-1"}, "addressesPerTenant"),
        ({"nearlyFullPercent": "101"}, "nearlyFullPercent"),
        ({"ranges.0.subnet": ""}, "ranges.0.subnet"),
        ({"reservations.0.address": "10.0.0.1", "reservations.0.namespace": "n"}, "reservations.0.loadBalancer"),
    ],
)
def test_a_pools_mistake_is_told_beside_its_field(changed: dict[str, str], slot: str) -> None:
    form = PoolForm.posted({"name": "p", "ranges.0.subnet": "10.0.0.0/24", **changed})
    assert list(sorted_in(form.mistakes(), form.slots, poolform.ALIASES)) == [slot]


def test_the_rules_paths_of_a_pool_find_their_slots() -> None:
    form = PoolForm.posted({"name": "p", "ranges.0.subnet": "x", "scope.0.project": "*"})
    found = [
        Violation(field=f, reason=Heard("R"), message=f)
        for f in ("spec.ranges[0].subnet", "spec.selector.priority", "spec.selector.scope")
    ]
    assert list(sorted_in(found, form.slots, poolform.ALIASES)) == ["ranges.0.subnet", "priority", "scope"]


def test_a_warning_stands_beside_its_field_and_others_where_they_are_put() -> None:
    warnings = [
        "spec.healthCheck.timeoutSeconds: is longer than periodSeconds",
        "spec.healthCheck.timeoutSeconds: is longer than periodSeconds",
        'spec.listeners[1].port: is odd: "spec"',
        "spec: is short",
        "no address yet: pool a: full",
        "<b>metadata</b>: no path",
    ]
    slots = ("healthCheck", "healthCheck.timeoutSeconds", "listeners", "listeners.1.port")
    assert cautions_in(warnings, slots, {}, "ipPool") == {
        "healthCheck.timeoutSeconds": ["is longer than periodSeconds"],
        "listeners.1.port": ['is odd: "spec"'],
        "": ["is short"],
        "ipPool": ["no address yet: pool a: full", "<b>metadata</b>: no path"],
    }
