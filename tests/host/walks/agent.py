"""The hosts' side of walks: a link that keeps what is up on it, a DHCP server, others who take addresses; and an agent
that brings up, withdraws and leases as the real one does, in its own time, and says so in the status."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec

from cloudprovider.core.agentstatus import Leasing, Observation, conflict, report, reported
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, DhcpLease, ForeignAddress, LoadBalancer
from cloudprovider.core.errors import NotFound
from cloudprovider.core.wanted import Problem
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.queue import WorkQueue
from cloudprovider.kube.resources import LOADBALANCERS
from tests.host.walks.scene import LEASES
from tests.host.walks.state import Place

Key = tuple[str, str]
MAC = "02:00:00:00:00:99"
NOW = "2026-01-01T00:00:00Z"
NO_OFFER = Problem("DHCPNoOffer", "No DHCP server has offered an address.")


@dataclass
class Link:
    """What outlives an agent: the kernel of the hosts, the DHCP server, and other machines."""

    up: dict[Key, dict[Place, str]] = field(default_factory=dict)
    """Of each load balancer by (namespace, name): what is up, and the UID of the object that it is up for."""
    intruders: set[Place] = field(default_factory=set)
    leases: dict[str, str] = field(default_factory=dict)
    """Address by the UID of the load balancer."""
    silent: bool = False
    """The DHCP server gives nothing new."""
    together: list[tuple[Place, Key, Key]] = field(default_factory=list)
    """What has come up for one beside another one: they must share it."""

    def offer(self, uid: str) -> str:
        """Lease an address; the same one as long as it is leased. Empty: there is none."""
        if uid in self.leases:
            return self.leases[uid]
        bad = {*self.leases.values(), *(ip for network, ip in self.intruders if not network)}
        left = [ip for ip in LEASES if ip not in bad]
        if self.silent or not left:
            return ""
        self.leases[uid] = left[0]
        return left[0]

    def has(self, place: Place) -> bool:
        """Whether it is up for anybody: then it is not asked for, but defended."""
        return any(place in places for places in self.up.values())

    def bring_up(self, lb: LoadBalancer, place: Place) -> None:
        """Bring an address up, also beside others (whether they may have it at once is for who reads the blocks)."""
        self.together += ((place, key, lb.key) for key, places in self.up.items() if place in places and key != lb.key)
        self.up.setdefault(lb.key, {})[place] = lb.metadata.uid


class Agent:
    """One life of an agent. ``link`` is what it finds."""

    def __init__(self, client: KubeClient, link: Link, rng: random.Random) -> None:
        self.lbs: Informer[LoadBalancer] = Informer(client, LOADBALANCERS, rng=rng)
        self._client = client
        self._link = link
        self._rng = rng
        self._foreign: dict[Key, set[Place]] = {}
        self.queue: WorkQueue[Key] = WorkQueue(self._reconcile, name="agent", workers=4, rng=rng)
        self.lbs.on_change(lambda old, new: self.queue.add((new or old).key) if new or old else None)  # type: ignore[union-attr]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Agent"]:
        async def run() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.lbs.run())
                await self.lbs.synced.wait()
                for key in list(self._link.up):  # what it finds, perhaps of one that is gone
                    self.queue.add(key)
                tasks.create_task(self.queue.run())

        task = asyncio.create_task(run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])

    def look_again(self) -> None:
        """A lease has ended, another machine has come or gone, the DHCP server speaks again."""
        for key in self.lbs.objects:
            self.queue.add(key)

    async def _reconcile(self, key: Key) -> None:
        lb = self.lbs.get(*key)
        up = self._link.up.setdefault(key, {})
        if lb is None:
            up.clear()
            return
        leased = self._lease(lb)
        wanted = [] if lb.metadata.deletion_timestamp else self._wanted(lb, leased)
        foreign = self._foreign.setdefault(key, set())
        foreign &= set(wanted)
        for place in wanted:
            if place in up:
                continue
            await self._takes_time()
            if place in self._link.intruders and not self._link.has(place):
                foreign.add(place)
                continue
            foreign.discard(place)
            if self.lbs.get(*key) is not lb or self._link.leases.get(lb.metadata.uid, "") != leased:
                break  # something has changed meanwhile: begin anew
            self._link.bring_up(lb, place)
        for place in [p for p in up if p not in wanted]:
            await self._takes_time()
            del up[place]
        if self._declined(lb, leased, foreign):
            leased = self._lease(lb)
        if self._is_over(lb, leased, up):
            self._link.leases.pop(lb.metadata.uid, None)
            self.look_again()  # who was offered nothing asks again, and again
            leased = ""
        await self._report(lb, wanted, up, leased)

    async def _takes_time(self) -> None:
        await asyncio.sleep(self._rng.choice((0.0, 0.01, 0.05)))

    def _wanted(self, lb: LoadBalancer, leased: str) -> list[Place]:
        addresses = (*lb.status.addresses, *lb.status.next_addresses)
        return [(a.network, a.ip) for a in addresses if a.ip_pool or a.ip == leased]

    # --- the lease ------------------------------------------------------------------------------------------------

    def _asks(self, lb: LoadBalancer) -> bool:
        network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "")
        return lb.spec.ipam == "dhcp" and not network and not lb.metadata.deletion_timestamp

    def _lease(self, lb: LoadBalancer) -> str:
        if self._asks(lb):
            return self._link.offer(lb.metadata.uid)
        return self._link.leases.get(lb.metadata.uid, "")

    def _declined(self, lb: LoadBalancer, leased: str, foreign: set[Place]) -> bool:
        if not leased or ("", leased) not in foreign:
            return False
        del self._link.leases[lb.metadata.uid]
        self.look_again()
        return True

    def _is_over(self, lb: LoadBalancer, leased: str, up: Mapping[Place, str]) -> bool:
        """Whether a lease is of no use any more: not asked for, not shown, not up, and nobody names a holder."""
        if not leased or self._asks(lb) or ("", leased) in up:
            return False
        if lb.metadata.deletion_timestamp:
            return lb.status.holder is None
        return all(a.ip_pool or a.ip != leased for a in (*lb.status.addresses, *lb.status.next_addresses))

    # --- what it says ---------------------------------------------------------------------------------------------

    async def _report(self, lb: LoadBalancer, wanted: list[Place], up: Mapping[Place, str], leased: str) -> None:
        lease = DhcpLease(ip=leased, prefix_length=24, server="192.0.2.1") if leased else None
        leasing = Leasing(lease, None if lease else NO_OFFER) if lease or self._asks(lb) else None
        seen = None
        if wanted or up:
            foreign = [ForeignAddress(ip=ip, hardware_address=MAC) for _, ip in sorted(self._foreign[lb.key])]
            problem = conflict(lb, ip_address(foreign[0].ip), f"{MAC} has {foreign[0].ip}.") if foreign else None
            addresses = tuple(ip_address(ip) for _, ip in up)
            generation = lb.metadata.generation
            seen = Observation(generation, addresses, problem, None, has_nodes=True, foreign=tuple(foreign))
        said = report(lb, "host-1", seen, leasing, NOW)
        if said == reported(lb):
            return
        patch = {
            "apiVersion": LOADBALANCERS.api_version,
            "kind": LOADBALANCERS.kind,
            "metadata": {"uid": lb.metadata.uid},
            "status": msgspec.to_builtins(said),
        }
        try:
            written = await self._client.apply(
                LOADBALANCERS, *lb.key, patch, field_manager="cloudprovider-agent", subresource="status"
            )
        except NotFound:
            return
        self.lbs.observe(written)
