"""Load balancers whose own check decides where they go."""

from ipaddress import ip_address

import pytest

from cloudprovider.core.api.loadbalancer import HealthCheck, Listener
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.plan import Forward, GroupId
from tests.core.test_forwarding import HTTP, MACS, NODES, backend, cluster, key, lb, seen, table, vm

A, B = ("t", "a"), ("t", "b")
CHECK = HealthCheck(port=30080)
VIP = "10.0.0.100"
UDP = Listener(port=53, protocol="UDP", backend_port=30053)


def checked(*listeners: Listener, check: HealthCheck = CHECK, **spec: object) -> ForwardingTable:
    return table(cluster("n1", "n2"), lb("a", VIP, *(listeners or (HTTP,)), health_check=check, **spec))  # type: ignore[arg-type]


def members(tested: ForwardingTable) -> list[set[str]]:
    names = {ip_address(address): name for name, address in NODES.items()}
    names |= {mac: name for name, mac in MACS.items()}  # type: ignore[misc]
    return [{names[m] for m in group.members} for group in tested.plan("").groups.values()]  # type: ignore[index]


def test_a_new_backend_is_down_and_where_none_is_up_it_is_refused() -> None:
    tested = checked()
    assert tested.plan("").forwards == {key(VIP): Forward(GroupId(0), 30080)}
    assert tested.set_healthy(A, frozenset({"n1"}))
    assert members(tested) == [{"n1"}]
    assert not tested.set_healthy(A, frozenset({"n1"}))
    tested.set_healthy(A, frozenset())
    assert tested.plan("").forwards == {key(VIP): Forward(GroupId(0), 30080)}
    assert members(tested) == []


def test_what_is_known_before_the_load_balancer_is_counts_when_it_comes() -> None:
    tested = table(cluster("n1", "n2"))
    tested.set_healthy(A, frozenset({"n2"}))
    tested.set_load_balancer(lb("a", VIP, HTTP, health_check=CHECK))
    assert members(tested) == [{"n2"}]


def test_a_node_that_comes_new_gets_nothing_before_it_has_passed() -> None:
    tested = checked()
    tested.set_healthy(A, frozenset({"n1", "n2"}))
    tested.set_cluster(cluster("n1", "n2", "n3"))
    assert members(tested) == [{"n1", "n2"}]
    tested.set_healthy(A, frozenset({"n1", "n2", "n3"}))
    assert members(tested) == [{"n1", "n2", "n3"}]


def test_each_load_balancer_has_its_own_and_those_with_the_same_nodes_share_a_group() -> None:
    tested = checked()
    tested.set_load_balancer(lb("b", "10.0.0.101", HTTP, health_check=CHECK))
    tested.set_healthy(A, frozenset({"n1"}))
    tested.set_healthy(B, frozenset({"n2"}))
    assert sorted(map(sorted, members(tested))) == [["n1"], ["n2"]]
    tested.set_healthy(B, frozenset({"n1"}))
    assert members(tested) == [{"n1"}]


def test_without_a_check_nothing_of_it_counts() -> None:
    tested = checked()
    tested.set_healthy(A, frozenset({"n1"}))
    tested.set_load_balancer(lb("a", VIP, HTTP))
    assert members(tested) == [{"n1", "n2"}]
    tested.set_healthy(A, frozenset())
    assert members(tested) == [{"n1", "n2"}]


def test_policy_local_goes_to_healthy_nodes_with_endpoints() -> None:
    tested = checked(local=["n2", "n3"])
    tested.set_healthy(A, frozenset({"n1", "n2"}))
    assert members(tested) == [{"n2"}]
    assert tested.backends_of(A) == {"n2": (ip_address(NODES["n2"]),)}


def test_node_probes_leave_out_of_the_healthy_ones_but_never_all() -> None:
    tested = checked()
    tested.set_healthy(A, frozenset({"n1", "n2"}))
    tested.set_failing(frozenset({ip_address(NODES["n1"])}))
    assert members(tested) == [{"n2"}]
    tested.set_healthy(A, frozenset({"n1"}))
    assert members(tested) == [{"n1"}]


def test_a_load_balancer_that_comes_again_begins_anew() -> None:
    tested = checked()
    tested.set_healthy(A, frozenset({"n1"}))
    tested.remove_load_balancer(A)
    tested.set_load_balancer(lb("a", VIP, HTTP, health_check=CHECK))
    assert members(tested) == []


@pytest.mark.parametrize(("setting", "at_once"), [("Keep", False), ("Reset", True)])
def test_connections_to_a_node_that_fails_are_kept_for_the_drain_time_or_reset(setting: str, at_once: bool) -> None:
    check = HealthCheck(port=30080, failed_connections=setting)  # type: ignore[arg-type]
    tested = checked(HTTP, UDP, check=check)
    tested.set_healthy(A, frozenset({"n1", "n2"}))
    tested.set_healthy(A, frozenset({"n2"}))
    due = tested.transitions("").due(0.0)
    failed = ip_address(NODES["n1"])
    assert [one.port for one in due.udp[failed]] == [53]
    assert [one.port for one in due.tcp.get(failed, ())] == ([80] if at_once else [])
    later = tested.transitions("").due(300.0)
    assert [one.port for one in later.tcp.get(failed, ())] == ([] if at_once else [80])


def test_where_the_last_one_fails_its_connections_are_reset_too() -> None:
    tested = checked(check=HealthCheck(port=30080, failed_connections="Reset"))
    tested.set_healthy(A, frozenset({"n1"}))
    tested.set_healthy(A, frozenset())
    assert set(tested.transitions("").due(0.0).tcp) == {ip_address(NODES["n1"])}


def test_a_node_that_leaves_the_cluster_has_its_drain_time_whatever_becomes_of_failed_ones() -> None:
    tested = checked(check=HealthCheck(port=30080, failed_connections="Reset"))
    tested.set_healthy(A, frozenset({"n1", "n2"}))
    tested.set_cluster(cluster("n2"))
    tested.set_healthy(A, frozenset({"n2"}))
    assert not tested.transitions("").due(0.0)
    assert set(tested.transitions("").due(300.0).tcp) == {ip_address(NODES["n1"])}


def test_in_mode_dsr_flows_of_a_failed_node_are_unpinned_at_once() -> None:
    tested = checked(mode="dsr", check=HealthCheck(port=30080, failed_connections="Reset"))
    tested.set_sightings("", seen("n1", "n2"))
    tested.set_healthy(A, frozenset({"n1", "n2"}))
    assert members(tested) == [{"n1", "n2"}]
    tested.set_healthy(A, frozenset({"n2"}))
    assert set(tested.transitions("").due(0.0).pins) == {MACS["n1"]}


def test_a_check_that_can_not_be_made_is_a_problem_of_the_load_balancer() -> None:
    tested = checked(check=HealthCheck(port=1, protocol="HTTP", expected_codes=["299-200"]))
    want = tested.load_balancer(A)
    assert want is not None
    assert want.problem is not None
    assert want.problem.reason == "InvalidSpec"
    assert "runs backwards" in want.problem.message


MACHINES = [backend(name) for name in ("n1", "n2", "n3")]


def machines(**more: object) -> ForwardingTable:
    check = HealthCheck(port=8080, **more)  # type: ignore[arg-type]
    port = Listener(port=80, backend_port=8080)
    return table(vm("a", VIP, port, backends=MACHINES, health_check=check))


def test_of_machines_the_group_stays_and_only_who_is_in_it_changes() -> None:
    tested = machines()
    assert members(tested) == []
    tested.set_healthy(A, frozenset({"n1", "n2", "n3"}))
    tested.take_changes("")
    (number,) = tested.plan("").groups
    tested.set_healthy(A, frozenset({"n1", "n3"}))
    changes = tested.take_changes("")
    assert changes.groups.keys() == {number}
    assert not changes.forwards, "the kernel takes what differs of a table, not a table more"
    assert members(tested) == [{"n1", "n3"}]
    tested.set_healthy(A, frozenset())
    assert tested.plan("").forwards[key(VIP)].group == 0
    assert members(tested) == []
    tested.set_healthy(A, frozenset({"n2"}))
    assert members(tested) == [{"n2"}]


def test_of_machines_too_a_check_that_is_no_more_counts_for_nothing_and_a_new_one_from_the_start() -> None:
    tested = machines()
    tested.set_healthy(A, frozenset({"n1"}))
    port = Listener(port=80, backend_port=8080)
    tested.set_load_balancer(vm("a", VIP, port, backends=MACHINES))
    assert members(tested) == [{"n1", "n2", "n3"}]
    tested.set_load_balancer(vm("a", VIP, port, backends=MACHINES, health_check=HealthCheck(port=8080)))
    assert members(tested) == [{"n1"}]
    tested.remove_load_balancer(A)
    tested.set_load_balancer(vm("a", VIP, port, backends=MACHINES, health_check=HealthCheck(port=8080)))
    assert members(tested) == [], "one made anew starts down"


@pytest.mark.parametrize("reset", [True, False])
def test_connections_to_a_machine_that_fails_are_cut_where_that_is_asked_for(reset: bool) -> None:
    tested = machines(failed_connections="Reset" if reset else "Keep")
    tested.set_healthy(A, frozenset({"n1", "n2"}))
    tested.take_changes("")
    tested.set_healthy(A, frozenset({"n1"}))
    due = tested.transitions("").due(0.0)
    gone = ip_address(NODES["n2"])
    assert due.tcp.keys() == ({gone} if reset else set())
