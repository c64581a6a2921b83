"""The HTTP client against a server that misbehaves: slow, silent, broken, or not Kubernetes at all."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web

from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Unavailable,
    Violation,
)
from cloudprovider.core.reasons import Heard
from cloudprovider.kube.api import WatchEvent
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.credentials import Credentials
from cloudprovider.kube.resources import IPPOOLS, SERVICES

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SERVICE = '{"metadata":{"name":"%s","namespace":"ns","uid":"1","resourceVersion":"%d"},"spec":{"ports":[{"port":80}]}}'


@asynccontextmanager
async def serving(handler: Handler, authorization: str = "", **options: float) -> AsyncIterator[HttpKubeClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        credentials = Credentials(f"http://127.0.0.1:{port}", None, lambda: authorization)
        async with HttpKubeClient(
            credentials,
            program="guest",
            version="1.2.3",
            rng=random.Random(1),
            **options,  # type: ignore[arg-type]  # all options that tests set are numbers
        ) as client:
            yield client
    finally:
        await runner.cleanup()


async def collect(client: HttpKubeClient, since: str = "1") -> list[WatchEvent[Service]]:
    events: list[WatchEvent[Service]] = []
    async with aclosing(client.watch(SERVICES, resource_version=since)) as watch:
        async for event in watch:
            events.append(event)  # noqa: PERF401 - what came before an error counts
    return events


async def test_headers_and_paths() -> None:
    seen: list[web.Request] = []

    async def handler(request: web.Request) -> web.Response:
        seen.append(request)
        return web.Response(text=SERVICE % ("a", 1))

    async with serving(handler, authorization="Bearer abc") as client:
        await client.get(SERVICES, "ns", "a b")
        await client.merge_patch(SERVICES, "ns", "a", {"a": 1}, subresource="status")
        await client.apply(SERVICES, "ns", "a", {}, field_manager="m&n")
    get, patch, apply = seen
    assert get.raw_path == "/api/v1/namespaces/ns/services/a%20b"
    assert get.headers["User-Agent"] == "cloudprovider/1.2.3 (guest)"
    assert get.headers["Authorization"] == "Bearer abc"
    assert patch.raw_path == "/api/v1/namespaces/ns/services/a/status"
    assert patch.headers["Content-Type"] == "application/merge-patch+json"
    assert apply.raw_path == "/api/v1/namespaces/ns/services/a?fieldManager=m%26n&force=true"
    assert client.requests.total() == 3
    assert client.requests.total(verb="patch", resource="services/status", code=200) == 1


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (400, '{"message":"m","reason":"BadRequest"}', Invalid),
        (401, '{"message":"m","reason":"Unauthorized"}', Forbidden),
        (403, '{"message":"m","reason":"Forbidden"}', Forbidden),
        (404, '{"message":"m","reason":"NotFound"}', NotFound),
        (409, '{"message":"m","reason":"AlreadyExists"}', AlreadyExists),
        (409, '{"message":"m","reason":"Conflict"}', Conflict),
        (410, '{"message":"m","reason":"Expired"}', Gone),
        (422, '{"message":"m","reason":"Invalid"}', Invalid),
        (422, '{"message":"m","details":{"causes":[{"field":"metadata.uid"}]}}', Conflict),
        (429, '{"message":"m","reason":"TooManyRequests"}', Unavailable),
        (500, '{"message":"m"}', Unavailable),
        (502, "<html>m</html>", Unavailable),
        (302, "m", Unavailable),
    ],
)
async def test_statuses_become_errors(code: int, body: str, kind: type[KubeError]) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=code, text=body, headers={"Retry-After": "7", "Location": "/elsewhere"})

    async with serving(handler) as client:
        with pytest.raises(kind, match=r"get services ns/a: .*m") as caught:
            await client.get(SERVICES, "ns", "a")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.retry_after) == (code, 7)


async def test_what_is_wrong_is_told_field_by_field() -> None:
    causes = '[{"reason":"FieldValueInvalid","message":"too big","field":"spec.ports[0].port"}]'
    body = f'{{"message":"m","reason":"Invalid","code":422,"details":{{"causes":{causes}}}}}'

    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=422, text=body)

    async with serving(handle) as client:
        with pytest.raises(Invalid) as caught:
            await client.get(SERVICES, "ns", "a")
    assert caught.value.causes == (
        Violation(field="spec.ports[0].port", reason=Heard("FieldValueInvalid"), message="too big"),
    )


async def test_retry_after_in_the_body() -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=500, text='{"message":"m","details":{"retryAfterSeconds":3}}')

    async with serving(handler) as client:
        with pytest.raises(Unavailable) as caught:
            await client.get(SERVICES, "ns", "a")
    assert caught.value.retry_after == 3


async def test_a_slow_answer_is_unavailable() -> None:
    async def handler(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with serving(handler, deadline=0.2) as client:
        with pytest.raises(Unavailable, match=r"no answer from the API server within 0.2 s"):
            await client.get(SERVICES, "ns", "a")
        with pytest.raises(Unavailable, match=r"within 0.2 s"):
            await collect(client)
        assert client.requests.total(code=0) == 2


async def test_a_slow_body_is_unavailable() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"metadata":')
        await asyncio.Event().wait()
        return response

    async with serving(handler, deadline=0.2) as client:
        with pytest.raises(Unavailable):
            await client.list(SERVICES)


async def test_nobody_there_is_unavailable(unused_tcp_port: int) -> None:
    credentials = Credentials(f"http://127.0.0.1:{unused_tcp_port}", None, str)
    async with HttpKubeClient(credentials, program="t", version="0", rng=random.Random(1)) as client:
        with pytest.raises(Unavailable, match="no connection to the API server"):
            await client.get(SERVICES, "ns", "a")
        with pytest.raises(Unavailable, match="no connection to the API server"):
            await collect(client)


async def test_lists_come_in_pages_and_name_what_does_not_fit() -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.query["limit"] == "500"
        if "continue" not in request.query:
            items = SERVICE % ("a", 1) + ',{"metadata":{"name":"bad","namespace":"ns"},"spec":{"ports":[{"port":"x"}]}}'
            return web.Response(text=f'{{"metadata":{{"resourceVersion":"9","continue":"c&1"}},"items":[{items}]}}')
        assert request.query["continue"] == "c&1"
        return web.Response(text=f'{{"metadata":{{"resourceVersion":"9"}},"items":[{SERVICE % ("b", 2)}]}}')

    async with serving(handler) as client:
        result = await client.list(SERVICES)
    assert [s.metadata.name for s in result.items] == ["a", "b"]
    assert result.undecodable == [("ns", "bad")]
    assert result.resource_version == "9"


@pytest.mark.parametrize("body", ["", "{", "[]", '{"items":[{]}'])
async def test_a_list_that_is_none_is_unavailable(body: str) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.Response(text=body)

    async with serving(handler) as client:
        with pytest.raises(Unavailable):
            await client.list(SERVICES)


def stream(*chunks: bytes, hold: bool = False, cut: bool = False) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        assert request.query["allowWatchBookmarks"] == "true"
        assert 240 <= int(request.query["timeoutSeconds"]) <= 300
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        if cut:
            assert request.transport is not None
            request.transport.abort()
        if hold:
            await asyncio.Event().wait()
        return response

    return handler


def event(kind: str, body: str) -> bytes:
    return f'{{"type":"{kind}","object":{body}}}\n'.encode()


async def test_watch_events_in_any_pieces() -> None:
    data = (
        event("ADDED", SERVICE % ("a", 1))
        + event("BOOKMARK", '{"kind":"Service","metadata":{"resourceVersion":"5","creationTimestamp":null}}')
        + event("DELETED", SERVICE % ("a", 6))
    )
    for size in (1, 7, 100, len(data)):
        pieces = [data[i : i + size] for i in range(0, len(data), size)]
        async with serving(stream(*pieces)) as client:
            events = await collect(client)
        assert [(e.type, e.object.metadata.resource_version) for e in events] == [
            ("ADDED", "1"),
            ("BOOKMARK", "5"),
            ("DELETED", "6"),
        ]


async def test_bookmarks_of_kinds_with_required_fields() -> None:
    async with serving(stream(event("BOOKMARK", '{"metadata":{"resourceVersion":"5"}}'))) as client:
        bookmarks = [e async for e in client.watch(IPPOOLS, resource_version="1")]
    assert [e.object.metadata.resource_version for e in bookmarks] == ["5"]


async def test_an_object_larger_than_any_buffer() -> None:
    body = SERVICE % ("a", 1)
    large = body.replace('"uid"', f'"annotations":{{"x":"{"y" * 900_000}"}},"uid"')
    async with serving(stream(event("ADDED", large))) as client:
        (found,) = await collect(client)
    assert len(found.object.metadata.annotations["x"]) == 900_000


async def test_watch_errors() -> None:
    gone = event("ERROR", '{"kind":"Status","code":410,"reason":"Expired","message":"too old"}')
    busy = event("ERROR", '{"kind":"Status","code":504,"reason":"Timeout","message":"too large"}')
    for data, kind in ((gone, Gone), (busy, Unavailable), (b"{broken\n", Unavailable)):
        async with serving(stream(data)) as client:
            with pytest.raises(kind):
                await collect(client)
    async with serving(stream(event("ADDED", SERVICE % ("a", 1)), cut=True)) as client:
        with pytest.raises(Unavailable):
            await collect(client)


async def test_unreadable_objects_in_a_watch(caplog: pytest.LogCaptureFixture) -> None:
    bad = '{"metadata":{"name":"bad","namespace":"ns"},"spec":{"ports":[{"port":"x"}]}}'
    async with serving(stream(event("MODIFIED", bad), event("ADDED", SERVICE % ("a", 1)))) as client:
        assert [e.object.metadata.name for e in await collect(client)] == ["a"]
    assert "does not fit" in caplog.text
    async with serving(stream(event("DELETED", bad))) as client:
        with pytest.raises(Gone):
            await collect(client)


async def test_a_silent_watch_ends() -> None:
    async with serving(stream(event("ADDED", SERVICE % ("a", 1)), hold=True), silence_limit=0.2) as client:
        assert len(await collect(client)) == 1


async def test_what_is_no_object_is_read_with_the_servers_clock() -> None:
    async def handler(request: web.Request) -> web.Response:
        if request.path == "/version":
            return web.Response(text="{}", headers={"Date": "Thu, 01 Jan 2026 12:00:00 GMT"})
        return web.Response(status=404, text='{"message":"not found","reason":"NotFound","code":404}')

    async with serving(handler) as client:
        document = await client.read("/version")
        assert (document.body, document.date) == (b"{}", datetime(2026, 1, 1, 12, tzinfo=UTC))
        with pytest.raises(NotFound):
            await client.read("/apis/no.such/v1")
