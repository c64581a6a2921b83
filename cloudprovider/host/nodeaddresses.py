"""Which tenants have reported which addresses: whom a change of one address on the host can concern."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from cloudprovider.core.exchange import ReportedNode, Tenant
from cloudprovider.core.plan import IPAddress


class NodeAddresses:
    """An index of what tenants have reported, accepted or not; empty for tenants that it was told nothing of."""

    def __init__(self) -> None:
        self._addresses: dict[Tenant, frozenset[IPAddress]] = {}
        self._tenants: dict[IPAddress, set[Tenant]] = {}

    def put(self, tenant: Tenant, nodes: Iterable[ReportedNode]) -> None:
        """Replace what the tenant has reported."""
        before = self._addresses.pop(tenant, frozenset())
        after = frozenset(a for n in nodes for a in n.addresses)
        if after:
            self._addresses[tenant] = after
        for address in before - after:
            tenants = self._tenants[address]
            tenants.discard(tenant)
            if not tenants:
                del self._tenants[address]
        for address in after - before:
            self._tenants.setdefault(address, set()).add(tenant)

    def tenants_at(self, addresses: AbstractSet[IPAddress]) -> frozenset[Tenant]:
        """Return the tenants that have reported one of the addresses or more."""
        return frozenset(t for a in addresses for t in self._tenants.get(a, ()))
