"""Whom load balancers send to, as their objects say: a guest cluster's nodes, and virtual machines chosen by label.

The host controller has written what a machine is: its MAC by the machine's definition, its addresses by the word of its
guest agent. What can't be read is left out.
"""

from collections.abc import Mapping
from ipaddress import ip_address

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.backends import usable
from cloudprovider.core.groups import Node
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.wanted import parsed


def nodes_of(cluster: GuestCluster) -> Mapping[str, Node]:
    """Return a tenant's nodes by name, each with what the host knows of the machine that it is."""
    interfaces = {
        machine.name: tuple((i.network, mac) for i in machine.interfaces if (mac := _mac(i.mac_address)) is not None)
        for machine in cluster.status.machines
    }
    return {
        node.name: Node(tuple(ip_address(a) for a in node.addresses), interfaces.get(node.name, ()))
        for node in cluster.status.nodes
    }


def machines_of(lb: LoadBalancer) -> Mapping[str, Node]:
    """Return the virtual machines that a load balancer sends to, by name; only those whose MAC is known: nobody vouches
    for the others."""
    found: dict[str, Node] = {}
    for backend in usable(lb.status.backends):
        mac = _mac(backend.mac_address)
        addresses = tuple(address for text in backend.addresses if (address := parsed(text)) is not None)
        if mac is not None and addresses:
            found[backend.name] = Node(addresses, (("", mac),), is_machine=True)
    return found


def _mac(text: str) -> MACAddress | None:
    try:
        mac = MACAddress.parse(text)
    except ValueError:
        return None
    return mac if mac.is_unicast else None
