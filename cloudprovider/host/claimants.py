"""Who claims an address on a network: virtual machines, and guest clusters' nodes; and which of them keeps it."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.api.loadbalancer import Backend, LoadBalancer
from cloudprovider.core.backends import usable
from cloudprovider.core.claimants import Claimant, first
from cloudprovider.core.exchange import ReportedNode
from cloudprovider.core.guestmachines import GUEST_CLUSTER_LABEL, machine_of
from cloudprovider.core.machines import claims_of, networks_of, takes_part
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.wanted import Problem
from cloudprovider.host.caches import Caches, differ, readable

ADDRESS_IN_USE: Final = "AddressInUse"


class Claimants:
    """Reads the caches. ``on_change`` is called with addresses that machines have begun, or ceased, to have."""

    def __init__(self, caches: Caches) -> None:
        self._caches = caches
        self._callbacks: list[Callable[[AbstractSet[IPAddress]], None]] = []
        caches.load_balancers.on_change(self._load_balancer_changed)
        caches.machines.on_change(self._machine_changed)

    def on_change(self, callback: Callable[[AbstractSet[IPAddress]], None]) -> None:
        """See the class."""
        self._callbacks.append(callback)

    def refuse(self, vmi: VirtualMachineInstance, network: str, address: IPAddress) -> Problem | None:
        """Return why a machine does not have an address that it claims, without a word on other tenants' machines."""
        others = [
            self._machine(other, address)
            for other in self._caches.machines_at(address)
            if other.key != vmi.key and (network, address) in claims_of(other)
        ]
        others += self._nodes(vmi, network, address)
        if not others:
            return None
        me = self._machine(vmi, address)
        winner = first([me, *others])
        return None if winner == me else _taken(address, winner, vmi)

    def is_machines(self, cluster: GuestCluster, node: ReportedNode, address: IPAddress) -> bool:
        """Whether an address that a node reports is that of a machine which the node is not, and which had it first."""
        mine = machine_of(cluster, node.name, node.virtual_machine, self._caches.machines.get)
        others = [
            self._machine(vmi, address)
            for lb in self._caches.sending_to(address)
            if lb.status.addresses and _may_meet(cluster, mine, lb.status.addresses[0].network)
            for vmi in self._backends(lb, address)
            if mine is None or vmi.key != mine.key
        ]
        if not others:
            return False
        text = str(address)
        holds = any(n.name == node.name and text in n.addresses for n in cluster.status.nodes)
        me = _node(cluster, node.name, holds=holds)
        return first([me, *others]) != me

    def _machine(self, vmi: VirtualMachineInstance, address: IPAddress) -> Claimant:
        namespace, name = vmi.key
        holds = any(
            lb.metadata.namespace == namespace and any(b.name == name for b in _sent_to(lb, address))
            for lb in self._caches.sending_to(address)
        )
        return Claimant(namespace, name, holds, vmi.metadata.creation_timestamp)

    def _nodes(self, vmi: VirtualMachineInstance, network: str, address: IPAddress) -> Iterator[Claimant]:
        """The nodes that are accepted with the address and may stand on the network, but for the machine's own."""
        text = str(address)
        for cluster in self._caches.clusters_at(address):
            for node in cluster.status.nodes:
                if text in node.addresses:
                    mine = machine_of(cluster, node.name, node.virtual_machine, self._caches.machines.get)
                    if (mine is None or mine.key != vmi.key) and _may_meet(cluster, mine, network):
                        yield _node(cluster, node.name, holds=True)

    def _backends(self, lb: LoadBalancer, address: IPAddress) -> Iterator[VirtualMachineInstance]:
        for backend in _sent_to(lb, address):
            vmi = self._caches.machines.get(lb.metadata.namespace, backend.name)
            if vmi is not None and takes_part(vmi):
                yield vmi

    # --- what makes work -----------------------------------------------------------------------------------------

    def _load_balancer_changed(self, old: LoadBalancer | None, new: LoadBalancer | None) -> None:
        before, after = (_held_by(lb) for lb in (old, new))
        self._tell(address for _, address in before ^ after)

    def _machine_changed(self, old: VirtualMachineInstance | None, new: VirtualMachineInstance | None) -> None:
        if differ(old, new):
            self._tell(str(address) for vmi in (old, new) if vmi is not None for _, address in claims_of(vmi))

    def _tell(self, addresses: Iterable[str]) -> None:
        if changed := frozenset(readable(addresses)):
            for callback in self._callbacks:
                callback(changed)


def _held_by(lb: LoadBalancer | None) -> frozenset[tuple[str, str]]:
    """(machine, address) of all that a load balancer sends to."""
    return (
        frozenset() if lb is None else frozenset((b.name, a) for b in usable(lb.status.backends) for a in b.addresses)
    )


def _sent_to(lb: LoadBalancer, address: IPAddress) -> Iterator[Backend]:
    text = str(address)
    return (b for b in usable(lb.status.backends) if text in b.addresses)


def _node(cluster: GuestCluster, name: str, *, holds: bool) -> Claimant:
    metadata = cluster.metadata
    return Claimant(metadata.namespace, name, holds, metadata.creation_timestamp, cluster=metadata.name)


def _may_meet(cluster: GuestCluster, machine: VirtualMachineInstance | None, network: str) -> bool:
    """Whether a node may stand on a network: by its machine, or, where that is not known, by its tenant's limits."""
    networks = cluster.spec.networks if machine is None else networks_of(machine)
    return not networks or network in networks


def _taken(address: IPAddress, winner: Claimant, vmi: VirtualMachineInstance) -> Problem:
    """Whoever it is stays unnamed, unless it is of the machine's own namespace."""
    who, remedy = "another machine on the network", "give this one an address of its own"
    if winner.namespace == vmi.metadata.namespace and winner.cluster:
        who = f'the node "{winner.name}" of the guest cluster "{winner.cluster}"'
        remedy = f"{remedy}, or, if it is that node, label it {GUEST_CLUSTER_LABEL}={winner.cluster}"
    elif winner.namespace == vmi.metadata.namespace:
        who = f'the machine "{winner.name}"'
    return Problem(ADDRESS_IN_USE, f"Its address {address} is that of {who}, which had it first: {remedy}.")
