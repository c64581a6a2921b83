"""What guests say their Services show: an address to take back if the host has lost its record of it.

Kept in memory only. Nothing is lost by that: what is recorded needs no hint, and a guest tells its whole inventory
again after every reconnect. So that a host without its records (restored from a backup) does not renumber before its
guests have come back, a load balancer without address that no guest has spoken of since the start waits a moment.
"""

from collections.abc import Callable, Sequence

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.plan import IPAddress

Key = tuple[str, str]

READOPTION_SECONDS = 30.0
"""How long after the start a load balancer waits for its guest: connecting anew takes a guest at most this long."""


class Hints:
    """The addresses shown, by the LoadBalancer's (namespace, name). ``time`` is monotonic, in seconds."""

    def __init__(self, time: Callable[[], float], *, wait_seconds: float = READOPTION_SECONDS) -> None:
        self._time = time
        self._until = time() + wait_seconds
        self._told: dict[Key, tuple[IPAddress, ...]] = {}

    def tell(self, key: Key, shown: Sequence[IPAddress]) -> None:
        """A guest speaks of a Service. What it shows now is remembered; showing nothing (yet) takes nothing back."""
        if shown or key not in self._told:
            self._told[key] = tuple(shown)

    def forget(self, key: Key) -> None:
        """The load balancer is gone, and nobody is to have its address again by right.

        (A Service made anew has another UID, and so another key.)
        """
        self._told.pop(key, None)

    def of(self, key: Key) -> tuple[IPAddress, ...]:
        """Return what the Service shows, as far as is known."""
        return self._told.get(key, ())

    def wait(self, lb: LoadBalancer) -> float:
        """Return for how many seconds more ``lb`` should wait for its guest's word; 0: not at all."""
        if lb.key in self._told or service_of(lb) is None:
            return 0.0
        return max(0.0, self._until - self._time())
