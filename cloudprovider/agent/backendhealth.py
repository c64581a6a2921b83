"""Which backends pass the checks of their load balancers: probed from each network's namespace, told to the table at
once, and shown in the status soon after.

An address is probed once for all load balancers that check it alike. What is known outlives a network's segment, and by
the status the agent itself.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final, NamedTuple

from cloudprovider.agent.nodehealth import MakeProber
from cloudprovider.core import checks
from cloudprovider.core.api.loadbalancer import Backend, BackendHealth, LoadBalancer
from cloudprovider.core.backendhealth import standing_of, told
from cloudprovider.core.checks import Standing
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.health import Answer
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.questions import BackendCheck
from cloudprovider.core.wanted import LoadBalancerKey
from cloudprovider.dataplane.api import Segment
from cloudprovider.probe.api import Target
from cloudprovider.probe.rounds import Rounds, Turn

log = logging.getLogger(__name__)

AT_ONCE: Final = 4096
"""Probes of one network under way at once: with this many and a timeout of 3 s, 6,800 silent backends are still asked
every 5 s."""
FOLLOW_AFTER: Final = 0.1
"""Seconds in which changes of whom to probe are gathered."""


class _Point(NamedTuple):
    """An address that is probed on a network by one check."""

    network: str
    address: IPAddress
    check: BackendCheck


_User = tuple[LoadBalancerKey, str]
"""A load balancer, and a backend of it by name."""


class BackendChecks:
    """The checks of all load balancers. ``now``: the wall clock. ``healthy(key)``: the table has other backends for
    this load balancer now; ``changed(key)``: another word is to be said of them. ``ours(key)``: whether this host is
    the one to check them; of others' it goes by what these say."""

    def __init__(
        self,
        table: ForwardingTable,
        make_prober: MakeProber,
        *,
        ours: Callable[[LoadBalancerKey], bool],
        healthy: Callable[[LoadBalancerKey], None],
        changed: Callable[[LoadBalancerKey], None],
        now: Callable[[], datetime],
    ) -> None:
        self._table = table
        self._ours = ours
        self._make_prober = make_prober
        self._healthy = healthy
        self._changed = changed
        self._now = now
        self._told: dict[LoadBalancerKey, dict[str, BackendHealth]] = {}
        """By backend; a load balancer without a check is not among them."""
        self._points: dict[LoadBalancerKey, dict[str, tuple[_Point, ...]]] = {}
        self._standings: dict[_Point, Standing] = {}
        self._users: defaultdict[_Point, set[_User]] = defaultdict(set)
        self._rounds: dict[str, Rounds[_Point]] = {}
        self._begun = False
        self._stale: set[str] = set()
        """Networks whose rounds don't follow the newest points."""

    def backends(self, key: LoadBalancerKey) -> tuple[Backend, ...]:
        """What the status is to say of a load balancer's backends."""
        return tuple(Backend(name=name, health=health) for name, health in sorted(self._told.get(key, {}).items()))

    def count(self) -> tuple[int, int]:
        """How many backends pass their load balancers' checks, and how many do not."""
        healthy = sum(health.healthy for known in self._told.values() for health in known.values())
        return healthy, sum(map(len, self._told.values())) - healthy

    def take_over(self, lb: LoadBalancer) -> None:
        """Before the table takes a load balancer: what another agent, or this one before, has told of its backends
        goes on, and where a check is new, those that it goes to now stay until they have failed it."""
        if lb.spec.health_check is None or lb.spec.health_check.port is None:
            return
        known = {b.name: b.health for b in lb.status.backends if b.health is not None}
        if lb.key in self._told:
            if not self._ours(lb.key) and known != self._told[lb.key]:
                self._told[lb.key] = known
                if self._table.set_healthy(lb.key, _names(known)):
                    self._healthy(lb.key)
            return
        if not known and self._table.load_balancer(lb.key) is not None:
            up = checks.Standing(healthy=True, since=self._now())
            known = {name: told(None, [up], self._now()) for name in self._table.backends_of(lb.key)}
        self._told[lb.key] = known
        self._table.set_healthy(lb.key, _names(known))

    def begin(self, keys: Iterable[LoadBalancerKey]) -> None:
        """All objects have been read: now who is not among a load balancer's backends is really gone."""
        self._begun = True
        for key in keys:
            self.follow(key)

    def follow(self, key: LoadBalancerKey) -> None:
        """The table may have another check or other backends for a load balancer: probe these, and say so."""
        if not self._begun:
            return
        before, after = self._points.get(key, {}), self._wanted(key)
        if before != after:
            self._replace(key, before, after)
        if not self._ours(key):
            return
        if after or self._checked(key):
            known = self._told.get(key, {})
            self._tell(key, {name: self._word(known.get(name), points) for name, points in after.items()})
        elif self._told.pop(key, None) is not None:
            self._changed(key)

    async def run(self, network: str, segment: Segment) -> None:
        """Probe on a network until cancelled."""
        prober = self._make_prober(segment, network)
        rounds: Rounds[_Point] = Rounds(prober, _place, self._answered, at_once=AT_ONCE)
        self._rounds[network] = rounds
        try:
            self._follow_points(network)
            await rounds.run()
        finally:
            del self._rounds[network]
            prober.close()

    # Whom to probe.

    def _checked(self, key: LoadBalancerKey) -> bool:
        want = self._table.load_balancer(key)
        return want is not None and want.check is not None

    def _wanted(self, key: LoadBalancerKey) -> dict[str, tuple[_Point, ...]]:
        """The points of each backend: its addresses of the families that the load balancer has, on each network."""
        want = self._table.load_balancer(key)
        if want is None or want.check is None or not self._ours(key):
            return {}
        families = sorted({(place.network, place.vip.version) for place in want.places})
        return {
            name: tuple(
                _Point(network, address, want.check)
                for network, version in families
                for address in addresses
                if address.version == version
            )
            for name, addresses in self._table.backends_of(key).items()
        }

    def _replace(
        self, key: LoadBalancerKey, before: Mapping[str, tuple[_Point, ...]], after: dict[str, tuple[_Point, ...]]
    ) -> None:
        known = self._told.get(key, {})
        for name, points in after.items():
            for point in points:
                self._users[point].add((key, name))
                if point not in self._standings:
                    self._standings[point] = standing_of(known.get(name), self._now())
                    self._refollow(point.network)
        for name, points in before.items():
            for point in set(points) - set(after.get(name, ())):
                self._users[point].discard((key, name))
                if not self._users[point]:
                    del self._users[point], self._standings[point]
                    self._refollow(point.network)
        if after:
            self._points[key] = after
        else:
            self._points.pop(key, None)

    def _refollow(self, network: str) -> None:
        if network in self._rounds and network not in self._stale:
            self._stale.add(network)
            asyncio.get_running_loop().call_later(FOLLOW_AFTER, self._follow_points, network)

    def _follow_points(self, network: str) -> None:
        self._stale.discard(network)
        if (rounds := self._rounds.get(network)) is not None:
            rounds.follow({point: _turn(point) for point in self._standings if point.network == network})

    # What they answer.

    def _answered(self, point: _Point, answer: Answer) -> None:
        before = self._standings.get(point)
        if before is None:  # gone, and not yet out of the rounds
            return
        after = self._standings[point] = checks.judge(before, answer, self._now(), point.check.pace)
        if after.healthy is before.healthy and after.message == before.message:
            return
        if after.healthy is not before.healthy:
            said = {"network": point.network, "address": str(point.address), "port": point.check.port}
            if after.healthy:
                log.info("backend is up", extra=said)
            else:
                log.warning("backend is down", extra={**said, "why": after.message})
        for key, name in list(self._users[point]):
            known = self._told[key]
            self._tell(key, {**known, name: self._word(known.get(name), self._points[key][name])})

    def _word(self, before: BackendHealth | None, points: Iterable[_Point]) -> BackendHealth:
        return told(before, [self._standings[point] for point in points], self._now())

    def _tell(self, key: LoadBalancerKey, after: dict[str, BackendHealth]) -> None:
        if after == self._told.get(key):
            return
        self._told[key] = after
        if self._table.set_healthy(key, _names(after)):
            self._healthy(key)
        self._changed(key)


def _names(health: Mapping[str, BackendHealth]) -> frozenset[str]:
    return frozenset(name for name, said in health.items() if said.healthy)


def _turn(point: _Point) -> Turn:
    pace = point.check.pace
    return Turn(Target(point.address, point.check.port, point.check.question), pace.period, pace.timeout)


def _place(point: _Point) -> bytes:
    return point.address.packed + repr(point.check).encode()
