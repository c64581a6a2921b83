"""Each load balancer by itself: from what it is to what it should be, whatever happened before."""

import asyncio
import random
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, cast

import msgspec

from cloudprovider.core.addressing import Refusal, is_ours
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import Namespace
from cloudprovider.core.api.loadbalancer import FINALIZER, TRACE_ANNOTATION, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.errors import NotFound
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.ledger import Held
from cloudprovider.core.news import ADDRESS_CONFLICT, MACHINES_OUT
from cloudprovider.core.placement import Placement, conflicts, controlled_status, disposable, is_current, place
from cloudprovider.core.times import rfc3339
from cloudprovider.core.tracing import ADDRESSES, REASON, LoadBalancerTrails, Tracer
from cloudprovider.core.wants import Release
from cloudprovider.host.batches import Batches, Key
from cloudprovider.host.book import AddressBook, Room
from cloudprovider.host.caches import Caches, project_of
from cloudprovider.host.clock import Clock
from cloudprovider.host.hints import Hints
from cloudprovider.host.hosts import Hosts
from cloudprovider.host.machines import Machines, news_of_machines
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import LOADBALANCERS

FIELD_MANAGER: Final = "cloudprovider-controller"
WORKERS: Final = 32
"""As many as the client has connections: more would only wait there."""
BACKOFF: Final = Backoff(base=0.1, limit=15.0)
"""After an outage of the API server a load balancer waits no longer for its address than the caches for their news."""

GATHER_SECONDS: Final = 0.1
"""A load balancer is looked at this long after the first change of its machines: many that start at once cost few
writes."""

CONFLICT_TIME: Final = timedelta(minutes=10)
"""For how long an address that somebody else has is not handed out."""


class LoadBalancers:
    """Follows the load balancers: asks for addresses, writes the controller's part of their status, gives back."""

    def __init__(
        self,
        client: KubeClient,
        caches: Caches,
        book: AddressBook,
        hints: Hints,
        events: EventRecorder,
        *,
        machines: Machines,
        tracer: Tracer,
        hosts: Hosts,
        now: Clock,
        rng: random.Random,
        block_write: Callable[[str], None],
    ) -> None:
        self._trails = LoadBalancerTrails(tracer)
        self._client = client
        self._events = events
        self._caches = caches
        self._book = book
        self._hints = hints
        self._now = now
        self._said: dict[Key, Refusal] = {}
        """The refusals written last."""
        self.queue: WorkQueue[Key] = WorkQueue(
            self._reconcile,
            name="load-balancers",
            workers=WORKERS,
            rng=rng,
            backoff=BACKOFF,
            group=lambda key: key[0],
        )
        self.batches = Batches(
            client,
            caches,
            book,
            now=now,
            rng=rng,
            done=self.queue.add,
            is_due=self._is_due,
            block_write=block_write,
        )
        self._machines = machines
        self._hosts = hosts
        caches.load_balancers.on_change(self._changed)
        caches.guest_clusters.on_change(self._tenant_changed)
        caches.namespaces.on_change(self._namespace_changed)
        book.on_room(self._pools_changed)
        book.on_unrecorded(self._unrecorded)
        book.on_recorded(self._recorded)
        hints.on_told(self._told)
        hosts.on_change(self.queue.add)
        machines.on_change(lambda key: self.queue.add_after(key, GATHER_SECONDS))

    async def run(self) -> None:
        """Work until cancelled; start it when the caches have synced."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.queue.run())
            tasks.create_task(self.batches.run())

    async def _reconcile(self, key: Key) -> float | None:
        lb = self._caches.load_balancers.get(*key)
        if lb is None:
            self._gone(key)
            return None
        if not is_ours(lb):
            return None
        if lb.metadata.deletion_timestamp:
            await self._give_back(lb)
            return None
        if self.batches.is_giving_back(key):
            return None  # else it could show an address that is on its way back; it is looked at again after that
        if FINALIZER not in lb.metadata.finalizers:
            lb = await self._set_finalizers(lb, [*lb.metadata.finalizers, FINALIZER])
        if foreign := conflicts(lb, self._book.held(lb)):
            self._set_aside(lb, foreign)
            return None
        if not self.batches.is_decided(key) and self._book.lacks(lb):
            wait = self._hints.wait(lb)
            if wait > 0 and not lb.status.addresses:
                return wait
            self.batches.want(key)
            return None  # the status is written once there is something to say
        book = self._book
        placement = place(lb, book.held(lb), book.misfits(lb), book.views(), book.anothers(lb))
        if not await self._write_status(lb, placement):
            self.batches.release(_releases(disposable(lb, placement.surplus)))
        return None

    def _set_aside(self, lb: LoadBalancer, foreign: Sequence[tuple[Held, str]]) -> None:
        """Somebody else has these addresses: nobody gets them for a while, and the load balancer gets others."""
        self.batches.forget(lb.key)
        until = rfc3339(self._now() + CONFLICT_TIME)
        releases = []
        for held, hardware_address in foreign:
            # Without the time of day: this may come twice before the block is written, and is told once.
            message = (
                f"{held.address} of pool {held.pool} is used on the network by {hardware_address}: another address is"
                f" taken, and this one is not handed out for {CONFLICT_TIME.total_seconds() / 60:g} minutes"
            )
            self._events.record(LOADBALANCERS, lb, ADDRESS_CONFLICT, message)
            releases += [msgspec.structs.replace(r, conflict=hardware_address, until=until) for r in _releases((held,))]
        self.batches.release(releases)

    def _gone(self, key: Key) -> None:
        """Deleted without our finalizer (somebody took it away): nobody else would free its addresses."""
        self.batches.forget(key)
        self.batches.release(_releases(self._book.ledger.held_by(f"{key[0]}/{key[1]}")))

    def _is_due(self, release: Release) -> bool:
        """Whether an address may be given back as the load balancer is now: its batch may come seconds after what led
        to it, and meanwhile it may have been shown, or brought up, again."""
        namespace, _, name = release.owner.partition("/")
        lb = self._caches.load_balancers.get(namespace, name)
        if lb is None or lb.metadata.uid != release.uid:
            return True
        if lb.metadata.deletion_timestamp:
            return lb.status.holder is None and lb.status.lease is None
        held = (Held(release.pool, release.address, release.owner, release.uid),)
        return bool(conflicts(lb, held) if release.conflict else disposable(lb, held))

    async def _give_back(self, lb: LoadBalancer) -> None:
        """Withdrawn by its holder, freed in the block, then the finalizer goes."""
        finalizers = lb.metadata.finalizers
        if FINALIZER not in finalizers or lb.status.holder is not None or lb.status.lease is not None:
            return
        held = self._book.held(lb)
        if held:
            self.batches.release(_releases(held))
            return
        with self._trails.follow(lb.key, "controller releases", since=self._trails.since(lb.key)):
            try:
                await self._set_finalizers(lb, [f for f in finalizers if f != FINALIZER])
            except NotFound:
                return

    async def _set_finalizers(self, lb: LoadBalancer, finalizers: list[str]) -> LoadBalancer:
        """Only on just this version of the object: somebody else's finalizer must not be lost."""
        patch = {"metadata": {"resourceVersion": lb.metadata.resource_version, "finalizers": finalizers}}
        written = await self._client.merge_patch(LOADBALANCERS, *lb.key, patch)
        self._caches.load_balancers.observe(written)
        return written

    async def _write_status(self, lb: LoadBalancer, placement: Placement) -> bool:
        """Write it if it differs, and say whether it did."""
        refusal = self.batches.refusal(lb.key)
        if refusal is not None and not self._book.lacks(lb):
            refusal = None  # what it lacked it has, or no longer wants
        if not placement.addresses and refusal is None and lb.spec.ipam != "dhcp":
            return False
        key = self._book.group(lb).address_key(lb)
        given = (*placement.addresses, *placement.following)
        chosen = self._machines.behind(lb, given)
        # One that is to be leased needs its owner first: that host asks the server.
        ownership = self._hosts.ownership(lb, key, given) if given or lb.spec.ipam == "dhcp" else None
        status = controlled_status(
            lb, placement, refusal, key=key, now=rfc3339(self._now()), chosen=chosen, ownership=ownership
        )
        if is_current(lb, status):
            return False
        told = self._said.pop(lb.key, None)
        if refusal is not None:
            if told == refusal:  # written, and no longer there: another host says otherwise, and may know better
                self.batches.want(lb.key)
                return True
            self._said[lb.key] = refusal
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": _precondition(lb, status),
            "status": cast("dict[str, object]", msgspec.to_builtins(status)),
        }
        said = {ADDRESSES: " ".join(a.ip for a in status.addresses), REASON: "" if refusal is None else refusal.reason}
        with self._trails.follow(lb.key, "controller allocates", since=self._trails.since(lb.key), attributes=said):
            written = await self._client.apply(
                LOADBALANCERS, *lb.key, patch, field_manager=FIELD_MANAGER, subresource="status"
            )
        self._caches.load_balancers.observe(written)
        for reason, message in news_of_machines(lb, status):
            self._events.record(LOADBALANCERS, lb, MACHINES_OUT.because(reason), message)
        return True

    # --- what makes work -----------------------------------------------------------------------------------------

    def _changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        self._trails.changed(old, new, listed=not self._caches.load_balancers.synced.is_set())
        self._tell_group(old, new)
        if old is not None and old.spec.ipam == "dhcp" and (new is None or new.spec.ipam != "dhcp"):
            self.batches.retry_limited()
        if new is None:
            if old is not None:
                self._said.pop(old.key, None)
                self.batches.forget(old.key)
                self.queue.forget(old.key)
                self.queue.add(old.key)
            return
        if old is not None and _asks(old) != _asks(new):
            self.batches.forget(new.key)
        self.queue.add(new.key)

    def _tell_group(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        """Those who share an address with it, or wait to, look again."""
        if old is not None and new is not None and _shares(old) == _shares(new):
            return
        for lb in (old, new):
            found = service_of(lb) if lb is not None else None
            if lb is None or found is None:
                continue
            tenant, service = found
            named = lb.spec.primary_service
            members = self._caches.sharing_with(tenant, named or service.path)
            if named:
                members += self._caches.standing_for(tenant, named)
            for member in members:
                if member.metadata.uid != lb.metadata.uid:
                    self.batches.reconsider(member.key)
                    self.queue.add(member.key)

    def _tenant_changed(self, old: GuestCluster | None, new: GuestCluster | None) -> None:
        if old is None or new is None or old.spec != new.spec:
            self.batches.retry_all()

    def _namespace_changed(self, old: Namespace | None, new: Namespace | None) -> None:
        if new is not None and (old is None or project_of(old) != project_of(new)):
            self.batches.retry_all()

    def _told(self, key: Key) -> None:
        """Its guest has been heard: it need not wait any longer, and may have its address back."""
        lb = self._caches.load_balancers.get(*key)
        if lb is not None and not lb.status.addresses:
            self.batches.forget(key)
            self.queue.add(key)

    def _unrecorded(self, key: Key) -> None:
        """Whoever shows an address whose record is gone has it recorded again, before somebody else gets it."""
        if (lb := self._caches.load_balancers.get(*key)) is not None:
            self.batches.forget(key)
            if not lb.metadata.deletion_timestamp and self._book.may_take_back(lb):
                self.batches.want(key)  # at once: who waits for room is about to be asked again
            self.queue.add(key)
            self._tell_group(None, lb)

    def _recorded(self, key: Key) -> None:
        """Its record was gone as long as it shows an address already: those who would share that can have it now."""
        lb = self._caches.load_balancers.get(*key)
        if lb is not None and lb.status.addresses:
            self._tell_group(None, lb)

    def _pools_changed(self, room: Room) -> None:
        """A pool's gateway, subnet or network stands in the status of everybody who has an address of it."""
        if room is Room.POOLS_CHANGED and self._caches.load_balancers.synced.is_set():
            for key in self._caches.load_balancers.objects:
                self.queue.add(key)


def _asks(lb: LoadBalancer) -> tuple[object, ...]:
    """What the choice of an address depends on."""
    annotations = {key: value for key, value in lb.metadata.annotations.items() if key != TRACE_ANNOTATION}
    return lb.spec, annotations, lb.metadata.uid


def _shares(lb: LoadBalancer) -> tuple[object, ...]:
    """What those who share its address go by."""
    return _asks(lb), lb.status.addresses, lb.status.address_key, lb.metadata.deletion_timestamp


def _precondition(lb: LoadBalancer, status: LoadBalancerStatus) -> dict[str, str]:
    """What the object must be for a status to be written. A change of the owner only on just this version: what a
    leader sent last, that has been deposed since, must not undo what has been decided after it."""
    same = {"name": lb.metadata.name, "namespace": lb.metadata.namespace, "uid": lb.metadata.uid}
    if lb.status.owner == status.owner:
        return same
    return {**same, "resourceVersion": lb.metadata.resource_version}


def _releases(held: Sequence[Held]) -> list[Release]:
    return [Release(pool=h.pool, address=h.address, owner=h.owner, uid=h.uid) for h in held]
