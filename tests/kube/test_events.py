"""The event recorder over the fake API server, in virtual time."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from cloudprovider.core.api.kubernetes import Event, Service
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPPool, IPPoolSpec, Range
from cloudprovider.core.errors import Forbidden, KubeError, Unavailable
from cloudprovider.core.news import NO_OVERLAP, News
from cloudprovider.core.reasons import Heard
from cloudprovider.kube.events import MESSAGE_LIMIT, Bounds, EventRecorder
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import EVENTS, IPPOOLS, SERVICES
from tests.kube import virtualtime
from tests.kube.conftest import fixed_now


class World:
    def __init__(self, bounds: Bounds | None = None) -> None:
        self.cluster = FakeCluster(fixed_now)
        self.client = FakeKubeClient(self.cluster, program="recorder")
        self.recorder = EventRecorder(
            self.client,
            component="cloudprovider-guest",
            instance="pod-1",
            now=fixed_now,
            rng=random.Random(1),
            bounds=bounds,
        )

    def say(self, name: str = "web", reason: str = "Ready", message: str = "It works.") -> None:
        service = Service(metadata=ObjectMeta(name=name, namespace="ns", uid=f"uid-{name}", resource_version="5"))
        self.recorder.record(SERVICES, service, News("Service", "Normal", Heard(reason), "guest", ""), message)

    async def said(self) -> list[Event]:
        await self.recorder.idle()
        return list((await FakeKubeClient(self.cluster).list(EVENTS)).items)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.recorder.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})


def scenario(bounds: Bounds | None = None) -> Callable[[Callable[[World], Awaitable[None]]], Callable[[], None]]:
    def decorate(main: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
        def test() -> None:
            async def body() -> None:
                world = World(bounds)
                async with world.running():
                    await main(world)

            virtualtime.run(body())

        return test

    return decorate


@scenario()
async def test_an_event_as_kubectl_shows_it(world: World) -> None:
    world.say()
    (event,) = await world.said()
    assert event.metadata.namespace == "ns"
    assert event.metadata.name.startswith("web.")
    about = event.involved_object
    assert (about.api_version, about.kind, about.namespace, about.name, about.uid, about.resource_version) == (
        "v1",
        "Service",
        "ns",
        "web",
        "uid-web",
        "5",
    )
    assert (event.type, event.reason, event.message, event.count) == ("Normal", "Ready", "It works.", 1)
    assert event.first_timestamp == event.last_timestamp == "2026-01-01T00:00:00Z"
    assert (event.source.component, event.reporting_instance) == ("cloudprovider-guest", "pod-1")


@scenario()
async def test_events_about_cluster_scoped_objects_go_to_default(world: World) -> None:
    pool = IPPool(metadata=ObjectMeta(name="p"), spec=IPPoolSpec(ranges=[Range(subnet="192.0.2.0/24")]))
    world.recorder.record(IPPOOLS, pool, NO_OVERLAP, "x")
    (event,) = await world.said()
    assert (event.metadata.namespace, event.involved_object.namespace) == ("default", "")


@scenario()
async def test_repetitions_are_dropped_within_the_window(world: World) -> None:
    for _ in range(100):
        world.say()
    world.say(message="Something else.")
    world.say(name="other")
    assert len(await world.said()) == 3
    assert world.client.requests.total() == 3
    await asyncio.sleep(601)
    world.say()
    assert len(await world.said()) == 4
    assert world.recorder.dropped == 0


@scenario()
async def test_floods_about_one_object_are_bounded(world: World) -> None:
    for n in range(100):
        world.say(message=str(n))
    world.say(name="other")
    assert len(await world.said()) == 11
    assert world.recorder.dropped == 90
    await asyncio.sleep(121)
    for n in range(100, 110):
        world.say(message=str(n))
    assert len(await world.said()) == 13


@scenario(Bounds(queue=5))
async def test_a_full_queue_drops_and_a_dropped_event_can_be_said_later(world: World) -> None:
    for n in range(8):
        world.say(name=f"s{n}")
    assert len(await world.said()) == 5
    assert world.recorder.dropped == 3
    world.say(name="s7")
    assert len(await world.said()) == 6


@scenario()
async def test_long_names_and_messages_are_cut(world: World) -> None:
    world.say(name="x" * 229 + "-" + "y" * 20, message="ü" * 2000)
    (event,) = await world.said()
    assert len(event.message.encode()) <= MESSAGE_LIMIT
    assert event.message.endswith("ü...")


@pytest.mark.parametrize(
    ("error", "posted", "requests"), [(Unavailable("down"), 0, 4), (Forbidden("no", status=403), 0, 1)]
)
def test_errors_never_reach_the_caller(error: KubeError, posted: int, requests: int) -> None:
    async def main() -> None:
        world = World()

        async def before(call: Call) -> None:
            if call.program == "recorder":
                raise error

        world.cluster.before = before
        async with world.running():
            world.say()
            assert len(await world.said()) == posted
            assert world.client.requests.total() == requests
            assert world.recorder.dropped == 1
            world.cluster.before = None
            world.say(name="next")
            assert len(await world.said()) == 1

    virtualtime.run(main())


@scenario()
async def test_a_lost_answer_makes_no_second_event(world: World) -> None:
    lost = 0

    async def after(call: Call) -> None:
        nonlocal lost
        if call.verb == "create" and not lost:
            lost += 1
            raise Unavailable("the answer was lost")

    world.cluster.after = after
    world.say()
    assert len(await world.said()) == 1
    assert (lost, world.recorder.dropped) == (1, 0)


@scenario(Bounds(remembered=10))
async def test_memory_is_bounded(world: World) -> None:
    for n in range(100):
        world.say(name=f"s{n}")
    await world.recorder.idle()
    assert len(world.recorder._said) <= 10
    assert len(world.recorder._tokens) <= 10
