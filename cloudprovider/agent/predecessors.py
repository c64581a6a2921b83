"""By which host older connections of a load balancer go on: the one that had its addresses before this one.

In mode ``nat`` only the kernel that has translated a connection knows it. So it is asked as long as it lives, whatever
becomes of its agent: who seems dead is asked for on the network by its own addresses.

An address that moves again leaves connections with both. So who has given it on still passes on to the one before
itself, unless that one has it again: a way from host to host leads only to those who had the address ever earlier, and
ends. (An agent that is started anew knows what the record says: the last one.)
"""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from cloudprovider.agent.forwarder import NetworkForwarder
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.forwarding import ForwardingTable
from cloudprovider.core.hosts import Host
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.wanted import LoadBalancerKey, parsed
from cloudprovider.kube.queue import WorkQueue

log = logging.getLogger(__name__)

ASK_AGAIN: Final = 1.0
"""Seconds until a host that seems dead, and whose kernel answers, is asked again."""
GIVEN_BACK_FOR: Final = 2.0
"""Seconds for which a host still passes on to the one that takes an address back, and is yet to announce it."""
WORKERS: Final = 4


class Predecessors:
    """``known(host)``: what its Lease says, None without one. ``lives(networks, host)``: whether it is heard there, by
    all that is known. ``is_cut_off(network)``: whether nobody hears this host there. ``changed``: look at this load
    balancer again."""

    def __init__(
        self,
        me: str,
        table: ForwardingTable,
        forwarders: Mapping[str, NetworkForwarder],
        *,
        known: Callable[[str], Host | None],
        lives: Callable[[Iterable[str], str], bool],
        is_cut_off: Callable[[str], bool],
        changed: Callable[[LoadBalancerKey], None],
        rng: random.Random,
    ) -> None:
        self._me = me
        self._table = table
        self._forwarders = forwarders
        self._known = known
        self._lives = lives
        self._is_cut_off = is_cut_off
        self._changed = changed
        self._followed: dict[LoadBalancerKey, str] = {}
        """The hosts that are asked now."""
        self._given_back: dict[LoadBalancerKey, float] = {}
        """Until when those are asked still that have the address again, on the clock of the loop."""
        self._doubted: dict[str, set[LoadBalancerKey]] = {}
        """Hosts that seem dead, with the load balancers whose connections go on by them."""
        self._gone: set[str] = set()
        """Those of them that don't answer either."""
        self._doubts: WorkQueue[str] = WorkQueue(self._doubt, name="doubts", workers=WORKERS, rng=rng)

    async def run(self) -> None:
        """Ask those who seem dead, until cancelled."""
        await self._doubts.run()

    def of(self, lb: LoadBalancer) -> str:
        """The host by which older connections of a load balancer go on, "" for none: it is this one that has its
        addresses now, and the record says who had them before."""
        holder = lb.status.holder
        return holder.before if holder is not None and holder.node == self._me and self._is_there(holder.before) else ""

    def follow(self, lb: LoadBalancer, networks: Collection[str]) -> None:
        """Have the kernel ask that host, by its own addresses on the networks of the load balancer."""
        name = self._asked(lb)
        if name:
            self._followed[lb.key] = name
        else:
            self.forget(lb.key)
        if name and not self._lives(networks, name):
            self._doubted.setdefault(name, set()).add(lb.key)
            self._doubts.add(name)
        before = self._known(name)
        there = {} if before is None else {n: p for n, p in before.networks.items() if n in networks}
        ways = {network: _addresses(presence.addresses) for network, presence in there.items()}
        if self._table.set_predecessor(lb.key, ways):
            for network in frozenset(networks) & self._forwarders.keys():
                self._forwarders[network].wake()
            self._changed(lb.key)

    def forget(self, key: LoadBalancerKey) -> None:
        """The load balancer is gone."""
        self._followed.pop(key, None)
        self._given_back.pop(key, None)

    def _asked(self, lb: LoadBalancer) -> str:
        holder = lb.status.holder
        if holder is None:
            return ""
        name = holder.before if holder.node == self._me else self._followed.get(lb.key, "")
        return name if self._is_there(name) and not self._is_given_back(lb.key, name, holder.node) else ""

    def _is_there(self, host: str) -> bool:
        return host not in self._gone and self._known(host) is not None

    def _is_given_back(self, key: LoadBalancerKey, name: str, holder: str) -> bool:
        """Whether who is asked has the address again, and clients know."""
        if name != holder:
            self._given_back.pop(key, None)
            return False
        loop = asyncio.get_running_loop()
        if key not in self._given_back:
            self._given_back[key] = loop.time() + GIVEN_BACK_FOR
            loop.call_later(GIVEN_BACK_FOR, self._changed, key)
        return loop.time() >= self._given_back[key]

    def is_back(self, host: str) -> None:
        """Addresses are about to be taken from a host that lives: what begins there from now on it will know."""
        self._gone.discard(host)

    async def _doubt(self, host: str) -> float | None:
        known = self._known(host)
        there = {} if known is None else {network: p.addresses for network, p in known.networks.items()}
        if there and self._lives(there, host):
            self._doubted.pop(host, None)
            return None
        if any(self._is_cut_off(network) for network in there) or await is_answered(self._forwarders, there):
            return ASK_AGAIN
        log.info("connections that began on a host go on by it no more", extra={"host": host})
        self._gone.add(host)
        for key in self._doubted.pop(host, ()):
            self._changed(key)
        return None


async def is_answered(forwarders: Mapping[str, NetworkForwarder], asked: Mapping[str, Iterable[str]]) -> bool:
    """Whether anybody else has one of these addresses, by network; as if so where it can't be asked."""
    for network in sorted(asked.keys() & forwarders.keys()):
        addresses = _addresses(asked[network])
        try:
            if addresses and await forwarders[network].ask(addresses):
                return True
        except DataPlaneError as error:
            log.warning("not asked for", extra={"addresses": list(map(str, addresses)), "error": str(error)})
            return True
    return False


def _addresses(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    return tuple(address for text in texts if (address := parsed(text)) is not None)
