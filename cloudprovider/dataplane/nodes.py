"""Who of the guests' nodes stands on a link: the frames and the clock of :class:`~.nodewatch.NodeWatch`.

Meets :class:`cloudprovider.dataplane.api.Nodes`.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Interface
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.heard import Heard
from cloudprovider.dataplane.neighbours import Neighbours
from cloudprovider.dataplane.nodewatch import NodeWatch, Pace

_logger: Final = logging.getLogger(__name__)

_TICK: Final = 0.025
"""Seconds between two looks at whom to ask: questions that fall due between them go out together."""
_TELL_EVERY: Final = 0.1
"""Seconds between two callbacks at least: whoever floods the network with claims does not occupy the agent."""


class KernelNodes:
    """The nodes on one link. Made in a running event loop; ``own`` is the namespace's own IPv4 address there."""

    def __init__(
        self,
        neighbours: Neighbours,
        own: IPv4Interface | None,
        *,
        pace: Pace,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._neighbours = neighbours
        self._own = own
        self._watch = NodeWatch(pace, chance)
        self._loop = asyncio.get_running_loop()
        self._callback: Callable[[], None] | None = None
        self._known: Mapping[IPAddress, MACAddress] | None = None
        self._followed: frozenset[IPAddress] = frozenset()
        self._timer: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._told = self._loop.time() - _TELL_EVERY
        self._mute = ""
        neighbours.listen(self._hear)

    def follow(self, addresses: Collection[IPAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        wanted = frozenset(addresses)
        if wanted == self._followed:
            return
        self._followed = wanted
        if self._watch.follow(wanted, self._loop.time()):
            self._changed()
        self._wake()

    @property
    def known(self) -> Mapping[IPAddress, MACAddress]:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        if self._known is None:
            self._known = dict(self._watch.known)
        return self._known

    def settled(self, address: IPAddress) -> bool:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        return self._watch.settled(address, self._loop.time())

    def on_change(self, callback: Callable[[], None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Nodes`."""
        self._callback = callback

    def restart(self) -> None:
        """The link has come back: ask for all again, at once."""
        self._watch.restart(self._loop.time())
        self._wake()

    def close(self) -> None:
        """Ask no more, and hear no more."""
        self._followed = frozenset()
        for timer in (self._timer, self._telling):
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now = self._loop.time()
        due = self._watch.due(now)
        self._timer = self._loop.call_at(max(due, now + _TICK), self._ask) if due is not None else None

    def _ask(self) -> None:
        asks, changed = self._watch.asks(self._loop.time())
        trouble = ""
        for address, to in asks:
            if address.version == 6 and not self._neighbours.ipv6:
                continue  # nobody answers what nobody can ask
            own = self._own.ip if self._own is not None and address in self._own.network else None
            try:
                self._neighbours.ask(address, own=own, to=to)
            except DataPlaneError as error:
                trouble = str(error)
        if asks and trouble != self._mute:
            self._mute = trouble
            if trouble:
                _logger.warning("Nodes can't be asked for.", extra={"error": trouble})
        if changed:
            self._changed()
        self._timer = None
        self._wake()

    def _hear(self, heard: Heard) -> None:
        if heard.sender not in self._followed or not heard.honest:
            return
        mac = MACAddress(heard.mac)
        if mac.is_unicast and self._watch.hear(heard.sender, mac, self._loop.time()):
            self._changed()
            self._wake()

    def _changed(self) -> None:
        self._known = None
        if self._telling is None:
            self._telling = self._loop.call_at(max(self._loop.time(), self._told + _TELL_EVERY), self._tell)

    def _tell(self) -> None:
        self._telling = None
        self._told = self._loop.time()
        if self._callback is not None:
            self._callback()
