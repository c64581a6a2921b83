"""The sentences in which the allocator says no: what is wrong, and what would change it."""

from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.wants import Want

WAITING = (
    "the host has lost records of addresses (was it restored from a backup?), so nobody is given a new one before every"
    " guest cluster has said which it uses; that takes less than a minute, and nothing is to be done"
)


def not_in_pool(address: IPAddress, view: PoolView) -> str:
    """Say why a pool does not hand out an address."""
    for overlap in view.overlaps:  # not by its name: it may be another tenant's
        if any(s.version == address.version and s.low <= int(address) <= s.high for s in overlap.segments):
            return f"{address} is handed out by an older pool of the network: ask for another address, or for none"
    if view.configured is not None and address in view.configured.gateways:
        return f"{address} is a gateway: ask for another address"
    if address in view.hosts:
        return f"{address} is the host's own: ask for another address"
    return f'{address} is not in the ranges of the pool "{view.name}": ask for one that is, or for none'


def exhausted(want: Want, view: PoolView) -> str:
    """Say that a pool has no address left."""
    ranges = view.ranges
    size = 0 if ranges is None else sum(s.high - s.low + 1 for s in ranges.segments if s.version == want.version)
    if ranges is not None and not ranges.segments and view.overlaps:
        return f'older pools hand out all that the pool "{view.name}" names: an operator must correct the ranges'
    if size == 0:
        return f'the pool "{view.name}" has no IPv{want.version} address to hand out: an operator must add a range'
    taken = "allocated or reserved" if view.reserved else "allocated"
    return (
        f'all {size} IPv{want.version} addresses of the pool "{view.name}" are {taken}: '
        "delete a load balancer that uses it, or an operator must add a range"
    )


def quota_exceeded(want: Want, pool: str, limit: int) -> str:
    """Say that a tenant has as many addresses as it may; ``pool`` empty: of all pools, and by DHCP."""
    whose = f'the guest cluster "{want.tenant}"' if "/" in want.tenant else f'the namespace "{want.tenant}"'
    where = f'of the pool "{pool}" ' if pool else ""
    if not pool and want.leased:
        limit += want.leased
        where = f"({want.leased} of them by DHCP) "
    rule = "the pool's addressesPerTenant" if pool else "its GuestCluster's quota.addresses"
    return (
        f"{whose} has all {limit} addresses {where}that {rule} allows:"
        " delete a load balancer that it no longer needs, share an address, or an operator must allow more"
    )
