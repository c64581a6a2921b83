"""ARP frames on Ethernet (RFC 826), as RFC 5227 uses them: probes, announcements, and questions to one machine."""

import struct
from ipaddress import IPv4Address
from typing import Final

from cloudprovider.dataplane.heard import Heard

ETHERTYPE: Final = 0x0806
_BROADCAST: Final = b"\xff" * 6
_REQUEST: Final = 1
_REPLY: Final = 2
_FRAME: Final = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_ETHERNET: Final = 1
_IPV4: Final = 0x0800
_NOBODY: Final = IPv4Address(0)


def probe(mac: bytes, address: IPv4Address) -> bytes:
    """Does anybody have this address?"""
    return _frame(_REQUEST, mac, _NOBODY, bytes(6), address)


def question(mac: bytes, address: IPv4Address, *, own: IPv4Address | None, to: bytes | None) -> bytes:
    """Does anybody (the machine ``to``) have this address? Asked by somebody who has ``own``; by None in the form of a
    probe, which every host answers too (RFC 5227 section 2.1.1), but one that is about to take the address for itself
    gives it up."""
    return _frame(_REQUEST, mac, own or _NOBODY, bytes(6), address, to=to or _BROADCAST)


def announcements(mac: bytes, address: IPv4Address) -> tuple[bytes, bytes]:
    """ "I have this address", as request (what RFC 5227 says) and as reply (what some stacks want)."""
    return _frame(_REQUEST, mac, address, bytes(6), address), _frame(_REPLY, mac, address, _BROADCAST, address)


def parse(frame: bytes) -> Heard | None:
    """Read a frame; None for anything but ARP for IPv4 on Ethernet."""
    if len(frame) < _FRAME.size:
        return None
    (_, ether, ethertype, hardware, protocol, hardware_size, size, operation, mac, sender, _, target) = (
        _FRAME.unpack_from(frame)
    )
    if (ethertype, hardware, protocol, hardware_size, size) != (ETHERTYPE, _ETHERNET, _IPV4, 6, 4):
        return None
    if operation not in {_REQUEST, _REPLY}:
        return None
    return Heard(mac.hex(":"), IPv4Address(sender), IPv4Address(target), honest=ether == mac)


def _frame(
    operation: int,
    mac: bytes,
    sender: IPv4Address,
    target_mac: bytes,
    target: IPv4Address,
    *,
    to: bytes = _BROADCAST,
) -> bytes:
    body = (mac, sender.packed, target_mac, target.packed)
    return _FRAME.pack(to, mac, ETHERTYPE, _ETHERNET, _IPV4, 6, 4, operation, *body)
