"""How it stands with each router, of what the engine says of it now and before: state, since when, and why, in words.

Pure: the clock (Unix time, seconds) is an argument. A router that ends the session again and again is in one state,
"Flapping", until it has been quiet: whatever tells of states must not tell of each drop.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from cloudprovider.core.bgp import Neighbor

State = Literal["Established", "Connecting", "Flapping"]

FLAPS: Final = 3
FLAP_SECONDS: Final = 120.0
"""So many drops within so many seconds: it is flapping."""

_BAD_AS: Final = "Bad Peer AS"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the engine says of a neighbor. ``drops``: since it began; ``ended``: why the session last ended, in the
    engine's words; ``by_router``: by whom. ``advertised``: addresses that were said to it and hold."""

    established: bool = False
    advertised: int = 0
    drops: int = 0
    ended: str = ""
    by_router: bool = False


@dataclass(frozen=True, kw_only=True)
class Session:
    """How it stands with a router. ``since``: Unix time. ``drops``: since this program began."""

    state: State
    since: float
    advertised: int = 0
    drops: int = 0
    error: str = ""


@dataclass
class _History:
    session: Session
    counted: int = 0
    times: deque[float] = field(default_factory=lambda: deque(maxlen=FLAPS))


class Sessions:
    """Those of one engine, by neighbor's name."""

    def __init__(self) -> None:
        self._histories: dict[str, _History] = {}

    @property
    def now(self) -> Mapping[str, Session]:
        """As of the last that was heard."""
        return {name: history.session for name, history in self._histories.items()}

    def hear(self, neighbors: Mapping[str, tuple[Neighbor, Seen]], own_asn: int, now: float) -> bool:
        """Take what is said of all that there are; return whether anything is otherwise than before."""
        before = self.now
        for name in self._histories.keys() - neighbors.keys():
            del self._histories[name]
        for name, (neighbor, seen) in neighbors.items():
            self._hear(name, neighbor, seen, own_asn=own_asn, now=now)
        return self.now != before

    def _hear(self, name: str, neighbor: Neighbor, seen: Seen, *, own_asn: int, now: float) -> None:
        history = self._histories.get(name)
        if history is None:  # an engine that was found may have counted before
            first: State = "Established" if seen.established else "Connecting"
            history = self._histories[name] = _History(Session(state=first, since=now), counted=seen.drops)
        more = seen.drops - history.counted if seen.drops >= history.counted else seen.drops  # it began anew
        history.counted = seen.drops
        history.times.extend([now] * min(more, FLAPS))
        flapping = len(history.times) == FLAPS and now - history.times[0] <= FLAP_SECONDS
        state: State = "Flapping" if flapping else "Established" if seen.established else "Connecting"
        was = history.session
        history.session = replace(
            was,
            state=state,
            since=was.since if was.state == state else now,
            advertised=seen.advertised if seen.established else 0,
            drops=was.drops + more,
            error=_error(state, neighbor, seen, own_asn),
        )


def _error(state: State, neighbor: Neighbor, seen: Seen, own_asn: int) -> str:
    if state == "Established":
        return ""
    if _BAD_AS in seen.ended and seen.by_router:
        return (
            f"{neighbor.address} does not take this host for AS {own_asn}: correct spec.myASN, or the AS number that"
            " the router has for this host."
        )
    if _BAD_AS in seen.ended:
        return f"{neighbor.address} is not of AS {neighbor.asn}: correct spec.peerASN."
    ended = f"{'the router' if seen.by_router else 'this host'} ended it: {seen.ended}" if seen.ended else ""
    if state == "Flapping":
        return (
            f"The session with {neighbor.address} comes up and ends again and again; last,"
            f" {ended or 'the connection broke'}. The router's log says more."
        )
    password = "" if not neighbor.password else ", with the same password"
    silence = (
        f"{neighbor.address} does not answer on TCP port {neighbor.port}: see that it is up, and speaks BGP to"
        f" {neighbor.source}{password or ', without a password'} (with another one, it seems silent)."
    )
    return f"{silence} Last, {ended}." if ended else silence
