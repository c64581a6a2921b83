"""How namespaces and links of an instance are called, and how they are told from other people's."""

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from cloudprovider.core.errors import ConfigurationError

LINK: Final = "lan0"
"""The namespace's link to its network."""

_MARK: Final = "cloudprovider.harvesterhci.io"
_LONGEST: Final = 40
"""Characters of a network's name that are kept readable in the name of its namespace."""


@dataclass(frozen=True)
class Names:
    """The names for one instance of the agent on a host. Raises ConfigurationError for an unusable instance."""

    instance: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", self.instance):
            raise ConfigurationError(
                f"instance {self.instance!r} can't name network namespaces; use 1 to 20 characters of a-z, 0-9 and -"
            )

    @property
    def prefix(self) -> str:
        """What the instance's namespaces begin with; another instance's may begin so too (a, a-b): see the mark."""
        return f"lb-{self.instance}-"

    def namespace(self, network: str) -> str:
        """The network's namespace: readable, and unique by a hash where readable is not enough."""
        if not network:
            return f"{self.prefix}mgmt"
        plain = re.sub(r"[^a-z0-9.-]", "-", network.lower())[:_LONGEST]
        return f"{self.prefix}{plain}-{blake2b(network.encode(), digest_size=4).hexdigest()}"

    def host_link(self, network: str) -> str:
        """The host's end of the pair (at most 15 characters)."""
        return "lb" + blake2b(f"{self.instance}/{network}".encode(), digest_size=5).hexdigest()

    def mark(self, network: str) -> str:
        """What is written on the namespace's loopback: whose it is, and for which network."""
        return f"{_MARK}|{self.instance}|{network}"

    def network(self, mark: str) -> str | None:
        """The network that a mark of this instance tells of; None for anybody else's."""
        parts = mark.split("|", 2)
        return parts[2] if len(parts) == 3 and parts[:2] == [_MARK, self.instance] else None
