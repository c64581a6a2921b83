"""The checksum of IP, TCP, UDP and ICMPv6."""

import struct
from typing import Final

_PSEUDO: Final = struct.Struct("!II")


def internet_checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071); 0 over data that holds its own."""
    if len(data) % 2:
        data += b"\0"
    # Sixteen-bit words add up modulo 0xffff, and 0x10000 is 1 there: so does one big number (RFC 1071 section 2).
    total = int.from_bytes(data, "big") % 0xFFFF
    # In ones' complement 0 has two forms; only all zeros gives the positive one.
    return 0 if not total and any(data) else 0xFFFF - total


def transport_checksum(source: bytes, destination: bytes, protocol: int, segment: bytes) -> int:
    """That of a segment or message between two addresses, with the pseudo-header of RFC 8200 section 8.1; IPv4's has
    the same words, and so the same sum. 0 over one that holds its own."""
    return internet_checksum(source + destination + _PSEUDO.pack(len(segment), protocol) + segment)
