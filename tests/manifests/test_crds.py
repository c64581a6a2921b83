"""The CustomResourceDefinitions on a real API server: what it takes, what it refuses and how, what it shows."""

import copy
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from cloudprovider.cli.crds import DEFINITIONS
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPPool
from tests.lab.controlplane import ControlPlane
from tests.lab.process import LabError

pytestmark = pytest.mark.apiserver

DATA = Path(__file__).parent / "data"
GROUP = "loadbalancer.harvesterhci.io"

Json = dict[str, Any]


def documents(name: str) -> list[Json]:
    return [d for d in yaml.safe_load_all((DATA / name).read_text()) if d]


EXAMPLES = [*documents("pools.yaml"), *documents("loadbalancers.yaml")]

MACHINES: Json = {
    "apiVersion": f"{GROUP}/v1beta1",
    "kind": "LoadBalancer",
    "metadata": {"name": "machines", "namespace": "default"},
    "spec": {
        "workloadType": "vm",
        "listeners": [
            {"name": "a", "port": 80, "protocol": "TCP", "backendPort": 8080},
            {"name": "b", "port": 53, "protocol": "UDP", "backendPort": 5353},
        ],
        "backendServerSelector": {"app": ["web"]},
        "healthCheck": {"port": 8080},
    },
}
SERVICE: Json = {
    "apiVersion": f"{GROUP}/v1beta1",
    "kind": "LoadBalancer",
    "metadata": {"name": "service", "namespace": "default"},
    "spec": {
        "workloadType": "cluster",
        "listeners": [{"name": "a", "port": 80, "protocol": "TCP"}],
        "service": {"namespace": "shop", "name": "web", "uid": "1", "clusterUid": "c"},
        "addresses": ["192.0.2.1", "2001:db8::1"],
        "ipFamilies": ["IPv4", "IPv6"],
        "sourceRanges": ["192.0.2.0/24", "2001:db8::/32"],
    },
}
POOL: Json = {
    "apiVersion": f"{GROUP}/v1beta1",
    "kind": "IPPool",
    "metadata": {"name": "pool"},
    "spec": {"ranges": [{"subnet": "192.0.2.0/24"}]},
}
BLOCK: Json = {
    "apiVersion": f"{GROUP}/v1beta1",
    "kind": "IPBlock",
    "metadata": {"name": "pool-192.0.2.0"},
    "spec": {"pool": "pool", "first": "192.0.2.0", "allocations": {"192.0.2.7": {"owner": "default/a", "uid": "1"}}},
}
TENANT: Json = {
    "apiVersion": "cloudprovider.harvesterhci.io/v1beta1",
    "kind": "GuestCluster",
    "metadata": {"name": "c1", "namespace": "default"},
    "spec": {
        "nodeCidrs": ["192.0.2.0/24"],
        "revokedBefore": "2026-01-02T03:04:05Z",
        "revokedFingerprints": ["ab" * 32],
        "quota": {"loadBalancers": 5},
    },
}

PEER: Json = {
    "apiVersion": "cloudprovider.harvesterhci.io/v1beta1",
    "kind": "BGPPeer",
    "metadata": {"name": "tor"},
    "spec": {
        "myASN": 64512,
        "peerASN": 4200000000,
        "peerAddress": "2001:db8::1",
        "holdTime": "1m30s",
        "keepaliveTime": "10s",
        "passwordKey": "tor",
        "bfd": {"interval": 100},
        "nodeSelectors": [{"matchExpressions": [{"key": "rack", "operator": "In", "values": ["a"]}]}],
    },
}
ADVERTISEMENT: Json = {
    "apiVersion": "cloudprovider.harvesterhci.io/v1beta1",
    "kind": "BGPAdvertisement",
    "metadata": {"name": "all"},
    "spec": {
        "ipPools": ["lan"],
        "ipPoolSelectors": [{"matchLabels": {"zone": "a"}}],
        "peers": ["tor"],
        "communities": ["64512:100", "large:1:2:3", "no-export"],
        "localPref": 200,
    },
}


def changed(base: Mapping[str, Any], **spec: Any) -> Json:
    """``base`` with other spec fields (None: without the field), under a name of its own."""
    result = copy.deepcopy(dict(base))
    result["metadata"]["name"] = f"test-{uuid.uuid4().hex[:12]}"
    for field, value in spec.items():
        if value is None:
            del result["spec"][field]
        else:
            result["spec"][field] = value
    return result


def answer(control_plane: ControlPlane, *arguments: str, stdin: str | None = None) -> Json:
    """The object that kubectl prints."""
    result: Json = json.loads(control_plane.kubectl(*arguments, "-o", "json", stdin=stdin))
    return result


def pool(**range_: str) -> Json:
    return changed(POOL, ranges=[{"subnet": "192.0.2.0/24"} | range_])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e['kind']}-{e['metadata']['name']}")
def test_harvesters_examples_apply_unchanged(control_plane: ControlPlane, example: Json) -> None:
    """Strictly: a field that the schema does not know would be an error."""
    stored = answer(
        control_plane, "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(example)
    )
    for field, value in example["spec"].items():
        written = stored["spec"][field]
        if isinstance(value, dict):
            written = {key: written[key] for key in value}
        assert written == value


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: f"{e['kind']}-{e['metadata']['name']}")
def test_what_the_server_stores_decodes(control_plane: ControlPlane, example: Json) -> None:
    stored = control_plane.kubectl("apply", "--dry-run=server", "-o", "json", "-f", "-", stdin=json.dumps(example))
    type_ = IPPool if example["kind"] == "IPPool" else LoadBalancer
    before = msgspec.convert(example, type_)
    assert msgspec.json.decode(stored, type=type_).metadata.name == before.metadata.name


@pytest.mark.parametrize("entry", documents("statuses.yaml")[0], ids=lambda e: f"{e['resource']}-{e['name']}")
def test_harvesters_status_is_kept_and_decodes(control_plane: ControlPlane, entry: Json) -> None:
    (example,) = (e for e in EXAMPLES if e["metadata"]["name"] == entry["name"])
    mine = changed(example)
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(mine))
    name = [f"{entry['resource']}.{GROUP}", mine["metadata"]["name"], *_namespace(mine)]
    try:
        patch = json.dumps({"status": entry["status"]})
        stored = answer(control_plane, "patch", *name, "--subresource=status", "--type=merge", "-p", patch)
        assert stored["status"] == entry["status"]
        decoded: IPPool | LoadBalancer = (
            msgspec.convert(stored, IPPool) if example["kind"] == "IPPool" else msgspec.convert(stored, LoadBalancer)
        )
        assert decoded.status.conditions[0].type == "Ready"
    finally:
        control_plane.kubectl("delete", *name)


@pytest.mark.parametrize(
    "good", [MACHINES, SERVICE, POOL, BLOCK, TENANT, PEER, ADVERTISEMENT], ids=lambda o: str(o["kind"])
)
def test_our_own_objects_are_taken(control_plane: ControlPlane, good: Json) -> None:
    control_plane.kubectl("create", "--dry-run=server", "--validate=strict", "-f", "-", stdin=json.dumps(changed(good)))


def listener(name: str, port: int, protocol: str = "TCP", **more: int) -> Json:
    return {"name": name, "port": port, "protocol": protocol, **({"backendPort": port} | more)}


@pytest.mark.parametrize(
    ("bad", "field", "says"),
    [
        (changed(MACHINES, listeners=[], healthCheck=None), "spec.listeners", "at least one listener"),
        (changed(MACHINES, listeners=None, healthCheck=None), "spec.listeners", "at least one listener"),
        (changed(MACHINES, workloadType="", listeners=[], healthCheck=None), "spec.listeners", "at least one"),
        (changed(MACHINES, listeners=[{"port": 80}], healthCheck=None), "spec.listeners", "backendPort"),
        (changed(MACHINES, listeners=[listener("a", 8080), listener("a", 81)]), "spec.listeners", "same name"),
        (changed(MACHINES, listeners=[listener("a", 8080), listener("b", 8080)]), "spec.listeners", "same port"),
        (
            changed(MACHINES, listeners=[{"port": 8080, "backendPort": 8080}, listener("b", 8080)]),
            "spec.listeners",
            "same port and protocol",
        ),
        (changed(MACHINES, listeners=[listener("a", 0)]), "spec.listeners[0].port", "greater than or equal to 1"),
        (changed(MACHINES, listeners=[listener("a", 65536)]), "spec.listeners[0].port", "less than or equal to 65535"),
        (changed(MACHINES, listeners=[listener("a", 80, "SCTP")]), "spec.listeners[0].protocol", '"TCP", "UDP"'),
        (
            changed(MACHINES, listeners=[listener(f"p{i}", i) for i in range(1, 252)]),
            "spec.listeners",
            "at most 250 items",
        ),
        (
            changed(MACHINES, listeners=[listener(f"p{i}", i) for i in range(1, 1001)]),
            "spec.listeners",
            "at most 250 items",
        ),
        (changed(MACHINES, healthCheck={"port": 80}), "spec.healthCheck.port", "backendPort of a TCP listener"),
        (changed(MACHINES, healthCheck={"port": 5353}), "spec.healthCheck.port", "backendPort of a TCP listener"),
        *(
            (changed(MACHINES, healthCheck={"port": 8080, **fields}), f"spec.healthCheck.{field}", says)
            for fields, field, says in (
                ({"path": "/"}, "path", "path is for HTTP and HTTPS only, and the check is by TCP"),
                ({"host": "a"}, "host", "only, and the check is by TCP"),
                ({"protocol": "GRPC", "expectedCodes": ["200"]}, "expectedCodes", "the check is by GRPC"),
                ({"protocol": "HTTP", "verifyCertificate": True}, "verifyCertificate", "HTTPS and GRPCS only"),
                ({"protocol": "HTTP", "certificateAuthority": "x"}, "certificateAuthority", "HTTPS and GRPCS only"),
                ({"protocol": "HTTP", "grpcService": "x"}, "grpcService", "GRPC and GRPCS only"),
                ({"protocol": "HTTP", "expectedCodes": ["200", "299-200"]}, "expectedCodes", "299-200 runs backwards"),
            )
        ),
        (
            changed(MACHINES, healthCheck={"port": 8080, "failureThreshold": 0}),
            "spec.healthCheck.failureThreshold",
            "greater than or equal to 1",
        ),
        (changed(MACHINES, workloadType="pod"), "spec.workloadType", '"cluster", "vm"'),
        (changed(MACHINES, ipam="static"), "spec.ipam", '"dhcp", "pool"'),
        (changed(MACHINES, service=SERVICE["spec"]["service"]), "spec.service", "only for workloadType"),
        (changed(SERVICE, addresses=["192.0.2.300"]), "spec.addresses", '"192.0.2.300" is no IP address'),
        (changed(SERVICE, addresses=["192.0.2.1", "192.0.2.2"]), "spec.addresses", "one of each family"),
        (changed(SERVICE, ipFamilies=["IPv4", "IPv4"]), "spec.ipFamilies", "twice"),
        (changed(SERVICE, sourceRanges=["192.0.2.1"]), "spec.sourceRanges", '"192.0.2.1" is no CIDR'),
        (changed(SERVICE, service={"namespace": "shop", "name": "web"}), "spec.service.uid", "Required"),
        (changed(POOL, ranges=[]), "spec.ranges", "at least 1 items"),
        (changed(POOL, ranges=None), "spec.ranges", "Required"),
        (pool(subnet="192.0.2.0"), "spec.ranges[0].subnet", '"192.0.2.0" is not a CIDR'),
        (pool(subnet="192.0.2.0/33"), "spec.ranges[0].subnet", "is not a CIDR"),
        (pool(rangeStart="192.0.3.1"), "spec.ranges[0].rangeStart", '"192.0.3.1" is not a host address of subnet'),
        (pool(rangeStart="192.0.2.0"), "spec.ranges[0].rangeStart", "is not a host address of subnet"),
        (pool(rangeEnd="2001:db8::1"), "spec.ranges[0].rangeEnd", "is not a host address of subnet"),
        (pool(rangeEnd="192.0.2.0/25"), "spec.ranges[0].rangeEnd", "is not a host address of subnet"),
        (pool(gateway="gateway"), "spec.ranges[0].gateway", '"gateway" is not a host address of subnet'),
        (changed(POOL, selector={"priority": -1}), "spec.selector.priority", "greater than or equal to 0"),
        (changed(POOL, selector={"scope": {"namespace": "default"}}), "spec.selector.scope.namespace", "unknown field"),
        (changed(TENANT, nodeCidrs=["192.0.2.1"]), "spec.nodeCidrs", '"192.0.2.1" is no CIDR'),
        (changed(TENANT, revokedBefore="yesterday"), "spec.revokedBefore", "should match"),
        (changed(TENANT, revokedFingerprints=["AB:CD"]), "spec.revokedFingerprints[0]", "should match"),
        (changed(PEER, peerAddress="router-1"), "spec.peerAddress", '"router-1" is no IP address'),
        (changed(PEER, peerAddress=None), "spec.peerAddress", "Required"),
        (changed(PEER, myASN=0), "spec.myASN", "greater than or equal to 1"),
        (changed(PEER, peerASN=4294967296), "spec.peerASN", "less than or equal to 4294967295"),
        (changed(PEER, holdTime="90"), "spec.holdTime", "should match"),
        (changed(PEER, holdTime="2s"), "spec.holdTime", 'must be "0s", or from "3s"'),
        (changed(PEER, ebgpMultiHop=True), "spec.bfd", "leave bfd out, or ebgpMultiHop"),
        (changed(PEER, bfd={"interval": 10}), "spec.bfd.interval", "greater than or equal to 50"),
        (
            changed(PEER, nodeSelectors=[{"matchExpressions": [{"key": "a", "operator": "Is"}]}]),
            "spec.nodeSelectors[0].matchExpressions[0].operator",
            '"DoesNotExist", "Exists", "In", "NotIn"',
        ),
    ],
)
def test_bad_input_is_refused_with_field_and_reason(
    control_plane: ControlPlane, bad: Json, field: str, says: str
) -> None:
    with pytest.raises(LabError) as refused:
        control_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(bad))
    lines = [line for line in str(refused.value).splitlines() if field in line]
    assert any(says in line for line in lines), str(refused.value)


@pytest.mark.parametrize(
    ("base", "change", "says"),
    [
        (MACHINES, {"workloadType": "cluster"}, "workloadType can't be changed"),
        (SERVICE, {"workloadType": "vm", "service": None}, "workloadType can't be changed"),
        (SERVICE, {"service": SERVICE["spec"]["service"] | {"uid": "2"}}, "can't be changed"),
        (SERVICE, {"service": SERVICE["spec"]["service"] | {"namespace": "other"}}, "can't be changed"),
        (SERVICE, {"service": None}, "can't be taken away"),
        (BLOCK, {"pool": "other"}, "one pool for ever"),
        (BLOCK, {"first": "192.0.3.0"}, "can't be changed"),
    ],
)
def test_identity_is_immutable(control_plane: ControlPlane, base: Json, change: Json, says: str) -> None:
    mine = changed(base)
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(mine))
    name = [mine["kind"], mine["metadata"]["name"], *_namespace(mine)]
    try:
        with pytest.raises(LabError, match=says):
            control_plane.kubectl("patch", *name, "--type=merge", "-p", json.dumps({"spec": change}))
    finally:
        control_plane.kubectl("delete", *name)


def test_a_mode_left_out_and_an_empty_one_are_the_same(control_plane: ControlPlane) -> None:
    """Harvester's dashboard writes empty strings; "" to "vm" is no change of type."""
    mine = changed(MACHINES, workloadType="")
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(mine))
    name = [mine["kind"], mine["metadata"]["name"], *_namespace(mine)]
    try:
        assert answer(control_plane, "get", *name)["spec"]["workloadType"] == ""
        control_plane.kubectl("patch", *name, "--type=merge", "-p", '{"spec":{"workloadType":"vm"}}')
    finally:
        control_plane.kubectl("delete", *name)


def test_defaults_are_those_of_harvesters_documentation(control_plane: ControlPlane) -> None:
    mine = changed(MACHINES, workloadType=None)
    del mine["spec"]["listeners"][0]["protocol"]
    spec = answer(control_plane, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(mine))["spec"]
    assert (spec["workloadType"], spec["ipam"], spec["mode"]) == ("vm", "pool", "auto")
    assert spec["listeners"][0]["protocol"] == "TCP"
    assert spec["healthCheck"] == {
        "port": 8080,
        "successThreshold": 1,
        "failureThreshold": 3,
        "periodSeconds": 5,
        "timeoutSeconds": 3,
        "protocol": "TCP",
        "failedConnections": "Keep",
    }


def test_two_writers_share_the_conditions(control_plane: ControlPlane) -> None:
    """The controller's and the agent's applies live side by side, and giving one up leaves the other's."""
    mine = changed(SERVICE)
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(mine))
    name = mine["metadata"]["name"]

    def apply(manager: str, status: Json) -> list[str]:
        body = json.dumps({k: mine[k] for k in ("apiVersion", "kind", "metadata")} | {"status": status})
        stored = answer(
            control_plane,
            "apply",
            "--server-side",
            "--subresource=status",
            f"--field-manager={manager}",
            "-f",
            "-",
            stdin=body,
        )
        return sorted(c["type"] for c in stored.get("status", {}).get("conditions", []))

    try:
        allocated = [{"type": "Allocated", "status": "True"}]
        programmed = [{"type": "Programmed", "status": "True"}, {"type": "Ready", "status": "True"}]
        assert apply("controller", {"address": "192.0.2.1", "conditions": allocated}) == ["Allocated"]
        assert apply("agent", {"holder": {"node": "n1"}, "conditions": programmed}) == [
            "Allocated",
            "Programmed",
            "Ready",
        ]
        assert apply("agent", {}) == ["Allocated"]
        status = answer(control_plane, "get", "lb", name)["status"]
        assert status["address"] == "192.0.2.1"
        assert "holder" not in status
    finally:
        control_plane.kubectl("delete", "lb", name)


def test_status_is_a_subresource(control_plane: ControlPlane) -> None:
    """Who may write the spec can't write the status by the way, nor the other way round."""
    mine = changed(POOL) | {"status": {"total": 1}}
    assert "status" not in answer(control_plane, "create", "-f", "-", stdin=json.dumps(mine))
    name = ["pool", mine["metadata"]["name"]]
    try:
        patch = '{"status":{"total":253},"spec":{"description":"no"}}'
        stored = answer(control_plane, "patch", *name, "--subresource=status", "--type=merge", "-p", patch)
        assert stored["status"] == {"total": 253}
        assert "description" not in stored["spec"]
    finally:
        control_plane.kubectl("delete", *name)


def test_a_blocks_allocations_are_one_field_to_the_server(control_plane: ControlPlane) -> None:
    """Else managedFields would hold an entry for each address, and every replace would pay for it."""
    mine = changed(BLOCK)
    stored = answer(control_plane, "create", "--show-managed-fields", "-f", "-", stdin=json.dumps(mine))
    control_plane.kubectl("delete", "ipblock", mine["metadata"]["name"])
    (entry,) = stored["metadata"]["managedFields"]
    assert entry["fieldsV1"]["f:spec"]["f:allocations"] == {}


def test_a_cluster_load_balancer_may_have_as_many_ports_as_the_bound(control_plane: ControlPlane) -> None:
    ports = [listener(f"{'p' * 55}-{i:03}", i) for i in range(1, 251)]
    ranges = [f"2001:db8:1111:2222:3333:4444:5555:{i:x}/128" for i in range(1000)]
    many = changed(SERVICE, listeners=ports, sourceRanges=ranges)
    control_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(many))


def test_kubectl_get_shows_what_harvester_shows(control_plane: ControlPlane) -> None:
    mine = changed(MACHINES, description="hello", ipam="pool")
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(mine))
    try:
        head, row = control_plane.kubectl("get", "lb", mine["metadata"]["name"]).splitlines()
        assert head.split() == ["NAME", "DESCRIPTION", "WORKLOADTYPE", "IPAM", "ADDRESS", "AGE"]
        assert row.split()[1:4] == ["hello", "vm", "pool"]
    finally:
        control_plane.kubectl("delete", "lb", mine["metadata"]["name"])


def test_each_host_writes_its_own_session(control_plane: ControlPlane) -> None:
    mine = changed(PEER)
    name = mine["metadata"]["name"]
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(mine))
    try:
        for node, state in (("host-1", "Established"), ("host-2", "Flapping")):
            session = {"node": node, "state": state, "error": "" if node == "host-1" else "the router ends it"}
            status = {**mine, "spec": PEER["spec"], "status": {"sessions": [session]}}
            apply = ("apply", "--server-side", "--subresource=status", f"--field-manager=cloudprovider-agent-{node}")
            control_plane.kubectl(*apply, "-f", "-", stdin=json.dumps(status))
        stored = answer(control_plane, "get", "bgppeer", name)
        assert [s["node"] for s in stored["status"]["sessions"]] == ["host-1", "host-2"]
        head, row = control_plane.kubectl("get", "bgpp", name, "-o", "wide").splitlines()
        assert head.split() == ["NAME", "ADDRESS", "ASN", "NETWORK", "NOTUPAT", "AGE", "STATE", "ERROR"]
        assert row.split()[1:3] == ["2001:db8::1", "4200000000"]
        assert row.split()[3] == "host-2"
        assert row.endswith("the router ends it")
    finally:
        control_plane.kubectl("delete", "bgppeer", name)


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda d: str(d.resource.kind))
def test_kubectl_explains_the_kind(control_plane: ControlPlane, definition: Any) -> None:
    told = control_plane.kubectl("explain", f"{definition.resource.plural}.{definition.resource.group}.spec")
    assert "<no description>" not in told


def _namespace(obj: Json) -> list[str]:
    return ["-n", obj["metadata"]["namespace"]] if "namespace" in obj["metadata"] else []
