"""DHCP messages as Ethernet frames: IPv4 (RFC 791) and UDP (RFC 768) around them, with checksums."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from cloudprovider.core.checksum import internet_checksum, transport_checksum
from cloudprovider.dhcp import message as codec
from cloudprovider.dhcp.message import MalformedPacket, Message

CLIENT_PORT: Final = 68
SERVER_PORT: Final = 67
BROADCAST_MAC: Final = b"\xff" * 6
BROADCAST: Final = IPv4Address("255.255.255.255")
ETHERTYPE: Final = 0x0800
"""IPv4."""

_ETHERNET: Final = struct.Struct("!6s6sH")
_IPV4: Final = struct.Struct("!BBHHHBBH4s4s")
_UDP: Final = struct.Struct("!HHHH")
_PROTOCOL_UDP: Final = 17
_DONT_FRAGMENT: Final = 0x4000
_FRAGMENT: Final = 0x3FFF
"""More fragments, or an offset."""
_TTL: Final = 64


@dataclass(frozen=True, kw_only=True)
class Datagram:
    """A message, and whence it goes where."""

    source_mac: bytes
    destination_mac: bytes
    source: IPv4Address
    destination: IPv4Address
    source_port: int
    destination_port: int
    message: Message


def encode(datagram: Datagram) -> bytes:
    """The whole frame."""
    payload = codec.encode(datagram.message)
    length = _UDP.size + len(payload)
    ports = (datagram.source_port, datagram.destination_port)
    source, destination = datagram.source.packed, datagram.destination.packed
    # A sum of 0 would say that there is none: it is sent as its other form (RFC 768).
    checksum = transport_checksum(source, destination, _PROTOCOL_UDP, _UDP.pack(*ports, length, 0) + payload) or 0xFFFF
    parts = (0x45, 0, _IPV4.size + length, 0, _DONT_FRAGMENT, _TTL, _PROTOCOL_UDP)
    header = _IPV4.pack(*parts, internet_checksum(_IPV4.pack(*parts, 0, source, destination)), source, destination)
    ethernet = _ETHERNET.pack(datagram.destination_mac, datagram.source_mac, ETHERTYPE)
    return ethernet + header + _UDP.pack(*ports, length, checksum) + payload


def decode(frame: bytes, *, checksum_ready: bool = True) -> Datagram:
    """Read a frame. Raises MalformedPacket, and nothing else, for whatever is not DHCP over UDP, whole and sound.

    ``checksum_ready``: False where the kernel says that the UDP checksum is still to be completed by hardware, as
    in frames from this very host (packet(7): PACKET_AUXDATA, TP_STATUS_CSUMNOTREADY); it is not looked at then.
    """
    if len(frame) < _ETHERNET.size:
        raise MalformedPacket("short-frame", f"{len(frame)} octets are no Ethernet frame")
    destination_mac, source_mac, ethertype = _ETHERNET.unpack_from(frame)
    if ethertype != ETHERTYPE:
        raise MalformedPacket("ethertype", f"ethertype {ethertype:#06x} is not IPv4")
    source, destination, segment = _ipv4(frame[_ETHERNET.size :])
    if len(segment) < _UDP.size:
        raise MalformedPacket("udp-length", f"{len(segment)} octets are no UDP datagram")
    source_port, destination_port, length, checksum = _UDP.unpack_from(segment)
    if not _UDP.size <= length <= len(segment):
        raise MalformedPacket("udp-length", f"UDP says {length} octets of {len(segment)}")
    segment = segment[:length]
    if checksum and checksum_ready and transport_checksum(source, destination, _PROTOCOL_UDP, segment):
        raise MalformedPacket("udp-checksum", "the UDP checksum is wrong")
    return Datagram(
        source_mac=source_mac,
        destination_mac=destination_mac,
        source=IPv4Address(source),
        destination=IPv4Address(destination),
        source_port=source_port,
        destination_port=destination_port,
        message=codec.decode(segment[_UDP.size :]),
    )


def _ipv4(packet: bytes) -> tuple[bytes, bytes, bytes]:
    """Source, destination and payload; what Ethernet has padded is cut off."""
    if len(packet) < _IPV4.size:
        raise MalformedPacket("ip-length", f"{len(packet)} octets are no IPv4 packet")
    first, _, total, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(packet)
    header = (first & 0x0F) * 4
    if first >> 4 != 4 or header < _IPV4.size:
        raise MalformedPacket("ip-header", f"version and header length {first:#04x} are not IPv4's")
    if not header <= total <= len(packet):
        raise MalformedPacket("ip-length", f"IPv4 says {total} octets of {len(packet)}")
    if internet_checksum(packet[:header]):
        raise MalformedPacket("ip-checksum", "the IPv4 header's checksum is wrong")
    if fragment & _FRAGMENT:
        raise MalformedPacket("fragment", "a fragment: DHCP messages fit in one packet")
    if protocol != _PROTOCOL_UDP:
        raise MalformedPacket("protocol", f"IP protocol {protocol} is not UDP")
    return source, destination, packet[header:total]
