"""Who is to own each load balancer: the hosts as their agents' Leases and their Nodes tell, and what follows."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from cloudprovider.core.addressing import is_ours
from cloudprovider.core.api.kubernetes import Lease, Node
from cloudprovider.core.api.loadbalancer import Address, LoadBalancer
from cloudprovider.core.news import WEIGHT_WRONG
from cloudprovider.core.owners import Networks, Owners
from cloudprovider.core.standing import Ownership, Weight, is_ready, networks_of, weight_of, why_nobody
from cloudprovider.host.caches import Caches
from cloudprovider.kube.cache import Key
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.resources import NODES

_log = logging.getLogger(__name__)

SETTLE_SECONDS: Final = 10.0
"""For so long a host must have been there before it is given a share: one that comes and goes moves nothing."""
FAILBACK_SECONDS: Final = 60.0
"""After hosts have taken something over by themselves, what they have too much of goes back so much later: two that do
not see each other would else toss it to and fro."""
CHECK_SECONDS: Final = 0.5
"""How often it is looked for hosts that have gone silent, or have been there for long enough."""


class Hosts:
    """Follows the caches; ``on_change`` is called with each load balancer whose owner is another now, or of whose lack
    of one there is news. Nothing is decided before :meth:`begin`. ``time``: monotonic, in seconds."""

    def __init__(
        self,
        caches: Caches,
        events: EventRecorder,
        *,
        time: Callable[[], float],
        settle_seconds: float = SETTLE_SECONDS,
        failback_seconds: float = FAILBACK_SECONDS,
    ) -> None:
        self._caches = caches
        self._events = events
        self._time = time
        self._settle_seconds = settle_seconds
        self._failback_seconds = failback_seconds
        self._owners = Owners()
        self._members: defaultdict[str, dict[Key, Networks]] = defaultdict(dict)
        """By address key: the load balancers that share the addresses."""
        self._key_of: dict[Key, str] = {}
        self._since: dict[tuple[str, str], float] = {}
        """By (network, host): when it came to serve there."""
        self._able: Mapping[str, Mapping[str, float]] = {}
        self._waiting: frozenset[str] = frozenset()
        self._lacking: frozenset[Key] = frozenset()
        """Those that no host can have."""
        self._balance_at: float | None = None
        self._begun = False
        self._callbacks: list[Callable[[Key], None]] = []
        caches.leases.on_change(self._lease_changed)
        caches.nodes.on_change(self._node_changed)
        caches.load_balancers.on_change(self._load_balancer_changed)

    def on_change(self, callback: Callable[[Key], None]) -> None:
        """See the class."""
        self._callbacks.append(callback)

    @property
    def loads(self) -> Mapping[str, int]:
        """How many addresses (or pairs of them) are each host's, of those that there are."""
        return {name: self._owners.load(name) for name in sorted(self._caches.roster.hosts)}

    def begin(self) -> None:
        """The caches have synced: decide from now on. Whoever is there now has been there for long."""
        self._begun = True
        self._refresh(self._time() - self._settle_seconds)

    async def run(self) -> None:
        """Look for what no event tells, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self._refresh(self._time())

    def ownership(self, lb: LoadBalancer, key: str, addresses: Iterable[Address]) -> Ownership:
        """Return who is to own a load balancer's addresses. ``key``: its address key. That nobody can is no trouble
        while somebody has them up: a host goes on without its agent."""
        networks = networks_of(lb, addresses)
        self._file(lb, key, networks)
        owner = self._owners.owner(key)
        served = lb.status.holder is not None or self._is_served(owner, networks)
        return Ownership(owner, "" if served else self._why(networks))

    # --- hosts ---------------------------------------------------------------------------------------------------

    def _refresh(self, now: float) -> None:
        """``now``: since when a host is there that was not before."""
        if not self._begun:
            return
        roster = self._caches.roster
        standing = [
            (network, name)
            for name, host in sorted(roster.hosts.items())
            if roster.is_fresh(name)
            for network, there in sorted(host.networks.items())
            if there.ready
        ]
        # Whom no other host hears is given nothing either: what it has, its Lease decides.
        unheard = frozenset(name for _, name in standing if roster.is_unheard(name))
        self._since = {(n, name): now if name in unheard else self._since.get((n, name), now) for n, name in standing}
        able: defaultdict[str, dict[str, float]] = defaultdict(dict)
        for network, name in standing:
            able[network][name] = self._weight(name).value
        due = self._time() - self._settle_seconds
        waiting = frozenset(name for (_, name), since in self._since.items() if since > due)
        moved: frozenset[str] = frozenset()
        if changed := (able, waiting) != (self._able, self._waiting):
            self._able, self._waiting = able, waiting
            moved = self._owners.set_hosts(able, waiting)
        if self._balance_at is not None and self._time() >= self._balance_at:
            self._balance_at = None
            moved |= self._owners.balance()
        if changed:
            self._note_lacking()
        if moved:
            _log.info(
                "Load balancers get another owner.",
                extra={"hosts": sorted({name for _, name in standing}), "moved": len(moved)},
            )
        for key in sorted(moved):
            self._tell(self._members[key])

    def _weight(self, name: str) -> Weight:
        return weight_of(self._caches.nodes.get("", name))

    def _note_lacking(self) -> None:
        """Those that no host can have say which hosts there are: they, and those that were so, look again."""
        lacking = (
            lb
            for key, members in self._members.items()
            for lb, networks in members.items()
            if not self._is_served(self._owners.owner(key), networks)
        )
        before, self._lacking = self._lacking, frozenset(lacking)
        self._tell(sorted(before | self._lacking))

    def _why(self, networks: Networks) -> str:
        roster = self._caches.roster
        fresh = [name for name in roster.hosts if roster.is_fresh(name)]
        return why_nobody(networks, roster.hosts, fresh, {name: self._weight(name) for name in roster.hosts})

    def _is_served(self, name: str, networks: Networks) -> bool:
        """Whether there is a host for what stands there: one that can take it, or the owner, which may be one that
        should have nothing."""
        if self._owners.can_take(networks):
            return True
        host = self._caches.roster.host(name)
        return host is not None and self._caches.roster.is_fresh(name) and is_ready(host, networks)

    # --- load balancers ------------------------------------------------------------------------------------------

    def _file(self, lb: LoadBalancer, key: str, networks: Networks) -> None:
        """Take a load balancer as it is now; those that share its addresses hear of it if it makes a difference."""
        if self._key_of.get(lb.key, key) != key:
            self._drop(lb.key)
        before = self._owners.owner(key)
        members = self._members[key]
        members[lb.key] = networks
        self._key_of[lb.key] = key
        holder = lb.status.holder.node if lb.status.holder is not None else ""
        after = self._owners.put(key, _all(members), owner=lb.status.owner, holder=holder)
        if after != before:
            self._tell([other for other in members if other != lb.key])

    def _drop(self, lb: Key) -> None:
        key = self._key_of.pop(lb, None)
        if key is None:
            return
        members = self._members[key]
        del members[lb]
        self._lacking -= {lb}
        if members:
            self._owners.put(key, _all(members))
        else:
            del self._members[key]
            self._owners.remove(key)

    def _tell(self, keys: Collection[Key]) -> None:
        for key in list(keys):
            for callback in self._callbacks:
                callback(key)

    # --- what makes work -----------------------------------------------------------------------------------------

    def _lease_changed(self, _: Lease | None, __: Lease | None) -> None:
        self._refresh(self._time())  # the roster has heard of it before

    def _node_changed(self, old: Node | None, new: Node | None) -> None:
        if new is not None and (wrong := weight_of(new).wrong) and (old is None or weight_of(old).wrong != wrong):
            self._events.record(NODES, new, WEIGHT_WRONG, wrong)
        self._refresh(self._time())

    def _load_balancer_changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        if new is None:
            if old is not None:
                self._drop(old.key)
            return
        key = new.status.address_key
        addresses = (*new.status.addresses, *new.status.next_addresses)
        if not is_ours(new) or not networks_of(new, addresses):
            self._drop(new.key)
            return
        if not key:  # not written yet: it is as it was when it was last worked on
            return
        self._file(new, key, networks_of(new, addresses))
        had, has = (None if lb is None else lb.status.holder for lb in (old, new))
        if had is None or has is None or had.node == has.node or had.node != self._owners.owner(key):
            return
        if self._owners.taken_over(key, has.node):
            _log.info(
                "A host has taken over what was another's, and becomes its owner.",
                extra={"load_balancer": "/".join(new.key), "host": has.node, "before": had.node},
            )
            self._balance_at = self._time() + self._failback_seconds
            self._tell(self._members[key])


def _all(members: Mapping[Key, Networks]) -> Networks:
    return frozenset[str]().union(*members.values())
