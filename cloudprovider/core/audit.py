"""Comparing the blocks with the load balancers that there are: records nobody owns, addresses nobody recorded."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.ledger import Ledger
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
    """``dangling``: records of load balancers that are gone or use another address, ready to be given back."""

    dangling: tuple[Release, ...]
    missing: tuple[Missing, ...]


def audit(ledger: Ledger, live: Iterable[LoadBalancer]) -> Findings:
    """Compare every block with every load balancer that there is.

    A record whose load balancer does not show its address (yet) is no finding, since the grant comes before the
    status; unless it shows another one of that pool and family, which is recorded as well.
    Hosts' own addresses (records without a UID) are not load balancers', and left alone.
    """
    uids: dict[str, str] = {}
    proven: dict[tuple[str, str, int], IPAddress] = {}
    missing: list[Missing] = []
    holders = {(h.pool, h.address): h for owner in ledger.owners() for h in ledger.held_by(owner)}
    for lb in live:
        owner, uid = owner_of(lb), lb.metadata.uid
        uids[owner] = uid
        for pool, address in shown_by(lb):
            held = holders.get((pool, address))
            if held is None or (held.owner, held.uid) != (owner, uid):
                missing.append(Missing(owner, uid, pool, address, held.owner if held is not None else ""))
            else:
                proven[owner, pool, address.version] = address
    dangling = [
        Release(pool=h.pool, address=h.address, owner=h.owner, uid=h.uid)
        for h in holders.values()
        if h.uid
        and (uids.get(h.owner) != h.uid or proven.get((h.owner, h.pool, h.address.version), h.address) != h.address)
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
