"""Which nodes of guests are to be out, by what their kube-proxy says: GET /healthz on port 10256, one probe a node.

kube-proxy answers 200, and 503 while its node is being deleted (by hand or by the cluster autoscaler) or while its
rules lag behind: pkg/proxy/healthcheck in Kubernetes' source, KEP-3836. Where healthz is closed to us the same probe
still tells whether the node can be reached (:mod:`cloudprovider.core.health`).

A Service's health-check NodePort (policy Local) is not probed. What it says, kube-proxy counts from the EndpointSlices
that the guest program reads too, so it is never earlier than they are; it counts no terminating endpoints, which have
to serve where nothing else is left, so it could not overrule them; its "serviceProxyHealthy" is healthz's own answer
without the node's deletion. And it would be a probe for each Service and node instead of one for each node. What it
alone tells is where endpoints have gone while the guest program or the bridge is away: then what was last known counts.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from math import inf
from typing import Final

from cloudprovider.core.health import Check, Health, Outcome, Verdict, observe
from cloudprovider.core.plan import IPAddress
from cloudprovider.probe.api import Prober, Target
from cloudprovider.probe.ring import Ring

HEALTHZ_PORT: Final = 10256
HEALTHZ_PATH: Final = "/healthz"

_TICK: Final = 0.025
"""Seconds between two looks at who is due, at least: at 1,000 nodes and 0.01 probes cost a third more."""


class _Node:
    """A node that is followed; one that has gone and come again is another."""

    __slots__ = ("asking", "health", "target")

    def __init__(self, address: IPAddress) -> None:
        self.target = Target(address, HEALTHZ_PORT, HEALTHZ_PATH)
        self.health = Health()
        self.asking = False


class NodeProbes:
    """Probes of one network's nodes, by address. Made in a running event loop; works while ``run`` runs.

    ``at_once`` bounds the probes under way, and so the open sockets: with more silent nodes than that allows
    (``at_once / timeout`` a second) the period grows for all, and no verdict comes of it.
    """

    def __init__(
        self, prober: Prober, *, now: Callable[[], datetime], check: Check | None = None, at_once: int = 512
    ) -> None:
        self._prober = prober
        self._now = now
        self._check = check or Check()
        self._at_once = at_once
        self._under_way = 0
        self._loop = asyncio.get_running_loop()
        self._ring: Ring[IPAddress] = Ring(self._check.period, lambda address: address.packed, self._loop.time())
        self._nodes: dict[IPAddress, _Node] = {}
        self._callback: Callable[[], None] | None = None
        self._waiting: asyncio.Future[None] | None = None

    def follow(self, addresses: Collection[IPAddress]) -> None:
        """Probe just these from now on, the whole set each time. Who comes new is unknown; who goes is forgotten."""
        if self._nodes.keys() == set(addresses):
            return
        self._nodes = {address: self._nodes.get(address) or _Node(address) for address in addresses}
        self._ring.follow(self._nodes)
        self._wake()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back whenever a node's verdict has become another by a probe (not by ``follow``). The callback may call
        this object; it replaces the one before."""
        self._callback = callback

    def health(self, address: IPAddress) -> Health:
        """What is known of a node; who is not followed is unknown."""
        node = self._nodes.get(address)
        return node.health if node is not None else Health()

    @property
    def draining(self) -> frozenset[IPAddress]:
        """Nodes that say that they want no new connections; those they have may go on."""
        return self._with(Verdict.DRAINING)

    @property
    def failed(self) -> frozenset[IPAddress]:
        """Nodes whose kube-proxy has fallen silent, or that can't be reached any more."""
        return self._with(Verdict.FAILED, Verdict.UNREACHABLE)

    async def run(self) -> None:
        """Probe until cancelled. Closing the prober is its maker's."""
        while True:
            now = self._loop.time()
            for address in self._ring.take(now, self._at_once - self._under_way):
                if address in self._nodes:  # may have gone while another probe began
                    await self._begin(self._nodes[address])
            await self._sleep(now)

    async def _begin(self, node: _Node) -> None:
        if node.asking:  # a timeout longer than the period
            return
        node.asking = True
        self._under_way += 1
        try:
            await self._prober.begin(node.target, self._check.timeout, partial(self._ended, node))
        except BaseException:
            node.asking = False
            self._under_way -= 1
            raise

    def _ended(self, node: _Node, outcome: Outcome) -> None:
        node.asking = False
        if self._under_way == self._at_once:
            self._wake()
        self._under_way -= 1
        if self._nodes.get(node.target.address) is not node:
            return
        before, node.health = node.health, observe(node.health, outcome, self._now(), self._check)
        if node.health.verdict is not before.verdict and self._callback is not None:
            self._callback()

    async def _sleep(self, now: float) -> None:
        """Until somebody is due, a tick at least; ``_wake`` ends it too."""
        self._waiting = self._loop.create_future()
        due = self._ring.next_at() if self._under_way < self._at_once else inf
        timer = self._loop.call_at(max(due, now + _TICK), self._wake) if due < inf else None
        try:
            await self._waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _with(self, *verdicts: Verdict) -> frozenset[IPAddress]:
        return frozenset(address for address, node in self._nodes.items() if node.health.verdict in verdicts)
