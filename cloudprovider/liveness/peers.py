"""Whom a host follows, and what it knows of them: no I/O, the same for the real watch and the fake."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from cloudprovider.core.plan import IPAddress
from cloudprovider.liveness.api import Liveness, PeerState


def meeting_point(ours: Iterable[IPAddress], theirs: Iterable[IPAddress]) -> IPAddress | None:
    """By which of its addresses a host is to be followed, so that it chooses the same family for us: IPv4 where both
    have it, else IPv6. None where they have no family in common."""
    versions = {address.version for address in ours}
    return min((a for a in theirs if a.version in versions), key=lambda a: a.version, default=None)


class Peers:
    """The hosts that are followed. ``own``: our addresses, at most one a family. ``clock``: monotonic, in seconds."""

    def __init__(self, own: Collection[IPAddress], clock: Callable[[], float]) -> None:
        self._own = {address.version: address for address in own}
        self._clock = clock
        self._names: dict[IPAddress, str] = {}
        self._states: dict[str, PeerState] = {}
        self._callback: Callable[[str], None] = lambda _name: None

    @property
    def addresses(self) -> Collection[IPAddress]:
        """Of those that can be watched."""
        return self._names.keys()

    def own(self, peer: IPAddress) -> IPAddress:
        """By which of our addresses a host is watched."""
        return self._own[peer.version]

    def on_change(self, callback: Callable[[str], None]) -> None:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        self._callback = callback

    def state(self, name: str) -> PeerState:
        """See :class:`~cloudprovider.liveness.api.PeerWatch`."""
        return self._states.get(name, PeerState())

    def follow(self, peers: Mapping[str, IPAddress]) -> tuple[list[IPAddress], list[IPAddress]]:
        """Return what addresses are to be watched from now on, and, to be ended before, what no more. One that has gone
        to another host is in both: what was heard of it was the other's."""
        shared = Counter(peers.values())
        ours = self._own.values()
        names = {a: n for n, a in peers.items() if a.version in self._own and a not in ours and shared[a] == 1}
        before, self._names = self._names, names
        self._states = {n: self._states[n] for a, n in names.items() if before.get(a) == n and n in self._states}
        added = [a for a, name in names.items() if before.get(a) != name]
        return added, [a for a, name in before.items() if names.get(a) != name]

    def at(self, address: IPAddress) -> Liveness:
        """What is known of who is watched by an address."""
        return self.state(self._names.get(address, "")).liveness

    def become(self, address: IPAddress, liveness: Liveness, *, ago: float = 0.0) -> None:
        """Somebody was found to be so since ``ago`` seconds. The same as before is no change."""
        name = self._names.get(address)
        if name is None or self.state(name).liveness is liveness:
            return
        unknown = liveness is Liveness.UNKNOWN
        self._states[name] = PeerState() if unknown else PeerState(liveness, self._clock() - ago)
        self._callback(name)

    def forget(self) -> None:
        """Nothing is known of anybody any more."""
        for address in list(self._names):
            self.become(address, Liveness.UNKNOWN)
