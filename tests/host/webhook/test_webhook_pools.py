"""Pools through a real API server and the real webhook: what is refused, in which words, and what passes."""

import asyncio
import json
import re

import msgspec
import pytest

from cloudprovider.core.api.pool import MANUALLY_RELEASE_ANNOTATION, Allocation
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.resources import IPBLOCKS, IPPOOLS
from tests.host.webhook.served import Admin, Json, Outcome, Served, block, connect, load_balancer, pool
from tests.lab.controlplane import ControlPlane
from tests.lab.process import LabError

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

EVERYBODY = {"project": "*", "namespace": "*", "guestCluster": "*"}
SUBNET = {"subnet": "10.0.0.0/24"}
WEB = Allocation(owner="default/web", uid="u", tenant="default")
FIELD = f"metadata.annotations[{MANUALLY_RELEASE_ANNOTATION}]"


def name_of(network: str, suffix: str = "") -> str:
    return network.rpartition("/")[2] + suffix


def reservation(address: str, **whose: str) -> Json:
    return {"address": address, "namespace": "team", **(whose or {"loadBalancer": "web"})}


def denied(outcome: Outcome, field: str, text: str) -> None:
    """Refused by the webhook, which names the field, in the sentence and as a cause."""
    assert outcome.code == 422, outcome
    assert outcome.message.startswith('admission webhook "ippools.cloudprovider.harvesterhci.io" denied the request: ')
    assert f"{field}: " in outcome.message
    assert outcome.reason == "Invalid"
    assert text in outcome.causes[field][1]


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        ({"ranges": []}, "spec.ranges", "should have at least 1 items"),
        ({"ranges": [{"subnet": "banana"}]}, "spec.ranges[0].subnet", 'subnet "banana" is not a CIDR'),
        (
            {"ranges": [{**SUBNET, "rangeStart": "10.9.0.1"}]},
            "spec.ranges[0].rangeStart",
            '"10.9.0.1" is not a host address of subnet "10.0.0.0/24"',
        ),
        (
            {"ranges": [{**SUBNET, "rangeEnd": "10.0.0.0"}]},
            "spec.ranges[0].rangeEnd",
            '"10.0.0.0" is not a host address of subnet "10.0.0.0/24"',
        ),
        *(
            (
                {"ranges": [{**SUBNET, field: "10.0.0.0"}]},
                f"spec.ranges[0].{field}",
                '"10.0.0.0" is not a host address of subnet "10.0.0.0/24"',
            )
            for field in ("rangeStart", "gateway")
        ),
        (
            {"ranges": [{**SUBNET, "gateway": "10.9.0.1"}]},
            "spec.ranges[0].gateway",
            '"10.9.0.1" is not a host address of subnet "10.0.0.0/24"',
        ),
        (
            {"ranges": [SUBNET], "reservations": [reservation("banana")]},
            "spec.reservations[0].address",
            '"banana" is no IP address',
        ),
        (
            {"ranges": [SUBNET], "reservations": [reservation("10.0.0.5", guestCluster="blue")]},
            "spec.reservations[0]",
            "a reservation is for a loadBalancer, or for a service of a guestCluster",
        ),
        ({"ranges": [SUBNET], "selector": {"priority": -1}}, "spec.selector.priority", "greater than or equal to 0"),
        ({"ranges": [SUBNET], "addressesPerTenant": -1}, "spec.addressesPerTenant", "greater than or equal to 0"),
        ({"ranges": [SUBNET], "nearlyFullPercent": 101}, "spec.nearlyFullPercent", "less than or equal to 100"),
    ],
)
async def test_what_the_definition_refuses(served: Served, admin: Admin, spec: Json, field: str, text: str) -> None:
    """Before the webhook is asked."""
    asked = served.webhook.reviews.total()
    outcome = await admin.create({**pool("refused"), "spec": spec})
    assert outcome.code == 422
    assert text in outcome.causes[field][1]
    assert served.webhook.reviews.total() == asked


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        (
            {"ranges": [{**SUBNET, "rangeEnd": "10.0.0.255"}]},
            "spec.ranges[0].rangeEnd",
            "10.0.0.255 is the broadcast address of 10.0.0.0/24: no host can have it",
        ),
        (
            {"ranges": [{**SUBNET, "gateway": "10.0.0.255"}]},
            "spec.ranges[0].gateway",
            "10.0.0.255 is the broadcast address of 10.0.0.0/24: no host can have it",
        ),
        ({"ranges": [{"subnet": "224.0.0.0/24"}]}, "spec.ranges[0].subnet", "224.0.0.0/24 can't be handed out"),
        (
            {"ranges": [SUBNET, {"subnet": "10.0.0.128/25"}]},
            "spec.ranges[1]",
            "10.0.0.129-10.0.0.254 is in spec.ranges[0] too: take it out",
        ),
        (
            {"ranges": [{**SUBNET, "exclude": ["10.0.0.5", "10.0.0.9-10.0.0.7"]}]},
            "spec.ranges[0].exclude[1]",
            '"10.0.0.9-10.0.0.7" is no address, subnet, or first-last',
        ),
        (
            {"ranges": [{**SUBNET, "exclude": ["10.9.0.0/24"]}]},
            "spec.ranges[0].exclude[0]",
            "10.9.0.0/24 lies outside of the subnet 10.0.0.0/24",
        ),
        (
            {"ranges": [SUBNET], "reservations": [reservation("10.9.0.5")]},
            "spec.reservations[0].address",
            "10.9.0.5 is not in the ranges of the pool: reserve one that it hands out",
        ),
        (
            {"ranges": [SUBNET], "reservations": [reservation("10.0.0.5"), reservation("10.0.0.5")]},
            "spec.reservations[1].address",
            "10.0.0.5 is reserved already: keep one of the two",
        ),
    ],
)
async def test_what_the_webhook_refuses_by_itself(
    served: Served, admin: Admin, spec: Json, field: str, text: str
) -> None:
    denied(await admin.create({**pool("refused"), "spec": spec}), field, text)


@pytest.mark.parametrize(
    "ranges",
    [
        [{"subnet": "10.0.0.7/32"}],
        [{"subnet": "10.0.0.6/31"}],
        [{**SUBNET, "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.5"}],  # as Harvester takes it, either way round
        [{**SUBNET, "rangeStart": "10.0.0.1", "rangeEnd": "10.0.0.254", "gateway": "10.0.0.77"}],
        [{**SUBNET, "rangeEnd": "10.0.0.9"}, {**SUBNET, "rangeStart": "10.0.0.20", "exclude": ["10.0.0.30-10.0.0.40"]}],
        [SUBNET, {"subnet": "fd00::/64"}, {"subnet": "fd00:1::5/128"}],
    ],
)
async def test_what_is_sound_passes_without_a_warning(
    served: Served, admin: Admin, network: str, ranges: list[Json]
) -> None:
    made = pool(name_of(network), *ranges, selector={"network": network})
    outcome = await admin.create(made)
    assert (outcome.done, outcome.warnings) == (True, ())
    assert (await admin.delete(made)).done


async def test_pools_of_one_network(served: Served, admin: Admin, network: str) -> None:
    selector = {"network": network, "priority": 7, "scope": [EVERYBODY]}
    first = pool(name_of(network, "-a"), SUBNET, selector=selector)
    assert (await admin.create(first)).done
    second = pool(name_of(network, "-b"), {"subnet": "10.0.0.0/16", "rangeStart": "10.0.0.200"}, selector=selector)
    outcome = await admin.create(second)
    name = name_of(network, "-a")
    denied(outcome, "spec.ranges", f'10.0.0.200-10.0.0.254 is in the pool "{name}" on this network too: take it out')
    denied(outcome, "spec.selector.priority", f'7 is the pool "{name}"\'s priority on this network too')
    denied(outcome, "spec.selector.scope", f'the pool "{name}" is the global pool (one scope, "*" three times)')
    elsewhere = {**second, "spec": {**second["spec"], "selector": {**selector, "network": f"{network}-other"}}}
    assert (await admin.create(elsewhere)).done
    denied(
        await admin.merge(elsewhere, {"spec": {"selector": {"network": network}}}),
        "spec.ranges",
        f'is in the pool "{name}" on this network too',
    )
    assert (await admin.delete(elsewhere)).done


async def test_a_pool_in_use(served: Served, admin: Admin, client: HttpKubeClient, network: str) -> None:
    name = name_of(network)
    made = pool(name, SUBNET, selector={"network": network})
    assert (await admin.create(made)).done
    held = {"n5": WEB, "n200": Allocation(owner="agent/host-1"), **{f"n{n}": WEB for n in range(10, 20)}}
    stored = await client.create(IPBLOCKS, block(name, "10.0.0.0", **held))

    def ranges(**more: object) -> Json:
        return {"spec": {"ranges": [{**SUBNET, **more}]}}

    denied(await admin.merge(made, ranges(rangeStart="10.0.0.6")), "spec.ranges", "in use: 10.0.0.5 (default/web);")
    denied(
        await admin.merge(made, ranges(rangeEnd="10.0.0.199")), "spec.ranges", "in use: 10.0.0.200 (the host host-1)"
    )
    denied(
        await admin.merge(made, ranges(exclude=["10.0.0.0/28", "10.0.0.77"])),
        "spec.ranges[0].exclude",
        "10.0.0.5 (default/web), 10.0.0.10 (default/web), 10.0.0.11 (default/web), 10.0.0.12 (default/web),"
        " 10.0.0.13 (default/web), and 2 more; keep it in the ranges until its holder is deleted",
    )
    denied(
        await admin.merge(made, {"spec": {"ranges": [{"subnet": "10.7.0.0/24"}]}}),
        "spec.ranges",
        "10.0.0.13 (default/web), and 7 more",
    )
    denied(
        await admin.merge(made, {"spec": {"selector": {"network": "default/moved"}}}),
        "spec.selector.network",
        f'it can\'t become "default/moved" while addresses are in use on "{network}": 10.0.0.5 (default/web), ',
    )
    outcome = await admin.delete(made)
    assert (outcome.code, outcome.reason) == (409, "Conflict")
    assert f'the pool "{name}" is in use: 10.0.0.5 (default/web), ' in outcome.message
    assert "and 7 more; delete these first" in outcome.message

    for fine in (
        ranges(rangeStart="10.0.0.5", rangeEnd="10.0.0.200", exclude=["10.0.0.77"]),
        {"spec": {"ranges": [{**SUBNET}, {"subnet": "10.7.0.0/24"}]}},
        {"spec": {"description": "grown", "selector": {"priority": 99}}},
        {"metadata": {"labels": {"note": "x"}}},
    ):
        assert (await admin.merge(made, fine)).done, fine
    spec = msgspec.structs.replace(stored.spec, allocations={})
    await client.replace(IPBLOCKS, msgspec.structs.replace(stored, spec=spec))
    assert (await admin.merge(made, {"spec": {"ranges": [{"subnet": "10.7.0.0/24"}]}})).done
    assert (await admin.delete(made)).done


async def test_deleting_many_at_once_takes_none_in_use(
    served: Served, admin: Admin, client: HttpKubeClient, network: str
) -> None:
    """A request to delete a collection carries no name."""
    name = name_of(network)
    made = pool(name, SUBNET, selector={"network": network})
    labelled = {**made, "metadata": {**made["metadata"], "labels": {"together": name}}}
    assert (await admin.create(labelled)).done
    stored = await client.create(IPBLOCKS, block(name, "10.0.0.0", n5=WEB))
    outcome = await admin.delete_all(made, f"together={name}")
    assert (outcome.code, outcome.reason) == (409, "Conflict")
    assert f'the pool "{name}" is in use: 10.0.0.5 (default/web); delete these first' in outcome.message
    await client.delete(IPBLOCKS, "", stored.metadata.name)
    assert (await admin.delete_all(made, f"together={name}")).done


async def test_manually_releasing_an_address(
    served: Served, admin: Admin, client: HttpKubeClient, network: str
) -> None:
    name = name_of(network)
    made = pool(name, SUBNET, selector={"network": network})
    assert (await admin.create(made)).done
    gone, other = Allocation(owner="default/gone", uid="1"), Allocation(owner=f"default/{name}", uid="2")
    await client.create(IPBLOCKS, block(name, "10.0.0.0", n5=gone, n6=other))
    assert (await admin.create(load_balancer(name))).done

    async def release(text: str | None) -> Outcome:
        return await admin.merge(made, {"metadata": {"annotations": {MANUALLY_RELEASE_ANNOTATION: text}}})

    denied(await release("10.0.0.5"), FIELD, '"10.0.0.5" is not of the form "192.168.1.10: namespace/load-balancer"')
    denied(await release(f"10.0.0.6: default/{name}"), FIELD, f"the load balancer default/{name} still exists: delete")
    denied(await release("10.0.0.6: default/gone"), FIELD, "10.0.0.6 is not held by default/gone: it is 10.0.0.6 (")
    outcome = await release("10.0.0.7: default/gone")
    assert outcome.done
    assert outcome.warnings == (f"{FIELD}: nobody holds 10.0.0.7 in this pool: there is nothing to release",)
    assert (await release("10.0.0.5: default/gone")).done
    asked = served.webhook.reviews.total()
    assert (await release(None)).done, "what the controller does when it is done"
    assert served.webhook.reviews.total() == asked


async def test_the_controllers_own_writes_do_not_ask(
    plane: ControlPlane, served: Served, admin: Admin, network: str
) -> None:
    """A pool's status is written every second."""
    made = pool(name_of(network), SUBNET, selector={"network": network})
    assert (await admin.create(made)).done
    asked = served.webhook.reviews.total()
    async with connect(plane) as host:
        patch = {"status": {"total": 5}}
        name = name_of(network)
        written = await host.apply(IPPOOLS, "", name, patch, field_manager="x", subresource="status")
    assert written.status.total == 5
    assert served.webhook.reviews.total() == asked


async def test_kubectl_shows_each_cause(served: Served, plane: ControlPlane, admin: Admin, network: str) -> None:
    bad = pool(name_of(network), {"subnet": "224.0.0.0/24"}, {**SUBNET, "exclude": ["x"]})
    outcome = await admin.create(bad)
    assert set(outcome.causes) == {"spec.ranges[0].subnet", "spec.ranges[1].exclude[0]"}
    with pytest.raises(LabError) as caught:
        await asyncio.to_thread(plane.kubectl, "create", "-f", "-", stdin=json.dumps(bad))
    shown = str(caught.value)
    assert re.search(r"spec\.ranges\[0\]\.subnet: .*224\.0\.0\.0/24 can't be handed out", shown)
    assert re.search(r"spec\.ranges\[1\]\.exclude\[0\]: .*\"x\" is no address", shown)
