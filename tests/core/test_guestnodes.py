"""Which nodes take traffic, and from when on they do not."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from cloudprovider.core.api.kubernetes import Node
from cloudprovider.core.exchange import ReportedNode
from cloudprovider.core.guestnodes import NOT_READY_GRACE, internal_addresses, select_nodes

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
ADDRESS = {"type": "InternalIP", "address": "10.0.0.1"}


def node(
    name: str = "a",
    *,
    ready: str | None = "True",
    since: timedelta = timedelta(0),
    addresses: list[dict[str, str]] | None = None,
    **rest: Any,
) -> Node:
    time = (NOW - since).isoformat().replace("+00:00", "Z")
    conditions = [] if ready is None else [{"type": "Ready", "status": ready, "lastTransitionTime": time}]
    return msgspec.convert(
        {
            "metadata": {"name": name, "creationTimestamp": time, **rest.get("metadata", {})},
            "spec": rest.get("spec", {}),
            "status": {"addresses": [ADDRESS] if addresses is None else addresses, "conditions": conditions},
        },
        Node,
    )


def names(*nodes: Node, in_use: tuple[str, ...] | None = None) -> list[str]:
    return [n.name for n in select_nodes(nodes, in_use=in_use, now=NOW).nodes]


def test_ready_nodes_in_order_of_their_names() -> None:
    found = select_nodes([node("b"), node("a")], in_use=None, now=NOW)
    assert found.nodes == (ReportedNode("a", (ip_address("10.0.0.1"),)), ReportedNode("b", (ip_address("10.0.0.1"),)))
    assert found.recheck_at is None


def test_the_machine_is_named_where_it_has_another_name() -> None:
    noted = {"annotations": {"cloudprovider.harvesterhci.io/vm-name-of-guest-cluster-node": "vm-1"}}
    found = select_nodes([node("a", metadata=noted), node("vm-1", metadata=noted)], in_use=None, now=NOW).nodes
    assert [(n.name, n.virtual_machine) for n in found] == [("a", "vm-1"), ("vm-1", "")]


@pytest.mark.parametrize(
    "rest",
    [
        {"metadata": {"labels": {"node.kubernetes.io/exclude-from-external-load-balancers": ""}}},
        {"metadata": {"labels": {"service.kubernetes.io/exclude-from-external-load-balancers": "false"}}},
        {"metadata": {"deletionTimestamp": "2026-01-01T11:00:00Z"}},
        {"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]}},
    ],
)
def test_excluded(rest: dict[str, Any]) -> None:
    assert names(node(**rest), in_use=("a",)) == []


def test_other_taints_and_unschedulable_change_nothing() -> None:
    assert names(node(spec={"unschedulable": True, "taints": [{"key": "x", "effect": "NoExecute"}]})) == ["a"]


@pytest.mark.parametrize("status", ["False", "Unknown"])
def test_not_ready_alone_changes_nothing_until_the_grace_time_ends(status: str) -> None:
    almost = NOT_READY_GRACE - timedelta(seconds=1)
    found = select_nodes([node(ready=status, since=almost)], in_use=("a",), now=NOW)
    assert [n.name for n in found.nodes] == ["a"]
    assert found.recheck_at == NOW + timedelta(seconds=1)
    assert names(node(ready=status, since=NOT_READY_GRACE), in_use=("a",)) == []


def test_a_new_node_joins_when_it_is_ready() -> None:
    assert names(node(ready="False"), node("b"), in_use=("b",)) == ["b"]
    assert names(node(ready=None), in_use=()) == []


def test_a_program_that_starts_gives_every_node_the_grace_time() -> None:
    assert names(node(ready="Unknown", since=timedelta(seconds=5)), in_use=None) == ["a"]
    assert names(node(ready=None, since=timedelta(seconds=5)), in_use=None) == ["a"]


def test_a_clock_ahead_of_ours_keeps_the_node() -> None:
    assert names(node(ready="False", since=-timedelta(seconds=30)), in_use=("a",)) == ["a"]


def test_a_transition_without_a_time_is_long_past() -> None:
    unknown = msgspec.convert(
        {
            "metadata": {"name": "a"},
            "status": {"addresses": [ADDRESS], "conditions": [{"type": "Ready", "status": "False"}]},
        },
        Node,
    )
    assert names(unknown, in_use=("a",)) == []


def test_addresses() -> None:
    several = node(
        addresses=[
            {"type": "Hostname", "address": "a"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "not an address"},
            {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "10.0.0.2"},
        ]
    )
    assert internal_addresses(several) == (ip_address("2001:db8::1"), ip_address("10.0.0.1"))


def test_a_node_without_an_internal_address_takes_no_traffic() -> None:
    assert names(node(addresses=[])) == []
