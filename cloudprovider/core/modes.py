"""Which mode an address is forwarded in: asked for, or chosen by where the nodes stand. Pure.

``dsr`` passes frames on to a node's MAC, so the node must stand on the address's own network; then the client's
address is kept, the node answers the client directly, and another host can take over in mid-stream. ``nat`` works
wherever a node can be reached. ``auto`` takes ``dsr`` where all nodes of the cluster stand on the network (not just
those with endpoints now: a pod that moves must not change the mode), else ``nat``.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

from cloudprovider.core.exchange import Mode
from cloudprovider.core.plan import ForwardMode, IPAddress, IPNetwork, ListenerKey

_NAMED: Final = 3
"""How many nodes a sentence names."""


@dataclass(frozen=True)
class NetworkFacts:
    """What of a host's standing on a network decides on modes.

    ``nat_families``: the families (4, 6) of which it has an address of its own there, which ``nat`` needs.
    ``dsr_obstacle``: why frames passed on would not arrive, "" where they do.
    """

    nat_families: frozenset[int] = frozenset({4, 6})
    dsr_obstacle: str = ""


@dataclass(frozen=True)
class Choice:
    """A mode, a sentence on why this one, and a sentence on why it can't work, "" where it can."""

    mode: ForwardMode
    reason: str
    trouble: str = ""


def choose(
    asked: Mode,
    subnet: IPNetwork,
    nodes: Iterable[IPAddress],
    facts: NetworkFacts,
    claimants: Collection[str] = (),
) -> Choice:
    """Choose for one address in ``subnet``; ``nodes``: all nodes of the cluster of the address's family;
    ``claimants``: the names of those that answer for addresses themselves."""
    present = sorted(node for node in nodes if node.version == subnet.version)
    why_not = _why_not_dsr(subnet, present)
    claimed = _claimed(claimants)
    if asked == "dsr":
        obstacle = claimed or facts.dsr_obstacle
        note = f"; beware: {obstacle}" if obstacle else ""
        return Choice("dsr", f"asked for{note}", f"Mode dsr can't work: {why_not}." if why_not else "")
    if asked == "nat":
        return _nat("asked for", subnet, facts)
    why_not = why_not or facts.dsr_obstacle
    if not why_not and subnet.version in facts.nat_families:
        why_not = claimed  # rather this than nothing, where nat can't work
    if why_not:
        return _nat(why_not, subnet, facts)
    if not present:
        return _nat("the cluster has no node yet", subnet, facts)
    return Choice("dsr", f"all nodes stand in {subnet}")


def without_node_ports(listeners: Iterable[ListenerKey]) -> str:
    """A sentence on listeners that have no node port, in mode ``nat``."""
    ports = ", ".join(sorted({f"{x.protocol} {x.port}" for x in listeners}))
    return (
        f"No node port for {ports}, which mode nat needs. Remove allocateLoadBalancerNodePorts: false from the "
        "Service, or have its nodes on the address's own network for mode dsr."
    )


def _nat(reason: str, subnet: IPNetwork, facts: NetworkFacts) -> Choice:
    if subnet.version in facts.nat_families:
        return Choice("nat", reason)
    key = "address" if subnet.version == 4 else "address6"
    return Choice(
        "nat",
        reason,
        f"Mode nat needs an IPv{subnet.version} address of this host on the network: give it one ({key}) in the agent's"
        " networks file.",
    )


def _claimed(claimants: Collection[str]) -> str:
    """In mode dsr such a node tells clients, too, when it asks for their MAC by the address."""
    if not claimants:
        return ""
    verb = "answers" if len(claimants) == 1 else "answer"
    names = ", ".join(sorted(claimants)[:_NAMED])
    return f"{names} {verb} for the cluster's addresses, as kube-proxy in mode ipvs makes it"


def _why_not_dsr(subnet: IPNetwork, nodes: list[IPAddress]) -> str:
    outside = [str(node) for node in nodes if node not in subnet]
    if not outside:
        return ""
    more = f" and {len(outside) - _NAMED} more" if len(outside) > _NAMED else ""
    verb = "is" if len(outside) == 1 else "are"
    return f"{', '.join(outside[:_NAMED])}{more} {verb} not in {subnet}, the network of the address"
