"""How each node, and each virtual machine, is reached on each network: at its address, by its MAC, or not at all. Pure.

Whoever has root in a machine on a network can answer there for any address by ARP or NDP. So where the host knows a
machine's MAC, that counts and nothing that is heard: in mode ``dsr`` frames go to it alone, and for mode ``nat`` its
address is *fixed* to it in the neighbour table of the network's namespace. Of several who claim one address with
different MACs, the first keeps it; to the others nothing is sent that the first would get instead of them.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

from cloudprovider.core.choices import ClusterKey
from cloudprovider.core.groups import Node, Sightings
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.modes import NetworkFacts
from cloudprovider.core.plan import ForwardMode, IPAddress, Member


class _Right(NamedTuple):
    """Who has an address: a namespace, by this MAC (None: by whichever is heard)."""

    namespace: str
    mac: MACAddress | None


@dataclass
class _Network:
    """``claims``: by address, and by who came first; ``fixed``: what the neighbour table is to have, ``lingering``
    of it for the sake of connections alone; ``changed``: what it was not told yet."""

    facts: NetworkFacts = field(default_factory=NetworkFacts)
    seen: Sightings = field(default_factory=Sightings)
    users: dict[ClusterKey, int] = field(default_factory=dict)
    claims: dict[IPAddress, dict[ClusterKey, MACAddress | None]] = field(default_factory=dict)
    claimed: dict[ClusterKey, Mapping[IPAddress, MACAddress | None]] = field(default_factory=dict)
    fixed: dict[IPAddress, MACAddress] = field(default_factory=dict)
    lingering: set[IPAddress] = field(default_factory=set)
    changed: set[IPAddress] = field(default_factory=set)


class Reach:
    """All nodes on all ``networks`` that this host stands on. Where it says which clusters a change concerns, it is
    those for whom another member may come out now, besides the one that has changed itself."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = {network: _Network() for network in networks}
        self._nodes: dict[ClusterKey, Mapping[str, Node]] = {}

    def nodes(self, cluster: ClusterKey) -> Mapping[str, Node]:
        """The nodes of a cluster, by name."""
        return self._nodes.get(cluster, {})

    def set_nodes(self, cluster: ClusterKey, nodes: Mapping[str, Node]) -> Mapping[str, AbstractSet[ClusterKey]]:
        """A cluster has these nodes; return whom that concerns, by network."""
        if nodes:
            self._nodes[cluster] = nodes
        else:
            self._nodes.pop(cluster, None)
        return {name: self._claim(name, cluster) for name, here in self._networks.items() if cluster in here.users}

    def use(self, network: str, cluster: ClusterKey, step: int) -> AbstractSet[ClusterKey]:
        """So many more load balancers (or less) of a cluster are on a network; return whom that concerns."""
        users = self._networks[network].users
        before = users.get(cluster, 0)
        users[cluster] = before + step
        if not users[cluster]:
            del users[cluster]
        return self._claim(network, cluster) if bool(before) != (cluster in users) else set()

    def clusters_with(self, addresses: AbstractSet[IPAddress]) -> AbstractSet[ClusterKey]:
        """The clusters of which a node has any of these."""
        every = ((cluster, node) for cluster, nodes in self._nodes.items() for node in nodes.values())
        return {cluster for cluster, node in every if not addresses.isdisjoint(node.addresses)}

    def seen(self, network: str) -> Sightings:
        """Who answers on a network."""
        return self._networks[network].seen

    def set_seen(self, network: str, seen: Sightings) -> AbstractSet[ClusterKey]:
        """These answer on a network; return whom that concerns in mode nat."""
        here = self._networks[network]
        here.seen = seen
        unsure = [c for c in here.users if any(n.is_unsure(network) for n in self.nodes(c).values())]
        return {*unsure}.union(*(self._claim(network, cluster) for cluster in unsure))

    def facts(self, network: str) -> NetworkFacts:
        """How this host stands on a network."""
        return self._networks[network].facts

    def set_facts(self, network: str, facts: NetworkFacts) -> AbstractSet[ClusterKey]:
        """How this host stands on a network; return whom that concerns."""
        here = self._networks[network]
        if here.facts == facts:
            return set()
        here.facts = facts
        for address in here.claims.keys() | here.fixed.keys():
            self._fix(here, address)
        return set(here.users)

    def adopt(self, network: str, found: Mapping[IPAddress, MACAddress]) -> AbstractSet[ClusterKey]:
        """What the agent before has fixed: who had an address keeps it, and what nobody claims lingers, as connections
        may go on. Return whom that concerns."""
        here = self._networks[network]
        concerned: set[ClusterKey] = set()
        for address, mac in found.items():
            claims = here.claims.get(address, {})
            if not claims:
                here.fixed[address] = mac
                here.lingering.add(address)
            first = next((cluster for cluster, claimed in claims.items() if claimed == mac), None)
            if first is not None and len(claims) > 1:
                here.claims[address] = {first: mac, **claims}
                self._fix(here, address)
                concerned |= claims.keys()
        return concerned

    # How a node is reached.

    def mac(self, network: str, node: Node, address: IPAddress) -> MACAddress | None:
        """The MAC of a node on a network: by the host's knowledge, or where it has none by what is heard."""
        heard = self._networks[network].seen.macs.get(address)
        return node.trusted(network, heard) if node.interfaces else heard

    def member(
        self, network: str, mode: ForwardMode, cluster: ClusterKey, node: Node, address: IPAddress
    ) -> Member | None:
        """What a group has of a node for one of its addresses; None: nothing, it can't be sent to."""
        here = self._networks[network]
        mac = self.mac(network, node, address)
        trusted = mac if node.interfaces else None
        if mode == "dsr":
            return mac if node.interfaces or _may_use(here, cluster, address, trusted) else None
        if not here.facts.is_neighbour(address):  # by the gateway; whose a machine's address is there, nobody vouches
            return None if node.is_machine else address
        if node.interfaces and trusted is None:
            return None
        return address if _may_use(here, cluster, address, trusted) else None

    # The neighbour table.

    def fixed(self, network: str) -> Mapping[IPAddress, MACAddress]:
        """All that is to be fixed on a network."""
        return dict(self._networks[network].fixed)

    def take_fixed(self, network: str) -> Mapping[IPAddress, MACAddress | None]:
        """What is to be fixed otherwise than at the last call; None: not any more."""
        here = self._networks[network]
        changes = {address: here.fixed.get(address) for address in here.changed}
        here.changed.clear()
        return changes

    def release(self, network: str, in_use: Callable[[AbstractSet[IPAddress]], AbstractSet[IPAddress]]) -> bool:
        """Let go of what nobody claims any more. ``in_use``: those of some addresses that connections still go to.
        Return whether that changes anything."""
        here = self._networks[network]
        if not here.lingering:
            return False
        done = here.lingering - in_use(here.lingering)
        here.lingering -= done
        here.changed |= done
        for address in done:
            del here.fixed[address]
        return bool(done)

    # Inside.

    def _claim(self, network: str, cluster: ClusterKey) -> AbstractSet[ClusterKey]:
        """See again what a cluster claims on a network; return who else claims what has changed."""
        here = self._networks[network]
        before = here.claimed.pop(cluster, {})
        after = self._claims(network, cluster, before) if cluster in here.users else {}
        if after:
            here.claimed[cluster] = after
        concerned: set[ClusterKey] = set()
        for address in before.keys() | after.keys():
            if address in before and address in after and before[address] == after[address]:
                continue
            claims = here.claims.setdefault(address, {})
            concerned |= claims.keys() - {cluster}
            if address in after:
                claims[cluster] = after[address]
            else:
                del claims[cluster]
            if not claims:
                del here.claims[address]
            self._fix(here, address)
        return concerned

    def _claims(
        self, network: str, cluster: ClusterKey, before: Mapping[IPAddress, MACAddress | None]
    ) -> dict[IPAddress, MACAddress | None]:
        """The addresses of a cluster's nodes, and whose they are. Of two nodes who had it before keeps it."""
        heard = self._networks[network].seen.macs
        found: dict[IPAddress, MACAddress | None] = {}
        for node in self.nodes(cluster).values():
            for address in node.addresses:
                mac = node.trusted(network, heard.get(address))
                if address not in found or (address in before and before[address] == mac):
                    found[address] = mac
        return found

    def _fix(self, here: _Network, address: IPAddress) -> None:
        right = _right(here, address)
        if right is None:
            here.lingering |= {address} & here.fixed.keys()
            return
        here.lingering.discard(address)
        mac = right.mac if here.facts.is_neighbour(address) else None
        if here.fixed.get(address) == mac:
            return
        here.changed.add(address)
        if mac is None:
            del here.fixed[address]
        else:
            here.fixed[address] = mac


def _right(here: _Network, address: IPAddress) -> _Right | None:
    """Who has an address on a network: who came first, by what his namespace knows of it."""
    claims = here.claims.get(address)
    if not claims:
        return None
    namespace, _ = next(iter(claims))
    known = (mac for (of, _), mac in claims.items() if of == namespace and mac is not None)
    return _Right(namespace, next(known, None))


def _may_use(here: _Network, cluster: ClusterKey, address: IPAddress, mac: MACAddress | None) -> bool:
    right = _right(here, address)
    return right is None or right.mac == mac or (mac is None and right.namespace == cluster[0])
