"""The informer over the fake API server, in virtual time; and the cache's rules of what is newer."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import KubeError, NotFound, Unavailable
from cloudprovider.kube.api import ListResult
from cloudprovider.kube.cache import Cache
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import LOADBALANCERS
from tests.kube import virtualtime
from tests.kube.conftest import fixed_now

Change = tuple[str | None, str | None]


def described(obj: LoadBalancer | None) -> str | None:
    return None if obj is None else f"{obj.metadata.name}:{obj.spec.description}"


class World:
    """A cluster, a client that changes it, and an informer with a client of its own."""

    def __init__(
        self, transform: Callable[[LoadBalancer], LoadBalancer | None] | None = None, *, optional: bool = False
    ) -> None:
        self.cluster = FakeCluster(fixed_now)
        self.client = FakeKubeClient(self.cluster)
        self.watching = FakeKubeClient(self.cluster, program="informer")
        self.informer = Informer(
            self.watching,
            LOADBALANCERS,
            rng=random.Random(1),
            indexes={"description": lambda lb: [lb.spec.description]},
            transform=transform,
            optional=optional,
        )
        self.changes: list[Change] = []
        self.informer.on_change(lambda old, new: self.changes.append((described(old), described(new))))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.informer.run())
        try:
            yield
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def create(self, name: str, description: str = "", finalizers: tuple[str, ...] = ()) -> LoadBalancer:
        metadata = ObjectMeta(name=name, namespace="ns", finalizers=list(finalizers))
        lb = LoadBalancer(metadata=metadata)
        return await self.client.create(
            LOADBALANCERS, msgspec.structs.replace(lb, spec=msgspec.structs.replace(lb.spec, description=description))
        )

    async def describe(self, name: str, description: str) -> LoadBalancer:
        return await self.client.merge_patch(LOADBALANCERS, "ns", name, {"spec": {"description": description}})

    async def delete(self, name: str) -> None:
        await self.client.delete(LOADBALANCERS, "ns", name)

    async def agree(self) -> None:
        """The cache holds exactly what the cluster does."""
        result = await self.client.list(LOADBALANCERS)
        assert dict(self.informer.objects) == {lb.key: lb for lb in result.items}

    def refuse(self, error: KubeError | None, *verbs: str) -> None:
        async def before(call: Call) -> None:
            if error is not None and call.program == "informer" and (not verbs or call.verb in verbs):
                raise error

        self.cluster.before = before


async def settle() -> None:
    """Let everything that can happen now happen; virtual time makes this exact."""
    await asyncio.sleep(0.001)


def scenario(main: Callable[[World], Coroutine[Any, Any, None]], *, optional: bool = False) -> Callable[[], None]:
    def test() -> None:
        async def body() -> None:
            await main(World(optional=optional))

        virtualtime.run(body())

    test.__name__ = main.__name__
    return test


optional_scenario = partial(scenario, optional=True)


@scenario
async def test_follows_the_cluster(world: World) -> None:
    await world.create("a", "1")
    assert not world.informer.synced.is_set()
    async with world.running():
        await world.informer.synced.wait()
        assert world.changes == [(None, "a:1")]
        await world.create("b", "1")
        await world.describe("a", "2")
        await world.delete("b")
        await settle()
        assert world.changes[1:] == [(None, "b:1"), ("a:1", "a:2"), ("b:1", None)]
        assert world.informer.get("ns", "b") is None
        await world.agree()
        assert world.informer.last_contact is not None
        assert world.watching.requests.total() == 2  # one list, one watch


@scenario
async def test_indexes_follow(world: World) -> None:
    async with world.running():
        await world.create("a", "x")
        await world.create("b", "x")
        await world.describe("a", "y")
        await settle()
        assert [lb.metadata.name for lb in world.informer.by_index("description", "x")] == ["b"]
        assert [lb.metadata.name for lb in world.informer.by_index("description", "y")] == ["a"]
        await world.delete("b")
        await settle()
        assert world.informer.by_index("description", "x") == []
        with pytest.raises(KeyError):
            world.informer.by_index("no such index", "x")


@scenario
async def test_deletions_during_an_outage_are_seen(world: World) -> None:
    await world.create("a")
    await world.create("b")
    async with world.running():
        await world.informer.synced.wait()
        await settle()
        world.changes.clear()
        world.refuse(Unavailable("down"))
        world.cluster.cut_watches(Unavailable("down"))
        await settle()
        await world.delete("a")
        await world.delete("b")
        await world.create("b", "new")
        world.cluster.compact()
        await asyncio.sleep(60)
        assert world.changes == []
        world.refuse(None)
        await asyncio.sleep(20)
        assert set(world.changes) == {("a:", None), ("b:", None), (None, "b:new")}
        assert len(world.changes) == 3
        await world.agree()


@scenario
async def test_gone_lists_again(world: World) -> None:
    async with world.running():
        await world.informer.synced.wait()
        await settle()
        world.refuse(Unavailable("down"), "watch")
        world.cluster.cut_watches()
        await settle()
        await world.create("a")
        world.cluster.compact()
        world.refuse(None)
        await asyncio.sleep(20)
        assert world.changes == [(None, "a:")]


@scenario
async def test_an_ended_watch_goes_on_without_a_list(world: World) -> None:
    async with world.running():
        await world.informer.synced.wait()
        await asyncio.sleep(300)
        world.cluster.cut_watches()
        await settle()
        await world.create("a")
        await settle()
        assert world.changes == [(None, "a:")]
        assert world.watching.requests.total(verb="list") == 1
        assert world.watching.requests.total(verb="watch") == 2


@scenario
async def test_bookmarks_move_the_version(world: World) -> None:
    async with world.running():
        await world.informer.synced.wait()
        await settle()
        world.cluster.seed(LOADBALANCERS, LoadBalancer(metadata=ObjectMeta(name="a", namespace="ns")))
        world.cluster.bookmark()
        await settle()
        world.cluster.compact()
        world.cluster.cut_watches()
        await asyncio.sleep(1)
        assert world.watching.requests.total(verb="list") == 1


@scenario
async def test_a_watch_that_ends_at_once_does_not_spin(world: World) -> None:
    async with world.running():
        await world.informer.synced.wait()
        for _ in range(600):
            world.cluster.cut_watches()
            await asyncio.sleep(0.1)
        assert world.watching.requests.total(verb="watch") < 25


@scenario
async def test_backs_off_while_the_server_is_away(world: World) -> None:
    world.refuse(Unavailable("down", retry_after=1))
    async with world.running():
        await asyncio.sleep(120)
        assert 8 <= world.watching.requests.total(verb="list") <= 25
        assert not world.informer.synced.is_set()
        assert world.informer.last_contact is None
        world.refuse(None)
        await asyncio.wait_for(world.informer.synced.wait(), 17)


NOT_SERVED = NotFound("the server could not find the requested resource", status=404)


@optional_scenario
async def test_a_kind_that_is_not_served_counts_as_empty_until_it_is(world: World) -> None:
    served: list[bool] = []
    world.informer.on_served(lambda: served.append(not world.informer.is_missing))
    await world.create("a")
    world.refuse(NOT_SERVED)
    async with world.running():
        await asyncio.wait_for(world.informer.synced.wait(), 1)
        assert (world.informer.is_missing, dict(world.informer.objects)) == (True, {})
        await asyncio.sleep(120)
        assert 8 <= world.watching.requests.total(verb="list") <= 25
        assert served == [False]
        world.refuse(None)
        await asyncio.sleep(16)
        assert served == [False, True]
        await world.agree()


@optional_scenario
async def test_what_is_known_of_a_kind_stays_when_it_ceases_to_be_served(world: World) -> None:
    await world.create("a")
    async with world.running():
        await world.informer.synced.wait()
        world.refuse(NOT_SERVED)
        world.cluster.cut_watches(Unavailable("restarted"))
        await asyncio.sleep(5)
        assert world.informer.is_missing
        await world.agree()
        assert world.changes == [(None, "a:")]


@scenario
async def test_a_kind_that_must_be_served_is_waited_for(world: World) -> None:
    world.refuse(NOT_SERVED)
    async with world.running():
        await asyncio.sleep(60)
        assert not world.informer.synced.is_set()


@scenario
async def test_an_own_write_is_seen_once_and_at_once(world: World) -> None:
    async with world.running():
        await world.informer.synced.wait()
        await settle()
        made = await world.create("a", "1")
        world.informer.observe(made)
        assert world.changes == [(None, "a:1")]
        changed = await world.describe("a", "2")
        world.informer.observe(changed)
        assert world.informer.get("ns", "a") == changed
        await settle()
        assert world.changes == [(None, "a:1"), ("a:1", "a:2")]
        await world.agree()


@scenario
async def test_a_late_answer_does_not_bring_back_what_was_deleted(world: World) -> None:
    async with world.running():
        await world.informer.synced.wait()
        made = await world.create("a")
        await settle()
        await world.delete("a")
        await settle()
        world.informer.observe(made)
        assert world.informer.get("ns", "a") is None
        assert world.changes == [(None, "a:"), ("a:", None)]


@scenario
async def test_an_own_write_that_ends_an_object(world: World) -> None:
    async with world.running():
        await world.informer.synced.wait()
        await world.create("a", finalizers=("example.com/f",))
        await settle()
        await world.delete("a")
        last = await world.client.merge_patch(LOADBALANCERS, "ns", "a", {"metadata": {"finalizers": None}})
        world.informer.observe(last)
        assert world.informer.get("ns", "a") is None
        await settle()  # the watch still tells that it was marked, then deleted
        assert world.changes == [(None, "a:"), ("a:", None)]
        await world.create("a", "again")
        await settle()
        await world.agree()


@scenario
async def test_another_object_of_the_same_name_is_two_changes(world: World) -> None:
    await world.create("a", "old")
    async with world.running():
        await world.informer.synced.wait()
        world.refuse(Unavailable("down"))
        world.cluster.cut_watches(Unavailable("down"))
        await settle()
        await world.delete("a")
        await world.create("a", "new")
        world.refuse(None)
        await asyncio.sleep(20)
        assert world.changes == [(None, "a:old"), ("a:old", None), (None, "a:new")]


@scenario
async def test_a_restored_backup_wins_over_newer_versions(world: World) -> None:
    await world.create("a", "then")
    snapshot = world.cluster.snapshot()
    async with world.running():
        await world.informer.synced.wait()
        await world.describe("a", "now")
        world.informer.observe(await world.create("b"))
        await settle()
        world.cluster.restore(snapshot)
        await asyncio.sleep(20)
        await world.agree()
        assert world.informer.get("ns", "b") is None


@scenario
async def test_a_callback_that_raises_ends_the_run(world: World) -> None:
    def callback(_: LoadBalancer | None, __: LoadBalancer | None) -> None:
        raise ValueError("a bug")

    world.informer.on_change(callback)
    await world.create("a")
    with pytest.raises(ValueError, match="a bug"):
        await world.informer.run()


def test_transform_filters_and_shrinks() -> None:
    def transform(lb: LoadBalancer) -> LoadBalancer | None:
        if lb.spec.description == "hide":
            return None
        return msgspec.structs.replace(lb, spec=msgspec.structs.replace(lb.spec, description=lb.spec.description[:1]))

    async def main() -> None:
        world = World(transform)
        async with world.running():
            await world.informer.synced.wait()
            await world.create("a", "long")
            await world.create("b", "hide")
            await world.describe("a", "hide")
            await world.describe("b", "show")
            await settle()
            assert world.changes == [(None, "a:l"), ("a:l", None), (None, "b:s")]

    virtualtime.run(main())


def test_undecodable_objects_stay_as_they_were() -> None:
    cache: Cache[LoadBalancer] = Cache()
    old = LoadBalancer(metadata=ObjectMeta(name="a", namespace="ns", uid="1", resource_version="5"))
    assert list(cache.replace([old], "5")) == [(None, old)]
    result: ListResult[LoadBalancer] = ListResult([], "9", [("ns", "a")])
    assert list(cache.replace(result.items, result.resource_version, result.undecodable)) == []
    assert cache.objects == {("ns", "a"): old}


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["create", "describe", "delete", "unfinalize", "cut", "break", "compact", "time", "late"]),
        st.sampled_from("ab"),
        st.booleans(),
    ),
    max_size=40,
)


@given(STEPS)
def test_whatever_happens_cache_and_callbacks_agree_with_the_cluster(steps: list[tuple[str, str, bool]]) -> None:
    """Own writes observed at once, late or not at all; watches cut; history lost: in the end all agree, and the
    callbacks' story (deltas) leads to the same objects, each change starting from what the last one left."""

    async def main() -> None:
        world = World()
        story: dict[tuple[str, str], LoadBalancer] = {}

        def follow(old: LoadBalancer | None, new: LoadBalancer | None) -> None:
            changed = old or new
            assert changed is not None
            assert story.pop(changed.key, None) == old
            if new is not None:
                assert old is None or old.metadata.uid == new.metadata.uid
                story[new.key] = new

        world.informer.on_change(follow)
        late: list[LoadBalancer] = []
        async with world.running():
            await world.informer.synced.wait()
            for number, (step, name, observe) in enumerate(steps):
                written: LoadBalancer | None = None
                try:
                    if step == "create":
                        written = await world.create(name, finalizers=("example.com/f",) if observe else ())
                    elif step == "describe":
                        written = await world.describe(name, str(number))
                    elif step == "delete":
                        await world.delete(name)
                    elif step == "unfinalize":
                        written = await world.client.merge_patch(
                            LOADBALANCERS, "ns", name, {"metadata": {"finalizers": None}}
                        )
                except KubeError:
                    continue
                if step == "cut":
                    world.cluster.cut_watches()
                elif step == "break":
                    world.cluster.cut_watches(Unavailable("broken"))
                elif step == "compact":
                    world.cluster.compact()
                elif step == "time":
                    await asyncio.sleep(5 if observe else 0)
                elif step == "late":
                    for obj in late:
                        world.informer.observe(obj)
                    late.clear()
                if written is not None:
                    if observe:
                        world.informer.observe(written)
                        assert story == dict(world.informer.objects)
                    else:
                        late.append(written)
            await asyncio.sleep(100)
            for obj in late:
                world.informer.observe(obj)
            await world.agree()
            assert story == dict(world.informer.objects)

    virtualtime.run(main())
