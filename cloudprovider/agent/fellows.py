"""The other hosts as they are heard on one network: who of them is dead, long before its Lease says so.

Whose own link is down, or who hears none of several fellows any more, is itself cut off, and must not take what they
have. Where there is but one, the gateway tells: if it does not answer either, it is this host that is cut off.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from ipaddress import ip_address

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.hosts import Host
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import NetworkConfig, Segment
from cloudprovider.liveness.api import Liveness, PeerWatch

log = logging.getLogger(__name__)

MakeWatch = Callable[[Segment, NetworkConfig], PeerWatch]
"""Makes what watches the other hosts on a network."""


class Fellows:
    """``changed``: somebody is dead now, or heard again, or this host is cut off."""

    def __init__(self, me: str, config: NetworkConfig, make_watch: MakeWatch, *, changed: Callable[[], None]) -> None:
        self._me = me
        self._config = config
        self._make_watch = make_watch
        self._changed = changed
        self._watch: PeerWatch | None = None
        self._peers: Mapping[str, IPAddress] = {}
        self._looking = asyncio.Event()
        self._down: frozenset[str] = frozenset()
        """Who is silent, once it is known that it is not this host."""
        self._unheard = False
        """Whether it is this host that nobody hears."""
        self._segment: Segment | None = None

    def follow(self, hosts: Mapping[str, Host]) -> None:
        """Watch these hosts, where they stand on the network with an address of their own."""
        found: dict[str, IPAddress] = {}
        for name, host in sorted(hosts.items()):
            there = host.networks.get(self._config.name)
            if name != self._me and there is not None and there.addresses:
                found[name] = ip_address(there.addresses[0])
        if found != self._peers:
            self._peers = found
            if self._watch is not None:
                self._watch.follow(found)

    @property
    def is_cut_off(self) -> bool:
        """Whether it is this host that can't be reached."""
        return self._unheard or (self._segment is not None and not self._segment.carries)

    @property
    def heard(self) -> Mapping[str, bool]:
        """The hosts of which it is known, and whether they are heard."""
        states = {name: self._state(name) for name in self._peers}
        return {name: state is Liveness.UP for name, state in states.items() if state is not Liveness.UNKNOWN}

    def is_down(self, host: str) -> bool:
        """Whether a host is dead or cut off, and not this one."""
        return host in self._down

    async def run(self, segment: Segment) -> None:
        """Watch on a network's segment until cancelled."""
        self._segment = segment
        watch = self._watch = self._make_watch(segment, self._config)
        watch.on_change(lambda _: self._looking.set())
        watch.follow(self._peers)
        running = asyncio.create_task(watch.run())
        try:
            while not running.done():
                looking = asyncio.create_task(self._looking.wait())
                await asyncio.wait({running, looking}, return_when=asyncio.FIRST_COMPLETED)
                looking.cancel()
                if self._looking.is_set():
                    self._looking.clear()
                    await self._look(segment)
            running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self._watch = self._segment = None
            self._down, self._unheard = frozenset(), False

    async def _look(self, segment: Segment) -> None:
        silent = [name for name in self._peers if self._is_silent(name)]
        known = [name for name in self._peers if self._state(name) is not Liveness.UNKNOWN]
        cut_off = bool(silent) and len(silent) == len(known) and not await self._hears_anybody(segment, silent)
        if cut_off != self._unheard:
            self._unheard = cut_off
            log.warning(
                "nobody is heard on a network: this host is cut off there" if cut_off else "heard again on a network",
                extra={"network": self._config.name},
            )
        self._down = frozenset() if cut_off else frozenset(silent)
        if self._down:
            log.warning("hosts are dead or cut off", extra={"network": self._config.name, "hosts": silent})
        self._changed()

    async def _hears_anybody(self, segment: Segment, silent: Collection[str]) -> bool:
        if not segment.carries:
            return False
        gateways = [gateway for gateway in (self._config.gateway,) if gateway is not None]
        if not gateways:
            return len(silent) == 1  # it may be the other one as well
        try:
            return any(claim.conflict for claim in await segment.announcer.probe(gateways))
        except DataPlaneError as error:
            log.warning("the gateway was not asked", extra={"network": self._config.name, "error": str(error)})
            return False

    def _is_silent(self, host: str) -> bool:
        return self._state(host) is Liveness.DOWN

    def _state(self, host: str) -> Liveness:
        return self._watch.state(host).liveness if self._watch is not None else Liveness.UNKNOWN
