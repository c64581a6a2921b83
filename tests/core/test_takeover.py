"""What is adopted of Harvester's own load balancer controller."""

import msgspec

from cloudprovider.core.api.loadbalancer import AllocatedAddress, LoadBalancer, LoadBalancerSpec, LoadBalancerStatus
from cloudprovider.core.api.meta import KubeObject, ObjectMeta
from cloudprovider.core.api.pool import IPPool, IPPoolSpec, IPPoolStatus, Range, Scope, Selector
from cloudprovider.core.takeover import Plan, plan, refusal, without_finalizers

NOW = "2026-01-01T00:00:00Z"


def pool(name: str = "lan", subnet: str = "10.0.8.0/24", **allocated: str) -> IPPool:
    """``allocated``: the last number of the address, "n5" for .5, to its owner."""
    base = subnet.rpartition(".")[0]
    everybody = Scope(project="*", namespace="*", guest_cluster="*")
    return IPPool(
        metadata=ObjectMeta(name=name, uid=f"pool-{name}"),
        spec=IPPoolSpec(ranges=[Range(subnet=subnet)], selector=Selector(scope=[everybody])),
        status=IPPoolStatus(allocated={f"{base}.{key[1:]}": owner for key, owner in allocated.items()}),
    )


def balancer(
    name: str, ip: str = "", *, of: str = "lan", workload: str = "vm", ipam: str = "pool", deleted: str = ""
) -> LoadBalancer:
    given = AllocatedAddress(ip_pool=of, ip=ip) if ip else None
    return LoadBalancer(
        metadata=ObjectMeta(name=name, namespace="ns", uid=f"uid-{name}", deletion_timestamp=deleted),
        spec=LoadBalancerSpec(workload_type=workload, ipam=ipam),  # type: ignore[arg-type]  # as their schemas have it
        status=LoadBalancerStatus(address=ip, allocated_address=given),
    )


def adopted(found: Plan) -> dict[str, str]:
    return {f"{a.owner} {a.kind}": f"{a.pool} {a.address}" for a in found.adoptions}


def test_what_shows_an_address_keeps_it_whoever_made_it() -> None:
    found = plan([pool()], [balancer("a", "10.0.8.5"), balancer("b", "10.0.8.6", workload="cluster")], (), now=NOW)
    assert adopted(found) == {"ns/a vm": "lan 10.0.8.5", "ns/b guest": "lan 10.0.8.6"}
    (block,) = found.blocks
    assert {a: (r.owner, r.uid, r.since) for a, r in block.spec.allocations.items()} == {
        "10.0.8.5": ("ns/a", "uid-a", NOW),
        "10.0.8.6": ("ns/b", "uid-b", NOW),
    }
    assert block.metadata.owner_references[0].uid == "pool-lan"
    ((lb, status),) = found.statuses
    assert (lb.metadata.name, [a.ip for a in status.addresses]) == ("a", ["10.0.8.5"]), "the other one is not ours"
    assert found.unadopted == ()


def test_what_is_booked_but_not_shown_counts_for_its_load_balancer() -> None:
    found = plan([pool(n7="ns/a")], [balancer("a")], (), now=NOW)
    assert adopted(found) == {"ns/a vm": "lan 10.0.8.7"}


def test_an_address_of_dhcp_is_no_pools() -> None:
    found = plan([pool()], [balancer("a", "0.0.0.0", of="", ipam="dhcp")], (), now=NOW)
    assert (found.adoptions, found.blocks) == ((), ())
    assert [(u.pool, u.address, u.owner) for u in found.unadopted] == [("(DHCP)", "0.0.0.0", "ns/a")]


def test_of_two_with_one_address_the_pools_record_decides() -> None:
    both = [balancer("a", "10.0.8.5"), balancer("b", "10.0.8.5")]
    found = plan([pool(n5="ns/b")], both, (), now=NOW)
    assert adopted(found) == {"ns/b vm": "lan 10.0.8.5"}
    assert [(u.owner, u.address) for u in found.unadopted] == [("ns/a", "10.0.8.5")]


def test_nobody_gets_another_address_instead() -> None:
    """Out of the pool, or of a pool that is gone: told, and left to its load balancer to ask anew."""
    found = plan([pool()], [balancer("a", "10.9.9.9"), balancer("b", "10.0.8.6", of="gone")], (), now=NOW)
    assert (found.adoptions, found.blocks) == ((), ())
    assert [(u.owner, u.message) for u in found.unadopted] == [
        ("ns/a", '10.9.9.9 is not in the ranges of the pool "lan": ask for one that is, or for none'),
        ("ns/b", 'the pool "gone" does not exist: an operator must correct that'),
    ]


def test_records_of_what_is_gone_or_going_are_not_taken_over() -> None:
    found = plan([pool(n5="ns/a", n6="ns/gone")], [balancer("a", "10.0.8.5", deleted=NOW)], (), now=NOW)
    assert found.adoptions == ()
    assert [(u.owner, u.message) for u in found.unadopted] == [
        ("ns/a", "its load balancer is gone: it is free again"),
        ("ns/gone", "its load balancer is gone: it is free again"),
    ]


def test_a_second_time_there_is_nothing_to_write() -> None:
    first = plan([pool()], [balancer("a", "10.0.8.5")], (), now=NOW)
    blocks = [msgspec.structs.replace(b, metadata=ObjectMeta(name="lan-10.0.8.0")) for b in first.blocks]
    again = plan([pool()], [balancer("a", "10.0.8.5")], blocks, now="later")
    assert again.blocks == ()
    assert [a.recorded for a in again.adoptions] == [True]


def test_only_the_old_controllers_finalizers_go() -> None:
    names = ["a/b", "wrangler.cattle.io/harvester-lb-vm-controller", "wrangler.cattle.io/other"]
    assert without_finalizers(KubeObject(metadata=ObjectMeta(finalizers=names))) == ["a/b", "wrangler.cattle.io/other"]
    assert without_finalizers(KubeObject(metadata=ObjectMeta(finalizers=["a/b"]))) is None


def test_beside_a_controller_that_is_switched_off_one_may_start() -> None:
    assert refusal(0) == ""
    assert "`cloudprovider takeover --yes`" in refusal(1)
