"""What an agent says of a load balancer, word for word where users go by it."""

from dataclasses import replace
from ipaddress import ip_address

import msgspec
import pytest

from cloudprovider.core.agentstatus import Leasing, Observation, conflict, report, report_lease, reported
from cloudprovider.core.api.loadbalancer import (
    Address,
    DhcpLease,
    ForeignAddress,
    Holder,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
)
from cloudprovider.core.api.meta import Condition, ObjectMeta
from cloudprovider.core.conditions import find
from cloudprovider.core.modes import Choice
from cloudprovider.core.wanted import Problem

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:30:00Z"
VIP = ip_address("10.0.0.100")
SHOWN = Address(ip="10.0.0.100", ip_pool="p", prefix_length=24)
BY_DHCP = Address(ip="10.0.0.200", prefix_length=24)
LEASE = DhcpLease(ip="10.0.0.200", prefix_length=24, server="10.0.0.1", expiry_time="2026-01-01T01:00:00Z")
RENEWED = msgspec.structs.replace(LEASE, expiry_time="2026-01-01T01:30:00Z")
FOREIGN = ForeignAddress(ip="10.0.0.150", hardware_address="02:00:00:00:00:99")
UP = Observation(
    generation=3,
    addresses=(VIP,),
    problem=None,
    partial=None,
    has_nodes=True,
    choices={VIP: Choice("nat", "asked for")},
)
WRONG = Problem("KernelRefused", "No memory.")


def lb(status: LoadBalancerStatus | None = None, *asked: str) -> LoadBalancer:
    return LoadBalancer(
        metadata=ObjectMeta(namespace="t", name="a", generation=3),
        spec=LoadBalancerSpec(workload_type="cluster", addresses=list(asked)),
        status=status or LoadBalancerStatus(addresses=[SHOWN]),
    )


def says(status: LoadBalancerStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions}


def message(status: LoadBalancerStatus, kind: str) -> str:
    found = find(status.conditions, kind)
    assert found is not None
    return found.message


def test_what_is_up_is_held_and_ready() -> None:
    status = report(lb(), "h1", UP, None, NOW)
    assert status.holder == Holder(node="h1", generation=3, addresses=["10.0.0.100"], mode="nat")
    assert says(status) == {
        "Programmed": ("True", "Programmed"),
        "Ready": ("True", "Ready"),
        "ClientAddressNotPreserved": ("True", "Masquerade"),
    }
    assert message(status, "Programmed") == "Forwarding on host h1. Mode nat (asked for)."


@pytest.mark.parametrize(
    ("seen", "programmed", "ready"),
    [
        ({"problem": WRONG}, ("False", "KernelRefused"), ("False", "KernelRefused")),
        ({"partial": WRONG}, ("True", "Programmed"), ("False", "KernelRefused")),
        ({"has_nodes": False}, ("True", "Programmed"), ("False", "NoNodes")),
        ({"awaited": WRONG}, ("True", "Programmed"), ("True", "Ready")),
    ],
)
def test_what_is_wrong_with_which_part(
    seen: dict[str, object], programmed: tuple[str, str], ready: tuple[str, str]
) -> None:
    status = report(lb(), "h1", _but(seen), None, NOW)
    found = says(status)
    assert (found["Programmed"], found["Ready"]) == (programmed, ready)
    assert status.holder is not None, "what is up stays held"


def _but(different: dict[str, object]) -> Observation:
    fields = {"generation": 3, "addresses": (VIP,), "problem": None, "partial": None, "has_nodes": True}
    return Observation(**{**fields, **different})  # type: ignore[arg-type]


def test_what_is_to_take_over_is_told_where_it_is_not_up() -> None:
    status = report(lb(), "h1", _but({"awaited": WRONG}), None, NOW)
    assert message(status, "Programmed") == (
        "Forwarding on host h1. The address that is to take over is not up: No memory."
    )


def test_nothing_is_held_without_an_address_on_the_link() -> None:
    status = report(lb(), "h1", _but({"addresses": (), "problem": WRONG, "foreign": (FOREIGN,)}), None, NOW)
    assert status.holder is None
    assert status.foreign_addresses == [FOREIGN]
    assert "ClientAddressNotPreserved" not in says(status)
    assert report(lb(), "h1", None, None, NOW) == LoadBalancerStatus()


def test_a_renewal_says_nothing_new() -> None:
    first = report(lb(), "h1", UP, Leasing(LEASE, None), NOW)
    assert says(first)["Leased"] == ("True", "Leased")
    assert message(first, "Leased") == "10.0.0.200 is leased by the DHCP server 10.0.0.1."
    shown = msgspec.structs.replace(first, addresses=[BY_DHCP])
    second = report(lb(shown), "h1", UP, Leasing(RENEWED, None), LATER)
    assert second.lease == RENEWED
    assert second.conditions == first.conditions


def test_a_lease_that_can_not_be_renewed_is_one_still() -> None:
    status = report(lb(), "h1", UP, Leasing(LEASE, Problem("DHCPNoAnswer", "nobody answers")), NOW)
    assert says(status)["Leased"] == ("True", "Leased")
    assert message(status, "Leased").endswith("10.0.0.1. nobody answers")


@pytest.mark.parametrize(("problem", "reason"), [(None, "WaitingForLease"), (WRONG, "KernelRefused")])
def test_without_a_lease_it_says_why(problem: Problem | None, reason: str) -> None:
    status = report(lb(), "h1", None, Leasing(None, problem), NOW)
    assert says(status) == {"Leased": ("False", reason)}
    assert status.lease is None


def test_news_of_the_lease_leave_the_rest_as_it_is() -> None:
    before = report(lb(), "h1", _but({"foreign": (FOREIGN,)}), Leasing(LEASE, None), NOW)
    shown = lb(msgspec.structs.replace(before, addresses=[SHOWN]))
    lost = report_lease(shown, Leasing(None, WRONG), LATER)
    assert (lost.holder, lost.foreign_addresses, lost.lease) == (before.holder, [FOREIGN], None)
    assert says(lost) == {**says(before), "Leased": ("False", "KernelRefused")}
    assert report_lease(shown, Leasing(LEASE, None), LATER) == reported(shown)
    given_back = report_lease(shown, None, LATER)
    assert "Leased" not in says(given_back)


def test_what_was_said_compares_in_whatever_order_it_comes_back() -> None:
    said = report(lb(), "h1", UP, Leasing(LEASE, None), NOW)
    others = Condition(type="Allocated", status="True", reason="Allocated", message="10.0.0.100 from pool p")
    shuffled = [others, *reversed(said.conditions)]
    back = lb(msgspec.structs.replace(said, addresses=[SHOWN], conditions=shuffled))
    assert reported(back) == said


def test_the_controllers_word_on_ready_is_not_the_agents() -> None:
    waiting = Condition(type="Ready", status="False", reason="NoPoolMatches", message="no pool")
    assert reported(lb(LoadBalancerStatus(conditions=[waiting]))).conditions == []
    assert reported(lb(LoadBalancerStatus(addresses=[SHOWN], conditions=[waiting]))).conditions == [waiting]


def test_a_conflict_says_what_comes_of_it() -> None:
    said = "10.0.0.100 is in use on this network by 02:00:00:00:00:99."
    assert conflict(lb(), VIP, said) == Problem("AddressConflict", f"{said} Another address is taken.")
    fixed = conflict(lb(None, "10.0.0.100"), VIP, said)
    assert fixed.message.endswith("so it is tried again every minute: free it there, or ask for another.")
    leased = conflict(lb(LoadBalancerStatus(addresses=[BY_DHCP])), ip_address("10.0.0.200"), said)
    assert leased.message.endswith("It is declined, and the DHCP server is asked for another.")


def test_in_mode_dsr_the_client_s_address_is_kept_and_the_reason_told() -> None:
    status = report(lb(), "h1", replace(UP, choices={VIP: Choice("dsr", "all nodes stand in 10.0.0.0/24")}), None, NOW)
    assert status.holder is not None
    assert status.holder.mode == "dsr"
    assert says(status) == {"Programmed": ("True", "Programmed"), "Ready": ("True", "Ready")}
    assert message(status, "Programmed") == "Forwarding on host h1. Mode dsr (all nodes stand in 10.0.0.0/24)."


def test_two_addresses_may_have_two_modes() -> None:
    other = ip_address("2001:db8::1")
    choices = {VIP: Choice("dsr", "asked for"), other: Choice("nat", "the cluster has no node yet")}
    status = report(lb(), "h1", replace(UP, addresses=(VIP, other), choices=choices), None, NOW)
    assert message(status, "Programmed") == (
        "Forwarding on host h1. 10.0.0.100: mode dsr (asked for). 2001:db8::1: mode nat (the cluster has no node yet)."
    )
    assert says(status)["ClientAddressNotPreserved"] == ("True", "Masquerade")


def test_without_masquerade_nothing_is_hidden() -> None:
    assert "ClientAddressNotPreserved" not in says(report(lb(), "h1", replace(UP, masquerades=False), None, NOW))


def test_nodes_that_send_back_are_named() -> None:
    some = report(lb(), "h1", replace(UP, refusing=frozenset({"n2"})), None, NOW)
    assert message(some, "Programmed").endswith("Left out: n2, which sent back what came for the address.")
    assert says(some)["Ready"] == ("True", "Ready")
    every = report(lb(), "h1", replace(UP, refusing=frozenset({"n1", "n2"}), refused=True), None, NOW)
    assert says(every)["Ready"] == ("False", "WaitingForNodes")
    assert message(every, "Ready").startswith("n1, n2 sent back what came for the address")
