"""Which virtual machines the nodes of a guest cluster are. Pure.

A guest may name the machine that a node is (Harvester's cloud provider notes it on the Node, where the two differ in
name), but only of its tenant's namespace, and none that belongs to another cluster.
"""

from collections.abc import Callable
from typing import Final

from cloudprovider.core.api.guestcluster import GuestCluster, NodeMachine
from cloudprovider.core.api.kubevirt import VirtualMachineInstance
from cloudprovider.core.machines import interfaces_of

GUEST_CLUSTER_LABEL: Final = "guestcluster.harvesterhci.io/name"
"""On a machine: the guest cluster that it is a node of. Older ones lack it."""

Get = Callable[[str, str], VirtualMachineInstance | None]
"""The instance of a namespace and name, if there is one."""

_MAX_INTERFACES: Final = 32


def machine_of(cluster: GuestCluster, node: str, machine: str, get: Get) -> VirtualMachineInstance | None:
    """Return the instance that a node is. ``machine``: its name as the guest has it; empty: that of the node."""
    vmi = get(cluster.metadata.namespace, machine or node)
    if vmi is None:
        return None
    label = vmi.metadata.labels.get(GUEST_CLUSTER_LABEL, "")
    return vmi if label in ("", cluster.metadata.name) else None


def machines_of(cluster: GuestCluster, get: Get) -> list[NodeMachine]:
    """Return what is known of the machines of a cluster's nodes, in the nodes' order."""
    found = []
    for node in cluster.status.nodes:
        vmi = machine_of(cluster, node.name, node.virtual_machine, get)
        if vmi is not None:
            interfaces = list(interfaces_of(vmi)[:_MAX_INTERFACES])
            found.append(NodeMachine(name=node.name, virtual_machine=vmi.metadata.name, interfaces=interfaces))
    return found
