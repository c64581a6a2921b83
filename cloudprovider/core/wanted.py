"""What one load balancer wants of a host that stands on its networks. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final, NamedTuple

import msgspec

from cloudprovider.core.api.loadbalancer import CLUSTER_LABEL, Address, Listener, LoadBalancer
from cloudprovider.core.exchange import Mode
from cloudprovider.core.plan import IPAddress, IPNetwork, ListenerKey
from cloudprovider.core.questions import BackendCheck, check_of
from cloudprovider.core.reasons import Word

LoadBalancerKey = tuple[str, str]
"""(namespace, name) of a LoadBalancer."""

_NOBODY: Final = {4: ip_network("0.0.0.0/32"), 6: ip_network("::/128")}
"""Source ranges that no packet comes from."""


@dataclass(frozen=True)
class Problem:
    """Why a load balancer is not served, or not wholly. ``reason`` is the condition's reason."""

    reason: Word
    message: str


class Place(NamedTuple):
    """An address on a network."""

    network: str
    vip: IPAddress


class WantedListener(NamedTuple):
    """One port of one address. ``subnet``: the address's, where nodes may stand; ``backend_port`` None: no node
    port. ``sources``: those of the address's family; empty: everybody."""

    network: str
    key: ListenerKey
    subnet: IPNetwork
    backend_port: int | None
    sources: frozenset[IPNetwork]


@dataclass(frozen=True)
class Wanted:
    """What one load balancer wants of this host.

    ``shown`` are the addresses that its Service shows, ``following`` those that take their place once they are up:
    both are announced and forwarded. ``problem``: nothing of what is shown can be served; ``partial``: a part of it
    can't; ``awaited``: what follows can't. ``machines``: the ``cluster`` is of virtual machines, and this load
    balancer's alone. ``nodes`` None: all nodes of the ``cluster`` (see :func:`cluster_of`) that
    take traffic; else those of these names (policy Local). ``check``: how each is checked; None: not at all.
    ``reset_failed``: connections to one that fails are cut.
    """

    shown: tuple[Place, ...] = ()
    following: tuple[Place, ...] = ()
    listeners: tuple[WantedListener, ...] = ()
    cluster: tuple[str, str] = ("", "")
    machines: bool = False
    nodes: tuple[str, ...] | None = None
    by_client: bool = False
    mode: Mode = "auto"
    drain: float = 0.0
    check: BackendCheck | None = None
    reset_failed: bool = False
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


def parsed(text: str) -> IPAddress | None:
    """An address; None for what is none: somebody else's writing, and what is wrong is told in the condition."""
    try:
        return ip_address(text)
    except ValueError:
        return None


def is_for_machines(lb: LoadBalancer) -> bool:
    """Whether a load balancer sends to virtual machines that are chosen by label."""
    return lb.spec.workload_type != "cluster"


def cluster_of(lb: LoadBalancer) -> tuple[str, str]:
    """(namespace, name) of the GuestCluster that a load balancer sends to; its virtual machines are a cluster of their
    own, of a name that no GuestCluster can have."""
    name = f"loadbalancer/{lb.metadata.name}" if is_for_machines(lb) else lb.metadata.labels.get(CLUSTER_LABEL, "")
    return lb.metadata.namespace, name


def wanted(lb: LoadBalancer, networks: Collection[str]) -> Wanted | None:
    """Read one object, for a host that stands on ``networks``; None when it asks nothing of any host (no address yet,
    going away, or a stock provider's)."""
    try:
        return _wanted(lb, networks)
    except ValueError as err:  # an address or a CIDR that is none, or a check that can't be made
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
    machines = is_for_machines(lb)
    if not machines and spec.service is None:
        return None
    shown, lacking = _usable(status.addresses, networks)
    following, awaited = _usable(status.next_addresses, networks)
    return Wanted(
        shown,
        following,
        _listeners(lb, (*status.addresses, *status.next_addresses), networks),
        cluster=cluster_of(lb),
        machines=machines,
        nodes=tuple(sorted(spec.endpoint_nodes)) if spec.external_traffic_policy == "Local" and not machines else None,
        by_client=spec.session_affinity == "ClientIP",
        mode=spec.mode,
        drain=float(spec.drain_seconds),
        check=check_of(spec.health_check),
        reset_failed=spec.health_check is not None and spec.health_check.failed_connections == "Reset",
        problem=None if shown else lacking,
        partial=lacking if shown else None,
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
        else:
            places.append(place)
    return tuple(places), problem


def _listeners(
    lb: LoadBalancer, addresses: Collection[Address], networks: Collection[str]
) -> tuple[WantedListener, ...]:
    sources = frozenset(ip_network(s, strict=False) for s in lb.spec.source_ranges)
    found: list[WantedListener] = []
    for address in addresses:
        if address.network not in networks:
            continue
        vip = ip_address(address.ip)
        subnet = ip_interface(f"{vip}/{address.prefix_length}").network
        allowed = frozenset(s for s in sources if s.version == vip.version)
        if sources and not allowed:  # of the other family only: nobody may connect
            allowed = frozenset({_NOBODY[vip.version]})
        found += [
            WantedListener(address.network, ListenerKey(vip, x.protocol, x.port), subnet, _backend_port(lb, x), allowed)
            for x in lb.spec.listeners
        ]
    return tuple(found)


def _backend_port(lb: LoadBalancer, listener: Listener) -> int | None:
    """A machine serves on the listener's own port where no other is said; a cluster has no node port then."""
    return listener.backend_port or (listener.port if is_for_machines(lb) else None)
