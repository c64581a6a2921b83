"""Nodes that answer for their load balancers' addresses themselves, and for how long they count as doing so. Pure.

kube-proxy in mode ipvs puts the addresses on an interface of the node, which answers ARP for them unless strictARP is
set. It is heard now and then only: when the node asks for somebody by such an address, which mode ``dsr`` makes it do
and mode ``nat`` does not. So it counts for FIRST_SECONDS after it was heard, and for twice as long each time that it is
heard again after that: the mode does not come and go.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

FIRST_SECONDS: Final = 600.0
MOST_SECONDS: Final = 86_400.0

Where = tuple[str, tuple[str, str]]
"""A network, and the (namespace, name) of a cluster: a node that answers for one address of its own does for all."""


@dataclass
class _Heard:
    until: float
    seconds: float


class Answerers:
    """What has been heard in the last days. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._heard: dict[Where, dict[str, _Heard]] = {}

    def claimed(self, where: Where, node: str, now: float) -> None:
        """A node has claimed an address."""
        nodes = self._heard.setdefault(where, {})
        for gone in [name for name, heard in nodes.items() if heard.until + MOST_SECONDS < now]:
            del nodes[gone]
        before = nodes.get(node)
        if before is None:
            nodes[node] = _Heard(now + FIRST_SECONDS, FIRST_SECONDS)
            return
        if before.until <= now:
            before.seconds = min(2 * before.seconds, MOST_SECONDS)
        before.until = now + before.seconds

    def nodes(self, where: Where, now: float) -> frozenset[str]:
        """Who counts as claiming addresses there."""
        return frozenset(node for node, heard in self._heard.get(where, {}).items() if heard.until > now)

    def places(self) -> Collection[Where]:
        """Where anybody ever did."""
        return self._heard.keys()
