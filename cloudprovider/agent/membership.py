"""Which hosts of an instance are there: this one's Lease, kept fresh, and its fellows', watched.

An agent that has served goes on serving while its API server is away: a control plane's outage is no traffic outage.
So its Lease is a sign of life for others and no permission, and while the API server can't be reached nobody is taken
for silent: what is known stays. Only an agent of the same name on another machine is stood aside for, as both would say
that they are one host.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from cloudprovider.core.api.kubernetes import Lease, LeaseSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.errors import AlreadyExists, Conflict, KubeError, NotFound
from cloudprovider.core.hosts import (
    INSTANCE_LABEL,
    LEASE_DURATION,
    NODE_ANNOTATION,
    STANDING_ANNOTATION,
    Presence,
    Roster,
    standing_text,
)
from cloudprovider.core.naming import agent_lease_name, label_value
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.lease import HOLDER_MARK
from cloudprovider.kube.liveness import is_proven_dead, sign_of_life
from cloudprovider.kube.resources import LEASES

log = logging.getLogger(__name__)


LEAST_PAUSE: Final = 0.1
"""Seconds between a renewal and the next, however long it took."""


@dataclass(frozen=True)
class Timing:
    """Seconds. ``lost``: without a renewal for so long, the API server counts as lost; ``look``: between two looks at
    who has fallen silent; ``settle``: for so long nothing is taken from a host that has come, or come back: by then the
    controller has said that it owns what it still has."""

    duration: int = LEASE_DURATION
    renew: float = 5.0
    retry: float = 2.0
    lost: float = 10.0
    look: float = 1.0
    settle: float = 10.0


class Membership:
    """``monotonic`` is the clock of the roster; ``now`` the wall clock, for what people read."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        instance: str,
        node: str,
        *,
        rng: random.Random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float],
        timing: Timing | None = None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = agent_lease_name(instance, node)
        self._instance = instance
        self._node = node
        self._identity = f"{node}_{uuid4().hex[:8]}"
        self._now = now
        self._monotonic = monotonic
        self._timing = timing or Timing()
        self._rng = rng
        self._mark = ""
        self._mine: Lease | None = None
        """The Lease as this agent last wrote it, so that a renewal is one request: where the API server takes seconds
        for each, two in turn would take longer than others wait."""
        self._seen = ""
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._standing: Mapping[str, Presence] | None = None
        """None: not known yet. Until then the Lease says what the agent before said: its kernel goes on."""
        self._poke = asyncio.Event()
        self._silent: frozenset[str] = frozenset()
        self._settled: frozenset[str] = frozenset()
        self._changed: Callable[[], None] = lambda: None
        self._leases: Informer[Lease] = Informer(
            client, LEASES, rng=rng, namespace=namespace, label_selector=f"{INSTANCE_LABEL}={label_value(instance)}"
        )
        self._leases.on_change(self._lease_changed)
        self.roster = Roster(monotonic, duration=self._timing.duration)
        self.serving = False
        """Whether the Lease is this agent's."""

    @property
    def synced(self) -> asyncio.Event:
        """Set when the fellows' Leases have been read."""
        return self._leases.synced

    @property
    def is_cut_off(self) -> bool:
        """Whether the API server is out of reach, so that nothing is known of who is silent."""
        return self._monotonic() - self._renewed_at > self._timing.lost

    def is_alive(self, host: str) -> bool:
        """Whether a host is there, as far as its Lease tells; as before while that can't be known."""
        return self.roster.host(host) is not None and (self.is_cut_off or self.roster.is_fresh(host))

    def has_settled(self, host: str) -> bool:
        """Whether a host has been there for long enough that what it has may be taken from it."""
        return self.roster.there_for(host) >= self._timing.settle

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back when somebody came, settled, went, fell silent or stands otherwise. One callback: the last one."""
        self._changed = callback

    def set_standing(self, standing: Mapping[str, Presence]) -> None:
        """How this host stands on its networks now; others are told at once."""
        if standing != self._standing:
            self._standing = dict(standing)
            self._poke.set()

    async def run(self, told: Callable[[bool], None]) -> None:
        """Work for ever; ``told`` hears after each look whether this agent is to serve (True), or another one that
        bears the same name. Raises ConfigurationError when that one is on this machine."""
        with sign_of_life(self._path, self._identity) as self._mark:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._leases.run())
                group.create_task(self._look())
                group.create_task(self._renew(told))

    async def release(self) -> None:
        """Leave for good: others need not wait for this host any more."""
        try:
            await self._client.delete(LEASES, self._namespace, self._name)
        except NotFound:
            return

    async def _renew(self, told: Callable[[bool], None]) -> None:
        while True:
            self._poke.clear()
            began = self._monotonic()
            try:
                serving = await self._step()
            except KubeError as err:
                # Silence changes nothing.
                log.warning("lease not renewed", extra={"lease": self._name, "error": str(err)})
            else:
                if serving:
                    self._renewed_at = self._monotonic()
                if serving != self.serving:
                    self.serving = serving
                    log.info("serving" if serving else "another agent of this name serves", extra={"lease": self._name})
                told(serving)
            seconds = (self._timing.renew if self.serving else self._timing.retry) * (0.9 + 0.2 * self._rng.random())
            left = max(began + seconds - self._monotonic(), LEAST_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._poke.wait()

    async def _look(self) -> None:
        """Notice who falls silent, and who has settled: no event tells of it."""
        while True:
            await asyncio.sleep(self._timing.look)
            silent = frozenset(name for name in self.roster.hosts if not self.is_alive(name))
            settled = frozenset(filter(self.has_settled, self.roster.hosts))
            for name in sorted(silent - self._silent):
                log.warning("a host has fallen silent", extra={"host": name, "seconds": self._timing.duration})
            news = silent != self._silent or settled - self._settled
            self._silent, self._settled = silent, settled
            if news:
                self._changed()

    def _lease_changed(self, old: Lease | None, new: Lease | None) -> None:
        before = dict(self.roster.hosts)
        if new is not None:
            self.roster.observe(new)
        elif old is not None:
            self.roster.forget(old)
        if self.roster.hosts != before:
            self._changed()

    async def _step(self) -> bool:
        if (mine := self._mine) is not None:
            self._mine = None
            try:
                await self._write(
                    mine, self._spec(mine.spec.acquire_time or self._stamp(), mine.spec.lease_transitions)
                )
            except (Conflict, NotFound):
                log.info("the lease was written by somebody else, or deleted", extra={"lease": self._name})
            else:
                return True
        return await self._take()

    async def _take(self) -> bool:
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
        except NotFound:
            try:
                made = Lease(metadata=self._metadata(None), spec=self._spec(self._stamp(), 1))
                self._mine = await self._client.create(LEASES, made)
            except AlreadyExists:
                return False
            return True
        if lease.metadata.resource_version != self._seen:
            self._seen = lease.metadata.resource_version
            self._seen_at = self._monotonic()
        holder = lease.spec.holder_identity
        mine = holder == self._identity
        # Expiry is measured by our own clock from the last change that we saw: clocks of hosts may differ.
        expired = self._monotonic() - self._seen_at > (lease.spec.lease_duration_seconds or self._timing.duration)
        mark = lease.metadata.annotations.get(HOLDER_MARK, "")
        if not (mine or not holder or expired or is_proven_dead(self._path, holder, mark)):
            return False
        acquired = lease.spec.acquire_time if mine and lease.spec.acquire_time else self._stamp()
        transitions = lease.spec.lease_transitions + (0 if mine else 1)
        try:
            await self._write(lease, self._spec(acquired, transitions))
        except Conflict:
            return self.serving and mine
        return True

    async def _write(self, lease: Lease, spec: LeaseSpec) -> None:
        written = await self._client.replace(LEASES, Lease(metadata=self._metadata(lease), spec=spec))
        self._mine = written
        self._seen = written.metadata.resource_version
        self._seen_at = self._monotonic()

    def _metadata(self, lease: Lease | None) -> ObjectMeta:
        """Of the next version of the Lease; somebody else's labels and annotations stay."""
        before = lease.metadata if lease is not None else ObjectMeta(name=self._name, namespace=self._namespace)
        said = before.annotations.get(STANDING_ANNOTATION, standing_text({}))
        return ObjectMeta(
            name=self._name,
            namespace=self._namespace,
            resource_version=before.resource_version,
            uid=before.uid,
            labels={**before.labels, INSTANCE_LABEL: label_value(self._instance)},
            annotations={
                **before.annotations,
                NODE_ANNOTATION: self._node,
                STANDING_ANNOTATION: said if self._standing is None else standing_text(self._standing),
                HOLDER_MARK: self._mark,
            },
        )

    def _spec(self, acquired: str, transitions: int) -> LeaseSpec:
        return LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=self._timing.duration,
            acquire_time=acquired,
            renew_time=self._stamp(),
            lease_transitions=transitions,
        )

    @property
    def _path(self) -> str:
        return f"{self._namespace}/{self._name}"

    def _stamp(self) -> str:
        return self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
