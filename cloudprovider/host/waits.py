"""How long load balancers wait for their address, and until they are ready."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cloudprovider.core.addressing import is_ours
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.conditions import find
from cloudprovider.host.clock import Clock
from cloudprovider.kube.informer import Informer


@dataclass
class _Wait:
    since: float
    for_address: bool = True


class Waits:
    """Measures from the first sight of a load balancer; of one that waited before this program began, from its creation
    (to the second). One that has had its address then is not measured: nobody knows how long that took.

    ``time`` is monotonic, in seconds; ``address_after`` and ``ready_after`` are told the seconds, once each.
    """

    def __init__(
        self,
        *,
        now: Clock,
        time: Callable[[], float],
        address_after: Callable[[float], None],
        ready_after: Callable[[float], None],
    ) -> None:
        self._now = now
        self._time = time
        self._address_after = address_after
        self._ready_after = ready_after
        self._waiting: dict[str, _Wait] = {}
        """By UID."""

    def follow(self, load_balancers: Informer[LoadBalancer]) -> None:
        """Look at all changes; before the first."""

        def changed(old: LoadBalancer | None, new: LoadBalancer | None) -> None:
            if new is None:
                if old is not None:
                    self._waiting.pop(old.metadata.uid, None)
            elif old is None:
                self._begin(new, listed=not load_balancers.synced.is_set())
            else:
                self._look(new)

        load_balancers.on_change(changed)

    def _begin(self, lb: LoadBalancer, *, listed: bool) -> None:
        if lb.status.addresses or lb.metadata.deletion_timestamp or not is_ours(lb):
            return
        age = 0.0
        if listed and lb.metadata.creation_timestamp:
            created = datetime.fromisoformat(lb.metadata.creation_timestamp)
            age = max(0.0, (self._now() - created).total_seconds())
        self._waiting[lb.metadata.uid] = _Wait(self._time() - age)

    def _look(self, lb: LoadBalancer) -> None:
        uid = lb.metadata.uid
        wait = self._waiting.get(uid)
        if wait is None:
            return
        if lb.metadata.deletion_timestamp:
            del self._waiting[uid]
            return
        if wait.for_address and lb.status.addresses:
            wait.for_address = False
            self._address_after(self._time() - wait.since)
        ready = find(lb.status.conditions, "Ready")
        if not wait.for_address and ready is not None and ready.status == "True":
            del self._waiting[uid]
            self._ready_after(self._time() - wait.since)
