"""Pools for tests of the address management."""

from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import IPPool, IPPoolSpec, Range, Scope, Selector

EVERYBODY = Scope(project="*", namespace="*", guest_cluster="*")


def pool(
    name: str,
    *ranges: str,
    scope: list[Scope] | None = None,
    priority: int = 0,
    network: str = "",
    created: str = "2026-01-01T00:00:00Z",
    deleted: str = "",
) -> IPPool:
    """Make a pool of ranges "subnet", "subnet=first-last" or "subnet=first-last@gateway"; its scope is everybody's."""
    parsed = []
    for text in ranges or ("10.0.0.0/24",):
        subnet, _, rest = text.partition("=")
        span, _, gateway = rest.partition("@")
        start, _, end = span.partition("-")
        parsed.append(Range(subnet=subnet, range_start=start, range_end=end, gateway=gateway))
    return IPPool(
        metadata=ObjectMeta(
            name=name, uid=f"uid-{name}", creation_timestamp=created, deletion_timestamp=deleted, resource_version="1"
        ),
        spec=IPPoolSpec(
            ranges=parsed,
            selector=Selector(priority=priority, network=network, scope=[EVERYBODY] if scope is None else scope),
        ),
    )
