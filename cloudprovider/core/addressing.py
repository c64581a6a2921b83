"""An allocated address as a LoadBalancer's status shows it."""

from cloudprovider.core.api.loadbalancer import Address, AllocatedAddress
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.pools import PoolView
from cloudprovider.core.ranges import AddressRange


def status_address(view: PoolView, address: IPAddress) -> Address:
    """Return ``address`` of a pool with all that an agent needs to bring it up. Raises InvalidRequest when no subnet
    of the pool holds it (any more)."""
    place = _place(view, address)
    return Address(
        ip=str(address),
        ip_pool=view.name,
        prefix_length=place.subnet.prefixlen,
        gateway=_gateway(place),
        network=view.network,
    )


def allocated_address(view: PoolView, address: IPAddress) -> AllocatedAddress:
    """Return the same in Harvester's words, the mask spelled out ("255.255.255.0"). Raises InvalidRequest likewise."""
    place = _place(view, address)
    return AllocatedAddress(
        ip_pool=view.name, ip=str(address), mask=str(place.subnet.netmask), gateway=_gateway(place)
    )


def _place(view: PoolView, address: IPAddress) -> AddressRange:
    place = view.configured.range_of(address) if view.configured is not None else None
    if place is None:
        message = f'{address} is in no subnet of the pool "{view.name}" any more: put its subnet back'
        raise InvalidRequest(Violation(field="spec.ranges", reason="OutsideSubnet", message=message))
    return place


def _gateway(place: AddressRange) -> str:
    return str(place.gateway) if place.gateway is not None else ""
