"""The Service of the bridge leads to the copy that leads; over an API server in memory."""

import asyncio
import random
from ipaddress import ip_address

import pytest

from cloudprovider.core.api.kubernetes import SERVICE_NAME_LABEL, EndpointSlice, Service, ServiceSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import NotFound, Unavailable
from cloudprovider.host import frontdoor
from cloudprovider.host.frontdoor import NAME, FrontDoor
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import ENDPOINTSLICES, SERVICES
from tests.host.world import World, eventually

SYSTEM = "cloudprovider-system"
SERVICE = ObjectMeta(namespace=SYSTEM, name="cloudprovider-bridge")


def door(client: KubeClient, address: str = "10.42.0.7") -> FrontDoor:
    return FrontDoor(client, SYSTEM, ip_address(address), 8443, rng=random.Random(1))


async def leads_to(world: World) -> list[str]:
    found = await world.client.get(ENDPOINTSLICES, SYSTEM, NAME)
    assert found.metadata.labels[SERVICE_NAME_LABEL] == "cloudprovider-bridge"
    return [address for endpoint in found.endpoints or [] for address in endpoint.addresses]


async def test_it_leads_to_who_has_come_last(world: World) -> None:
    service = await world.client.create(SERVICES, Service(metadata=SERVICE))
    await door(world.client).open()
    assert await leads_to(world) == ["10.42.0.7"]
    await door(world.client, "10.42.1.8").open()
    assert await leads_to(world) == ["10.42.1.8"]
    (owner,) = (await world.client.get(ENDPOINTSLICES, SYSTEM, NAME)).metadata.owner_references
    assert owner.uid == service.metadata.uid


async def test_what_an_older_release_s_service_had_is_removed(world: World) -> None:
    await world.client.create(SERVICES, Service(metadata=SERVICE))
    for name, of in (("cloudprovider-bridge-x7", "cloudprovider-bridge"), ("other", "cloudprovider-webhook")):
        metadata = ObjectMeta(namespace=SYSTEM, name=name, labels={SERVICE_NAME_LABEL: of})
        await world.client.create(ENDPOINTSLICES, EndpointSlice(metadata=metadata))
    await door(world.client).open()
    left = {found.metadata.name for found in (await world.client.list(ENDPOINTSLICES, SYSTEM)).items}
    assert left == {NAME, "other"}


@pytest.mark.parametrize("selector", [None, {"app": "mine"}])
async def test_another_way_in_is_left_alone(world: World, selector: dict[str, str] | None) -> None:
    if selector:
        await world.client.create(SERVICES, Service(metadata=SERVICE, spec=ServiceSpec(selector=selector)))
    await door(world.client).open()
    with pytest.raises(NotFound):
        await leads_to(world)


async def test_a_failure_is_tried_again_and_what_somebody_changed_is_put_right(
    world: World, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frontdoor, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(frontdoor, "CHECK_SECONDS", 0.01)
    await world.client.create(SERVICES, Service(metadata=SERVICE))
    refused = 0

    async def refuse(call: Call) -> None:
        nonlocal refused
        if call.program == "leader" and refused < 2:
            refused += 1
            raise Unavailable("away")

    cluster.before = refuse
    written: list[str] = []
    cluster.after = lambda call: _note(written, call)
    task = asyncio.create_task(door(FakeKubeClient(cluster, program="leader")).run())
    try:
        await eventually(lambda: "apply" in written)
        await world.client.delete(ENDPOINTSLICES, SYSTEM, NAME)
        again = len(written)
        await eventually(lambda: "apply" in written[again:])
        assert await leads_to(world) == ["10.42.0.7"]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _note(written: list[str], call: Call) -> None:
    written.append(call.verb)
