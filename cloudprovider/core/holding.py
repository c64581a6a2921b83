"""Whether a host is to hold a load balancer's addresses: what an agent goes by, for one load balancer at a time.

The record is ``status.holder``; who is to be the holder is ``status.owner``, which the host controller writes. Where
the owner is gone, its successor is found by rendezvous hashing among those that are there, without waiting for the
controller. Nobody takes from a host that may still be answering without having asked on the network first.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.owners import successor

Stance = Literal["hold", "move", "ask", "leave"]
"""``hold``: have it, it is this host's; ``move``: take it from a host that knows; ``ask``: take it if nobody answers
for its addresses; ``leave``: it is somebody else's."""


@dataclass(frozen=True)
class KnownHosts:
    """What an agent knows of the hosts of its instance, its own among them.

    ``is_alive(host)``: its Lease is fresh, and BFD does not say otherwise; ``able(networks)``: the hosts that could
    serve on all of these networks, this one included if it can.
    """

    me: str
    is_alive: Callable[[str], bool]
    able: Callable[[Iterable[str]], frozenset[str]]


def stance(lb: LoadBalancer, networks: Iterable[str], fellows: KnownHosts) -> Stance:
    """What to do about a load balancer that stands on these networks."""
    me = fellows.me
    holder = lb.status.holder.node if lb.status.holder is not None else ""
    if holder == me:
        return "hold"
    if _wanted(lb, holder, networks, fellows) != me:
        return "leave"
    if not holder:
        return "hold"
    return "move" if fellows.is_alive(holder) else "ask"


def _wanted(lb: LoadBalancer, holder: str, networks: Iterable[str], fellows: KnownHosts) -> str:
    """Who is to have it, as far as this host can tell."""
    owner = lb.status.owner
    if owner and fellows.is_alive(owner):
        return owner
    if holder and fellows.is_alive(holder):
        return holder
    return successor(lb.status.address_key or lb.metadata.uid, fellows.able(networks))
