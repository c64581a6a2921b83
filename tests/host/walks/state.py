"""All objects of a host cluster at one moment, by their owners. Addresses are compared by network, as two networks may
have the same ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address

from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.pool import IPBlock, IPPool

Place = tuple[str, str]
"""(network, address)."""


@dataclass(frozen=True)
class Record:
    """One address in a block, and everybody who has it."""

    pool: str
    ip: str
    owners: tuple[tuple[str, str], ...]

    @property
    def version(self) -> int:
        return ip_address(self.ip).version


@dataclass(frozen=True)
class State:
    """All objects at one moment."""

    pools: Mapping[str, IPPool]
    blocks: Sequence[IPBlock]
    lbs: Mapping[str, LoadBalancer]
    clusters: Mapping[str, GuestCluster]

    @cached_property
    def records(self) -> tuple[Record, ...]:
        return tuple(records(self.blocks))

    def held(self, lb: LoadBalancer) -> list[Record]:
        return [r for r in self.records if (path(lb), lb.metadata.uid) in r.owners]

    def network(self, pool: str) -> str:
        return self.pools[pool].spec.selector.network

    @cached_property
    def taken(self) -> frozenset[Place]:
        conflicts = ((self.network(b.spec.pool), ip) for b in self.blocks for ip in b.spec.conflicts)
        return frozenset((*((self.network(r.pool), r.ip) for r in self.records), *conflicts))

    def group(self, lb: LoadBalancer) -> list[LoadBalancer]:
        """The others that share with it, or would: its primary, and all that name the same one."""
        service = lb.spec.service
        if service is None:
            return []
        root = lb.spec.primary_service or f"{service.namespace}/{service.name}"
        return [
            other
            for other in self.lbs.values()
            if other.spec.service is not None
            and other.metadata.uid != lb.metadata.uid
            and tenant(other) == tenant(lb)
            and root in (other.spec.primary_service, f"{other.spec.service.namespace}/{other.spec.service.name}")
        ]


def path(lb: LoadBalancer) -> str:
    return f"{lb.metadata.namespace}/{lb.metadata.name}"


def tenant(lb: LoadBalancer) -> str:
    cluster = lb.metadata.labels.get("cloudprovider.harvesterhci.io/cluster", "")
    return f"{lb.metadata.namespace}/{cluster}" if cluster else lb.metadata.namespace


def records(blocks: Iterable[IPBlock]) -> Iterator[Record]:
    for block in blocks:
        for ip, one in block.spec.allocations.items():
            yield Record(block.spec.pool, ip, ((one.owner, one.uid), *one.sharers.items()))
