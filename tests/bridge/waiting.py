"""Waiting for things, with a limit."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from cloudprovider.bridge.api import BridgeClient, BridgeEvent, Connected, StateChange
from cloudprovider.core.exchange import LoadBalancerState, ServiceKey

T = TypeVar("T")
LIMIT = 20.0


class Watched:
    """A client's watch, read into what it tells."""

    def __init__(self, client: BridgeClient) -> None:
        self.events: list[BridgeEvent] = []
        self.states: dict[ServiceKey, LoadBalancerState] = {}
        self.removed: set[ServiceKey] = set()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._read(client.watch()))

    async def _read(self, events: AsyncIterator[BridgeEvent]) -> None:
        fresh: set[ServiceKey] | None = None
        async for event in events:
            self.events.append(event)
            if isinstance(event, Connected):
                fresh = None if event.resumed else set()
            elif isinstance(event, StateChange):
                for state in event.updated:
                    self.states[state.service] = state
                    if fresh is not None:
                        fresh.add(state.service)
                for key in event.removed:
                    self.states.pop(key, None)
                    self.removed.add(key)
                if event.synced:
                    assert fresh is not None
                    for key in self.states.keys() - fresh:
                        del self.states[key]
                    fresh = None
            self._changed.set()

    async def until(self, condition: Callable[[], T]) -> T:
        """Wait until ``condition`` holds; return what it returned."""
        async with asyncio.timeout(LIMIT):
            while not (found := condition()):
                self._changed.clear()
                if self._task.done():
                    self._task.result()
                    raise AssertionError("the watch has ended")
                await self._changed.wait()
        return found

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self.events if isinstance(event, kind)]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
