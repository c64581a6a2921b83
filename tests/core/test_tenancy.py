from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.api.guestcluster import GuestClusterSpec, Quota
from cloudprovider.core.errors import NotPermitted
from cloudprovider.core.exchange import (
    Inventory,
    InventoryItem,
    Listener,
    LoadBalancerRequest,
    ReportedNode,
    ServiceKey,
    Tenant,
)
from cloudprovider.core.tenancy import (
    Binding,
    HeldRemovals,
    NodeRules,
    bind,
    check_nodes,
    check_request,
    judge_inventory,
    node_cidrs,
)

TENANT = Tenant("team-a", "blue")
PROJECT = "c-abc/p-123"


def request(ports: int = 1) -> LoadBalancerRequest:
    return LoadBalancerRequest(listeners=tuple(Listener(f"p{i}", "TCP", 80 + i, 30080 + i) for i in range(ports)))


class TestBinding:
    @pytest.mark.parametrize(
        ("bound", "presented", "rebind", "verdict"),
        [
            ("", "u1", "", Binding.FIRST_USE),
            ("u1", "u1", "", Binding.BOUND),
            ("u1", "u1", "any", Binding.BOUND),
            ("u1", "u2", "", Binding.MISMATCH),
            ("u1", "u2", "u3", Binding.MISMATCH),
            ("u1", "u2", "u2", Binding.REBIND),
            ("u1", "u2", "any", Binding.REBIND),
        ],
    )
    def test_verdicts(self, bound: str, presented: str, rebind: str, verdict: Binding) -> None:
        assert bind(bound, presented, rebind) is verdict


class TestLimits:
    def test_what_lies_inside_passes(self) -> None:
        spec = GuestClusterSpec(pools=["p"], networks=["", "default/vlan1"])
        asked = replace(
            request(), ip_pool="p", network="default/vlan1", scope_namespace="team-a", scope_project=PROJECT
        )
        check_request(TENANT, PROJECT, spec, asked)

    def test_who_shares_an_address_is_where_its_primary_is(self) -> None:
        spec = GuestClusterSpec(networks=["default/vlan1"])
        check_request(TENANT, PROJECT, spec, replace(request(), primary_service="default/main"))
        with pytest.raises(NotPermitted, match="the management network is not open to this cluster"):
            check_request(TENANT, PROJECT, spec, request())

    def test_star_narrows_nothing(self) -> None:
        check_request(TENANT, "", GuestClusterSpec(), replace(request(), scope_namespace="*", scope_project="*"))

    def test_dhcp_is_no_way_around_the_pools_that_are_named(self) -> None:
        asked = replace(request(), ipam="dhcp")
        check_request(TENANT, "", GuestClusterSpec(networks=[""]), asked)
        with pytest.raises(NotPermitted) as refused:
            check_request(TENANT, "", GuestClusterSpec(pools=["p", "a"]), asked)
        (violation,) = refused.value.violations
        with pytest.raises(NotPermitted, match="the management network is not open to this cluster"):
            check_request(TENANT, "", GuestClusterSpec(networks=["default/vlan1"]), asked)
        assert violation.field == "metadata.annotations[cloudprovider.harvesterhci.io/ipam]"
        assert violation.reason == "DHCPNotPermitted"
        assert "(a, p), not by DHCP: set the annotation to pool" in violation.message

    def test_everything_outside_is_named_at_once(self) -> None:
        spec = GuestClusterSpec(pools=["p"], networks=["default/vlan1"], quota=Quota(ports_per_load_balancer=2))
        asked = replace(request(3), ip_pool="other", scope_project="c-abc/p-999", scope_namespace="team-b")
        with pytest.raises(NotPermitted) as refused:
            check_request(TENANT, PROJECT, spec, asked)
        assert [(v.field.rpartition("/")[2].rstrip("]"), v.reason) for v in refused.value.violations] == [
            ("spec.ports", "TooManyPorts"),
            ("ip-pool", "PoolNotPermitted"),
            ("network", "NetworkNotPermitted"),
            ("project", "ScopeNotPermitted"),
            ("namespace", "ScopeNotPermitted"),
        ]

    def test_source_ranges_are_bounded(self) -> None:
        spec = GuestClusterSpec(quota=Quota(source_ranges_per_load_balancer=0))
        with pytest.raises(NotPermitted, match="sourceRangesPerLoadBalancer"):
            check_request(TENANT, "", spec, replace(request(), sources=(ip_network("10.0.0.0/8"),)))

    def test_a_namespace_without_project_says_so(self) -> None:
        with pytest.raises(NotPermitted, match="in no project"):
            check_request(TENANT, "", GuestClusterSpec(), replace(request(), scope_project=PROJECT))


RULES = NodeRules(
    cidrs=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/64")),
    reserved=(ip_network("10.1.240.0/20"),),
    host_addresses={ip_address("10.1.0.2")},
    gateways={ip_address("10.1.0.1")},
    is_load_balancer=lambda a: a == ip_address("10.1.0.200"),
)


def node(name: str, *addresses: str) -> ReportedNode:
    return ReportedNode(name, tuple(ip_address(a) for a in addresses))


class TestNodes:
    @pytest.mark.parametrize(
        ("address", "reason"),
        [
            ("10.2.0.1", "OutsideNodeCIDRs"),
            ("fd00:2::1", "OutsideNodeCIDRs"),
            ("10.1.0.2", "HostAddress"),
            ("10.1.0.1", "GatewayAddress"),
            ("10.1.0.200", "LoadBalancerAddress"),
            ("10.1.241.7", "ReservedRange"),
            ("127.0.0.1", "ReservedRange"),
            ("169.254.1.1", "ReservedRange"),
            ("224.0.0.1", "ReservedRange"),
            ("0.0.0.0", "ReservedRange"),
        ],
    )
    def test_an_address_that_is_not_a_nodes_is_rejected_and_the_others_stay(self, address: str, reason: str) -> None:
        everywhere = replace(RULES, cidrs=(ip_network("0.0.0.0/0"),)) if reason == "ReservedRange" else RULES
        accepted, rejected = check_nodes([node("a", address, "10.1.0.10"), node("b", "10.1.0.11")], everywhere)
        assert accepted == (node("a", "10.1.0.10"), node("b", "10.1.0.11"))
        assert [(r.name, r.address, r.reason) for r in rejected] == [("a", address, reason)]
        assert address in rejected[0].message

    def test_a_node_without_a_good_address_is_left_out(self) -> None:
        assert check_nodes([node("a", "10.2.0.1")], RULES)[0] == ()

    def test_no_cidrs_accept_nothing_and_say_where_to_set_them(self) -> None:
        accepted, rejected = check_nodes([node("a", "10.1.0.10")], replace(RULES, cidrs=()))
        assert accepted == ()
        assert "spec.nodeCidrs" in rejected[0].message

    def test_of_two_nodes_with_one_address_the_first_by_name_keeps_it_in_any_order(self) -> None:
        nodes = [node("b", "10.1.0.10"), node("a", "10.1.0.10")]
        assert check_nodes(nodes, RULES) == check_nodes(nodes[::-1], RULES)
        accepted, rejected = check_nodes(nodes, RULES)
        assert accepted == (node("a", "10.1.0.10"),)
        assert [(r.name, r.reason) for r in rejected] == [("b", "DuplicateAddress")]

    def test_unreadable_cidrs_allow_nothing(self) -> None:
        assert node_cidrs(GuestClusterSpec(node_cidrs=["nonsense", "10.0.0.1/8"])) == (ip_network("10.0.0.0/8"),)


def keys(n: int) -> list[ServiceKey]:
    return [ServiceKey("default", f"s{i}", f"u{i}") for i in range(n)]


def inventory(items: list[ServiceKey], version: str, *, complete: bool = True) -> Inventory:
    return Inventory(tuple(InventoryItem(k) for k in items), version, complete, 1)


class TestInventory:
    def test_an_incomplete_one_removes_nothing(self) -> None:
        verdict = judge_inventory(inventory([], "1", complete=False), keys(3), keys(3), HeldRemovals())
        assert verdict.delete == ()

    def test_an_incomplete_one_confirms_nothing(self) -> None:
        held = HeldRemovals("1", frozenset(keys(50)))
        verdict = judge_inventory(inventory([], "2", complete=False), keys(50), keys(50), held)
        assert verdict.delete == ()
        assert verdict.held == held

    def test_a_single_one_goes_at_once(self) -> None:
        assert judge_inventory(inventory(keys(1), "1"), keys(2), keys(2), HeldRemovals()).delete == tuple(keys(2)[1:])

    def test_an_empty_list_is_not_believed_at_once_however_small_the_tenant(self) -> None:
        first = judge_inventory(inventory([], "1"), keys(1), keys(1), HeldRemovals())
        assert first.delete == ()
        assert judge_inventory(inventory([], "2"), keys(1), keys(1), first.held).delete == tuple(keys(1))

    def test_a_fifth_goes_at_once_and_one_more_waits(self) -> None:
        known = keys(100)
        assert len(judge_inventory(inventory(known[20:], "1"), known, known, HeldRemovals()).delete) == 20
        verdict = judge_inventory(inventory(known[21:], "1"), known, known, HeldRemovals())
        assert verdict.delete == ()
        assert verdict.held.services == frozenset(known[:21])

    def test_a_second_list_that_says_the_same_is_believed(self) -> None:
        known = keys(100)
        first = judge_inventory(inventory([], "1"), known, known, HeldRemovals())
        assert judge_inventory(inventory([], "1"), known, known, first.held) == first, "the same list, sent again"
        second = judge_inventory(inventory([], "2"), known, known, first.held)
        assert set(second.delete) == set(known)
        assert second.held == HeldRemovals()

    def test_only_what_both_lists_miss_goes(self) -> None:
        known = keys(100)
        first = judge_inventory(inventory(known[50:], "1"), known, known, HeldRemovals())
        second = judge_inventory(inventory(known[:50], "2"), known, known, first.held)
        assert second.delete == ()
        assert second.held.services == frozenset(known[50:])

    def test_what_may_not_go_yet_stays(self) -> None:
        known = keys(4)
        assert judge_inventory(inventory(known[3:], "1"), known, known[:1], HeldRemovals()).delete == (known[0],)

    @given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.booleans())
    def test_what_is_named_never_goes_and_unconfirmed_removals_are_bounded(
        self, known: set[int], named: set[int], before: set[int], other_list: bool
    ) -> None:
        every = keys(61)
        have = [every[i] for i in known]
        held = HeldRemovals("1", frozenset(every[i] for i in before))
        verdict = judge_inventory(inventory([every[i] for i in named], "2" if other_list else "1"), have, have, held)
        gone = set(verdict.delete)
        assert not gone & {every[i] for i in named}
        assert gone <= set(have)
        unconfirmed = gone - (held.services if other_list else frozenset())
        assert len(unconfirmed) <= max(5, len(have) // 5)
        assert gone | verdict.held.services == set(have) - {every[i] for i in named}
