"""Comparing the blocks with the load balancers that there are: records nobody owns, addresses nobody recorded."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.ledger import Held, Ledger
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.wants import Release


@dataclass(frozen=True, slots=True)
class Missing:
    """A load balancer shows an address in its status that no block gives to it. ``holder``: who has it instead,
    "" if nobody."""

    owner: str
    uid: str
    pool: str
    address: IPAddress
    holder: str


@dataclass(frozen=True)
class Findings:
    """``dangling``: records of load balancers that are gone, ready to be given back."""

    dangling: tuple[Release, ...]
    missing: tuple[Missing, ...]


def audit(ledger: Ledger, live: Iterable[LoadBalancer]) -> Findings:
    """Compare every block with every load balancer that there is.

    A record whose load balancer does not show its address (yet) is no finding, since the grant comes before the
    status; what a load balancer has too many it gives back itself (:mod:`cloudprovider.core.placement`).
    Hosts' own addresses (records without a UID) are not load balancers', and left alone.
    """
    uids: dict[str, str] = {}
    missing: list[Missing] = []
    held = [h for owner in ledger.owners() for h in ledger.held_by(owner)]
    recorded = frozenset(held)
    for lb in live:
        owner, uid = owner_of(lb), lb.metadata.uid
        uids[owner] = uid
        for pool, address in shown_by(lb):
            if Held(pool, address, owner, uid) not in recorded:
                holder = next((o for o in ledger.owners_of(pool, address) if o != owner), "")
                missing.append(Missing(owner, uid, pool, address, holder))
    dangling = [
        Release(pool=h.pool, address=h.address, owner=h.owner, uid=h.uid)
        for h in held
        if h.uid and uids.get(h.owner) != h.uid
    ]
    return Findings(tuple(dangling), tuple(missing))


def owner_of(lb: LoadBalancer) -> str:
    """Return the name that a load balancer's allocations are recorded under: "namespace/name"."""
    return f"{lb.metadata.namespace}/{lb.metadata.name}"


def shown_by(lb: LoadBalancer) -> tuple[tuple[str, IPAddress], ...]:
    """Return (pool, address) of what a load balancer's status says it has from pools."""
    shown = []
    for entry in lb.status.addresses:
        try:
            address = ip_address(entry.ip)
        except ValueError:
            continue
        if entry.ip_pool:
            shown.append((entry.ip_pool, address))
    return tuple(shown)
