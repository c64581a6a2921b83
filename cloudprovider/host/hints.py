"""What guests say their Services show: addresses to take back, and to give to nobody else, if their record is lost.

Kept in memory only. Nothing is lost by that: what is recorded needs no hint, and a guest tells its whole inventory
again after every reconnect. A host that was restored from a backup begins without records (and perhaps without the
objects themselves), so after a start two things wait for the guests, no longer than ``wait_seconds``:

- a load balancer without address that no guest has spoken of yet;
- where records are missing, every address that nobody shows: it could be one that a guest which has not been heard
  yet shows. After a start with its records whole nobody waits for that.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.exchange import Tenant
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.plan import IPAddress

Key = tuple[str, str]

READOPTION_SECONDS: Final = 30.0
"""How long after the start guests are waited for: connecting anew takes one at most this long."""
GONE_SECONDS: Final = 60.0
"""An inventory may still name what went within this time: it was on its way (a call takes 30 s at most)."""


@dataclass(frozen=True)
class Hint:
    """A Service's load balancer ``key`` has, or had, these addresses, says its guest."""

    key: Key
    tenant: Tenant
    shown: tuple[IPAddress, ...]


class Hints:
    """The addresses shown, by the LoadBalancer's (namespace, name). ``time`` is monotonic, in seconds."""

    def __init__(self, time: Callable[[], float], *, wait_seconds: float = READOPTION_SECONDS) -> None:
        self._time = time
        self._wait_seconds = wait_seconds
        self._until = time() + wait_seconds
        self._told: dict[Key, Hint] = {}
        self._unsettled: dict[Key, Hint] = {}
        self._absent: dict[Tenant, set[Key]] = {}
        self._gone: dict[Key, float] = {}
        self._records_lost = False
        self._heard: set[Tenant] = set()
        self._unheard: set[Tenant] = set()
        self._all_heard = asyncio.Event()
        self._on_told: list[Callable[[Key], None]] = []
        self._on_dropped: list[Callable[[], None]] = []

    def on_told(self, callback: Callable[[Key], None]) -> None:
        """Call ``callback`` when something new is known of a load balancer."""
        self._on_told.append(callback)

    def on_dropped(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when addresses are no longer claimed."""
        self._on_dropped.append(callback)

    # --- what guests say -----------------------------------------------------------------------------------------

    def tell(self, tenant: Tenant, key: Key, shown: Sequence[IPAddress]) -> None:
        """A guest speaks of a Service. What it shows now is remembered; showing nothing (yet) takes nothing back."""
        known = self._told.get(key)
        if known is not None and (not shown or known.shown == tuple(shown)):
            return
        hint = self._told[key] = Hint(key, tenant, tuple(shown))
        if shown:
            self._unsettled[key] = hint
        for callback in self._on_told:
            callback(key)

    def tell_all(
        self,
        tenant: Tenant,
        shown: Mapping[Key, Sequence[IPAddress]],
        present: Collection[Key],
        *,
        complete: bool,
        limit: int,
    ) -> None:
        """A guest tells its inventory. ``present``: the load balancers that there are.

        Of those that there are not (any more) at most ``limit`` count, until a ``complete`` inventory leaves them out.
        """
        absent = {k for k, addresses in shown.items() if addresses and k not in present and not self._went(k)}
        before = self._absent.pop(tenant, set())
        if not complete:
            absent |= before
        if kept := set(sorted(absent)[:limit]):
            self._absent[tenant] = kept
        self._drop(k for k in before - kept if k not in present)
        for key, addresses in shown.items():
            if key in present or key in kept:
                self.tell(tenant, key, addresses)
        if complete:
            self._heard.add(tenant)
            self._expect(self._unheard)

    def knows(self, key: Key) -> bool:
        """Whether a guest has spoken of the load balancer."""
        return key in self._told

    def of(self, key: Key) -> tuple[IPAddress, ...]:
        """Return what the Service shows, as far as is known."""
        hint = self._told.get(key)
        return () if hint is None else hint.shown

    def unsettled(self) -> Iterator[Hint]:
        """Yield the hints not known to be recorded; :meth:`settle` may be called meanwhile."""
        yield from list(self._unsettled.values())

    def settle(self, key: Key) -> None:
        """The load balancer has got what it needs: what it shows need not be kept for it."""
        self._unsettled.pop(key, None)

    # --- what goes -----------------------------------------------------------------------------------------------

    def gone(self, key: Key) -> None:
        """The load balancer is gone, and nobody is to have its address again by right.

        (A Service made anew has another UID, and so another key.)
        """
        now = self._time()
        while self._gone and self._gone[oldest := next(iter(self._gone))] < now - GONE_SECONDS:
            del self._gone[oldest]
        self._gone.pop(key, None)
        self._gone[key] = now
        self._drop([key])

    def forget(self, key: Key) -> None:
        """What was told of it came to nothing."""
        self._drop([key])

    def tenant_gone(self, tenant: Tenant) -> None:
        """The tenant has ended: nobody is waited for, and nothing kept for it."""
        self._drop(self._absent.pop(tenant, ()))
        self._heard.add(tenant)
        self._expect(self._unheard)

    # --- waiting -------------------------------------------------------------------------------------------------

    def begin(self, tenants: Iterable[Tenant], *, records_lost: bool) -> None:
        """Begin to wait for the inventories of ``tenants``: the host has read what its cluster has."""
        self._until = self._time() + self._wait_seconds
        self._records_lost = records_lost
        self._expect(set(tenants))

    async def all_heard(self) -> None:
        """Wait until every guest has told its inventory, or has had its time to; then nobody is waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._until - self._time())):
                await self._all_heard.wait()
        self._unheard.clear()

    def suspect(self) -> None:
        """A guest shows an address that should have a record, and has none: there may be more of them."""
        self._records_lost = True

    @property
    def may_be_more(self) -> bool:
        """Whether a guest that has not been heard yet may show addresses whose records are lost."""
        return self._records_lost and bool(self._unheard)

    def wait(self, lb: LoadBalancer) -> float:
        """Return for how many seconds more ``lb`` should wait for its guest's word; 0: not at all."""
        if lb.key in self._told or service_of(lb) is None:
            return 0.0
        return max(0.0, self._until - self._time())

    def _expect(self, tenants: set[Tenant]) -> None:
        self._unheard = tenants - self._heard
        if self._unheard:
            self._all_heard.clear()
        else:
            self._all_heard.set()

    def _went(self, key: Key) -> bool:
        return self._gone.get(key, self._time() - GONE_SECONDS) > self._time() - GONE_SECONDS

    def _drop(self, keys: Iterable[Key]) -> None:
        claimed = False
        for key in keys:
            self._told.pop(key, None)
            claimed |= self._unsettled.pop(key, None) is not None
        if claimed:
            for callback in self._on_dropped:
                callback()
