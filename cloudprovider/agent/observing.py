"""What this host does for one load balancer: put together of what the table wants, and what networks have."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from cloudprovider.agent.forwarder import NetworkForwarder
from cloudprovider.core.agentstatus import Leasing, Observation, conflict, report, report_lease
from cloudprovider.core.api.loadbalancer import Backend, ForeignAddress, LoadBalancer, LoadBalancerStatus
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.returns import Returns
from cloudprovider.core.times import rfc3339
from cloudprovider.core.wanted import LoadBalancerKey, Place, Problem, Wanted, parsed
from cloudprovider.dataplane.api import NetworkConfig


class Observer:
    """Says what the status of a load balancer is to be. ``backends``: what its check says of them; ``predecessor``: the
    host that had its addresses before; ``now``: the wall clock."""

    def __init__(
        self,
        node: str,
        table: ForwardingTable,
        forwarders: Mapping[str, NetworkForwarder],
        configs: Mapping[str, NetworkConfig],
        *,
        returns: Returns,
        backends: Callable[[LoadBalancerKey], tuple[Backend, ...]],
        predecessor: Callable[[LoadBalancer], str],
        now: Callable[[], datetime],
    ) -> None:
        self._node = node
        self._table = table
        self._forwarders = forwarders
        self._configs = configs
        self._returns = returns
        self._backends = backends
        self._predecessor = predecessor
        self._now = now

    def status(self, lb: LoadBalancer, leasing: Leasing | None) -> LoadBalancerStatus:
        """What the status should say of the agent's part; where that is not known yet, what it says now."""
        want = self._table.load_balancer(lb.key)
        now = rfc3339(self._now())
        if self._leaving(lb, want):
            # Given up only once it is off the link: then it may be given to somebody else.
            return report_lease(lb, leasing, now)
        if want is None:
            return report(lb, self._node, None, leasing, now)
        seen = self._seen(lb, want)
        return report_lease(lb, leasing, now) if seen is None else report(lb, self._node, seen, leasing, now)

    def _seen(self, lb: LoadBalancer, want: Wanted) -> Observation | None:
        """What the kernel does for it; None while it is on its way."""
        addresses = tuple(v for network, v in want.places if self._forwarders[network].held([v]))
        served = self._table.places(lb.key)
        # Without one to show (a lease has ended) the next one is what counts.
        first = [place for place in want.shown or want.following if place in served]
        generation = min((self._forwarders[p.network].generation(lb.key) for p in first), default=0)
        trouble = self._table.trouble(lb.key)
        problem = want.problem or self._problem(lb, first)
        if trouble is not None and not first:
            problem = problem or trouble
        complete = {p.vip for p in first}.issubset(addresses) and generation == lb.metadata.generation
        if problem is None and (not complete or self._table.is_looking(lb.key)):
            return None
        now = self._table.clock()
        if complete:
            self._returns.begin(lb.key, now)
        refusing = self._returns.refusing(lb.key, now)
        return Observation(
            generation=generation if want.places else lb.metadata.generation,
            addresses=addresses,
            problem=problem,
            partial=want.partial or trouble,
            has_nodes=self._table.has_nodes(lb.key),
            awaited=want.awaited or self._problem(lb, want.following),
            foreign=self._foreign(want),
            choices={place.vip: choice for place, choice in self._table.choices(lb.key).items()},
            masquerades=any(self._configs[network].masquerade for network in want.networks),
            refusing=refusing,
            backends=self._backends(lb.key),
            before=self._predecessor(lb),
            beware=tuple(said for n in sorted(want.networks) if (said := self._forwarders[n].beware)),
            answerers=frozenset[str]().union(*(self._table.modes.answerers((n, want.cluster)) for n in want.networks)),
            refused=bool(refusing) and refusing >= self._table.backends_of(lb.key).keys(),
        )

    def _problem(self, lb: LoadBalancer, places: Sequence[Place]) -> Problem | None:
        for network, vip in places:
            forwarder = self._forwarders[network]
            found = forwarder.problem([vip])
            if found is not None:
                return conflict(lb, vip, found.message) if forwarder.foreign([vip]) else found
        return self._displaced(lb.key, places)

    def _foreign(self, want: Wanted) -> tuple[ForeignAddress, ...]:
        return tuple(
            ForeignAddress(ip=str(vip), hardware_address=mac)
            for network, vip in want.places
            for mac in self._forwarders[network].foreign([vip]).values()
        )

    def _leaving(self, lb: LoadBalancer, want: Wanted | None) -> bool:
        """Whether an address that the holder names, and that is not wanted any more, is still on the link."""
        if lb.status.holder is None:
            return False
        wanted = frozenset[Place]() if want is None else frozenset(want.places)
        named = {vip for text in lb.status.holder.addresses if (vip := parsed(text)) is not None}
        return any(
            self.on_link(lb.key, network, vip)
            for vip in named
            for network in self._forwarders
            if Place(network, vip) not in wanted
        )

    def on_link(self, key: LoadBalancerKey, network: str, vip: IPAddress) -> bool:
        """Whether an address is up, or not wholly down yet, for this load balancer (and not only for another)."""
        users = self._table.users_of(network, vip)
        return self._forwarders[network].on_link([vip]) and (not users or key in users)

    def _displaced(self, key: LoadBalancerKey, places: Sequence[Place]) -> Problem | None:
        vips = {place.vip for place in places}
        for listener, (namespace, name) in self._table.displaced(key).items():
            if listener.vip not in vips:
                continue
            other = f"LoadBalancer {name}" if namespace == key[0] else "another LoadBalancer"
            return Problem(
                "ListenerInUse", f"{listener.protocol} {listener.port} of {listener.vip} is {other}'s already."
            )
        return None
