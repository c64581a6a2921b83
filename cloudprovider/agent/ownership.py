"""Which agent of an instance serves: one Lease, read the careful way round.

An agent that has served goes on serving while its API server is away: a control plane's outage is no traffic outage.
It yields only when it reads that another agent holds the Lease, whose ``leaseTransitions`` then is newer than its own.
So this is no leader election in the usual sense (which gives up at the renew deadline); two agents may both serve for
as long as one of them is cut off from the API server, and the clients follow the one that announced last.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import AlreadyExists, Conflict, KubeError, NotFound
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.resources import LEASES

log = logging.getLogger(__name__)

LEASE_DURATION = 15.0
"""Seconds after which others may take a Lease that is not renewed."""
RENEW_EVERY = 5.0
RETRY_EVERY = 2.0


class Ownership:
    """Holds (or waits for) one Lease, and says when that changes."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._now = now
        self._monotonic = monotonic
        self._sleep = sleep
        self._jitter = jitter
        self._seen = ""
        self._seen_at = 0.0
        self.serving = False

    async def run(self, told: Callable[[bool], None]) -> None:
        """Work for ever; ``told`` hears after each look whether this agent is to serve (True) or another one does."""
        while True:
            try:
                serving = await self._step()
            except KubeError as err:
                # Silence changes nothing.
                log.warning("lease not renewed", extra={"lease": self._name, "error": str(err)})
            else:
                if serving != self.serving:
                    self.serving = serving
                    log.info("serving" if serving else "standing by", extra={"lease": self._name})
                told(serving)
            await self._sleep((RENEW_EVERY if self.serving else RETRY_EVERY) * (0.9 + 0.2 * self._jitter()))

    async def release(self) -> None:
        """Let another agent take over at once, if it is this one that holds the Lease."""
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
        except NotFound:
            return
        if lease.spec.holder_identity == self._identity:
            await self._write(
                lease, LeaseSpec(lease_transitions=lease.spec.lease_transitions, lease_duration_seconds=1)
            )

    async def _step(self) -> bool:
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
        except NotFound:
            meta = ObjectMeta(name=self._name, namespace=self._namespace)
            try:
                await self._client.create(LEASES, Lease(metadata=meta, spec=self._spec(self._stamp(), 0)))
            except AlreadyExists:
                return False
            return True
        if lease.metadata.resource_version != self._seen:
            self._seen = lease.metadata.resource_version
            self._seen_at = self._monotonic()
        mine = lease.spec.holder_identity == self._identity
        # Expiry is measured by our own clock from the last change that we saw: clocks of hosts may differ.
        expired = self._monotonic() - self._seen_at > (lease.spec.lease_duration_seconds or LEASE_DURATION)
        if not mine and lease.spec.holder_identity and not expired:
            return False
        acquired = lease.spec.acquire_time if mine and lease.spec.acquire_time else self._stamp()
        transitions = lease.spec.lease_transitions + (0 if mine else 1)
        try:
            await self._write(lease, self._spec(acquired, transitions))
        except Conflict:
            return self.serving and mine
        return True

    async def _write(self, lease: Lease, spec: LeaseSpec) -> None:
        written = await self._client.replace(LEASES, Lease(metadata=lease.metadata, spec=spec))
        self._seen = written.metadata.resource_version
        self._seen_at = self._monotonic()

    def _spec(self, acquired: str, transitions: int) -> LeaseSpec:
        return LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=int(LEASE_DURATION),
            acquire_time=acquired,
            renew_time=self._stamp(),
            lease_transitions=transitions,
        )

    def _stamp(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
