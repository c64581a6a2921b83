"""How a namespace stands on its network, as far as its packet rules depend on it."""

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from cloudprovider.core.mac import MACAddress
from cloudprovider.dataplane.api import NetworkConfig


@dataclass(frozen=True)
class Standing:
    """The link's ``mac``; the namespace's own addresses; whether the link has IPv6; what the configuration says;
    whether the kernel can pass frames on (``dsr``), and packets to another host (``hands_over``)."""

    mac: MACAddress
    own: IPv4Interface | None = None
    own6: IPv6Interface | None = None
    ipv6: bool = True
    answer_ping: bool = True
    masquerade: bool = True
    dsr: bool = True
    hands_over: bool = True

    @classmethod
    def of(
        cls, config: NetworkConfig, mac: str, *, ipv6: bool, dsr: bool = True, hands_over: bool = True
    ) -> "Standing":
        """That of a network's namespace, whose link has this address."""
        return cls(
            mac=MACAddress.parse(mac),
            own=config.address,
            own6=config.address6,
            ipv6=ipv6,
            answer_ping=config.answer_ping,
            masquerade=config.masquerade,
            dsr=dsr,
            hands_over=hands_over,
        )
