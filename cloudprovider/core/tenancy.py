"""What a tenant may do, decided from the host's own records alone: who it is, which nodes and limits are its, what its
inventories may remove.

A guest's word counts for what is the guest's own (its Services); for everything of the host's (addresses, scopes,
other tenants) only the GuestCluster, its namespace, the pools and the host's nodes count.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import ip_network

from cloudprovider.core.api.guestcluster import GuestClusterSpec, Quota
from cloudprovider.core.errors import NotPermitted, Violation
from cloudprovider.core.exchange import Inventory, LoadBalancerRequest, RejectedNode, ReportedNode, ServiceKey, Tenant
from cloudprovider.core.plan import IPAddress, IPNetwork
from cloudprovider.core.reasons import PlaceReason
from cloudprovider.core.rulings import AskedReason

ANY = "*"

MIN_REMOVALS = 1
MAX_REMOVED_PERCENT = 20
"""One inventory may remove this many load balancers, or this share of the tenant's, whichever is more."""

_ANNOTATION = "metadata.annotations[cloudprovider.harvesterhci.io/{}]"


# --- who it is ---------------------------------------------------------------------------------------------------


class Binding(Enum):
    """What a presented kube-system UID means for a tenant."""

    BOUND = "bound"
    FIRST_USE = "first-use"
    REBIND = "rebind"
    MISMATCH = "mismatch"


def bind(bound_uid: str, presented_uid: str, rebind: str) -> Binding:
    """Judge a kube-system UID against the one bound before; ``rebind`` is the operator's annotation, or empty.

    FIRST_USE and REBIND are to be written down; after a REBIND the annotation is used up and must go.
    """
    if presented_uid == bound_uid:
        return Binding.BOUND
    if not bound_uid:
        return Binding.FIRST_USE
    return Binding.REBIND if rebind in ("any", presented_uid) else Binding.MISMATCH


# --- its limits --------------------------------------------------------------------------------------------------


def check_request(tenant: Tenant, project: str, spec: GuestClusterSpec, request: LoadBalancerRequest) -> None:
    """Check a request against its tenant's limits. Raises NotPermitted with everything that is outside of them.

    ``project``: of the tenant's namespace on the host, "c-xxx/p-yyy", empty if it is in none. Which pools a scope
    lets in is the pool selection's to decide; here is only what no pool could make right.
    """
    found = [*_outside_quota(spec.quota, request), *_outside_limits(spec, request)]
    found += _not_narrower("project", request.scope_project, project)
    found += _not_narrower("namespace", request.scope_namespace, tenant.namespace)
    if found:
        raise NotPermitted(*found)


def _outside_quota(quota: Quota, request: LoadBalancerRequest) -> Iterable[Violation]:
    bounds: tuple[tuple[str, AskedReason, int, int, str], ...] = (
        ("spec.ports", "TooManyPorts", len(request.listeners), quota.ports_per_load_balancer, "portsPerLoadBalancer"),
        (
            "spec.loadBalancerSourceRanges",
            "TooManySourceRanges",
            len(request.sources),
            quota.source_ranges_per_load_balancer,
            "sourceRangesPerLoadBalancer",
        ),
    )
    for field, reason, count, most, name in bounds:
        if count > most:
            yield Violation(
                field=field,
                reason=reason,
                message=f"{count} are more than the {most} that this cluster may have in one load balancer: use fewer,"
                f" or ask the host's operator for more (GuestCluster spec.quota.{name})",
            )


def _outside_limits(spec: GuestClusterSpec, request: LoadBalancerRequest) -> Iterable[Violation]:
    if request.ip_pool and spec.pools and request.ip_pool not in spec.pools:
        yield Violation(
            field=_ANNOTATION.format("ip-pool"),
            reason="PoolNotPermitted",
            message=f'the pool "{request.ip_pool}" is not open to this cluster: name one of'
            f" {', '.join(sorted(spec.pools))}, or leave the annotation out",
        )
    if request.ipam == "dhcp" and spec.pools:
        yield Violation(
            field=_ANNOTATION.format("ipam"),
            reason="DHCPNotPermitted",
            message="this cluster gets its addresses of the pools that the host names for it"
            f" ({', '.join(sorted(spec.pools))}), not by DHCP: set the annotation to pool, or leave it out",
        )
    # Who shares an address is where its primary is, and that has been checked.
    if spec.networks and not request.primary_service and request.network not in spec.networks:
        asked = f'the network "{request.network}"' if request.network else "the management network"
        yield Violation(
            field=_ANNOTATION.format("network"),
            reason="NetworkNotPermitted",
            message=f"{asked} is not open to this cluster: set the annotation to one of"
            f" {', '.join(n or '(empty: the management network)' for n in sorted(spec.networks))}",
        )


def _not_narrower(what: str, asked: str, own: str) -> Iterable[Violation]:
    if asked not in ("", ANY, own):
        mine = f'its own, "{own}"' if own else "none (its namespace on the host is in no project)"
        yield Violation(
            field=_ANNOTATION.format(what),
            reason="ScopeNotPermitted",
            message=f'"{asked}" is not this cluster\'s {what}, and the annotation can only narrow the choice of pools:'
            f" use {mine}, or leave it out",
        )


# --- its nodes ---------------------------------------------------------------------------------------------------


def _is_nobodys(node: ReportedNode, address: IPAddress) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class HostRules:
    """What the host itself has, and no machine may have. ``reserved``: service and pod ranges. ``is_load_balancer``:
    whether one has the address."""

    reserved: Sequence[IPNetwork]
    host_addresses: AbstractSet[IPAddress]
    gateways: AbstractSet[IPAddress]
    is_load_balancer: Callable[[IPAddress], bool]


@dataclass(frozen=True, kw_only=True)
class NodeRules(HostRules):
    """What a node's address is held against. ``cidrs``: where the tenant's nodes live. ``is_machines``: whether the
    address belongs to a virtual machine that the node is not."""

    cidrs: Sequence[IPNetwork]
    is_machines: Callable[[ReportedNode, IPAddress], bool] = _is_nobodys


def node_cidrs(spec: GuestClusterSpec) -> tuple[IPNetwork, ...]:
    """Return the tenant's node CIDRs; one that can't be read (older API servers let it pass) allows nothing."""
    found = []
    for text in spec.node_cidrs:
        try:
            found.append(ip_network(text, strict=False))
        except ValueError:
            continue
    return tuple(found)


def check_nodes(
    nodes: Iterable[ReportedNode], rules: NodeRules
) -> tuple[tuple[ReportedNode, ...], tuple[RejectedNode, ...]]:
    """Return the nodes to send to, by name and with just the addresses that are accepted, and what is rejected.

    Of nodes that report the same address the first by name keeps it, so that the answer does not depend on the order
    of the report. (Behind KubeVirt's masquerade binding every machine believes to be 10.0.2.2.)
    """
    accepted: list[ReportedNode] = []
    rejected: list[RejectedNode] = []
    taken: dict[IPAddress, str] = {}
    for node in sorted(nodes, key=lambda n: n.name):
        good = []
        for address in node.addresses:
            refusal = _duplicate(address, node.name, taken) or _refuse(node, address, rules)
            if refusal is None:
                taken[address] = node.name
                good.append(address)
            else:
                rejected.append(RejectedNode(node.name, str(address), *refusal))
        if good:
            accepted.append(replace(node, addresses=tuple(good)))
    return tuple(accepted), tuple(rejected)


def _duplicate(address: IPAddress, name: str, taken: dict[IPAddress, str]) -> tuple[PlaceReason, str] | None:
    if address not in taken:
        return None
    return (
        "DuplicateAddress",
        (
            f'node "{name}" reports {address}, as does node "{taken[address]}": give each machine an address of its own'
            " (on a bridged network, not by masquerade)"
        ),
    )


def _refuse(node: ReportedNode, address: IPAddress, rules: NodeRules) -> tuple[PlaceReason, str] | None:
    """The first reason against an address, and a sentence; None if there is none."""
    if address.is_loopback or address.is_multicast or address.is_unspecified or address.is_link_local:
        return "ReservedRange", f"{address} is no address that a host could send to: report the node's InternalIP"
    if not rules.cidrs:
        return (
            "OutsideNodeCIDRs",
            f"{address}: the host's operator has not said where this cluster's nodes are (GuestCluster spec.nodeCidrs)",
        )
    if not _within(address, rules.cidrs):
        listed = ", ".join(str(c) for c in rules.cidrs)
        return (
            "OutsideNodeCIDRs",
            (
                f"{address} lies outside of this cluster's {listed}: correct the node's address, or ask the host's"
                " operator to add its network (GuestCluster spec.nodeCidrs)"
            ),
        )
    if refusal := refuse_hosts(address, rules, "node"):
        return refusal
    if rules.is_machines(node, address):
        return (
            "AddressInUse",
            (
                f"{address} is the address of a virtual machine that a load balancer sends to, and that is not known to"
                " be this node: give the node another one"
            ),
        )
    return None


def refuse_hosts(address: IPAddress, rules: HostRules, what: str) -> tuple[PlaceReason, str] | None:
    """Return the reason against an address that the host itself has, and a sentence; None if it has it not. ``what``
    it is that claims it."""
    if address in rules.host_addresses:
        return "HostAddress", f"{address} is an address of the host itself: give the {what} another one"
    if address in rules.gateways:
        return "GatewayAddress", f"{address} is the gateway of a pool: give the {what} another address"
    if rules.is_load_balancer(address):
        return "LoadBalancerAddress", f"{address} is the address of a load balancer: give the {what} another one"
    if (reserved := _within(address, rules.reserved)) is not None:
        return "ReservedRange", f"{address} lies in {reserved}, which the host's own Services or pods use"
    return None


def _within(address: IPAddress, networks: Iterable[IPNetwork]) -> IPNetwork | None:
    return next((n for n in networks if n.version == address.version and address in n), None)


# --- its inventories ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HeldRemovals:
    """Removals that wait for a second inventory, and the list (resourceVersion) that the first was made from."""

    resource_version: str = ""
    services: frozenset[ServiceKey] = frozenset()


@dataclass(frozen=True)
class InventoryVerdict:
    """``delete`` now; ``held`` waits. Both by Service."""

    delete: tuple[ServiceKey, ...]
    held: HeldRemovals


def judge_inventory(
    inventory: Inventory, known: Collection[ServiceKey], removable: Collection[ServiceKey], held: HeldRemovals
) -> InventoryVerdict:
    """Decide what an inventory removes.

    ``known``: all load balancers that the tenant has; ``removable``: those of them that an inventory may remove yet.
    An incomplete inventory removes nothing and leaves ``held`` as it is. One that misses more than
    max(MIN_REMOVALS, MAX_REMOVED_PERCENT of ``known``), and one that is empty, remove only what another list of the
    guest's missed before; the same list sent twice (a retry after a time-out) is no second opinion.
    """
    if not inventory.complete:
        return InventoryVerdict((), held)
    named = {item.service for item in inventory.items}
    missing = frozenset(key for key in removable if key not in named)
    confirmed = missing & held.services if inventory.resource_version != held.resource_version else frozenset()
    rest = missing - confirmed
    if not rest or (named and len(rest) <= max(MIN_REMOVALS, len(known) * MAX_REMOVED_PERCENT // 100)):
        return InventoryVerdict(tuple(sorted(missing)), HeldRemovals())
    return InventoryVerdict(tuple(sorted(confirmed)), HeldRemovals(inventory.resource_version, rest))
