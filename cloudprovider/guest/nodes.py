"""Tells the host which nodes take traffic: once for each change, whatever the number of Services."""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from cloudprovider.bridge.api import BridgeClient
from cloudprovider.core.annotations import VIRTUAL_MACHINE
from cloudprovider.core.api.kubernetes import EXCLUDE_LABELS, Node
from cloudprovider.core.errors import CloudProviderError
from cloudprovider.core.exchange import RejectedNode, ReportedNode
from cloudprovider.core.guestnodes import select_nodes, virtual_machine
from cloudprovider.core.news import NODE_REJECTED
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.events import EventRecorder
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import NODES

log = logging.getLogger(__name__)

DEBOUNCE: Final = 0.2
"""Seconds that a change of nodes waits for more of the same: a rolling update touches many at once."""
BACKOFF: Final = Backoff(base=0.5, limit=30.0)


def slim(node: Node) -> Node:
    """Return ``node`` with just what decides whether it takes traffic, and where: there may be thousands."""
    meta = node.metadata
    return msgspec.structs.replace(
        node,
        metadata=msgspec.structs.replace(
            meta,
            labels={k: v for k, v in meta.labels.items() if k in EXCLUDE_LABELS},
            annotations={k: v for k, v in meta.annotations.items() if k == VIRTUAL_MACHINE},
            owner_references=[],
            finalizers=[],
        ),
        status=msgspec.structs.replace(
            node.status, conditions=[c for c in node.status.conditions if c.type == "Ready"]
        ),
    )


class NodeReporter:
    """Reports the nodes when they change, when time changes them (a NotReady node's grace ends), and after every
    (re)connection. Nodes that the host refuses get an event."""

    def __init__(
        self,
        bridge: BridgeClient,
        nodes: Informer[Node],
        *,
        events: EventRecorder,
        connected: Callable[[], bool],
        rng: random.Random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        debounce: float = DEBOUNCE,
    ) -> None:
        self._bridge = bridge
        self._nodes = nodes
        self._events = events
        self._connected = connected
        self._rng = rng
        self._now = now
        self._debounce = debounce
        self._changed = asyncio.Event()
        self._again = asyncio.Event()
        self._in_use: frozenset[str] | None = None
        self._reported: tuple[ReportedNode, ...] | None = None
        self._rejected: frozenset[RejectedNode] = frozenset()
        nodes.on_change(self._on_change)

    @property
    def reported(self) -> tuple[ReportedNode, ...] | None:
        """What the host was told last; None: nothing since it was last reached."""
        return self._reported

    def again(self) -> None:
        """Have the nodes told again, changed or not: the host is reached anew, and may have forgotten."""
        self._reported = None
        self._again.set()
        self._changed.set()

    async def run(self) -> None:
        """Report until cancelled; errors are logged and tried again with backoff."""
        await self._nodes.synced.wait()
        failures = 0
        while True:
            self._changed.clear()
            self._again.clear()
            now = self._now()
            selection = select_nodes(self._nodes.objects.values(), in_use=self._in_use, now=now)
            self._in_use = frozenset(node.name for node in selection.nodes)
            if selection.nodes != self._reported and self._connected():
                try:
                    await self._report(selection.nodes)
                except CloudProviderError as e:
                    failures += 1
                    log.warning(
                        "The nodes were not taken; trying again.", extra={"error": str(e), "failures": failures}
                    )
                    await _until(self._again, BACKOFF.delay(failures, self._rng))
                    continue
                failures = 0
            recheck = selection.recheck_at
            if await _until(self._changed, None if recheck is None else (recheck - now).total_seconds() + 0.01):
                await asyncio.sleep(self._debounce)

    async def _report(self, nodes: tuple[ReportedNode, ...]) -> None:
        rejected = await self._bridge.report_nodes(nodes)
        self._reported = nodes
        log.info("The nodes were taken.", extra={"nodes": len(nodes), "rejected": len(rejected)})
        self._announce_rejected(rejected)

    def _announce_rejected(self, rejected: Sequence[RejectedNode]) -> None:
        for entry in rejected:
            node = self._nodes.get("", entry.name)
            if node is not None and entry not in self._rejected:
                message = f"the host sends no load-balancer traffic to {entry.address}: {entry.message}"
                self._events.record(NODES, node, NODE_REJECTED.because(entry.reason), message)
        self._rejected = frozenset(rejected)

    def _on_change(self, old: Node | None, new: Node | None) -> None:
        if old is None or new is None or _traits(old) != _traits(new):
            self._changed.set()


def _traits(node: Node) -> tuple[object, ...]:
    """What decides whether a node takes traffic, and where; a heartbeat changes none of it."""
    meta = node.metadata
    return (
        meta.uid,
        meta.deletion_timestamp,
        meta.labels.keys() & EXCLUDE_LABELS,
        virtual_machine(node),
        node.spec.taints,
        node.status.addresses,
        [(c.status, c.last_transition_time) for c in node.status.conditions if c.type == "Ready"],
    )


async def _until(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for ``event``, at most ``seconds``; whether it came."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
