"""Taking over from Harvester's own load balancer controller: what is adopted, as a plan that changes nothing.

Names are those of the chart (harvester/charts, charts/harvester-load-balancer) and of its programs
(harvester/load-balancer-harvester): a Deployment each for controller and webhook, which registers itself, finalizers by
wrangler, and for the load balancers of virtual machines a Service each, whose address kube-vip announces.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from cloudprovider.core.addressing import is_ours, shown, tenant_of
from cloudprovider.core.allocation import Allocator
from cloudprovider.core.api.loadbalancer import LoadBalancer, LoadBalancerStatus
from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.api.pool import IPBlock, IPPool
from cloudprovider.core.audit import owner_of
from cloudprovider.core.ledger import Held
from cloudprovider.core.placement import controlled_status, place
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import survey
from cloudprovider.core.sharing import Group
from cloudprovider.core.wanted import parsed
from cloudprovider.core.wants import Granted, Want

NAMESPACE: Final = "harvester-system"
CONTROLLER: Final = "harvester-load-balancer"
WEBHOOK: Final = "harvester-load-balancer-webhook"
"""Of the Deployment, and of both configurations that it registers."""

FINALIZERS: Final = frozenset(
    f"wrangler.cattle.io/{name}"
    for name in (
        "harvester-lb-controller",  # on LoadBalancers
        "harvester-ipam-controller",  # on IPPools
        "harvester-lb-vm-controller",  # on every VirtualMachine
        "harvester-lb-vmi-controller",  # on every VirtualMachineInstance
    )
)
"""Nobody but the old controller takes these off: an object with one could never be deleted again."""
SERVICE_LABEL: Final = "loadbalancer.harvesterhci.io/servicelb"
"""On the Services that the old controller makes for load balancers of virtual machines."""

COMMAND: Final = "cloudprovider takeover"


class Adoption(msgspec.Struct, frozen=True, kw_only=True):
    """An address that stays with its load balancer. ``recorded``: it stands in a block already."""

    pool: str
    address: IPAddress
    owner: str
    kind: Literal["vm", "cluster", "guest"]
    recorded: bool


@dataclass(frozen=True)
class Unadopted:
    """What can't be adopted, and why."""

    pool: str
    address: str
    owner: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to write so that every address stays. ``statuses``: of load balancers that we serve and whose status does
    not say so yet, with what it is to be."""

    adoptions: tuple[Adoption, ...]
    unadopted: tuple[Unadopted, ...]
    blocks: tuple[IPBlock, ...]
    statuses: tuple[tuple[LoadBalancer, LoadBalancerStatus], ...]


def plan(pools: Sequence[IPPool], balancers: Sequence[LoadBalancer], blocks: Iterable[IPBlock], *, now: str) -> Plan:
    """Decide over everything there is. ``now``: RFC 3339, for the records. Raises ValueError for a block that is none
    of ours by its name."""
    allocator = Allocator()
    for block in blocks:
        allocator.load(block)
    views = survey(pools)
    allocator.set_pools(views)
    living = [lb for lb in balancers if not lb.metadata.deletion_timestamp]
    booked = {(p.metadata.name, a): owner for p in pools for a, owner in p.status.allocated.items()}
    wants = [want for lb in living for want in _wants(lb, booked)]
    # Of two that show one address the pool's own record decides.
    wants.sort(key=lambda w: (booked.get((w.pool, str(w.adopt))) != w.owner, w.owner, w.pool, str(w.adopt)))
    recorded = {
        (h.pool, h.address, h.owner, h.uid) for o in allocator.ledger.owners() for h in allocator.ledger.held_by(o)
    }
    proposal = allocator.propose(wants, now=now)
    kinds = {owner_of(lb): lb for lb in living}
    adopted: list[Adoption] = []
    unadopted: list[Unadopted] = []
    for outcome in proposal.outcomes:
        want = outcome.want
        if isinstance(outcome, Granted):
            adopted.append(
                Adoption(
                    pool=want.pool,
                    address=outcome.address,
                    owner=want.owner,
                    kind=_kind(kinds[want.owner]),
                    recorded=(want.pool, outcome.address, want.owner, want.uid) in recorded,
                )
            )
        else:
            unadopted.append(Unadopted(want.pool, str(want.adopt), want.owner, outcome.message))
    taken = {(a.pool, str(a.address)) for a in adopted} | {(u.pool, u.address) for u in unadopted}
    for (pool, address), owner in sorted(booked.items()):
        if (pool, address) not in taken and not owner.startswith("agent/"):
            gone = "its load balancer is gone" if owner not in kinds else "its load balancer does not show it"
            unadopted.append(Unadopted(pool, address, owner, f"{gone}: it is free again"))
    for lb in living:
        if lb.spec.ipam == "dhcp" and is_ours(lb) and lb.status.address and not lb.status.addresses:
            message = "by DHCP, for kube-vip: ours asks for a lease of its own, and mostly gets another address"
            unadopted.append(Unadopted("(DHCP)", lb.status.address, owner_of(lb), message))
    adopted.sort(key=lambda a: (a.pool, a.address.version, int(a.address), a.owner))
    held: dict[str, list[Held]] = {}
    for one in adopted:
        lb = kinds[one.owner]
        held.setdefault(one.owner, []).append(Held(one.pool, one.address, one.owner, lb.metadata.uid))
    statuses = []
    for owner, mine in sorted(held.items()):
        lb = kinds[owner]
        if is_ours(lb) and not lb.status.addresses:
            placed = place(lb, mine, frozenset(), views)
            status = controlled_status(lb, placed, None, key=Group().address_key(lb), now=now)
            # What the conditions say is the host program's to find out.
            statuses.append((lb, msgspec.structs.replace(status, conditions=[])))
    return Plan(
        adoptions=tuple(adopted),
        unadopted=tuple(unadopted),
        blocks=proposal.writes,
        statuses=tuple(statuses),
    )


def without_finalizers(obj: KubeObject) -> list[str] | None:
    """Return an object's finalizers without those of the old controller; None where it has none of them."""
    have = obj.metadata.finalizers
    left = [f for f in have if f not in FINALIZERS]
    return left if len(left) < len(have) else None


def refusal(replicas: int) -> str:
    """Why the host program does not start beside the old controller; empty where it may."""
    if replicas == 0:
        return ""
    return (
        f"Harvester's own load balancer controller runs (Deployment {NAMESPACE}/{CONTROLLER}), and works on the same"
        f" objects: run `{COMMAND}`, which says what it would adopt, then `{COMMAND} --yes`"
    )


def _wants(lb: LoadBalancer, booked: dict[tuple[str, str], str]) -> list[Want]:
    """By its status; one that has not got that far, by its pool's record."""
    visible = shown(lb)
    if not visible and lb.spec.ipam != "dhcp":
        visible = tuple(
            (p, address)
            for (p, text), owner in booked.items()
            if owner == owner_of(lb) and (address := parsed(text)) is not None
        )
    return [
        Want(
            owner=owner_of(lb),
            uid=lb.metadata.uid,
            pool=pool,
            version=address.version,
            adopt=address,
            fixed=address,  # this one or none
            tenant=tenant_of(lb),
        )
        for pool, address in visible
    ]


def _kind(lb: LoadBalancer) -> Literal["vm", "cluster", "guest"]:
    """``guest``: of a guest that still runs Harvester's own provider; its address is kept, nothing is forwarded."""
    if lb.spec.workload_type != "cluster":
        return "vm"
    return "cluster" if is_ours(lb) else "guest"
