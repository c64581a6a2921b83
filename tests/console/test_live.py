"""Live pages: what is shown stays true through everything an API server does, and all of it ends."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.live import Followed, Topic, event, follow
from cloudprovider.console.server import Console
from cloudprovider.console.sessions import STREAMS
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import Forbidden, Unavailable
from cloudprovider.kube.fake import FakeCluster
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import LOADBALANCERS
from tests.console.test_gate import Client, own, signed_in
from tests.console.users import FakeUser, now

LIMIT = 10.0


def lb(name: str, namespace: str = "a") -> LoadBalancer:
    return LoadBalancer(metadata=ObjectMeta(name=name, namespace=namespace))


def name_of(found: LoadBalancer) -> str:
    return found.metadata.name


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(now)


@asynccontextmanager
async def following(cluster: FakeCluster) -> AsyncIterator[Followed[str]]:
    into: Followed[str] = Followed()
    topic = Topic(resource=LOADBALANCERS, namespace="a", keep=name_of)
    task = asyncio.create_task(follow(FakeUser(cluster, "t"), topic, into, random.Random(1)))
    try:
        yield into
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(into: Followed[str], holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not holds():
            into.changed.clear()
            await into.changed.wait()


async def test_it_follows_through_changes_cuts_and_forgotten_history(cluster: FakeCluster) -> None:
    cluster.seed(LOADBALANCERS, lb("one"))
    cluster.seed(LOADBALANCERS, lb("elsewhere", "b"))
    async with following(cluster) as into:
        await until(into, lambda: list(into.values()) == ["one"])
        cluster.seed(LOADBALANCERS, lb("two"))
        await until(into, lambda: len(into) == 2)
        cluster.cut_watches()
        cluster.delete(LOADBALANCERS, cluster.find(LOADBALANCERS, "a", "one"))
        await until(into, lambda: list(into.values()) == ["two"])
        cluster.cut_watches()
        cluster.seed(LOADBALANCERS, lb("three"))
        cluster.compact()
        await until(into, lambda: set(into.values()) == {"two", "three"})
        assert into.problem == ""


async def test_while_nobody_answers_it_says_so_and_tries_again(cluster: FakeCluster) -> None:
    cluster.seed(LOADBALANCERS, lb("one"))
    async with following(cluster) as into:
        await until(into, lambda: len(into) == 1)

        async def down(_: Call) -> None:
            raise Unavailable("no connection to the API server")

        cluster.before = down
        cluster.cut_watches(Unavailable("cut"))
        await until(into, lambda: "no connection" in into.problem)
        assert len(into) == 1, "what was known is still shown"
        cluster.before = None
        cluster.seed(LOADBALANCERS, lb("two"))
        await until(into, lambda: len(into) == 2 and not into.problem)


def test_a_message_stays_one_message() -> None:
    assert event("a\n\nevent: over\ndata: x") == b"data: a\ndata: \ndata: event: over\ndata: data: x\n\n"


@pytest.fixture
def console(cluster: FakeCluster) -> Console:
    return Console(
        ConsoleConfig(),
        lambda t: FakeUser(cluster, t),
        now=now,
        time=lambda: 0.0,
        rng=random.Random(1),
        registry=Registry("console", "0"),
    )


@pytest.fixture
async def client(console: Console) -> AsyncIterator[Client]:
    async with TestClient(TestServer(console.app)) as client:
        yield client


async def read_until(answer: ClientResponse, text: str) -> str:
    found = b""
    async with asyncio.timeout(LIMIT):
        while text.encode() not in found:
            chunk = await answer.content.readany()
            assert chunk, f"the stream has ended without {text!r}: {found.decode()}"
            found += chunk
    return found.decode()


async def test_rows_come_as_they_change(client: Client, cluster: FakeCluster) -> None:
    await signed_in(client)
    async with client.get("/live/loadbalancers?namespace=a&q=web") as answer:
        assert answer.content_type == "text/event-stream"
        await read_until(answer, "no load balancer here yet")
        cluster.seed(LOADBALANCERS, lb("web"))
        cluster.seed(LOADBALANCERS, lb("other"))
        cluster.seed(LOADBALANCERS, lb("web", "b"))
        text = await read_until(answer, ">web</a>")
    assert ">other</a>" not in text
    assert "/loadbalancers/b/" not in text


async def test_a_stream_ends_with_its_session(client: Client, console: Console) -> None:
    token = await signed_in(client)
    async with client.get("/live/loadbalancers") as answer:
        await read_until(answer, "no load balancer")
        await client.post("/sign-out", data={"form_token": token}, headers=own(client), allow_redirects=False)
        await read_until(answer, "event: over\ndata: signed out\n\n")
        async with asyncio.timeout(LIMIT):
            assert await answer.content.readany() == b""
    assert len(console.streams) == 0


async def test_a_stream_ends_when_the_api_server_refuses(client: Client, cluster: FakeCluster) -> None:
    await signed_in(client)

    async def refuse(call: Call) -> None:
        if call.namespace == "a":
            raise Forbidden("no", status=403)

    cluster.before = refuse
    async with client.get("/live/loadbalancers?namespace=a") as answer:
        await read_until(answer, "event: over\ndata: refused\n\n")


async def test_one_session_has_so_many_live_pages_and_closing_one_makes_room(client: Client, console: Console) -> None:
    await signed_in(client)
    found = [await client.get("/live/loadbalancers") for _ in range(STREAMS)]
    refused = await client.get("/live/loadbalancers")
    assert (refused.status, "Too many live pages" in await refused.text()) == (429, True)
    assert len(console.streams) == STREAMS
    for answer in found:
        answer.close()
    async with asyncio.timeout(LIMIT):
        while len(console.streams):  # noqa: ASYNC110 - connections that end, no signal of ours
            await asyncio.sleep(0.02)
