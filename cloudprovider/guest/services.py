"""The Service controller: one Service at a time, from what it asks for to what its status says.

A Service costs three requests on its way to an address: the finalizer, the status with its condition, one event.
Each reconcile compares what is wanted with what is there and writes the difference; what it waits for (the host's
answer, a finalizer's removal, endpoints) brings the key back, so it never waits itself.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from cloudprovider.bridge.api import BridgeClient, QuotaExceeded
from cloudprovider.core.api.kubernetes import SERVICE_FINALIZER, EndpointSlice, LoadBalancerIngress, Service
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditions import find, same
from cloudprovider.core.errors import BridgeError, InvalidRequest, NotFound, NotPermitted
from cloudprovider.core.exchange import LoadBalancerRequest, LoadBalancerState, ServiceKey
from cloudprovider.core.news import DELETED, NOT_SERVED, PORTS_LEFT_OUT, SERVED
from cloudprovider.core.reasons import Heard
from cloudprovider.core.times import rfc3339
from cloudprovider.core.tracing import ADDRESSES, REASON
from cloudprovider.core.translate import Claim, Classes, service_key, shown_addresses, translate, unserved_ports
from cloudprovider.guest import ownership
from cloudprovider.guest.hostview import HostView, Name
from cloudprovider.guest.metrics import GuestMetrics
from cloudprovider.guest.records import Record
from cloudprovider.guest.servicestatus import (
    PENDING,
    READY,
    Problem,
    lease_is_over,
    pending_problem,
    problem_of_state,
    shown_conditions,
    wanted_conditions,
    wanted_ingress,
)
from cloudprovider.guest.traces import ServiceTraces
from cloudprovider.guest.writes import ServiceWriter
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import SERVICES

log = logging.getLogger(__name__)

NOTICE_SECONDS: Final = 10.0
"""What takes longer is told to the user: until then a Service may wait, or a call fail, without a word."""
QUOTA_EXCEEDED: Final = "QuotaExceeded"
NOT_PERMITTED_SECONDS: Final = 300.0
"""When a request outside the tenant's limits is tried again: an operator may have widened them."""
UNRETRYABLE_SECONDS: Final = 60.0
"""When a call is tried again that only an operator can heal (a certificate, a wrong binding)."""


class Endpoints(Protocol):
    """Where a Service's EndpointSlices come from."""

    def slices(self, name: Name) -> Sequence[EndpointSlice] | None:
        """Return the slices of one Service; None while they are not known yet (its key comes back when they are)."""
        ...


class ServiceController:
    """Reconciles Services; :meth:`handle` is what a work queue calls.

    ``gate`` is awaited before the host is asked for a load balancer that it may not know (see
    :class:`~cloudprovider.guest.inventory.InventoryReporter`); ``vanished`` is called when a Service went without
    its finalizer having been taken off by us.
    """

    def __init__(
        self,
        client: KubeClient,
        bridge: BridgeClient,
        services: Informer[Service],
        host: HostView,
        endpoints: Endpoints,
        *,
        classes: Classes,
        events: EventRecorder,
        metrics: GuestMetrics,
        rng: random.Random,
        gate: Callable[[ServiceKey], asyncio.Future[None] | None],
        vanished: Callable[[], None],
        traces: ServiceTraces,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._writer = ServiceWriter(client, services)
        self._bridge = bridge
        self._services = services
        self._host = host
        self._endpoints = endpoints
        self._classes = classes
        self._events = events
        self._metrics = metrics
        self._rng = rng
        self._gate = gate
        self._vanished = vanished
        self._traces = traces
        self._now = now
        self._records: dict[Name, Record] = {}
        self._over_quota: dict[Name, None] = {}

    def concerns(self, service: Service) -> bool:
        """Whether there may be anything to do for this Service."""
        return (
            self._classes.claim(service) is Claim.OURS
            or service.key in self._records
            or SERVICE_FINALIZER in service.metadata.finalizers
            or find(service.status.conditions, READY) is not None
            or bool(self._host.named(service.key))
        )

    def known(self) -> list[Name]:
        """Return the names of all Services that are looked after."""
        return list(self._records)

    def heard(self, key: ServiceKey, state: LoadBalancerState | None) -> Name | None:
        """Take note of a new state; None: the load balancer is gone. Return a Service that may find room now."""
        self._take_note(key, state)
        return self._next_in_line() if state is None else None

    def _take_note(self, key: ServiceKey, state: LoadBalancerState | None) -> None:
        record = self._records.get((key.namespace, key.name))
        if record is None or record.key != key:
            return
        if state is None:
            record.removals += 1
            record.forget_request()
        elif record.refused is not None:
            record.forget_request()

    def _next_in_line(self) -> Name | None:
        """One of those that the tenant's quota had no room for; one that is gone makes room for one."""
        while self._over_quota:
            name = next(iter(self._over_quota))
            del self._over_quota[name]
            record = self._records.get(name)
            if record is not None and record.refused is not None and record.refused[1].reason == QUOTA_EXCEEDED:
                record.forget_request()
                return name
        return None

    async def handle(self, name: Name) -> float | None:
        """Bring one Service to where it should be; return after how many seconds to look again, if at all.

        Raises KubeError and BridgeError for what a queue's backoff heals.
        """
        with self._traces.handled(name):
            return await self._handle(name)

    async def _handle(self, name: Name) -> float | None:
        service = self._services.get(*name)
        if service is None:
            self._gone(name)
            return None
        record = self._record(service)
        await self._delete_orphans(name, record)
        try:
            if self._classes.claim(service) is Claim.OURS and not service.metadata.deletion_timestamp:
                return await self._provide(service, record)
            return await self._give_up(service, record)
        except NotFound:
            return None  # deleted since: the watch brings it

    # -- a Service that wants a load balancer ----------------------------------------------------------------------

    async def _provide(self, service: Service, record: Record) -> float | None:
        problem: Problem | None = None
        again: float | None = None
        failure: BridgeError | None = None
        waiting = False
        try:
            slices = self._endpoints.slices(service.key) if service.spec.external_traffic_policy == "Local" else ()
            if slices is None:
                return None
            request = translate(service, slices)
        except InvalidRequest as e:
            problem = Problem.of_request(e)
        else:
            if not self._settled(record, request):
                service = await self._add_finalizer(service)
                try:
                    await self._ensure(service, record, request)
                except BridgeError as e:
                    failure = e
            waiting = not self._settled(record, request)
            if waiting:
                problem = self._what_it_waits_for(record, failure) if self._overdue(record) else None
                again = self._until_notice(record)
            elif record.refused is not None:
                problem = record.refused[1]
                again = None if record.refused_until is None else max(0.0, record.refused_until - self._time())
        again = _sooner(again, await self._write_status(service, record, problem, waiting=waiting))
        if failure is not None:
            raise failure
        return again

    def _settled(self, record: Record, request: LoadBalancerRequest) -> bool:
        """Whether the host has given its answer to just this request."""
        if record.session != self._host.session or record.deleting is not None:
            return False
        if record.refused is not None and record.refused[0] == request:
            return record.refused_until is None or self._time() < record.refused_until
        return record.accepted == request

    async def _ensure(self, service: Service, record: Record, request: LoadBalancerRequest) -> None:
        """Ask the host, if it can be asked now, and note its answer. Raises BridgeError for what time may heal."""
        if not self._host.connected:
            return  # its return brings the key back
        if record.deleting is not None:
            if not self._deleted(record) and record.deleting[0] == self._host.session:
                return  # the old one must go first; the host tells when
            record.deleting = None
        gate = self._gate(record.key)
        if gate is not None:
            await asyncio.shield(gate)
        session, removals = self._host.session, record.removals
        try:
            with self._traces.follow(service.key, "EnsureLoadBalancer", kind="client") as span:
                shown = shown_addresses(service)
                state = await self._bridge.ensure(record.key, request, shown, trace=span.context)
        except NotPermitted as e:
            record.refuse(request, Problem.of_request(e), session, self._time() + self._jittered(NOT_PERMITTED_SECONDS))
        except InvalidRequest as e:
            record.refuse(request, Problem.of_request(e), session, None)
        except QuotaExceeded as e:
            until = self._time() + self._jittered(e.retry_after or NOT_PERMITTED_SECONDS)
            record.refuse(request, Problem(QUOTA_EXCEEDED, str(e)), session, until)
            self._over_quota[record.key.namespace, record.key.name] = None
        except BridgeError as e:
            if e.retryable:
                raise
            record.refuse(request, _bridge_problem(e), session, self._time() + self._jittered(UNRETRYABLE_SECONDS))
        else:
            if record.removals == removals:
                record.accept(request, session)
                self._host.learn(state)

    def _what_it_waits_for(self, record: Record, failure: BridgeError | None) -> Problem:
        error = failure or self._host.error
        if error is not None:
            return _bridge_problem(error)
        if record.deleting is not None:
            return Problem(
                PENDING, "the host still deletes this Service's earlier load balancer; its end is waited for"
            )
        return Problem("HostNotReached", "the host's bridge has not answered yet; the guest program's log says more")

    def _overdue(self, record: Record) -> bool:
        """Whether what a Service waits for takes so long that its user should hear of it."""
        if record.waiting_since is None:
            record.waiting_since = self._time()
        return self._time() - record.waiting_since >= NOTICE_SECONDS

    def _until_notice(self, record: Record) -> float | None:
        if record.waiting_since is None or self._overdue(record):
            return None
        return record.waiting_since + NOTICE_SECONDS - self._time()

    async def _add_finalizer(self, service: Service) -> Service:
        meta = service.metadata
        if SERVICE_FINALIZER in meta.finalizers:
            return service
        return await self._writer.set_finalizers(service, [*meta.finalizers, SERVICE_FINALIZER])

    async def _write_status(
        self, service: Service, record: Record, problem: Problem | None, *, waiting: bool
    ) -> float | None:
        """Write addresses and conditions if they are not there already; return when to look again."""
        state = self._host.state(record.key)
        unserved = unserved_ports(service)
        ingress = wanted_ingress(service, state, unserved)
        shown = service.status.load_balancer.ingress
        if problem is None and state is not None:
            problem = problem_of_state(state)
        again: float | None = None
        ours: Sequence[LoadBalancerIngress] | None = shown if ownership.holds(service, record) else None
        if ingress:
            verdict = ownership.judge(service, ingress, record, self._time())
            problem, again = verdict.problem or problem, verdict.wait
            ours = ingress if verdict.ours else None
            if not waiting:
                record.waiting_since = None
        elif ours is not None and lease_is_over(state):
            ours, problem = [], problem or pending_problem(state)
        elif problem is None:
            if not self._overdue(record):
                return self._until_notice(record)
            problem = pending_problem(state)
        conditions = wanted_conditions(service, state, problem, unserved, rfc3339(self._now()))
        if not same(shown_conditions(service), conditions) or (ours is not None and list(ours) != list(shown)):
            said = {ADDRESSES: " ".join(one.ip for one in ours or ()), REASON: problem.reason if problem else ""}
            with self._traces.follow(service.key, "Service status", attributes=said):
                result = await self._writer.apply_status(service, ours, conditions)
            if ingress and not shown and not record.published:
                self._metrics.address_after(self._time() - record.first_seen)
            if ingress and ours is not None:
                ownership.wrote(service, ingress, record, self._time())
            self._tell(service, result)
        elif ingress and ours is not None:
            record.wrote = tuple(ingress)
        record.published = record.published or bool(ingress)
        return again

    def _tell(self, before: Service, after: Service) -> None:
        """Announce what a status write has changed for the user."""
        moved = before.status.load_balancer.ingress != after.status.load_balancer.ingress
        for new in shown_conditions(after):
            old = find(before.status.conditions, new.type)
            if new.type == READY and new.status == "True":
                if moved or old is None or old.status != new.status:
                    self._events.record(SERVICES, after, SERVED, new.message)
            elif old is None or _says(old) != _says(new):
                about = NOT_SERVED if new.type == READY else PORTS_LEFT_OUT
                self._events.record(SERVICES, after, about.because(Heard(new.reason)), new.message)
                if new.type == READY:
                    return  # it says all there is to say

    # -- a Service that wants none (any more) ----------------------------------------------------------------------

    async def _give_up(self, service: Service, record: Record) -> float | None:
        held = SERVICE_FINALIZER in service.metadata.finalizers
        known = self._host.state(record.key) is not None
        if not (known or (held and self._is_ours(service, record))):
            if self._host.synced or not held:
                if self._classes.claim(service) is Claim.NONE and not service.metadata.deletion_timestamp:
                    await self._clear_status(service)
                self._records.pop(service.key, None)
            return None  # not synced: what the host knows decides, and brings the key back
        if not self._deleted(record):
            if not self._host.connected:
                return None
            if record.deleting is None or record.deleting[0] != self._host.session:
                record.forget_request()
                asked = (self._host.session, record.removals)
                with self._traces.follow(service.key, "DeleteLoadBalancer", kind="client") as span:
                    await self._bridge.delete(record.key, trace=span.context)
                record.deleting = asked
            if not self._deleted(record):
                return None  # the host tells when
        if not service.metadata.deletion_timestamp:
            service = await self._clear_status(service)
        if held:
            left = [f for f in service.metadata.finalizers if f != SERVICE_FINALIZER]
            with self._traces.follow(service.key, "Service released"):
                await self._writer.set_finalizers(service, left)
        if not service.metadata.deletion_timestamp:
            self._events.record(SERVICES, service, DELETED, "the load balancer is deleted and its address given back")
        self._records.pop(service.key, None)
        return None

    def _is_ours(self, service: Service, record: Record) -> bool:
        """Whether the finalizer was set by us: others use the same. With another class it may be another instance's
        of this program; without a class (any more) our condition tells."""
        claim = self._classes.claim(service)
        if claim is Claim.OURS or record.accepted is not None or record.deleting is not None:
            return True
        marked = find(service.status.conditions, READY) is not None
        return claim is Claim.NONE and (marked or self._classes.default)

    @staticmethod
    def _deleted(record: Record) -> bool:
        """Whether the host has said, since it was asked to delete the load balancer, that it is gone."""
        return record.deleting is not None and record.removals > record.deleting[1]

    async def _clear_status(self, service: Service) -> Service:
        if find(service.status.conditions, READY) is None:
            return service
        return await self._writer.apply_status(service, None, ())

    # -- bookkeeping -----------------------------------------------------------------------------------------------

    def _record(self, service: Service) -> Record:
        key = service_key(service)
        record = self._records.get(service.key)
        if record is None or record.key != key:
            record = self._records[service.key] = Record(key=key, first_seen=self._time())
        return record

    def _gone(self, name: Name) -> None:
        """The Service is not there any more. If the host still has a load balancer for it, it went without us: a list
        that came up short looks just so. The inventory deletes it then, and the host judges how much is too much."""
        self._records.pop(name, None)
        if self._host.named(name):
            self._vanished()

    async def _delete_orphans(self, name: Name, record: Record) -> None:
        """Delete the load balancers of earlier Services of this name: another UID stands there now."""
        if not self._host.connected:
            return
        for key in self._host.named(name):
            if key.uid != record.key.uid and key not in record.orphans:
                await self._bridge.delete(key)
                record.orphans.add(key)

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(1.0, 1.25)

    @staticmethod
    def _time() -> float:
        return asyncio.get_running_loop().time()


def _bridge_problem(error: BridgeError) -> Problem:
    word = "".join(part.capitalize() for part in error.reason.split("_")) or "BridgeFailed"
    return Problem(Heard(word), str(error))


def _says(condition: Condition) -> tuple[str, str, str]:
    return condition.status, condition.reason, condition.message


def _sooner(a: float | None, b: float | None) -> float | None:
    return min((t for t in (a, b) if t is not None), default=None)
