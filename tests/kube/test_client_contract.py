"""What every KubeClient does: the same tests over the fake and over a real API server."""

import asyncio
from contextlib import aclosing

import msgspec
import pytest

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec, Service, ServicePort, ServiceSpec
from cloudprovider.core.api.loadbalancer import (
    FINALIZER,
    Backend,
    BackendHealth,
    HealthChange,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
    LoadBalancerStatus,
    ServiceReference,
)
from cloudprovider.core.api.meta import Condition, KubeObject, ObjectMeta
from cloudprovider.core.api.pool import Allocation, IPBlock, IPBlockSpec
from cloudprovider.core.errors import AlreadyExists, Conflict, Invalid, NotFound
from cloudprovider.kube.api import Json, Resource, WatchEvent
from cloudprovider.kube.resources import IPBLOCKS, LEASES, LOADBALANCERS, SERVICES, VIRTUAL_MACHINE_INSTANCES
from tests.core.instances import instance
from tests.kube.conftest import Side

SPEC = LoadBalancerSpec(
    workload_type="cluster",
    ipam="pool",  # the schema's default, so that what is read equals what was written
    listeners=[Listener(port=80, backend_port=30080)],
    service=ServiceReference(namespace="default", name="web", uid="u-1"),
)
HOLDER = {"holder": {"node": "node-1", "addresses": ["192.0.2.10"]}}


def load_balancer(side: Side, name: str = "lb", *, finalizers: tuple[str, ...] = (), **labels: str) -> LoadBalancer:
    metadata = ObjectMeta(name=name, namespace=side.namespace, finalizers=list(finalizers), labels=labels)
    return LoadBalancer(metadata=metadata, spec=SPEC)


def block(side: Side) -> IPBlock:
    return IPBlock(metadata=ObjectMeta(name=side.unique("block")), spec=IPBlockSpec(pool="p", first="192.0.2.0"))


def condition(kind: str, status: str = "True") -> Json:
    return {"type": kind, "status": status, "reason": "Test", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def version(obj: KubeObject) -> int:
    return int(obj.metadata.resource_version)


async def apply_status(side: Side, manager: str, status: Json, **metadata: str) -> LoadBalancer:
    patch = {"metadata": metadata, "status": status}
    return await side.client.apply(
        LOADBALANCERS, side.namespace, "lb", patch, field_manager=manager, subresource="status"
    )


async def apply_main(side: Side, manager: str, patch: Json, name: str = "lb") -> LoadBalancer:
    return await side.client.apply(LOADBALANCERS, side.namespace, name, patch, field_manager=manager)


# -- create, get, list, delete -----------------------------------------------------------------------------------


async def test_create_gives_identity_and_drops_status(side: Side) -> None:
    wanted = msgspec.structs.replace(load_balancer(side), status=LoadBalancerStatus(address="192.0.2.1"))
    made = await side.client.create(LOADBALANCERS, wanted)
    assert made.metadata.uid
    assert made.metadata.generation == 1
    assert made.metadata.creation_timestamp
    assert made.spec == SPEC
    assert made.status.address == ""
    assert await side.client.get(LOADBALANCERS, side.namespace, "lb") == made


async def test_what_the_server_warns_of_is_passed_on(side: Side) -> None:
    heard: list[str] = []
    wanted = load_balancer(side, finalizers=("mine",))
    await side.client.create(LOADBALANCERS, wanted, dry_run=True, warned=heard.append)
    (rehearsed,) = heard
    assert rehearsed.startswith('metadata.finalizers: "mine": prefer a domain-qualified finalizer name')
    await side.client.create(LOADBALANCERS, wanted, warned=heard.append)
    assert heard == [rehearsed, rehearsed]
    patch: Json = {"metadata": {"finalizers": ["mine", "yours"]}}
    await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", patch, warned=heard.append)
    assert [text.split('"')[1] for text in heard[2:]] == ["yours"]


async def test_a_dry_run_checks_all_and_stores_nothing(side: Side) -> None:
    client, namespace = side.client, side.namespace
    assert (await client.create(LOADBALANCERS, load_balancer(side), dry_run=True)).spec == SPEC
    with pytest.raises(NotFound):
        await client.get(LOADBALANCERS, namespace, "lb")
    with pytest.raises(Invalid):
        await client.create(LOADBALANCERS, load_balancer(side, "Upper"), dry_run=True)

    made = await client.create(LOADBALANCERS, load_balancer(side))
    with pytest.raises(AlreadyExists):
        await client.create(LOADBALANCERS, load_balancer(side), dry_run=True)
    patch: Json = {"spec": {"description": "x"}}
    told = await client.merge_patch(LOADBALANCERS, namespace, "lb", patch, dry_run=True)
    assert told.spec.description == "x"
    with pytest.raises(Invalid):
        await client.merge_patch(LOADBALANCERS, namespace, "lb", {"spec": {"mode": "sideways"}}, dry_run=True)
    stale: Json = {"metadata": {"resourceVersion": "1"}, **patch}
    with pytest.raises(Conflict):
        await client.merge_patch(LOADBALANCERS, namespace, "lb", stale, dry_run=True)
    assert await client.get(LOADBALANCERS, namespace, "lb") == made


async def test_create_twice_is_already_exists(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    with pytest.raises(AlreadyExists) as caught:
        await side.client.create(LOADBALANCERS, load_balancer(side))
    assert caught.value.status == 409


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "-dash", "a/b", "x" * 254])
async def test_create_refuses_bad_names(side: Side, name: str) -> None:
    with pytest.raises(Invalid):
        await side.client.create(LOADBALANCERS, load_balancer(side, name))


async def test_create_refuses_what_was_read(side: Side) -> None:
    made = await side.client.create(LOADBALANCERS, load_balancer(side))
    await side.client.delete(LOADBALANCERS, side.namespace, "lb")
    with pytest.raises(Invalid):
        await side.client.create(LOADBALANCERS, made)


async def test_namespaced_kinds_need_a_namespace(side: Side) -> None:
    with pytest.raises(Invalid):
        await side.client.create(LOADBALANCERS, LoadBalancer(metadata=ObjectMeta(name="lb"), spec=SPEC))


async def test_undecodable_values_are_refused(side: Side) -> None:
    with pytest.raises(Invalid):
        await apply_main(side, "m", {"spec": {"mode": "sideways"}})
    await side.client.create(LOADBALANCERS, load_balancer(side))
    with pytest.raises(Invalid):
        await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"spec": {"listeners": [{"port": 0}]}})


async def test_what_is_not_there_is_not_found(side: Side) -> None:
    client, namespace = side.client, side.namespace
    with pytest.raises(NotFound):
        await client.get(LOADBALANCERS, namespace, "nope")
    with pytest.raises(NotFound):
        await client.delete(LOADBALANCERS, namespace, "nope")
    with pytest.raises(NotFound):
        await client.merge_patch(LOADBALANCERS, namespace, "nope", {"spec": {}})
    with pytest.raises(NotFound):
        await client.apply(
            LOADBALANCERS, namespace, "nope", {"status": HOLDER}, field_manager="m", subresource="status"
        )
    metadata = ObjectMeta(name=side.unique("nope"), resource_version="1")
    missing = msgspec.structs.replace(block(side), metadata=metadata)
    with pytest.raises(NotFound):
        await client.replace(IPBLOCKS, missing)


async def test_list_by_namespace_and_selector(side: Side) -> None:
    assert (await side.client.list(LOADBALANCERS, side.namespace)).items == []
    await side.client.create(LOADBALANCERS, load_balancer(side, "a", tier="gold", zone="1"))
    await side.client.create(LOADBALANCERS, load_balancer(side, "b", tier="tin"))
    last = await side.client.create(LOADBALANCERS, load_balancer(side, "c"))

    async def names(label_selector: str = "", field_selector: str = "") -> list[str]:
        result = await side.client.list(
            LOADBALANCERS, side.namespace, label_selector=label_selector, field_selector=field_selector
        )
        assert int(result.resource_version) >= version(last)
        return [obj.metadata.name for obj in result.items]

    assert await names() == ["a", "b", "c"]
    assert await names("tier=gold") == ["a"]
    assert await names("tier!=gold") == ["b", "c"]
    assert await names("tier in (gold, tin)") == ["a", "b"]
    assert await names("tier notin (gold),!zone") == ["b", "c"]
    assert await names("tier,zone=1") == ["a"]
    assert await names(field_selector="metadata.name=b") == ["b"]
    for bad in ({"label_selector": "a=b=c"}, {"field_selector": "spec.mode=nat"}):
        with pytest.raises(Invalid):
            await names(**bad)


async def test_delete_checks_the_uid(side: Side) -> None:
    made = await side.client.create(LOADBALANCERS, load_balancer(side))
    with pytest.raises(Conflict):
        await side.client.delete(LOADBALANCERS, side.namespace, "lb", uid="another")
    await side.client.delete(LOADBALANCERS, side.namespace, "lb", uid=made.metadata.uid)
    with pytest.raises(NotFound):
        await side.client.get(LOADBALANCERS, side.namespace, "lb")


async def test_finalizers_hold_a_deleted_object(side: Side) -> None:
    made = await side.client.create(LOADBALANCERS, load_balancer(side, finalizers=(FINALIZER,)))
    await side.client.delete(LOADBALANCERS, side.namespace, "lb")
    marked = await side.client.get(LOADBALANCERS, side.namespace, "lb")
    assert marked.metadata.deletion_timestamp
    assert marked.metadata.generation == made.metadata.generation + 1
    await side.client.delete(LOADBALANCERS, side.namespace, "lb")
    assert await side.client.get(LOADBALANCERS, side.namespace, "lb") == marked
    more = {"metadata": {"finalizers": [FINALIZER, "example.com/more"]}}
    with pytest.raises(Invalid):
        await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", more)
    last = await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"finalizers": None}})
    assert last.metadata.deletion_timestamp
    assert last.metadata.finalizers == []
    with pytest.raises(NotFound):
        await side.client.get(LOADBALANCERS, side.namespace, "lb")


# -- replace and merge patch --------------------------------------------------------------------------------------


async def test_replace_is_compare_and_swap(side: Side) -> None:
    read = await side.client.create(IPBLOCKS, block(side))
    try:
        spec = msgspec.structs.replace(read.spec, allocations={"192.0.2.1": Allocation(owner="a/b")})
        wanted = msgspec.structs.replace(read, spec=spec)
        written = await side.client.replace(IPBLOCKS, wanted)
        assert version(written) > version(read)
        assert written.metadata.generation == 2
        assert written.spec == spec
        with pytest.raises(Conflict):
            await side.client.replace(IPBLOCKS, wanted)
        assert (await side.client.replace(IPBLOCKS, written)) == written
        stranger = msgspec.structs.replace(
            written, metadata=msgspec.structs.replace(written.metadata, uid="00000000-0000-0000-0000-000000000000")
        )
        with pytest.raises(Conflict):
            await side.client.replace(IPBLOCKS, stranger)
        with pytest.raises(Invalid):
            await side.client.replace(IPBLOCKS, block(side))
    finally:
        await side.client.delete(IPBLOCKS, "", read.metadata.name)


async def test_replace_leaves_status_alone(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    read = await apply_status(side, "controller", {"address": "192.0.2.1"})
    wanted = msgspec.structs.replace(
        read,
        spec=msgspec.structs.replace(SPEC, description="new"),
        status=LoadBalancerStatus(address="203.0.113.9"),
    )
    written = await side.client.replace(LOADBALANCERS, wanted)
    assert written.spec.description == "new"
    assert written.status.address == "192.0.2.1"
    assert written.metadata.generation == 2


async def test_merge_patch_merges_and_removes(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side, a="1", b="2"))
    patch = {"metadata": {"labels": {"a": None, "c": "3"}}, "spec": {"description": "d"}, "status": {"address": "x"}}
    patched = await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", patch)
    assert patched.metadata.labels == {"b": "2", "c": "3"}
    assert patched.spec == msgspec.structs.replace(SPEC, description="d")
    assert patched.status.address == ""
    assert patched.metadata.generation == 2
    again = await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", patch)
    assert again == patched


async def test_metadata_and_status_do_not_count_for_generation(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"annotations": {"a": "b"}}})
    patched = await side.client.merge_patch(
        LOADBALANCERS,
        side.namespace,
        "lb",
        {"spec": {"description": "ignored"}, "status": {"address": "192.0.2.1"}, "metadata": {"labels": {"no": "no"}}},
        subresource="status",
    )
    assert patched.status.address == "192.0.2.1"
    assert patched.spec == SPEC
    assert patched.metadata.labels == {}
    assert patched.metadata.generation == 1


async def test_merge_patch_preconditions(side: Side) -> None:
    made = await side.client.create(LOADBALANCERS, load_balancer(side))
    for wrong in ({"uid": "another"}, {"resourceVersion": "1"}):
        with pytest.raises(Conflict):
            await side.client.merge_patch(
                LOADBALANCERS, side.namespace, "lb", {"metadata": {**wrong, "labels": {"a": "b"}}}
            )
    with pytest.raises(Conflict):
        await side.client.merge_patch(
            LOADBALANCERS,
            side.namespace,
            "lb",
            {"metadata": {"resourceVersion": "1"}, "status": {"address": "192.0.2.1"}},
            subresource="status",
        )
    with pytest.raises(Conflict):
        await side.client.merge_patch(
            LOADBALANCERS,
            side.namespace,
            "lb",
            {"metadata": {"uid": "another"}, "status": {"address": "192.0.2.1"}},
            subresource="status",
        )
    right = {"metadata": {"uid": made.metadata.uid, "labels": {"a": "b"}}}
    assert (await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", right)).metadata.labels == {"a": "b"}


async def test_a_patch_can_not_rename(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    with pytest.raises(Invalid):
        await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"name": "other"}})


async def test_service_status_lets_metadata_through(side: Side) -> None:
    """The guest writes address and condition (and could its finalizer) in one request."""
    wanted = Service(
        metadata=ObjectMeta(name="web", namespace=side.namespace),
        spec=ServiceSpec(type="LoadBalancer", ports=[ServicePort(port=80)]),
    )
    made = await side.client.create(SERVICES, wanted)
    assert made.metadata.generation == 0  # core/v1 Services have none
    patch = {
        "metadata": {"annotations": {"a": "b"}},
        "spec": {"type": "ClusterIP"},
        "status": {
            "loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": "VIP"}]},
            "conditions": [{**condition("example.com/Ready"), "message": ""}],
        },
    }
    patched = await side.client.merge_patch(SERVICES, side.namespace, "web", patch, subresource="status")
    assert patched.metadata.annotations == {"a": "b"}
    assert patched.spec.type == "LoadBalancer"
    assert [i.ip for i in patched.status.load_balancer.ingress] == ["192.0.2.1"]
    with pytest.raises(Conflict):
        await side.client.merge_patch(
            SERVICES, side.namespace, "web", {"metadata": {"uid": "another"}}, subresource="status"
        )


async def test_kinds_without_status_have_no_such_subresource(side: Side) -> None:
    made = await side.client.create(
        LEASES, Lease(metadata=ObjectMeta(name="l", namespace=side.namespace), spec=LeaseSpec(holder_identity="a"))
    )
    assert made.spec.holder_identity == "a"
    with pytest.raises(NotFound):
        await side.client.merge_patch(LEASES, side.namespace, "l", {"spec": {}}, subresource="status")


# -- server-side apply --------------------------------------------------------------------------------------------


async def test_apply_creates_updates_and_does_nothing_twice(side: Side) -> None:
    patch = {"metadata": {"labels": {"a": "b"}, "finalizers": [FINALIZER]}, "spec": SPEC}
    made = await apply_main(side, "bridge", patch)
    assert (made.spec, made.metadata.labels, made.metadata.finalizers) == (SPEC, {"a": "b"}, [FINALIZER])
    assert await apply_main(side, "bridge", patch) == made
    changed = await apply_main(side, "bridge", {**patch, "spec": msgspec.structs.replace(SPEC, description="x")})
    assert changed.metadata.generation == 2
    assert changed.metadata.uid == made.metadata.uid


async def test_apply_gives_up_what_it_leaves_out(side: Side) -> None:
    await apply_main(side, "bridge", {"metadata": {"labels": {"mine": "1", "both": "1"}}, "spec": SPEC})
    await apply_main(side, "other", {"metadata": {"labels": {"both": "1", "others": "1"}}})
    left = await apply_main(side, "bridge", {"spec": SPEC})
    assert left.metadata.labels == {"both": "1", "others": "1"}
    assert (await apply_main(side, "other", {})).metadata.labels == {}


async def test_apply_takes_over_by_force(side: Side) -> None:
    await apply_main(side, "one", {"metadata": {"labels": {"a": "1"}}, "spec": SPEC})
    assert (await apply_main(side, "two", {"metadata": {"labels": {"a": "2"}}})).metadata.labels == {"a": "2"}
    # "one" lost it: leaving it out now takes nothing away.
    assert (await apply_main(side, "one", {"spec": SPEC})).metadata.labels == {"a": "2"}


async def test_apply_leaves_what_an_update_owns(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side, a="1"))
    await apply_main(side, "m", {"metadata": {"labels": {"a": "1", "b": "1"}}})
    assert (await apply_main(side, "m", {})).metadata.labels == {"a": "1"}


async def test_finalizers_are_a_set_of_several_managers(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side, finalizers=(FINALIZER,)))
    both = await apply_main(side, "m", {"metadata": {"finalizers": ["example.com/mine"]}})
    assert set(both.metadata.finalizers) == {FINALIZER, "example.com/mine"}
    assert (await apply_main(side, "m", {})).metadata.finalizers == [FINALIZER]
    await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"finalizers": None}})


async def test_status_managers_share_conditions(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    await apply_status(
        side,
        "controller",
        {"address": "192.0.2.1", "conditions": [condition("Allocated"), condition("Ready", "False")]},
    )
    both = await apply_status(side, "agent", {**HOLDER, "conditions": [condition("Programmed"), condition("Ready")]})
    assert {c.type: c.status for c in both.status.conditions} == {
        "Allocated": "True",
        "Ready": "True",
        "Programmed": "True",
    }
    assert both.status.holder is not None
    assert both.metadata.generation == 1
    # The agent has Ready now: the controller may leave it out.
    left = await apply_status(side, "controller", {"address": "192.0.2.1", "conditions": [condition("Allocated")]})
    assert {c.type for c in left.status.conditions} == {"Allocated", "Ready", "Programmed"}
    withdrawn = await apply_status(side, "agent", {})
    assert withdrawn.status.holder is None
    assert [c.type for c in withdrawn.status.conditions] == ["Allocated"]
    assert withdrawn.status.address == "192.0.2.1"


async def test_status_managers_share_backends(side: Side) -> None:
    """What a machine is, and its health, are two managers' words; an entry is there as long as one speaks of it."""
    await side.client.create(LOADBALANCERS, load_balancer(side))
    history = [{"time": "2026-01-01T00:00:00Z", "healthy": True}]
    up = {"healthy": True, "since": "2026-01-01T00:00:00Z", "history": history}
    down = {"healthy": False, "since": "2026-01-01T00:00:01Z"}
    await apply_status(side, "controller", {"backends": [{"name": "a", "addresses": ["192.0.2.5"]}, {"name": "b"}]})
    both = await apply_status(side, "agent", {"backends": [{"name": "b", "health": up}, {"name": "a", "health": up}]})
    health = BackendHealth(
        healthy=True, since="2026-01-01T00:00:00Z", history=[HealthChange(time="2026-01-01T00:00:00Z", healthy=True)]
    )
    assert sorted(both.status.backends, key=lambda b: b.name) == [
        Backend(name="a", addresses=["192.0.2.5"], health=health),
        Backend(name="b", health=health),
    ]
    health_of_both = [{"name": "a", "health": down}, {"name": "b", "health": up}]
    fallen = await apply_status(side, "agent", {"backends": health_of_both})
    (a,) = (b for b in fallen.status.backends if b.name == "a")
    assert a.health == BackendHealth(healthy=False, since="2026-01-01T00:00:01Z")  # as one, without a history

    left = await apply_status(side, "controller", {"backends": [{"name": "b", "reason": "NoAddress"}]})
    (a,) = (b for b in left.status.backends if b.name == "a")
    assert (a.addresses, a.health is None) == ([], False)
    gone = await apply_status(side, "agent", {"backends": [{"name": "b", "health": up}]})
    assert gone.status.backends == [Backend(name="b", reason="NoAddress", health=health)]


async def test_an_instances_status_is_a_field_like_another(side: Side) -> None:
    made = await side.client.create(VIRTUAL_MACHINE_INSTANCES, instance("web", "192.0.2.5", namespace=side.namespace))
    assert made.status == instance("web", "192.0.2.5").status
    assert made.spec == instance("web").spec
    patch = {"status": {"phase": "Succeeded"}}
    stopped = await side.client.merge_patch(VIRTUAL_MACHINE_INSTANCES, side.namespace, "web", patch)
    assert stopped.status.phase == "Succeeded"
    with pytest.raises(NotFound):
        await side.client.merge_patch(VIRTUAL_MACHINE_INSTANCES, side.namespace, "web", patch, subresource="status")
    await side.client.delete(VIRTUAL_MACHINE_INSTANCES, side.namespace, "web")


async def test_the_last_status_field_can_be_given_up(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    await apply_status(side, "agent", HOLDER)
    assert (await apply_status(side, "agent", {})).status == LoadBalancerStatus()
    assert (await apply_status(side, "agent", {})).status == LoadBalancerStatus()


async def test_a_holder_is_owned_as_one(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    await apply_status(side, "agent", {"holder": {"node": "node-1", "generation": 1, "mode": "nat"}})
    taken = await apply_status(side, "agent", {"holder": {"node": "node-2"}})
    assert taken.status.holder is not None
    assert (taken.status.holder.node, taken.status.holder.generation, taken.status.holder.mode) == ("node-2", 0, "")


async def test_conditions_stay_typed(side: Side) -> None:
    await side.client.create(LOADBALANCERS, load_balancer(side))
    wanted = Condition(type="Ready", status="True", reason="Test", last_transition_time="2026-01-01T00:00:00Z")
    assert (await apply_status(side, "agent", {"conditions": [wanted]})).status.conditions == [wanted]


async def test_apply_keeps_status_and_spec_apart(side: Side) -> None:
    await apply_main(side, "bridge", {"spec": SPEC, "status": {"address": "203.0.113.9"}})
    applied = await side.client.apply(
        LOADBALANCERS,
        side.namespace,
        "lb",
        {"spec": {"description": "no"}, "metadata": {"labels": {"no": "no"}}, "status": {"address": "192.0.2.1"}},
        field_manager="controller",
        subresource="status",
    )
    assert (applied.spec, applied.metadata.labels, applied.status.address) == (SPEC, {}, "192.0.2.1")


async def test_a_status_applied_empty_takes_nothing_of_others_with_it(side: Side) -> None:
    await apply_main(side, "bridge", {"spec": SPEC})

    async def say(manager: str, status: Json) -> LoadBalancer:
        patch = {"status": status}
        return await side.client.apply(
            LOADBALANCERS, side.namespace, "lb", patch, field_manager=manager, subresource="status"
        )

    await say("agent", {})
    await say("controller", {"address": "192.0.2.1"})
    said = await say("agent", {"addressKey": "key"})
    assert (said.status.address, said.status.address_key) == ("192.0.2.1", "key")
    said = await say("agent", {})
    assert (said.status.address, said.status.address_key) == ("192.0.2.1", "")


async def test_apply_preconditions(side: Side) -> None:
    with pytest.raises(Conflict):  # a UID also means: do not create
        await apply_main(side, "m", {"metadata": {"uid": "another"}, "spec": SPEC})
    made = await apply_main(side, "m", {"spec": SPEC})
    for wrong in ({"uid": "another"}, {"resourceVersion": "1"}):
        with pytest.raises(Conflict):
            await apply_main(side, "m", {"metadata": {**wrong, "labels": {"a": "b"}}, "spec": SPEC})
    with pytest.raises(Conflict):
        await apply_status(side, "agent", HOLDER, resourceVersion="1")
    assert (await side.client.get(LOADBALANCERS, side.namespace, "lb")) == made
    with pytest.raises(Conflict):
        await apply_status(side, "agent", HOLDER, uid="another")
    right = await apply_status(side, "agent", {}, uid=made.metadata.uid)
    assert right.status.holder is None


async def test_apply_leaves_out_what_the_definition_does_not_know(side: Side) -> None:
    """As programs that are newer than the definitions do in an upgrade."""
    made = await apply_main(side, "m", {"spec": SPEC})
    later = {"ofTheFuture": 1, "addressKey": "key"}
    patch = {"metadata": {"uid": made.metadata.uid}, "status": later}
    for _ in range(2):
        said = await side.client.apply(
            LOADBALANCERS, side.namespace, "lb", patch, field_manager="controller", subresource="status"
        )
        assert said.status.address_key == "key"


# -- watch --------------------------------------------------------------------------------------------------------


async def take(side: Side, count: int, since: str, label_selector: str = "") -> list[WatchEvent[LoadBalancer]]:
    taken: list[WatchEvent[LoadBalancer]] = []
    events = side.client.watch(LOADBALANCERS, side.namespace, resource_version=since, label_selector=label_selector)
    async with asyncio.timeout(10), aclosing(events):
        async for event in events:
            if event.type != "BOOKMARK":
                taken.append(event)
            if len(taken) == count:
                return taken
    pytest.fail("the watch ended early")


async def test_watch_tells_everything_since_a_version(side: Side) -> None:
    start = (await side.client.list(LOADBALANCERS, side.namespace)).resource_version
    made = await side.client.create(LOADBALANCERS, load_balancer(side, finalizers=(FINALIZER,)))
    changed = await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"spec": {"description": "x"}})
    await side.client.delete(LOADBALANCERS, side.namespace, "lb")
    await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"finalizers": None}})
    again = await side.client.create(LOADBALANCERS, load_balancer(side))
    events = await take(side, 5, start)
    assert [e.type for e in events] == ["ADDED", "MODIFIED", "MODIFIED", "DELETED", "ADDED"]
    assert events[0].object == made
    assert events[1].object == changed
    assert events[3].object.metadata.uid == made.metadata.uid
    assert events[4].object == again
    versions = [version(e.object) for e in events]
    assert versions == sorted(set(versions))
    assert [e.type for e in await take(side, 1, events[3].object.metadata.resource_version)] == ["ADDED"]


async def test_watch_goes_on_live(side: Side) -> None:
    start = (await side.client.list(LOADBALANCERS, side.namespace)).resource_version
    waiting = asyncio.create_task(take(side, 2, start))
    for name in ("a", "b"):
        await side.client.create(LOADBALANCERS, load_balancer(side, name))
    assert [e.object.metadata.name for e in await waiting] == ["a", "b"]


async def test_watch_by_label_sees_objects_come_and_go(side: Side) -> None:
    start = (await side.client.list(LOADBALANCERS, side.namespace)).resource_version
    await side.client.create(LOADBALANCERS, load_balancer(side, "no"))
    await side.client.create(LOADBALANCERS, load_balancer(side))
    for value in ("yes", "no", "yes"):
        await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"labels": {"in": value}}})
    await side.client.delete(LOADBALANCERS, side.namespace, "lb")
    events = await take(side, 4, start, "in=yes")
    assert [(e.type, e.object.metadata.name) for e in events] == [
        ("ADDED", "lb"),
        ("DELETED", "lb"),
        ("ADDED", "lb"),
        ("DELETED", "lb"),
    ]


async def test_writes_that_change_nothing_make_no_event(side: Side) -> None:
    made = await side.client.create(LOADBALANCERS, load_balancer(side, a="1"))
    same = await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"labels": {"a": "1"}}})
    assert same.metadata.resource_version == made.metadata.resource_version
    await side.client.merge_patch(LOADBALANCERS, side.namespace, "lb", {"metadata": {"labels": {"a": "2"}}})
    (event,) = await take(side, 1, made.metadata.resource_version)
    assert event.object.metadata.labels == {"a": "2"}


async def test_requests_for_odd_names_stay_what_they_are(side: Side) -> None:
    resource: Resource[LoadBalancer] = LOADBALANCERS
    for name in ("", "..", "a/b", "%2e"):
        with pytest.raises((Invalid, NotFound)):
            await side.client.get(resource, side.namespace, name)
