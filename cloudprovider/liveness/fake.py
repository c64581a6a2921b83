"""The shipped fake of the seam in :mod:`cloudprovider.liveness.api`: hosts on a network in memory, that hear each other
at once."""

import asyncio
from collections.abc import Callable, Collection, Mapping

from cloudprovider.core.plan import IPAddress
from cloudprovider.liveness.api import Liveness, PeerState, Rhythm
from cloudprovider.liveness.peers import Peers


class FakeLan:
    """What all hosts share. ``clock``: monotonic, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.running: list[FakePeerWatch] = []
        self._cut: set[FakePeerWatch] = set()

    def cut(self, watch: "FakePeerWatch") -> None:
        """A host is dead or cut off: it and the others are down for each other."""
        self._cut.add(watch)
        self._hear(Liveness.DOWN)

    def mend(self, watch: "FakePeerWatch") -> None:
        """It is back."""
        self._cut.discard(watch)
        self._hear(Liveness.UNKNOWN)

    def fail(self, watch: "FakePeerWatch") -> None:
        """A host's engine dies, and is started anew."""
        self.running.remove(watch)
        self._hear(Liveness.DOWN)
        watch.peers.forget()
        self.join(watch)

    def join(self, watch: "FakePeerWatch") -> None:
        """A host begins to watch, or watches others."""
        if watch not in self.running:
            self.running.append(watch)
        asyncio.get_running_loop().call_soon(self._hear, Liveness.UNKNOWN)

    def leave(self, watch: "FakePeerWatch") -> None:
        """A host stops watching, and says so."""
        self.running.remove(watch)
        self._hear(Liveness.UNKNOWN)

    def _hear(self, otherwise: Liveness) -> None:
        """All that run and follow each other are up for each other; those that were and no more are, are ``otherwise``
        from now on."""
        there = {own: watch for watch in self.running if watch not in self._cut for own in watch.own}
        for watch in list(self.running):
            for peer in list(watch.peers.addresses):
                own, other = watch.peers.own(peer), there.get(peer)
                if own in there and other is not None and own in other.peers.addresses:
                    watch.peers.become(peer, Liveness.UP)
                elif watch.peers.at(peer) is Liveness.UP:
                    watch.peers.become(peer, otherwise)


class FakePeerWatch:
    """See :class:`~cloudprovider.liveness.api.PeerWatch`. ``own``: its addresses, at most one a family."""

    def __init__(self, lan: FakeLan, own: Collection[IPAddress]) -> None:
        self.own = own
        self.peers = Peers(own, lan.clock)
        self._lan = lan

    def follow(self, peers: Mapping[str, IPAddress], rhythms: Mapping[str, Rhythm] = {}) -> None:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        self.peers.follow(peers)
        if self in self._lan.running:
            self._lan.join(self)

    def state(self, name: str) -> PeerState:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        return self.peers.state(name)

    def on_change(self, callback: Callable[[str], None]) -> None:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        self.peers.on_change(callback)

    async def run(self) -> None:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        self._lan.join(self)
        try:
            await asyncio.Event().wait()
        finally:
            self._lan.leave(self)
            self.peers.forget()
