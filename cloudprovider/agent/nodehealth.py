"""Which nodes of guests are able to take traffic, as their kube-proxy says: probed from each network's namespace."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Final

from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import Segment
from cloudprovider.probe.api import Prober
from cloudprovider.probe.nodes import NodeProbes

log = logging.getLogger(__name__)

FOLLOW_EVERY: Final = 1.0
"""Seconds between two looks at which nodes are to be probed."""

MakeProber = Callable[[Segment, str], Prober]
"""Makes the prober of a network's segment; the second argument is the network's name, for the log."""


class NodeHealth:
    """The probes of one network. ``nodes()``: whom to probe; ``changed()``: ``failing`` is another set now."""

    def __init__(
        self,
        network: str,
        make_prober: MakeProber,
        nodes: Callable[[], frozenset[IPAddress]],
        changed: Callable[[], None],
        *,
        now: Callable[[], datetime],
    ) -> None:
        self._network = network
        self._make_prober = make_prober
        self._nodes = nodes
        self._changed = changed
        self._now = now
        self.failing: frozenset[IPAddress] = frozenset()

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
            self._tell(frozenset())

    async def _follow(self, probes: NodeProbes) -> None:
        while True:
            probes.follow(self._nodes())
            self._look(probes)
            await asyncio.sleep(FOLLOW_EVERY)

    def _look(self, probes: NodeProbes) -> None:
        self._tell(probes.draining | probes.failed)

    def _tell(self, failing: frozenset[IPAddress]) -> None:
        if failing == self.failing:
            return
        for node in failing - self.failing:
            log.warning("node takes no traffic", extra={"network": self._network, "node": str(node)})
        for node in self.failing - failing:
            log.info("node takes traffic again", extra={"network": self._network, "node": str(node)})
        self.failing = failing
        self._changed()
