"""The inventory: when it is sent, what is in it, and that no young Service is taken for a leftover."""

import asyncio
import random
from ipaddress import ip_address
from typing import TypeVar

from typing_extensions import override

from cloudprovider.bridge.api import Reason
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import BridgeError, Unavailable
from cloudprovider.core.exchange import Inventory, InventoryItem, InventoryResult
from cloudprovider.core.translate import Classes
from cloudprovider.guest.inventory import InventoryReporter
from cloudprovider.kube.api import ListResult, Resource
from cloudprovider.kube.fake import FakeCluster, FakeKubeClient
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import SERVICES
from tests.guest.world import TENANT, World, in_virtual_time, pass_time

T = TypeVar("T", bound=KubeObject)


@in_virtual_time
async def test_after_each_connection_and_every_five_minutes() -> None:
    world = World()
    async with world.leading():
        await pass_time(5)
        assert world.calls("report_inventory") == 1
        await pass_time(900)
        assert 3 <= world.calls("report_inventory") - 1 <= 4
        before = world.calls("report_inventory")
        with world.bridge.cut():
            await pass_time(10)
        await pass_time(5)
        assert world.calls("report_inventory") == before + 1


class _Recording:
    """Stands for LocalBridge.report_inventory, to see what is sent and to hold it up."""

    def __init__(self, world: World) -> None:
        self.sent: list[Inventory] = []
        self.hold: asyncio.Event | None = None
        self._report = world.bridge.report_inventory
        world.bridge.report_inventory = self.report  # type: ignore[method-assign]  # that is the point

    async def report(self, inventory: Inventory) -> InventoryResult:
        self.sent.append(inventory)
        if self.hold is not None:
            await self.hold.wait()
        return await self._report(inventory)


@in_virtual_time
async def test_it_names_our_services_with_what_they_show() -> None:
    world = World()
    ours = await world.create()
    await world.show("192.0.2.44")
    await world.create("foreign", loadBalancerClass="example.com/other")
    await world.create("inside", type="ClusterIP")
    async with world.leading():
        recording = _Recording(world)
        await world.until_true(lambda: len(recording.sent) == 1)
    (inventory,) = recording.sent
    assert inventory.items == (InventoryItem(world.key(ours), (ip_address("192.0.2.44"),)),)
    assert inventory.complete
    assert inventory.fencing_token == 1
    assert int(inventory.resource_version) > 0


@in_virtual_time
async def test_no_load_balancer_it_lacks_is_asked_for_while_it_is_on_its_way() -> None:
    world = World()
    async with world.leading() as leadership:
        recording = _Recording(world)
        recording.hold = asyncio.Event()
        await world.until_true(lambda: len(recording.sent) == 1)
        await world.create("young")
        await world.until_true(lambda: world.guest.requests.total(verb="patch", resource="services") == 1)
        await pass_time(2)
        assert world.calls("ensure") == 0
        recording.hold.set()
        await world.until_ready("young")
        recording.hold = asyncio.Event()
        leadership.inventory.request()
        await world.until_true(lambda: len(recording.sent) == 2)
        await world.change("young", spec={"loadBalancerIP": "192.0.2.9"})  # it is in the inventory: no wait
        await world.until_true(lambda: world.calls("ensure") == 2)
        recording.hold.set()


@in_virtual_time
async def test_leftovers_are_deleted_and_what_was_just_made_is_not() -> None:
    world = World()
    async with world.leading() as leadership:
        for i in range(20):
            await world.create(f"web{i}")
            leadership.inventory.request()
            await pass_time(0.3)
        await pass_time(20)
        assert len(world.balancers()) == 20
        assert world.calls("ensure") == 20


@in_virtual_time
async def test_a_stale_leader_is_refused_and_deletes_nothing() -> None:
    world = World()
    async with world.leading():
        service = await world.create()
        await world.until_ready()
        await pass_time(5)
    world.tokens = -10
    async with world.leading():
        world.cluster.restore(FakeCluster(world.cluster.now).snapshot())
        await pass_time(400)
        assert world.balancers() == [world.key(service)]


class _Undecodable(FakeKubeClient):
    @override
    async def list(
        self, resource: Resource[T], namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ListResult[T]:
        listed = await super().list(resource, namespace)
        return ListResult(listed.items, listed.resource_version, [("shop", "odd")])


@in_virtual_time
async def test_a_list_with_gaps_is_not_complete() -> None:
    world = World()
    client = _Undecodable(world.cluster)
    recording = _Recording(world)
    informer = Informer(client, SERVICES, rng=random.Random(1))
    reporter = InventoryReporter(
        client,
        world.bridge,
        informer,
        classes=Classes(),
        fencing_token=1,
        connected=lambda: True,
        rng=random.Random(1),
    )
    await reporter.report()
    assert [inventory.complete for inventory in recording.sent] == [False]


class _Behind(FakeKubeClient):
    """Lists what was there before the last Service came."""

    @override
    async def list(
        self, resource: Resource[T], namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ListResult[T]:
        listed = await super().list(resource, namespace)
        return ListResult(listed.items[:-1], listed.resource_version)


@in_virtual_time
async def test_a_service_younger_than_the_list_is_in_it() -> None:
    world = World()
    services = [await world.create(name) for name in ("a", "b")]
    recording = _Recording(world)
    informer = Informer(world.guest, SERVICES, rng=random.Random(1))
    watching = asyncio.create_task(informer.run())
    await informer.synced.wait()
    reporter = InventoryReporter(
        _Behind(world.cluster),
        world.bridge,
        informer,
        classes=Classes(default=True),
        fencing_token=1,
        connected=lambda: True,
        rng=random.Random(1),
    )
    await reporter.report()
    assert [item.service for item in recording.sent[0].items] == [world.key(service) for service in services]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


@in_virtual_time
async def test_trouble_is_tried_again_with_backoff() -> None:
    world = World()
    lists = 0

    async def refuse(call: Call) -> None:
        nonlocal lists
        if call.verb == "list" and call.resource == "services" and call.program == "guest":
            lists += 1
            if lists > 1:  # the informer's own passes
                raise Unavailable("connection refused")

    world.cluster.before = refuse
    async with world.leading():
        await pass_time(60)
        assert 3 <= lists <= 12
        world.cluster.before = None
        await world.until_true(lambda: world.calls("report_inventory") == 1, 90)
        world.backend.failure = BridgeError("later", reason=Reason.UNAVAILABLE)
        await pass_time(400)
        world.backend.failure = None
        done = world.calls("report_inventory")
        await world.until_true(lambda: world.calls("report_inventory") > done, 90)
    assert world.backend.nodes.get(TENANT) == ()
