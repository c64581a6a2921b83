"""A TCP reset that only a connection tracker heeds, on Ethernet: RST without ACK.

A client that waits for the answer to its SYN ignores it (RFC 9293 section 3.10.7.3, "otherwise (no ACK), drop the
segment"), but Linux' conntrack forgets a flow whose first answer is a RST.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cloudprovider.core.checksum import internet_checksum, transport_checksum
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.elements import version_of
from cloudprovider.dataplane.ruleset import Version

_ETHERTYPES: Final[dict[Version, int]] = {4: 0x0800, 6: 0x86DD}
_KEYS: Final[dict[Version, struct.Struct]] = {
    4: struct.Struct("!6sxx4sHxx4sHxx"),
    6: struct.Struct("!6sxx16sHxx16sHxx"),
}
_TCP: Final = 6
_HOPS: Final = 64
_RST: Final = 0x04
_TCP_HEADER: Final = struct.Struct("!HHIIBBHHH")
_IPV4_HEADER: Final = struct.Struct("!BBHHHBBH4s4s")
_IPV6_HEADER: Final = struct.Struct("!IHBB16s16s")


@dataclass(frozen=True)
class Flow:
    """A TCP flow from a client to a listener, and the MAC of the node that it was sent to."""

    node: MACAddress
    client: IPAddress
    source: int
    vip: IPAddress
    port: int

    @classmethod
    def unpack(cls, version: Version, key: bytes) -> "Flow":
        """The flow that an element of ``returned_syns`` stands for."""
        node, client, source, vip, port = _KEYS[version].unpack(key)
        address = IPv4Address if version == 4 else IPv6Address
        return cls(MACAddress.unpack(node), address(client), source, address(vip), port)

    def reset(self, mac: bytes) -> bytes:
        """The frame from a station of this ``mac`` to the node: the listener resets the flow, without ACK."""
        version = version_of(self.vip)
        ends = self.vip.packed, self.client.packed
        ports = (self.port, self.source)
        fields = (*ports, 0, 0, _TCP_HEADER.size // 4 << 4, _RST, 0)
        segment = _TCP_HEADER.pack(*fields, transport_checksum(*ends, _TCP, _TCP_HEADER.pack(*fields, 0, 0)), 0)
        if version == 4:
            about = (0x45, 0, _IPV4_HEADER.size + len(segment), 0, 0x4000, _HOPS, _TCP)
            header = _IPV4_HEADER.pack(*about, internet_checksum(_IPV4_HEADER.pack(*about, 0, *ends)), *ends)
        else:
            header = _IPV6_HEADER.pack(6 << 28, len(segment), _TCP, _HOPS, *ends)
        return self.node.packed + mac + _ETHERTYPES[version].to_bytes(2, "big") + header + segment
