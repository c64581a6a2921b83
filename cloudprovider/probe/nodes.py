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

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final

from cloudprovider.core.health import Answer, Check, Health, Verdict, observe
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.questions import HttpGet
from cloudprovider.probe.api import Prober, Target
from cloudprovider.probe.rounds import Rounds, Turn

HEALTHZ_PORT: Final = 10256
HEALTHZ: Final = HttpGet("/healthz", codes=((200, 200),))


def healthz(node: IPAddress) -> Target:
    """What is asked of a node."""
    return Target(node, HEALTHZ_PORT, HEALTHZ)


class NodeProbes:
    """Probes of one network's nodes, by address. Made in a running event loop; works while ``run`` runs. ``at_once``:
    see :class:`~cloudprovider.probe.rounds.Rounds`."""

    def __init__(
        self, prober: Prober, *, now: Callable[[], datetime], check: Check | None = None, at_once: int = 512
    ) -> None:
        self._now = now
        self._check = check or Check()
        self._rounds: Rounds[IPAddress] = Rounds(prober, lambda node: node.packed, self._ended, at_once=at_once)
        self._health: dict[IPAddress, Health] = {}
        self._callback: Callable[[], None] | None = None

    def follow(self, addresses: Collection[IPAddress]) -> None:
        """Probe just these from now on, the whole set each time. Who comes new is unknown; who goes is forgotten."""
        if self._health.keys() == set(addresses):
            return
        self._health = {address: self._health.get(address) or Health() for address in addresses}
        check = self._check
        self._rounds.follow({node: Turn(healthz(node), check.period, check.timeout) for node in self._health})

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call back whenever a node's verdict has become another by a probe (not by ``follow``). The callback may call
        this object; it replaces the one before."""
        self._callback = callback

    def health(self, address: IPAddress) -> Health:
        """What is known of a node; who is not followed is unknown."""
        return self._health.get(address) or Health()

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
        await self._rounds.run()

    def _ended(self, node: IPAddress, answer: Answer) -> None:
        before = self._health[node]
        after = self._health[node] = observe(before, answer.outcome, self._now(), self._check)
        if after.verdict is not before.verdict and self._callback is not None:
            self._callback()

    def _with(self, *verdicts: Verdict) -> frozenset[IPAddress]:
        return frozenset(address for address, health in self._health.items() if health.verdict in verdicts)
