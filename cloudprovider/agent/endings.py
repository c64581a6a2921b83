"""Connections of one network that are to be ended: of listeners that are gone, and of nodes whose time is over."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress, ListenerKey
from cloudprovider.core.transitions import Transitions
from cloudprovider.core.wanted import LoadBalancerKey
from cloudprovider.dataplane.api import Connections, Segment

FLUSH_PAUSE: Final = 0.25
"""Seconds between two walks through the connections."""


class Endings:
    """What is to be ended, and who ends it. ``changed``: look at these load balancers again; ``wake``: flush again.
    ``clock``: monotonic, in seconds."""

    def __init__(
        self,
        transitions: Callable[[], Transitions],
        clock: Callable[[], float],
        *,
        changed: Callable[[Iterable[LoadBalancerKey]], None],
        wake: Callable[[], None],
    ) -> None:
        self._transitions = transitions
        self._clock = clock
        self._changed = changed
        self._wake = wake
        self._forgotten: dict[IPAddress, dict[ListenerKey, LoadBalancerKey]] = {}
        self._flushed_at = -FLUSH_PAUSE
        self._flush_due = False

    def forget_listeners(self, key: LoadBalancerKey, listeners: Iterable[ListenerKey]) -> None:
        """A load balancer has given these up: their connections go before its addresses may go to others."""
        for listener in listeners:
            self._forgotten.setdefault(listener.vip, {})[listener] = key

    @property
    def vips(self) -> Collection[IPAddress]:
        """The addresses that may still have connections of a listener that is gone."""
        return self._forgotten.keys()

    async def find_strays(self, connections: Connections) -> None:
        """See, once the rules are as wanted, which connections an agent before has left: those of listeners that are
        gone are ended, those to nodes that have left get their time."""
        transitions = self._transitions()
        found = await connections.backends()
        await connections.forget_listeners(found.keys() - transitions.forwards.keys())
        transitions.drain_strays(((key, node) for key, nodes in found.items() for node in nodes), self._clock())

    async def flush(self, segment: Segment, apply: Callable[[], Awaitable[None]]) -> None:
        """End connections, at most every FLUSH_PAUSE: the kernel walks its whole table each time. ``apply`` brings
        the kernel's rules up to date."""
        transitions = self._transitions()
        loop = asyncio.get_running_loop()
        if not (self._forgotten or transitions.ends_at(self._clock())):
            return
        early = self._flushed_at + FLUSH_PAUSE - loop.time()
        if early > 0:
            if not self._flush_due:
                self._flush_due = True
                loop.call_later(early, self._wake)
            return
        self._flushed_at, self._flush_due = loop.time(), False
        forgotten = {listener: key for of in self._forgotten.values() for listener, key in of.items()}
        due = transitions.due(self._clock())
        try:
            await segment.connections.forget_listeners(forgotten.keys() - transitions.forwards.keys())
            await segment.connections.forget_backends(due.udp, protocol="UDP")
            await segment.connections.forget_backends(due.tcp, protocol="TCP")
            if due.pins:
                # First there is no way back: a flow that is unpinned before would be pinned anew by its next packet.
                await apply()
                await segment.engine.unpin(due.pins)
        except DataPlaneError:
            transitions.again(due, self._clock())
            raise
        for listener, key in forgotten.items():
            of = self._forgotten[listener.vip]
            if of.get(listener) == key:
                del of[listener]
            if not of:
                del self._forgotten[listener.vip]
        self._changed(set(forgotten.values()))
