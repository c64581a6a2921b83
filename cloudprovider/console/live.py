"""Live pages: server-sent events made of a watch with the user's own token.

A stream lists, then watches; each change makes its page anew, at most once a second. It ends with its session, with
the watch's refusal, or after an hour (the page then asks again).
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from aiohttp import web

from cloudprovider.console.gate import session_of
from cloudprovider.console.sessions import STREAMS, Session
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import Forbidden, Gone, Invalid, KubeError
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.backoff import Backoff

T = TypeVar("T", bound=KubeObject)
V = TypeVar("V")

log = logging.getLogger(__name__)

ALL_STREAMS: Final = 256
"""Live pages of all sessions at a time."""
LONGEST_SECONDS: Final = 3600.0
PACE_SECONDS: Final = 0.5
"""From one message to the next."""
TICK_SECONDS: Final = 20.0
"""Without a change: then ages are shown anew, and a browser that has gone is noticed."""
WRITE_SECONDS: Final = 10.0
"""A browser that takes nothing for so long has gone."""
BACKOFF: Final = Backoff(base=0.5, limit=15.0)


@dataclass(frozen=True, kw_only=True)
class Topic(Generic[T, V]):
    """What a live page is about. ``keep`` makes an object small; ``name``: only the object of this name;
    ``refused``: what is told of a topic beside the page's own that its user may not follow."""

    resource: Resource[T]
    namespace: str = ""
    name: str = ""
    keep: Callable[[T], V]
    refused: str = ""

    @property
    def field_selector(self) -> str:
        """For the API server."""
        return f"metadata.name={self.name}" if self.name else ""


class Followed(dict[tuple[str, str], V]):
    """What is known of the objects of one kind, by (namespace, name). ``problem``: why it may be old; empty: it is not.
    ``changed`` is set when either is another, ``heard`` from the first answer on."""

    def __init__(self, changed: asyncio.Event | None = None) -> None:
        super().__init__()
        self.problem = ""
        self.changed = changed or asyncio.Event()
        self.heard = asyncio.Event()

    def told(self, problem: str = "") -> None:
        """There is news, be it that there is none (any more), and why."""
        self.problem = problem
        self.heard.set()
        self.changed.set()


@dataclass(frozen=True)
class Beside(Generic[T, V]):
    """A topic that a page looks at beside its own, and what is known of it."""

    topic: Topic[T, V]
    into: Followed[V] = field(default_factory=Followed)


Render = Callable[[Followed[V]], Awaitable[str]]


async def follow_once(client: KubeClient, topic: Topic[T, V]) -> Followed[V]:
    """What is to be known of a topic beside the page's own now. Raises Forbidden where the user is signed out."""
    into: Followed[V] = Followed()
    try:
        listed = await client.list(topic.resource, topic.namespace, field_selector=topic.field_selector)
        into.update({o.key: topic.keep(o) for o in listed.items})
        into.told()
    except KubeError as error:
        if error.status == 401:
            raise
        into.told(topic.refused if isinstance(error, Forbidden | Invalid) else str(error))
    return into


async def follow(client: KubeClient, topic: Topic[T, V], into: Followed[V], rng: random.Random) -> None:
    """Keep ``into`` as the API server has it, until cancelled. Raises Forbidden, Invalid: what time does not heal."""
    failures = 0
    while True:
        try:
            listed = await client.list(topic.resource, topic.namespace, field_selector=topic.field_selector)
            into.clear()
            into.update({o.key: topic.keep(o) for o in listed.items})
            failures = 0
            into.told()
            await _watch(client, topic, into, listed.resource_version)
        except Gone:
            await asyncio.sleep(PACE_SECONDS)
        except (Forbidden, Invalid):
            raise
        except KubeError as error:
            failures += 1
            into.told(str(error))
            await asyncio.sleep(BACKOFF.delay(failures, rng))


async def _watch(client: KubeClient, topic: Topic[T, V], into: Followed[V], version: str) -> None:
    while True:
        changes = client.watch(
            topic.resource, topic.namespace, resource_version=version, field_selector=topic.field_selector
        )
        async with aclosing(changes):
            async for change in changes:
                version = change.object.metadata.resource_version
                if change.type == "BOOKMARK":
                    continue
                if change.type == "DELETED":
                    into.pop(change.object.key, None)
                else:
                    into[change.object.key] = topic.keep(change.object)
                into.changed.set()
        await asyncio.sleep(PACE_SECONDS)  # a server that ends watches at once is not asked without pause


class Streams:
    """The live pages that are open."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._open = 0

    def __len__(self) -> int:
        return self._open

    async def serve(
        self, request: web.Request, topic: Topic[T, V], render: Render[V], beside: "Beside[Any, Any] | None" = None
    ) -> web.StreamResponse:
        """Answer with a stream of ``render``'s text, whenever it is another one. ``beside``: what else is looked at."""
        session = session_of(request)
        if session.streams >= STREAMS or self._open >= ALL_STREAMS:
            raise web.HTTPTooManyRequests(text="Too many live pages are open: close some.")
        session.streams += 1
        self._open += 1
        try:
            return await self._serve(request, session, topic, render, beside)
        finally:
            session.streams -= 1
            self._open -= 1

    async def _serve(
        self,
        request: web.Request,
        session: Session,
        topic: Topic[T, V],
        render: Render[V],
        beside: "Beside[Any, Any] | None",
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        try:
            await response.prepare(request)
        except ConnectionError:
            return response  # the browser has gone to another page already
        into: Followed[V] = Followed(beside.into.changed if beside is not None else None)
        source = asyncio.create_task(follow(session.client, topic, into, self._rng))
        page = asyncio.create_task(_send_pages(response, into, render, beside))
        ended = asyncio.create_task(session.ended.wait())
        tasks = [source, page, ended]
        if beside is not None:
            tasks.append(asyncio.create_task(_follow_beside(session.client, beside, self._rng)))
        try:
            await asyncio.wait(tasks[:3], timeout=LONGEST_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not page.done():
                await _say_goodbye(response, source, signed_out=session.ended.is_set())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return response


async def _follow_beside(client: KubeClient, beside: "Beside[T, V]", rng: random.Random) -> None:
    """A page goes on without what its user may not read beside it."""
    try:
        await follow(client, beside.topic, beside.into, rng)
    except (Forbidden, Invalid):
        beside.into.told(beside.topic.refused)


async def _send_pages(
    response: web.StreamResponse, into: Followed[V], render: Render[V], beside: "Beside[Any, Any] | None"
) -> None:
    """Until the browser has gone."""
    sent = ""
    await into.heard.wait()
    if beside is not None:
        await beside.into.heard.wait()
    while True:
        into.changed.clear()
        text = await render(into)
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await response.write(event(text) if text != sent else b": still here\n\n")
        except (ConnectionError, RuntimeError, TimeoutError):
            return
        sent = text
        await asyncio.sleep(PACE_SECONDS)
        try:
            async with asyncio.timeout(TICK_SECONDS):
                await into.changed.wait()
        except TimeoutError:
            pass


async def _say_goodbye(response: web.StreamResponse, source: "asyncio.Task[None]", *, signed_out: bool) -> None:
    """Tell the page what it should do, where it should not just ask again."""
    refused = source.done() and not source.cancelled() and isinstance(source.exception(), Forbidden | Invalid)
    if signed_out or refused:
        try:
            async with asyncio.timeout(1.0):
                await response.write(event("signed out" if signed_out else "refused", kind="over"))
        except (ConnectionError, RuntimeError, TimeoutError):
            return


def event(text: str, kind: str = "") -> bytes:
    """A message as https://html.spec.whatwg.org/multipage/server-sent-events.html writes it."""
    lines = [f"event: {kind}"] if kind else []
    lines += [f"data: {line}" for line in text.splitlines()]
    return ("\n".join(lines) + "\n\n").encode()
