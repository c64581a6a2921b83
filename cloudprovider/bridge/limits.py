"""How much of the bridge one tenant may use: calls a second, calls at once, open streams."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from cloudprovider.bridge.api import QuotaExceeded, Reason
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import Tenant

MAX_SMOOTHING_SECONDS = 1.0
"""A call over the rate waits this long at most; beyond that it is refused, and told when to come again."""
STREAM_RETRY_SECONDS = 10.0


class TokenBucket:
    """A rate with a burst of one second's worth. ``now`` is a monotonic clock in seconds."""

    def __init__(self, rate: int, now: Callable[[], float]) -> None:
        self._now = now
        self._tokens = float(rate)
        self._at = now()
        self.rate = rate

    def take(self) -> float:
        """Take one token and return how many seconds to wait before using it.

        Raises BridgeError RATE_LIMITED, taking none, if that is more than MAX_SMOOTHING_SECONDS.
        """
        now = self._now()
        self._tokens = min(self.rate, self._tokens + (now - self._at) * self.rate)
        self._at = now
        wait = (1 - self._tokens) / self.rate
        if wait > MAX_SMOOTHING_SECONDS:
            raise BridgeError(
                f"the tenant makes more than its {self.rate} calls a second (GuestCluster.spec.quota.callsPerSecond)",
                reason=Reason.RATE_LIMITED,
                retry_after=wait,
            )
        self._tokens -= 1
        return max(0.0, wait)


class FairGate:
    """Lets ``limit`` calls in at once, and gives a place that becomes free to the next tenant in turn.

    A tenant with a thousand calls waiting thus delays another's first call by one call at most.
    """

    def __init__(self, limit: int, *, waiting_per_tenant: int = 2000) -> None:
        self._free = limit
        self._waiting_per_tenant = waiting_per_tenant
        self._waiting: OrderedDict[Tenant, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, tenant: Tenant) -> AsyncIterator[None]:
        """Wait for a place, and hold it. Raises BridgeError RATE_LIMITED when too many of the tenant wait already."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, tenant: Tenant) -> None:
        queue = self._waiting.setdefault(tenant, deque())
        if len(queue) >= self._waiting_per_tenant:
            raise BridgeError(
                f"{len(queue)} calls of the tenant wait already", reason=Reason.RATE_LIMITED, retry_after=1.0
            )
        place = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._pass_on()  # the place came together with the cancellation
            else:
                queue.remove(place)
                if not queue and self._waiting.get(tenant) is queue:
                    del self._waiting[tenant]
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            tenant, queue = self._waiting.popitem(last=False)
            place = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class StreamSlots:
    """How many streams each tenant has open."""

    def __init__(self) -> None:
        self._open: dict[Tenant, int] = {}

    @contextmanager
    def slot(self, tenant: Tenant, limit: int) -> Iterator[None]:
        """Hold one stream. Raises QuotaExceeded ``streams``."""
        count = self._open.get(tenant, 0)
        if count >= limit:
            raise QuotaExceeded(
                f"the tenant has {count} streams open, its limit (GuestCluster.spec.quota.streams):"
                " does a second copy of the guest program run?",
                subject="streams",
                retry_after=STREAM_RETRY_SECONDS,
            )
        self._open[tenant] = count + 1
        try:
            yield
        finally:
            self._open[tenant] -= 1
            if not self._open[tenant]:
                del self._open[tenant]
