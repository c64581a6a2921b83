"""Who a lease's client is to the server: derived from the owner's UID alone, so that every host is the same client."""

import uuid
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

_NODE_SPECIFIC: Final = 255
"""The client identifier's type (RFC 4361 section 6.1)."""
_DUID_UUID: Final = 4
"""RFC 6355."""


@dataclass(frozen=True)
class ClientIdentity:
    """What the server knows the client by.

    ``client_id``: option 61 as RFC 4361 has it: type 255, IAID, DUID-UUID. ``chaddr``: a locally administered unicast
    MAC. One for each lease, because servers offer the same address to all that share one of the two.
    """

    client_id: bytes
    chaddr: bytes


def client_identity(owner: str) -> ClientIdentity:
    """The identity for an owner's UID. What is no UUID is hashed into one (RFC 9562 version 8)."""
    digest = blake2b(owner.encode(), digest_size=26, person=b"dhcp-client").digest()
    try:
        named = uuid.UUID(owner)
    except ValueError:
        bits = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(0x3 << 62)
        named = uuid.UUID(int=bits | 0x8 << 76 | 0x2 << 62)
    iaid = digest[16:20]
    chaddr = bytes((digest[20] & 0xFC | 0x02,)) + digest[21:26]
    duid = _DUID_UUID.to_bytes(2, "big") + named.bytes
    return ClientIdentity(client_id=bytes((_NODE_SPECIFIC,)) + iaid + duid, chaddr=chaddr)


def hardware_address(owner: str) -> str:
    """The lease's own MAC, as text."""
    return client_identity(owner).chaddr.hex(":")
