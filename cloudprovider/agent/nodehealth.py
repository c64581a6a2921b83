"""Which nodes of guests are able to take traffic, as their kube-proxy says: probed from each network's namespace."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final

from cloudprovider.core.health import Verdict
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import Segment
from cloudprovider.probe.api import Prober
from cloudprovider.probe.nodes import HEALTHZ_PORT, NodeProbes

log = logging.getLogger(__name__)

FOLLOW_EVERY: Final = 1.0
"""Seconds between two looks at which nodes are to be probed."""

WHY: Final[Mapping[Verdict, str]] = {
    Verdict.DRAINING: f"kube-proxy answers 503 (port {HEALTHZ_PORT}): it is being deleted, or its rules lag behind",
    Verdict.FAILED: f"kube-proxy no longer answers as it did on port {HEALTHZ_PORT}",
    Verdict.UNREACHABLE: f"Nothing comes back from the node any more (port {HEALTHZ_PORT})",
}
"""Why a node is out, for people."""

MakeProber = Callable[[Segment, str], Prober]
"""Makes the prober of a network's segment; the second argument is the network's name, for the log."""


class NodeHealth:
    """The probes of one network. ``nodes()``: whom to probe; ``changed(addresses)``: these are judged
    otherwise now. ``failing``: the nodes that are unfit, and why."""

    def __init__(
        self,
        network: str,
        make_prober: MakeProber,
        nodes: Callable[[], frozenset[IPAddress]],
        changed: Callable[[frozenset[IPAddress]], None],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._network = network
        self._make_prober = make_prober
        self._nodes = nodes
        self._changed = changed
        self._now = now
        self.failing: Mapping[IPAddress, str] = {}

    async def run(self, segment: Segment) -> None:
        """Probe until cancelled. Then nothing is known: no node is out because of what was seen before."""
        prober = self._make_prober(segment, self._network)
        try:
            probes = NodeProbes(prober, now=self._now)
            probes.on_change(lambda: self._look(probes))
            async with asyncio.TaskGroup() as group:
                group.create_task(probes.run())
                group.create_task(self._follow(probes))
        finally:
            prober.close()
            self._tell({})

    async def _follow(self, probes: NodeProbes) -> None:
        while True:
            probes.follow(self._nodes())
            self._look(probes)
            await asyncio.sleep(FOLLOW_EVERY)

    def _look(self, probes: NodeProbes) -> None:
        self._tell({node: WHY[probes.health(node).verdict] for node in probes.draining | probes.failed})

    def _tell(self, failing: Mapping[IPAddress, str]) -> None:
        before, self.failing = self.failing, failing
        if failing == before:
            return
        for node in failing.keys() - before.keys():
            said = {"network": self._network, "node": str(node), "why": failing[node]}
            log.warning("node takes no traffic", extra=said)
        for node in before.keys() - failing.keys():
            log.info("node takes traffic again", extra={"network": self._network, "node": str(node)})
        self._changed(frozenset(node for node, _ in before.items() ^ failing.items()))
