"""What a server grants: read from its OFFER or ACK, and refused where no host could live by it."""

import math
import random
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from cloudprovider.core.errors import CloudProviderError
from cloudprovider.dhcp.message import NOBODY, Message, Option

INFINITE: Final = 0xFFFFFFFF
"""A lease time without end (RFC 2131 section 3.3)."""
RENEW_SHARE: Final = 0.5
REBIND_SHARE: Final = 0.875
"""T1 and T2 where the server names none (RFC 2131 section 4.4.5)."""
_FUZZ: Final = 0.05
"""T1 comes earlier by up to this share, so that leases that came together do not all renew together."""


class InvalidTerms(CloudProviderError):
    """An offer that can't be accepted; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A lease in monotonic seconds; ``math.inf`` for times that never come.

    ``server_mac``: whom unicasts to the server go to: the server, its relay or the router; b"" where it is unknown.
    """

    address: IPv4Address
    prefix_length: int
    gateway: IPv4Address | None
    server: IPv4Address
    server_mac: bytes
    acquired: float
    renew: float
    rebind: float
    expires: float


def read_terms(message: Message, *, sent: float, server_mac: bytes, rng: random.Random) -> Terms:
    """The terms of an OFFER or ACK; times count from when the request was sent (RFC 2131 section 4.4.1).

    Raises InvalidTerms, and MalformedPacket for options of a wrong length.
    """
    server = message.address(Option.SERVER_IDENTIFIER)
    if server is None or not _host(server):
        raise InvalidTerms("it names no server identifier (option 54)")
    prefix_length = _prefix_length(message)
    address = message.yiaddr
    _check_address(address, prefix_length)
    duration = message.seconds(Option.LEASE_TIME)
    if not duration:
        raise InvalidTerms("it names no lease time (option 51)")
    gateway = next((a for a in message.addresses(Option.ROUTER) if _host(a) and a != address), None)
    renew, rebind, expires = math.inf, math.inf, math.inf
    if duration != INFINITE:
        first, second = message.seconds(Option.RENEWAL_TIME), message.seconds(Option.REBINDING_TIME)
        t1, t2 = _sane(first, second, duration)
        renew, rebind, expires = sent + t1 * (1 - rng.random() * _FUZZ), sent + t2, sent + duration
    return Terms(
        address=address,
        prefix_length=prefix_length,
        gateway=gateway,
        server=server,
        server_mac=server_mac,
        acquired=sent,
        renew=renew,
        rebind=rebind,
        expires=expires,
    )


def _sane(first: int | None, second: int | None, duration: int) -> tuple[float, float]:
    """T1 and T2, each by default where the server's make no order with the rest: 0 < T1 < T2 < lease."""
    rebind = second if second is not None and 0 < second < duration else duration * REBIND_SHARE
    renew = first if first is not None and 0 < first < rebind else duration * RENEW_SHARE
    if renew >= rebind:
        return duration * RENEW_SHARE, duration * REBIND_SHARE
    return renew, rebind


def _prefix_length(message: Message) -> int:
    mask = message.address(Option.SUBNET_MASK)
    if mask is None:
        raise InvalidTerms("it names no subnet mask (option 1), so nobody knows who is on the address's link")
    inverse = int(mask) ^ 0xFFFFFFFF
    if inverse & (inverse + 1) or not int(mask):
        raise InvalidTerms(f"its subnet mask {mask} (option 1) is none")
    return 32 - inverse.bit_length()


def _check_address(address: IPv4Address, prefix_length: int) -> None:
    if not _host(address):
        raise InvalidTerms(f"its address {address} is not one that a host can have")
    subnet = IPv4Network((address, prefix_length), strict=False)
    if prefix_length < 31 and address in {subnet.network_address, subnet.broadcast_address}:
        raise InvalidTerms(f"its address {address} is the network or broadcast address of {subnet}")


def _host(address: IPv4Address) -> bool:
    """Whether it can be one host's: not 0.0.0.0/8, loopback, multicast, reserved or broadcast."""
    return address != NOBODY and not (
        address.packed[0] == 0 or address.is_loopback or address.is_multicast or address.is_reserved
    )
