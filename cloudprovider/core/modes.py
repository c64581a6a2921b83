"""Which mode an address is forwarded in: asked for, or chosen by where the nodes stand. Pure.

``dsr`` passes frames on to a node's MAC, so the node must stand on the address's own network (or, where it is asked
for, on the host's); then the client's address is kept, the node answers the client directly, and another host can take
over in mid-stream. ``nat`` works wherever a node can be reached. ``auto`` takes ``dsr`` where all nodes of the cluster
stand on the address's network (not just those with endpoints now: a pod that moves must not change the mode), else
``nat``.

A virtual machine, which has no kube-proxy, must take up the address itself and serve on the address's port: so ``dsr``
needs its word that it carries the address (an annotation), and listeners that keep their port.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface
from typing import Final

from cloudprovider.core.api.loadbalancer import VIP_ON_LOOPBACK_ANNOTATION, Backend, Listener
from cloudprovider.core.exchange import Mode
from cloudprovider.core.plan import ForwardMode, IPAddress, IPNetwork, ListenerKey

_NAMED: Final = 3
"""How many nodes, ports or machines a sentence names."""


@dataclass(frozen=True)
class NetworkFacts:
    """A host's standing on a network, as far as it matters to how nodes are reached there.

    ``own``: its own addresses there, one of a family, which ``nat`` needs; ``gateways``: its ways to elsewhere.
    ``dsr_obstacle``: why frames passed on would not arrive, "" where they do. ``hands_over``: whether connections of
    mode nat that began on another host may go on by it, and would not go on without.
    """

    own: tuple[IPv4Interface | IPv6Interface, ...] = (IPv4Interface("0.0.0.0/0"), IPv6Interface("::/0"))
    gateways: frozenset[IPAddress] = frozenset()
    dsr_obstacle: str = ""
    hands_over: bool = True

    @property
    def nat_families(self) -> frozenset[int]:
        """The families (4, 6) in which mode nat works."""
        return frozenset(own.version for own in self.own)

    def is_neighbour(self, address: IPAddress) -> bool:
        """Whether an address, if it is anybody's, is a machine's on the network itself."""
        if address in self.gateways:
            return False
        for own in self.own:
            if own.version == address.version and address in own.network:
                ends = own.network.network_address, own.network.broadcast_address
                return address != own.ip and (own.network.prefixlen >= own.max_prefixlen - 1 or address not in ends)
        return False


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
    answerers: Collection[str] = (),
) -> Choice:
    """Choose for one address in ``subnet``; ``nodes``: all nodes of the cluster of the address's family;
    ``answerers``: the names of those that answer for addresses themselves."""
    present = sorted(node for node in nodes if node.version == subnet.version)
    why_not, claimed = _why_not_dsr(asked, subnet, present, facts), _claimed(answerers)
    if asked != "auto":
        return _asked(asked, subnet, why_not, claimed or facts.dsr_obstacle, facts)
    obstacle = why_not or facts.dsr_obstacle
    if not obstacle and subnet.version in facts.nat_families:
        obstacle = claimed  # rather this than nothing, where nat can't work
    if obstacle:
        return _nat(obstacle, subnet, facts)
    if not present:
        return _nat("the cluster has no node yet", subnet, facts)
    return Choice("dsr", f"all nodes stand in {subnet}")


def choose_for_machines(
    asked: Mode, subnet: IPNetwork, machines: Iterable[IPAddress], facts: NetworkFacts, obstacle: str
) -> Choice:
    """Choose for one address in ``subnet`` of a load balancer for virtual machines. ``obstacle``: what
    :func:`why_not_direct` says of them and the listeners."""
    present = sorted(machine for machine in machines if machine.version == subnet.version)
    why_not = obstacle or _why_not_dsr(asked, subnet, present, facts)
    if asked != "auto":
        return _asked(asked, subnet, why_not, facts.dsr_obstacle, facts)
    if why_not or facts.dsr_obstacle:
        return _nat(why_not or facts.dsr_obstacle, subnet, facts)
    if not present:
        return _nat("no virtual machine takes traffic yet", subnet, facts)
    return Choice("dsr", f"all virtual machines stand in {subnet} and carry the address")


def _asked(asked: ForwardMode, subnet: IPNetwork, why_not: str, obstacle: str, facts: NetworkFacts) -> Choice:
    """What was asked for, whether or not it can work."""
    if asked == "nat":
        return _nat("asked for", subnet, facts)
    note = f"; beware: {obstacle}" if obstacle else ""
    return Choice("dsr", f"asked for{note}", f"Mode dsr can't work: {why_not}." if why_not else "")


def why_not_direct(listeners: Iterable[Listener], machines: Iterable[Backend]) -> str:
    """Why frames can't go to virtual machines unchanged, "" where they can."""
    moved = [x for x in listeners if x.backend_port not in {None, x.port}]
    if moved:
        ports = _listed([f"{x.protocol} {x.port} to {x.backend_port}" for x in moved])
        return f"the machines would get frames with the address's ports, not those of backendPort ({ports})"
    silent = [machine.name for machine in machines if not machine.direct]
    if silent:
        verb = "does" if len(silent) == 1 else "do"
        annotation = f'annotation {VIP_ON_LOOPBACK_ANNOTATION}: "true"'
        return f"{_listed(silent)} {verb} not say that the address is on the loopback there ({annotation})"
    return ""


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


def _claimed(answerers: Collection[str]) -> str:
    """In mode dsr such a node tells clients, too, when it asks for their MAC by the address."""
    if not answerers:
        return ""
    verb = "answers" if len(answerers) == 1 else "answer"
    names = ", ".join(sorted(answerers)[:_NAMED])
    return f"{names} {verb} for the cluster's addresses, as kube-proxy in mode ipvs makes it"


def stands(asked: Mode, subnet: IPNetwork, node: IPAddress, facts: NetworkFacts) -> bool:
    """Whether frames for an address in ``subnet`` can go to a node as they are. Where dsr is asked for, the host's own
    network will do: routers lead to an address of any subnet (BGP). That the node's answers go by them, too, is known
    to who asks, so it is never chosen."""
    return node in subnet or (asked == "dsr" and facts.is_neighbour(node))


def _why_not_dsr(asked: Mode, subnet: IPNetwork, nodes: list[IPAddress], facts: NetworkFacts) -> str:
    outside = [str(node) for node in nodes if not stands(asked, subnet, node, facts)]
    if not outside:
        return ""
    verb = "is" if len(outside) == 1 else "are"
    return f"{_listed(outside)} {verb} not in {subnet}, the network of the address"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
