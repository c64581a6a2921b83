"""What one load balancer wants of a host that stands on its networks. Pure."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import NamedTuple

import msgspec

from cloudprovider.core.api.loadbalancer import CLUSTER_LABEL, Address, LoadBalancer
from cloudprovider.core.plan import Forward, GroupId, IPAddress, ListenerKey

LoadBalancerKey = tuple[str, str]
"""(namespace, name) of a LoadBalancer."""

REFUSE = GroupId(0)


@dataclass(frozen=True, order=True)
class GroupKey:
    """A set of nodes by name: of one cluster, all that take traffic or (``all_nodes`` false) those of ``names``."""

    namespace: str
    cluster: str
    family: int
    all_nodes: bool = True
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Why a load balancer is not served, or not wholly. ``reason`` is the condition's reason."""

    reason: str
    message: str


class Place(NamedTuple):
    """An address on a network."""

    network: str
    vip: IPAddress


@dataclass(frozen=True)
class Wanted:
    """What one load balancer wants of this host.

    ``shown`` are the addresses that its Service shows, ``following`` those that take their place once they are up:
    both are announced and forwarded. ``problem``: nothing of what is shown can be served; ``partial``: a part of it
    can't; ``awaited``: what follows can't.
    """

    shown: tuple[Place, ...] = ()
    following: tuple[Place, ...] = ()
    listeners: tuple[tuple[str, ListenerKey, GroupKey, Forward], ...] = ()
    problem: Problem | None = None
    partial: Problem | None = None
    awaited: Problem | None = None

    @property
    def places(self) -> tuple[Place, ...]:
        """All addresses to announce."""
        return self.shown + self.following

    @property
    def networks(self) -> frozenset[str]:
        """The networks that it has an address on."""
        return frozenset(place.network for place in self.places)

    def __iter__(self) -> Iterator[tuple[str, ListenerKey]]:
        return ((network, key) for network, key, _, _ in self.listeners)


def wanted(lb: LoadBalancer, networks: Collection[str]) -> Wanted | None:
    """Read one object, for a host that stands on ``networks``; None when it asks nothing of any host (no address yet,
    going away, or a stock provider's)."""
    try:
        return _wanted(lb, networks)
    except ValueError as err:  # an address or a CIDR that is none
        return Wanted(problem=Problem("InvalidSpec", f"{err}. Correct it in the LoadBalancer."))


def without(lb: LoadBalancer, ended: Collection[str]) -> LoadBalancer:
    """Return the object as if its status did not show these addresses: leases that are over."""
    if not ended:
        return lb
    status = msgspec.structs.replace(
        lb.status,
        addresses=[a for a in lb.status.addresses if a.ip not in ended],
        next_addresses=[a for a in lb.status.next_addresses if a.ip not in ended],
    )
    return msgspec.structs.replace(lb, status=status)


def _wanted(lb: LoadBalancer, networks: Collection[str]) -> Wanted | None:
    spec, status = lb.spec, lb.status
    if lb.metadata.deletion_timestamp or not (status.addresses or status.next_addresses):
        return None
    if spec.workload_type != "cluster":
        return Wanted(
            problem=Problem(
                "WorkloadNotSupported", "This version forwards for guest clusters only (spec.workloadType: cluster)."
            )
        )
    if spec.service is None:
        return None
    if spec.mode == "dsr":
        return Wanted(
            problem=Problem("ModeNotSupported", "This version forwards in mode nat only; set the mode to auto or nat.")
        )
    shown, lacking = _usable(status.addresses, networks)
    following, awaited = _usable(status.next_addresses, networks)
    without_node_port = sorted({f"{x.protocol} {x.port}" for x in spec.listeners if x.backend_port is None})
    partial = lacking
    if without_node_port:
        partial = Problem(
            "NoNodePort",
            f"No node port for {', '.join(without_node_port)}: mode nat needs one. Remove "
            "allocateLoadBalancerNodePorts: false from the Service.",
        )
    return Wanted(
        shown,
        following,
        _listeners(lb, (*shown, *following)),
        problem=None if shown else lacking,
        partial=partial if shown else None,
        awaited=awaited,
    )


def _usable(addresses: list[Address], networks: Collection[str]) -> tuple[tuple[Place, ...], Problem | None]:
    """The addresses that this host can serve, and why it can't serve the others."""
    places: list[Place] = []
    problem: Problem | None = None
    for address in addresses:
        place = Place(address.network, ip_address(address.ip))
        if place.network not in networks:
            name = place.network or "the management network"
            known = ", ".join(sorted(n or "management" for n in networks)) or "none"
            message = (
                f"This host does not stand on {name} (it stands on: {known}). Add it to the agent's networks file."
            )
            problem = Problem("NetworkNotConfigured", message)
        elif place.vip.version == 6:
            message = f"{place.vip} is not announced: this version forwards IPv4 only. Ask for the family IPv4."
            problem = Problem("IPv6NotForwarded", message)
        else:
            places.append(place)
    return tuple(places), problem


def _listeners(lb: LoadBalancer, places: tuple[Place, ...]) -> tuple[tuple[str, ListenerKey, GroupKey, Forward], ...]:
    spec = lb.spec
    cluster = lb.metadata.labels.get(CLUSTER_LABEL, "")
    sources = frozenset(ip_network(s, strict=False) for s in spec.source_ranges)
    local = spec.external_traffic_policy == "Local"
    names = tuple(sorted(spec.endpoint_nodes)) if local else ()
    by_client = spec.session_affinity == "ClientIP"
    return tuple(
        (
            place.network,
            ListenerKey(place.vip, x.protocol, x.port),
            GroupKey(lb.metadata.namespace, cluster, place.vip.version, not local, names),
            Forward(REFUSE, x.backend_port, by_client=by_client, sources=sources),
        )
        for place in places
        for x in spec.listeners
        if x.backend_port is not None
    )
