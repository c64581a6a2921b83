"""Which load balancers' addresses are this host's, and how they change hands without a gap and without two answering.

Every host forwards whatever comes for any load balancer; only one has its addresses on the link. A fellow's are taken
over in one of two ways. Where it lives: the record (``status.holder``) is rewritten first, on just the version of the
object that was seen, then the address is brought up and announced; the fellow withdraws as soon as it hears that, or
when it has read the record and waited for a moment. Where it seems dead: the address is asked for on the network, and
brought up when nobody answers; the record follows. So what a host's kernel still serves is never taken from it, and an
outage of the API server is no obstacle.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final, Literal, Protocol

import msgspec

from cloudprovider.agent.forwarder import NetworkForwarder
from cloudprovider.agent.predecessors import ASK_AGAIN, Predecessors, is_answered
from cloudprovider.core.agentstatus import reported
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.errors import NotFound
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.holding import KnownHosts, stance
from cloudprovider.core.hosts import Roster
from cloudprovider.core.owners import successor
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.wanted import LoadBalancerKey, Place
from cloudprovider.kube.queue import WorkQueue

log = logging.getLogger(__name__)

PART_AFTER: Final = 0.3
"""Seconds that an address stays up whose record names another host, unless that one is heard to announce it."""
WORKERS: Final = 32


class Hosts(Protocol):
    """What is known of the other hosts."""

    @property
    def roster(self) -> Roster:
        """As their Leases tell."""
        ...

    def is_alive(self, host: str) -> bool:
        """Whether a host's Lease is fresh, as far as that can be known."""
        ...

    def has_settled(self, host: str) -> bool:
        """Whether a host has been there for long enough that what it has may be taken from it."""
        ...


class Holdings:
    """``get``: a load balancer as it is known now. ``write(lb, status)``: apply an agent's status on just this version
    of the object; raises Conflict, NotFound. ``changed``: look at this load balancer again. ``is_down(network, host)``:
    whether a fellow is known to be dead there, sooner than its Lease says. ``is_cut_off(network)``: whether nobody
    hears this host there: then it takes nothing. ``took``: addresses were taken from a host that lives, or is dead."""

    def __init__(
        self,
        me: str,
        table: ForwardingTable,
        forwarders: Mapping[str, NetworkForwarder],
        hosts: Hosts,
        *,
        get: Callable[[LoadBalancerKey], LoadBalancer | None],
        write: "Write",
        changed: Callable[[LoadBalancerKey], None],
        is_down: Callable[[str, str], bool],
        is_cut_off: Callable[[str], bool],
        took: Callable[[Literal["living", "dead"]], None],
        rng: random.Random,
    ) -> None:
        self._me = me
        self._table = table
        self._forwarders = forwarders
        self._hosts = hosts
        self._get = get
        self._write = write
        self._changed = changed
        self._is_down = is_down
        self._is_cut_off = is_cut_off
        self._took = took
        self._ours: set[LoadBalancerKey] = set()
        self._recorded: set[LoadBalancerKey] = set()
        """Those whose record has named this host."""
        self._yielding: set[LoadBalancerKey] = set()
        """Those whose record names another host since: it lives, whatever else is known, and has them when they are off
        the link here."""
        self._granted: set[Place] = set()
        self._parting: dict[LoadBalancerKey, asyncio.TimerHandle] = {}
        self._entitled: dict[LoadBalancerKey, str] = {}
        """Load balancers that want nothing any more, whose holder is gone: its part of the status may be taken away.
        By the holder's name."""
        self._moves: WorkQueue[LoadBalancerKey] = WorkQueue(self._move, name="moves", workers=WORKERS, rng=rng)
        self._asks: WorkQueue[LoadBalancerKey] = WorkQueue(self._ask, name="asks", workers=WORKERS, rng=rng)
        self.predecessors = Predecessors(
            me,
            table,
            forwarders,
            known=hosts.roster.host,
            lives=self._lives,
            is_cut_off=is_cut_off,
            changed=changed,
            rng=rng,
        )

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._moves.run())
            group.create_task(self._asks.run())
            group.create_task(self.predecessors.run())

    def is_ours(self, key: LoadBalancerKey) -> bool:
        """Whether this host is to have its addresses up."""
        return key in self._ours

    def may_write(self, lb: LoadBalancer) -> bool:
        """Whether the agent's part of its status is this host's to write."""
        holder = lb.status.holder
        if holder is None:
            return lb.key in self._ours
        if holder.node == self._me:
            return True
        if self._entitled.get(lb.key) == holder.node:
            return True
        places = self._table.places(lb.key)
        return lb.key in self._ours and bool(places) and all(self._is_up(place) for place in places)

    def written(self, before: LoadBalancer) -> None:
        """Our part of its status stands; it was like this before."""
        holder = before.status.holder
        if holder is not None and holder.node != self._me and before.key in self._ours:
            log.info("taken from a host that is dead", extra={"load_balancer": before.key, "host": holder.node})
            self._took("dead")

    def consider(self, lb: LoadBalancer) -> None:
        """See whose it is now, before the table takes it or after."""
        networks = self._networks(lb)
        fellows = KnownHosts(self._me, partial(self._lives, networks), self._able)
        what = stance(lb, networks, fellows)
        key = lb.key
        self.predecessors.follow(lb, networks)
        is_up = any(self._is_up(place) for place in self._table.places(key))
        if what in ("move", "ask") and not self._is_ready(lb, networks, moving=what == "move"):
            what = "leave"  # it is looked at again when the kernel has its rules
        if self._yields(lb, is_up=is_up):
            what = "leave"
        if what == "move" and not is_up:
            if not self._hosts.has_settled(_holder(lb)):
                what = "leave"  # its owner became another while it was silent: the controller makes it the owner again
            elif key in self._ours:
                self._let_go(lb)  # so far it was asked for
        if what == "move":
            self._moves.add(key)
        elif what == "ask" and not self._table.places(key):
            if not self.may_write(lb):
                self._asks.add(key)
        elif what == "leave":
            self._let_go(lb)
        else:
            self._have(key)

    def speaks_for(self, cluster: tuple[str, str]) -> bool:
        """Whether it is this host, of all that live, that tells of a guest cluster's nodes."""
        living = {self._me, *(host for host in self._hosts.roster.hosts if self._hosts.is_alive(host))}
        return successor("/".join(cluster), living) == self._me

    def forget(self, key: LoadBalancerKey) -> None:
        """The load balancer is gone."""
        self._ours.discard(key)
        self._recorded.discard(key)
        self._yielding.discard(key)
        self._entitled.pop(key, None)
        self.predecessors.forget(key)
        self._moves.forget(key)
        self._asks.forget(key)
        if (timer := self._parting.pop(key, None)) is not None:
            timer.cancel()

    def on(self, network: str) -> "Addresses":
        """What fellows have to do with one network's addresses."""
        return Addresses(self, network)

    # Whose it is.

    def _networks(self, lb: LoadBalancer) -> frozenset[str]:
        want = self._table.load_balancer(lb.key)
        if want is not None and want.networks:
            return want.networks
        shown = {a.network for a in (*lb.status.addresses, *lb.status.next_addresses)}
        return frozenset(shown or {lb.metadata.annotations.get(NETWORK_ANNOTATION, "")})

    def _lives(self, networks: Iterable[str], host: str) -> bool:
        if host == self._me:
            return True
        return self._hosts.is_alive(host) and not any(self._is_down(network, host) for network in networks)

    def _able(self, networks: Iterable[str]) -> frozenset[str]:
        """Where nobody stands on all of them, somebody must say so: then it is anybody who lives."""
        wanted = frozenset(networks)
        found = {h for h in self._hosts.roster.ready(wanted) if h != self._me and self._lives(wanted, h)}
        if wanted <= self._forwarders.keys():
            found.add(self._me)
        return frozenset(found or {self._me, *(h for h in self._hosts.roster.hosts if self._lives(wanted, h))})

    def _yields(self, lb: LoadBalancer, *, is_up: bool) -> bool:
        """Whether another host has written itself into the record in place of this one, which has not withdrawn yet."""
        holder = _holder(lb)
        if holder == self._me:
            self._recorded.add(lb.key)
            self._yielding.discard(lb.key)
        elif lb.key in self._recorded:
            self._recorded.discard(lb.key)
            if holder:
                self._yielding.add(lb.key)
        if not is_up and lb.key not in self._parting:
            self._yielding.discard(lb.key)
        return lb.key in self._yielding

    def _is_ready(self, lb: LoadBalancer, networks: Iterable[str], *, moving: bool) -> bool:
        """Whether this host could serve a load balancer at once: its kernel does what that asks for. ``moving``: it is
        to be taken from a host that lives."""
        if any(self._is_cut_off(network) for network in networks):
            return False
        if self._table.load_balancer(lb.key) is None:
            # It wants nothing of the kernel now, or the agent has only just started.
            return not moving or all(self._is_in_line(network) for network in networks)
        return not self._table.is_looking(lb.key) and all(
            self._is_in_line(network) and self._forwarders[network].generation(lb.key) == lb.metadata.generation
            for network in networks
        )

    def _is_in_line(self, network: str) -> bool:
        return network in self._forwarders and self._forwarders[network].in_line

    def _have(self, key: LoadBalancerKey) -> None:
        if (timer := self._parting.pop(key, None)) is not None:
            timer.cancel()
        self._ours.add(key)
        self._set(key, ours=True)

    def _let_go(self, lb: LoadBalancer) -> None:
        key = lb.key
        was_ours = key in self._ours
        self._ours.discard(key)
        self._granted -= self._table.places(key)
        if key in self._parting:
            return
        if was_ours and any(self._is_up(place) for place in self._table.places(key)):
            loop = asyncio.get_running_loop()
            self._parting[key] = loop.call_later(PART_AFTER, self._part, key)
            return
        self._set(key, ours=False)

    def _part(self, key: LoadBalancerKey) -> None:
        if (timer := self._parting.pop(key, None)) is not None:
            timer.cancel()
        if key not in self._ours:
            self._set(key, ours=False)

    def _set(self, key: LoadBalancerKey, *, ours: bool) -> None:
        if self._table.set_ours(key, ours=ours):
            log.debug("addresses are ours" if ours else "addresses are another host's", extra={"load_balancer": key})
            want = self._table.load_balancer(key)
            for network in want.networks if want is not None else ():
                self._forwarders[network].wake()
            self._changed(key)

    def _is_up(self, place: Place) -> bool:
        return place.network in self._forwarders and bool(self._forwarders[place.network].held([place.vip]))

    # Changing hands.

    async def _move(self, key: LoadBalancerKey) -> None:
        """Take the records of a load balancer, and of those that share its addresses, from the holder that lives."""
        places = self._table.places(key)
        together = frozenset({key}).union(*(self._table.standing_on(place) for place in places))
        for each in sorted(together):
            lb = self._get(each)
            if lb is None or lb.status.holder is None or lb.status.holder.node == self._me:
                continue
            networks = self._networks(lb)
            if stance(lb, networks, KnownHosts(self._me, partial(self._lives, networks), self._able)) != "move":
                continue
            self._granted |= self._table.places(each)
            before = lb.status.holder.node
            self.predecessors.is_back(before)
            holder = msgspec.structs.replace(lb.status.holder, node=self._me, before=before)
            log.info("taken from a host that lives", extra={"load_balancer": each, "host": before})
            try:
                await self._write(lb, msgspec.structs.replace(reported(lb), holder=holder))
            except NotFound:
                continue
            self._took("living")

    async def _ask(self, key: LoadBalancerKey) -> float | None:
        """Whether a holder that seems dead still answers for what is to be given back."""
        lb = self._get(key)
        if lb is None or lb.status.holder is None or lb.status.holder.node == self._me or self._table.places(key):
            return None
        if await is_answered(self._forwarders, dict.fromkeys(self._networks(lb), lb.status.holder.addresses)):
            return ASK_AGAIN
        self._entitled[key] = lb.status.holder.node
        self._changed(key)
        return None

    # What a network's forwarder asks.

    def granted(self, place: Place) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        if place not in self._granted:
            return False
        self._granted.discard(place)
        return True

    def is_fellow(self, place: Place, mac: str) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`. Where the holder has not said yet by which MAC
        it answers (its agent is just starting, or of a release that did not say it), it is taken for who answers."""
        if self._hosts.roster.by_mac(place.network, mac) not in {None, self._me}:
            return True
        holders = [self._holder_of(place, key) for key in self._table.users_of(place.network, place.vip)]
        return any(holder and not self._knows_mac(place.network, holder) for holder in holders)

    def is_usurped(self, place: Place) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`. Only where it is known by which MAC the fellow
        would answer itself."""
        holders = [self._holder_of(place, key) for key in self._table.users_of(place.network, place.vip)]
        return all(holder and self._knows_mac(place.network, holder) for holder in holders)

    def _holder_of(self, place: Place, key: LoadBalancerKey) -> str:
        """The other host that has an address up for a load balancer, as the record says; "" if none does."""
        lb = self._get(key)
        holder = lb.status.holder if lb is not None else None
        if holder is None or holder.node == self._me or str(place.vip) not in holder.addresses:
            return ""
        return holder.node

    def _knows_mac(self, network: str, host: str) -> bool:
        known = self._hosts.roster.host(host)
        return known is not None and network in known.networks

    def is_orphaned(self, place: Place) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        holders = [self._holder_of(place, key) for key in self._table.users_of(place.network, place.vip)]
        return any(holder and self._is_down(place.network, holder) for holder in holders)

    def may_have(self, place: Place, mac: str) -> bool | None:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        fellow = self._hosts.roster.by_mac(place.network, mac)
        if fellow is None or fellow == self._me:
            return False
        users = self._table.users_of(place.network, place.vip)
        for key in users:
            lb = self._get(key)
            holder = lb.status.holder.node if lb is not None and lb.status.holder is not None else ""
            if lb is None or fellow not in {lb.status.owner, holder}:
                return None  # it may have read the record sooner
        for key in users:
            self._ours.discard(key)
            self._part(key)
        return True


class Write(Protocol):
    """Writes the agent's part of a load balancer's status."""

    async def __call__(self, lb: LoadBalancer, status: object) -> None:
        """Only on just this version of the object. Raises Conflict, NotFound, KubeError."""
        ...


class Addresses:
    """One network's view of :class:`Holdings`."""

    def __init__(self, holdings: Holdings, network: str) -> None:
        self._holdings = holdings
        self._network = network

    def granted(self, vip: IPAddress) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        return self._holdings.granted(Place(self._network, vip))

    def is_fellow(self, vip: IPAddress, mac: str) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        return self._holdings.is_fellow(Place(self._network, vip), mac)

    def is_usurped(self, vip: IPAddress) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        return self._holdings.is_usurped(Place(self._network, vip))

    def is_orphaned(self, vip: IPAddress) -> bool:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        return self._holdings.is_orphaned(Place(self._network, vip))

    def may_have(self, vip: IPAddress, mac: str) -> bool | None:
        """See :class:`~cloudprovider.agent.forwarder.FellowAddresses`."""
        return self._holdings.may_have(Place(self._network, vip), mac)


def _holder(lb: LoadBalancer) -> str:
    return lb.status.holder.node if lb.status.holder is not None else ""
