"""Our own engine as ways from the client to the nodes: each mode, alone and beside 10,000 other Services."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface
from typing import Final

from cloudprovider.core.plan import (
    Changes,
    Forward,
    ForwardMode,
    Group,
    GroupId,
    ListenerKey,
    Member,
    Plan,
    chunks,
    diff,
)
from cloudprovider.dataplane.announcer import Timing
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.segment import HostDataPlane, KernelSegment
from tests.bench.dataplane.topology import BRIDGE, LAN, PORT, Topology, target
from tests.bench.dataplane.ways import Way, own, vip

NODES: Final = GroupId(1)
_CHUNK: Final = 500
_FAST: Final = Timing(between=0.005, listen=0.02)


@dataclass(frozen=True)
class Case:
    """A mode, beside ``others`` Services that nobody asks anything; ``changing``: while a node is on its way in."""

    mode: ForwardMode
    others: int = 0
    changing: bool = False

    @property
    def name(self) -> str:
        beside = f", {self.others:,} others" if self.others else ""
        return self.mode + beside + (", nodes changing" if self.changing else "")


CASES: Final = (
    Case("nat"),
    Case("nat", others=10_000),
    Case("dsr"),
    Case("dsr", others=10_000),
    Case("dsr", changing=True),
)


class Ours:
    """One namespace of ours, forwarding TCP and UDP of ``vip(number)`` to all nodes."""

    def __init__(self, topology: Topology, segment: KernelSegment, case: Case, number: int) -> None:
        self.segment = segment
        self.case = case
        self._topology = topology
        self._vip = vip(number)

    @property
    def listeners(self) -> list[ListenerKey]:
        return [ListenerKey(self._vip, "TCP", PORT), ListenerKey(self._vip, "UDP", PORT)]

    def forward(self) -> Forward:
        mode = self.case.mode
        return Forward(group=NODES, backend_port=PORT if mode == "nat" else 0, mode=mode)

    def group(self, *, without: int = 0) -> Group:
        """All nodes but the last ``without``."""
        nodes = self._topology.nodes[: len(self._topology.nodes) - without]
        members: frozenset[Member] = frozenset(node.address if self.case.mode == "nat" else node.mac for node in nodes)
        return Group(members)

    @property
    def way(self) -> Way:
        return Way(self.case.name, (target(self._vip),), "routing" if self.case.mode == "nat" else "direct")

    async def serve(self) -> None:
        """Bring it up."""
        await self.segment.engine.start()
        keys = self.listeners + [ListenerKey(LAN[64 * 256 + i], "TCP", PORT) for i in range(self.case.others)]
        group = self.group()
        if self.case.changing:
            group = replace(group, former=self.group(without=1).members)
        plan = Plan(groups={NODES: group}, forwards=dict.fromkeys(keys, self.forward()))
        for part in chunks(diff(await self.segment.engine.observe(), plan), _CHUNK):
            await self.segment.engine.apply(part)
        await self.segment.announcer.claim([self._vip])
        if self.case.mode == "dsr":  # what a node's kube-proxy does once the address is in the Service's status
            for node in self._topology.nodes:
                node.namespace.ip(f"address replace {self._vip}/32 dev lo")

    async def remove_nodes(self, count: int) -> None:
        """Take the last ``count`` nodes away (0: have all), and let nothing be remembered of flows until now."""
        await self.segment.engine.apply(Changes(groups={NODES: self.group(without=count)}))
        await self.segment.connections.forget_listeners(self.listeners)


@contextlib.asynccontextmanager
async def ours(topology: Topology, case: Case, number: int) -> AsyncIterator[Ours]:
    """A namespace of ours, for as long as the block lasts."""
    dataplane = HostDataPlane(f"ben{number}", timing=_FAST)
    own_address = IPv4Interface((LAN[own(number)], LAN.prefixlen))
    try:
        segment = await dataplane.open(NetworkConfig(name="", device=BRIDGE, address=own_address))
        made = Ours(topology, segment, case, number)
        await made.serve()
        yield made
    finally:
        await dataplane.remove("")
        await dataplane.close()
