"""Which nodes send back what comes for an address, and for how long they get none of it. Pure.

In mode ``dsr`` a node whose kube-proxy does not know the address routes its frames back to the network, where the
balancer sees them again (and drops them). A load balancer that has just come is not known to the nodes until the guest
has written its status, so for GRACE_SECONDS that is nothing to act on; later the node gets nothing of this load
balancer for PENALTY_SECONDS, twice as long each time, up to PENALTY_MOST. Where all nodes send back, all are kept: to
leave them all out would serve nobody either.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.wanted import LoadBalancerKey

GRACE_SECONDS: Final = 30.0
PENALTY_SECONDS: Final = 30.0
PENALTY_MOST: Final = 600.0


@dataclass
class _Penalty:
    until: float
    seconds: float


class Returns:
    """What is known of all load balancers. Times are seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._since: dict[LoadBalancerKey, float] = {}
        self._penalties: dict[LoadBalancerKey, dict[str, _Penalty]] = {}

    def begin(self, key: LoadBalancerKey, now: float) -> None:
        """Its addresses are up (again)."""
        self._since.setdefault(key, now)

    def forget(self, key: LoadBalancerKey) -> None:
        """The load balancer is gone."""
        self._since.pop(key, None)
        self._penalties.pop(key, None)

    def returned(self, key: LoadBalancerKey, node: str, now: float) -> None:
        """A node has sent back frames for a load balancer within the last seconds."""
        if now < self._since.get(key, now) + GRACE_SECONDS:
            return
        penalties = self._penalties.setdefault(key, {})
        penalty = penalties.get(node)
        if penalty is None:
            penalties[node] = _Penalty(now + PENALTY_SECONDS, PENALTY_SECONDS)
        elif penalty.until <= now:
            penalty.seconds = min(2 * penalty.seconds, PENALTY_MOST)
            penalty.until = now + penalty.seconds

    def refusing(self, key: LoadBalancerKey, now: float) -> frozenset[str]:
        """The nodes that are known to send back what comes for a load balancer."""
        return frozenset(node for node, p in self._penalties.get(key, {}).items() if p.until > now)

    def left_out(self, key: LoadBalancerKey, nodes: Collection[str], now: float) -> frozenset[str]:
        """Those of its ``nodes`` that are to get nothing of it."""
        found = self.refusing(key, now) & frozenset(nodes)
        return found if len(found) < len(nodes) else frozenset()

    def concerned(self) -> frozenset[LoadBalancerKey]:
        """The load balancers with a node that is, or was, left out."""
        return frozenset(self._penalties)
