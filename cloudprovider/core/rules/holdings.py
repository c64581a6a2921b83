"""Who holds which address of a pool, as its blocks say, and how that is told to people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.plan import IPAddress

NAMED: Final = 5
"""So many holders are named; of the rest the number."""


@dataclass(frozen=True, slots=True)
class Holding:
    """An address and who has it. ``owner`` is "namespace/name" of a LoadBalancer, or "agent/NODE" with no ``uid``;
    ``tenant`` is whose quota it counts for, ``sharers`` the other LoadBalancers on it."""

    address: IPAddress
    owner: str
    uid: str = ""
    tenant: str = ""
    sharers: tuple[str, ...] = ()

    @property
    def is_hosts(self) -> bool:
        """Whether a host has it for itself."""
        return not self.uid and self.owner.startswith("agent/")

    @property
    def text(self) -> str:
        """The address, and its holder in brackets."""
        if self.is_hosts:
            return f"{self.address} (the host {self.owner.removeprefix('agent/')})"
        shared = f", shared with {_counted(self.sharers, len(self.sharers))}" if self.sharers else ""
        return f"{self.address} ({self.owner}{shared})"


def holdings(blocks: Iterable[IPBlock]) -> list[Holding]:
    """Return what the blocks record, in the order of the addresses. What is no address is left out."""
    found = []
    for block in blocks:
        for text, allocation in block.spec.allocations.items():
            try:
                address = ip_address(text)
            except ValueError:
                continue
            sharers = tuple(sorted(allocation.sharers))
            found.append(Holding(address, allocation.owner, allocation.uid, allocation.tenant, sharers))
    return sorted(found, key=lambda h: (h.address.version, int(h.address)))


def listed(held: Sequence[Holding]) -> str:
    """Name the first few, and say how many more there are."""
    return _counted([h.text for h in held[:NAMED]], len(held))


def _counted(names: Sequence[str], count: int) -> str:
    shown = ", ".join(names[:NAMED])
    return f"{shown}, and {count - NAMED} more" if count > NAMED else shown
