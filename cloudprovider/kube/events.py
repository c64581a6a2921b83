"""Events for people (``kubectl describe``): one request each, never in the way of the work they tell about."""

import asyncio
import logging
import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from cloudprovider.core.api.kubernetes import Event, EventSource, ObjectReference
from cloudprovider.core.api.meta import KubeObject, ObjectMeta
from cloudprovider.core.errors import AlreadyExists, KubeError, Unavailable
from cloudprovider.core.news import News
from cloudprovider.core.times import rfc3339
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.resources import EVENTS

T = TypeVar("T", bound=KubeObject)
K = TypeVar("K")
V = TypeVar("V")

_log = logging.getLogger(__name__)

MESSAGE_LIMIT = 1024
"""Bytes of a message: core/v1's bound for events."""
BACKOFF = Backoff(base=0.5, limit=10.0)


@dataclass(frozen=True)
class Bounds:
    """How much is said. The same reason and message about an object once in ``window`` seconds; about one object
    ``burst`` events, then one every ``refill`` seconds; ``queue`` events waiting and ``remembered`` keys at most."""

    window: float = 600.0
    burst: int = 10
    refill: float = 60.0
    queue: int = 5000
    remembered: int = 20000
    workers: int = 1
    attempts: int = 4


class EventRecorder:
    """Records events of one program. ``component`` is its name, ``instance`` which of its processes this is.

    :meth:`record` never waits and never fails; :meth:`run` posts, until it is cancelled. ``dropped`` counts what
    was too much, or could not be posted.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        component: str,
        instance: str,
        now: Callable[[], datetime],
        rng: random.Random,
        bounds: Bounds | None = None,
    ) -> None:
        self.dropped = 0
        self._client = client
        self._component = component
        self._instance = instance
        self._now = now
        self._rng = rng
        self._bounds = bounds or Bounds()
        self._queue: asyncio.Queue[Event] = asyncio.Queue(self._bounds.queue)
        self._said: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def record(self, resource: Resource[T], obj: T, news: News, message: str) -> None:
        """Tell ``message`` about ``obj``. Repetitions and floods are dropped."""
        metadata = obj.metadata
        about = metadata.uid or f"{resource.plural}/{metadata.namespace}/{metadata.name}"
        now = asyncio.get_running_loop().time()
        if self._was_said((about, news.reason, message), now):
            return
        if self._queue.full() or not self._take_token(about, now):
            self.dropped += 1
            return
        self._remember(self._said, (about, news.reason, message), now)
        self._queue.put_nowait(self._event(resource, obj, news, message))

    async def idle(self) -> None:
        """Wait until everything recorded has been posted or dropped."""
        await self._queue.join()

    async def run(self) -> None:
        """Post what is recorded, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._bounds.workers):
                group.create_task(self._post_all())

    async def _post_all(self) -> None:
        while True:
            event = await self._queue.get()
            try:
                await self._post(event)
            finally:
                self._queue.task_done()

    async def _post(self, event: Event) -> None:
        for attempt in range(1, self._bounds.attempts + 1):
            try:
                await self._client.create(EVENTS, event)
            except AlreadyExists:
                return  # an earlier attempt, whose answer was lost
            except Unavailable as error:
                if attempt < self._bounds.attempts:
                    await asyncio.sleep(max(BACKOFF.delay(attempt, self._rng), min(error.retry_after or 0, 10)))
                    continue
                self._give_up(event, error)
            except KubeError as error:
                self._give_up(event, error)
            return

    def _give_up(self, event: Event, error: KubeError) -> None:
        self.dropped += 1
        _log.warning(
            "An event could not be posted.",
            extra={"reason": event.reason, "about": event.involved_object.name, "error": str(error)},
        )

    def _event(self, resource: Resource[T], obj: T, news: News, message: str) -> Event:
        time = rfc3339(self._now())
        metadata = obj.metadata
        # As client-go names them, cut so that the object's own name may have any length.
        stem = metadata.name[:230].rstrip("-.")
        name = f"{stem}.{self._rng.getrandbits(64):016x}"
        return Event(
            metadata=ObjectMeta(name=name, namespace=metadata.namespace or "default"),
            involved_object=ObjectReference(
                api_version=resource.api_version,
                kind=resource.kind,
                namespace=metadata.namespace,
                name=metadata.name,
                uid=metadata.uid,
                resource_version=metadata.resource_version,
            ),
            reason=news.reason,
            message=_cut(message),
            type=news.type,
            source=EventSource(component=self._component),
            count=1,
            first_timestamp=time,
            last_timestamp=time,
            reporting_component=self._component,
            reporting_instance=self._instance,
        )

    def _was_said(self, what: tuple[str, str, str], now: float) -> bool:
        while self._said and next(iter(self._said.values())) <= now - self._bounds.window:
            self._said.popitem(last=False)
        return what in self._said

    def _take_token(self, about: str, now: float) -> bool:
        tokens, at = self._tokens.get(about, (float(self._bounds.burst), now))
        tokens = min(self._bounds.burst, tokens + (now - at) / self._bounds.refill)
        allowed = tokens >= 1
        self._remember(self._tokens, about, (tokens - 1 if allowed else tokens, now))
        return allowed

    def _remember(self, memory: OrderedDict[K, V], key: K, value: V) -> None:
        memory[key] = value
        memory.move_to_end(key)
        if len(memory) > self._bounds.remembered:
            memory.popitem(last=False)


def _cut(message: str) -> str:
    data = message.encode()
    if len(data) <= MESSAGE_LIMIT:
        return message
    return data[: MESSAGE_LIMIT - 3].decode(errors="ignore") + "..."
