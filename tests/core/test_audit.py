"""Blocks against load balancers: what is left over, what is missing, and what is neither."""

from ipaddress import IPv4Address

import msgspec

from cloudprovider.core.api.loadbalancer import Address, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import Allocation, IPBlock, IPBlockSpec
from cloudprovider.core.audit import Findings, Missing, audit
from cloudprovider.core.ledger import Ledger
from cloudprovider.core.wants import Release


def ledger(**records: str) -> Ledger:
    """Make a block of pool p: last number of the address, and "owner uid"."""
    made = Ledger()
    entries = {
        f"10.0.0.{number[1:]}": Allocation(owner=f"ns/{who.split()[0]}", uid=who.partition(" ")[2])
        for number, who in records.items()
    }
    spec = IPBlockSpec(pool="p", first="10.0.0.0", allocations=entries)
    made.load(IPBlock(metadata=ObjectMeta(name="p-10.0.0.0"), spec=spec))
    return made


def lb(name: str, uid: str, *shown: str, pool: str = "p") -> LoadBalancer:
    return LoadBalancer(
        metadata=ObjectMeta(namespace="ns", name=name, uid=uid),
        status=LoadBalancerStatus(addresses=[Address(ip=a, ip_pool=pool, prefix_length=24) for a in shown]),
    )


def release(number: int, owner: str, uid: str) -> Release:
    return Release(pool="p", address=IPv4Address(f"10.0.0.{number}"), owner=f"ns/{owner}", uid=uid)


def test_what_agrees_is_no_finding() -> None:
    assert audit(ledger(n2="a 1", n3="b 2"), [lb("a", "1", "10.0.0.2"), lb("b", "2", "10.0.0.3")]) == Findings((), ())


def test_a_record_whose_load_balancer_is_gone_dangles() -> None:
    assert audit(ledger(n2="a 1"), []).dangling == (release(2, "a", "1"),)


def test_a_record_of_a_namesake_dangles() -> None:
    assert audit(ledger(n2="a 1"), [lb("a", "2")]).dangling == (release(2, "a", "1"),)


def test_a_grant_that_is_not_shown_yet_is_no_finding() -> None:
    assert audit(ledger(n2="a 1"), [lb("a", "1")]) == Findings((), ())


def test_those_who_share_an_address_all_have_it() -> None:
    shared = ledger(n2="a 1")
    (block,) = shared.blocks_of("p")
    record = block.spec.allocations["10.0.0.2"]
    spec = msgspec.structs.replace(
        block.spec, allocations={"10.0.0.2": msgspec.structs.replace(record, sharers={"ns/b": "2", "ns/gone": "3"})}
    )
    shared.load(msgspec.structs.replace(block, spec=spec))
    both = [lb("a", "1", "10.0.0.2"), lb("b", "2", "10.0.0.2")]
    assert audit(shared, both) == Findings((release(2, "gone", "3"),), ())


def test_a_shown_address_without_a_record_is_missing() -> None:
    assert audit(ledger(), [lb("a", "1", "10.0.0.2")]).missing == (
        Missing("ns/a", "1", "p", IPv4Address("10.0.0.2"), ""),
    )


def test_a_shown_address_that_somebody_else_has_is_missing_and_says_who() -> None:
    assert audit(ledger(n2="b 2"), [lb("a", "1", "10.0.0.2"), lb("b", "2", "10.0.0.2")]).missing == (
        Missing("ns/a", "1", "p", IPv4Address("10.0.0.2"), "ns/b"),
    )


def test_hosts_own_addresses_and_odd_statuses_are_left_alone() -> None:
    odd = [lb("x", "1", "banana"), lb("y", "2", "10.0.0.9", pool="")]
    assert audit(ledger(n2="node1"), odd) == Findings((), ())
