"""Leader election on a Lease (coordination.k8s.io/v1), with a fencing token.

The leader proves itself by renewing; its work is cancelled, and awaited, before anybody else can take the lease, also
when the API server is frozen: every request has a time-out below the retry period, and all waiting is by the event
loop's monotonic clock. The wall clock only fills the fields that people read; a candidate judges a lease by how long
it has itself seen no renewal, as client-go does.

A leader that was killed (SIGKILL, out of memory, a crash) leaves its Lease behind. Where it is proven to be dead
(:mod:`cloudprovider.kube.liveness`: a container started again in its pod, a process started again on its machine) the
next candidate there takes the Lease at once; where not, when it expires. Each way ``leaseTransitions`` grows, so that
a leader which had been taken for dead, by whatever error, would find at its next renewal that its term is over. A
request that the dead sent last may still be carried out, with this as with any lease: writes need preconditions.
"""

import asyncio
import logging
import random
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import uuid4

import msgspec

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import Conflict, KubeError, NotFound
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.liveness import is_proven_dead, sign_of_life
from cloudprovider.kube.resources import LEASES

_log = logging.getLogger(__name__)

HOLDER_MARK: Final = "cloudprovider.harvesterhci.io/holder-mark"
"""The annotation with the holder's mark, by which its death can be proven."""


LOOK_SECONDS: Final = 0.25
"""How often a candidate looks whether the holder lives, where it can see that without a request."""


@dataclass(frozen=True)
class Timing:
    """Seconds. Much as client-go's, with a bound for requests: one that is lost can be sent again before the deadline,
    and an API server that takes five seconds for each is waited for, twice in turn. Work must end within
    ``lease_duration - renew_deadline`` after it is cancelled."""

    lease_duration: int = 15
    renew_deadline: float = 12.0
    retry_period: float = 2.0
    request_timeout: float = 6.0

    def __post_init__(self) -> None:
        if not 0 < max(self.request_timeout, self.retry_period) < self.renew_deadline < self.lease_duration:
            raise ValueError(f"{self}: must be request_timeout, retry_period < renew_deadline < lease_duration")


def identity_of(name: str) -> str:
    """Return an identity that is this process's alone: ``name`` (the host's if "") for people, and a random part."""
    return f"{name or socket.gethostname()}_{uuid4().hex[:8]}"


class _Lost(Exception):
    """Somebody else has the lease, or it is gone."""


@dataclass
class _Term:
    """One time in office. ``renewed_at``: when the last successful renewal was sent."""

    lease: Lease
    renewed_at: float

    @property
    def token(self) -> int:
        return self.lease.spec.lease_transitions


class Elector:
    """One candidate for the Lease ``namespace``/``name``.

    ``identity`` must be this process's alone (see :func:`identity_of`): two that share one would both lead.
    ``now`` gives the wall clock in UTC.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        now: Callable[[], datetime],
        rng: random.Random,
        timing: Timing | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._now = now
        self._rng = rng
        self._timing = timing or Timing()
        self._seen = ""  # the version of another's lease, and when it was first seen
        self._seen_at = 0.0
        self._token: int | None = None
        self._mark = ""
        self._woken = asyncio.Event()
        self._held: Lease | None = None
        """Another's lease, as it was last seen."""

    @property
    def token(self) -> int | None:
        """The fencing token while this candidate leads, else None."""
        return self._token

    def wake(self) -> None:
        """The lease may have become free: if this candidate waits, it looks at once."""
        self._woken.set()

    async def run_while_leader(self, work: Callable[[int], Awaitable[None]]) -> None:
        """Contend for the lease, and run ``work(token)`` while holding it.

        ``token`` grows with every term of any candidate (``leaseTransitions``), as long as the Lease is not deleted.
        When the lease is lost, ``work`` is cancelled and awaited, and the contest begins anew. Returns when ``work``
        does and raises what it raises. Then, and when cancelled, the lease is released after ``work`` has ended.
        Raises ConfigurationError when another live process here has the same identity.
        """
        with sign_of_life(self._path, self._identity) as self._mark:
            while True:
                term = await self._acquire()
                _log.info("Became the leader.", extra={"lease": self._name, "fencing_token": term.token})
                if await self._lead(term, work):
                    return
                _log.warning(
                    "Lost the lease; work was stopped.", extra={"lease": self._name, "fencing_token": term.token}
                )
                await asyncio.sleep(self._rng.uniform(0.5, 1.0) * self._timing.retry_period)

    async def _lead(self, term: _Term, work: Callable[[int], Awaitable[None]]) -> bool:
        """One term. True when ``work`` ended by itself, False when the lease was lost."""
        self._token = term.token
        renewing = asyncio.create_task(self._renew_until_lost(term), name=f"{self._name} renew")
        working = asyncio.create_task(_call(work, term.token), name=f"{self._name} work")
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = working.done()
            await _end(working)  # renewed meanwhile, so that nobody else begins before it has ended
            if not finished and not working.cancelled() and (error := working.exception()) is not None:
                _log.error("Work failed while it was stopped.", extra={"lease": self._name}, exc_info=error)
            self._token = None
            held = not renewing.done()
            await _end(renewing)
            if held:
                await self._release(term)
        if not held:
            renewing.result()
        if finished:
            working.result()
        return finished

    async def _acquire(self) -> _Term:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout(self._timing.request_timeout):
                    lease = await self._try_acquire()
                if lease is not None:
                    return _Term(lease, began)
            except (KubeError, TimeoutError) as error:
                _log.info("The lease could not be taken.", extra={"lease": self._name, "error": str(error)})
            await self._pause(self._rng.uniform(1.0, 1.2) * self._timing.retry_period)

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until somebody wakes us, or the holder is seen to be dead, which asks nobody."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not self._woken.is_set() and (left := until - loop.time()) > 0:
            if self._held is not None and self._holder_is_dead(self._held):
                break
            try:
                async with asyncio.timeout(min(left, LOOK_SECONDS)):
                    await self._woken.wait()
            except TimeoutError:
                continue
        self._woken.clear()

    async def _try_acquire(self) -> Lease | None:
        self._held = None
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
        except NotFound:
            new = Lease(metadata=ObjectMeta(namespace=self._namespace, name=self._name))
            return await self._client.create(LEASES, self._taken(new))
        now = asyncio.get_running_loop().time()
        if self._seen != lease.metadata.resource_version:
            self._seen, self._seen_at = lease.metadata.resource_version, now
        expired = now >= self._seen_at + lease.spec.lease_duration_seconds
        # Also when it is ours already (an answer was lost): a new term has a new token.
        if lease.spec.holder_identity in {"", self._identity} or expired or self._holder_is_dead(lease):
            return await self._client.replace(LEASES, self._taken(lease))
        self._held = lease
        return None

    def _holder_is_dead(self, lease: Lease) -> bool:
        mark = lease.metadata.annotations.get(HOLDER_MARK, "")
        dead = is_proven_dead(self._path, lease.spec.holder_identity, mark)
        if dead:
            _log.info(
                "The leader is dead; its lease need not expire.",
                extra={"lease": self._name, "holder": lease.spec.holder_identity},
            )
        return dead

    def _taken(self, lease: Lease) -> Lease:
        time = self._time()
        annotations = {**lease.metadata.annotations, HOLDER_MARK: self._mark}
        return msgspec.structs.replace(
            lease,
            metadata=msgspec.structs.replace(lease.metadata, annotations=annotations),
            spec=LeaseSpec(
                holder_identity=self._identity,
                lease_duration_seconds=self._timing.lease_duration,
                acquire_time=time,
                renew_time=time,
                lease_transitions=lease.spec.lease_transitions + 1,
            ),
        )

    async def _renew_until_lost(self, term: _Term) -> None:
        loop = asyncio.get_running_loop()
        next_at = term.renewed_at + self._timing.retry_period
        while True:
            deadline = term.renewed_at + self._timing.renew_deadline
            await asyncio.sleep(min(next_at, deadline) - loop.time())
            began = loop.time()
            if began >= deadline:
                return
            next_at = began + self._timing.retry_period
            try:
                async with asyncio.timeout_at(min(began + self._timing.request_timeout, deadline)):
                    await self._renew(term)
            except _Lost:
                return
            except (KubeError, TimeoutError) as error:
                _log.warning(
                    "The lease could not be renewed.",
                    extra={
                        "lease": self._name,
                        "error": str(error) or "no answer in time",
                        "seconds_left": round(deadline - loop.time(), 1),
                    },
                )
            else:
                term.renewed_at = began

    async def _renew(self, term: _Term) -> None:
        try:
            try:
                term.lease = await self._client.replace(LEASES, self._renewed(term.lease))
            except Conflict:
                # An answer of ours was lost, somebody labelled the object, or we are no longer the leader.
                current = await self._client.get(LEASES, self._namespace, self._name)
                if (current.spec.holder_identity, current.spec.lease_transitions) != (self._identity, term.token):
                    raise _Lost from None
                term.lease = await self._client.replace(LEASES, self._renewed(current))
        except NotFound:
            raise _Lost from None

    def _renewed(self, lease: Lease) -> Lease:
        return msgspec.structs.replace(lease, spec=msgspec.structs.replace(lease.spec, renew_time=self._time()))

    async def _release(self, term: _Term) -> None:
        """Let the next one begin at once. If that fails, it begins when the lease expires."""
        spec = msgspec.structs.replace(
            term.lease.spec, holder_identity="", lease_duration_seconds=1, renew_time=self._time()
        )
        try:
            async with asyncio.timeout(self._timing.request_timeout):
                await self._client.replace(LEASES, msgspec.structs.replace(term.lease, spec=spec))
        except (KubeError, TimeoutError) as error:
            _log.warning("The lease could not be released.", extra={"lease": self._name, "error": str(error)})

    @property
    def _path(self) -> str:
        return f"{self._namespace}/{self._name}"

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _call(work: Callable[[int], Awaitable[None]], token: int) -> None:
    await work(token)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait until it has ended, however often we are cancelled ourselves meanwhile."""
    task.cancel()
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
