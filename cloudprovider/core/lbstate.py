"""From the host's LoadBalancer object to what its guest is told."""

from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.exchange import GivenAddress, LoadBalancerState, ServiceKey, StateCondition


def state_of(lb: LoadBalancer, service: ServiceKey) -> LoadBalancerState:
    """Return the state of the Service that ``lb`` stands for.

    An address counts as given once a host has it up (``status.holder``): one that is only allocated would make the
    guest publish what nobody answers for. Going away, a load balancer has none.
    """
    metadata, status = lb.metadata, lb.status
    holder = status.holder if not metadata.deletion_timestamp else None
    up = frozenset(holder.addresses) if holder is not None else frozenset()
    return LoadBalancerState(
        service=service,
        addresses=tuple(GivenAddress(ip_address(a.ip), a.ip_pool) for a in status.addresses if a.ip in up),
        conditions=tuple(
            StateCondition(c.type, c.status, c.reason, c.message)
            for c in sorted(status.conditions, key=lambda c: c.type)
        ),
        host_object=f"{metadata.namespace}/{metadata.name}",
        mode=holder.mode if holder is not None else "",
    )
