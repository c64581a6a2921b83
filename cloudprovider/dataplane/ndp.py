"""Neighbor Discovery frames on Ethernet (RFC 4861): probes and announcements as of RFC 4862 section 5.4, and
questions to one machine.

A probe carries no nonce (RFC 7527): one that a loop in the network brings back has this machine's own Ethernet
address as its source, and frames from that are not listened to.
"""

import struct
from ipaddress import IPv6Address
from typing import Final

from cloudprovider.core.checksum import transport_checksum
from cloudprovider.dataplane.heard import Heard

ETHERTYPE: Final = 0x86DD

_SOLICITATION: Final = 135
_ADVERTISEMENT: Final = 136
_ICMPV6: Final = 58
_HOPS: Final = 255
"""No router has passed it on (RFC 4861 section 3.1)."""
_SOURCE_MAC: Final = 1
_TARGET_MAC: Final = 2
_OVERRIDE: Final = 0x2000_0000
_SOLICITED: Final = 0x4000_0000
_VERSION: Final = 0x6000_0000
_NOBODY: Final = IPv6Address(0)
_ALL_NODES: Final = IPv6Address("ff02::1")
_SOLICITED_NODE: Final = int(IPv6Address("ff02::1:ff00:0"))

_HEADERS: Final = struct.Struct("!6s6sHIHBB16s16s")
"""Ethernet and IPv6: destination, source, type; version, payload length, next header, hop limit, addresses."""
_MESSAGE: Final = struct.Struct("!BBHI16s")
"""ICMPv6: type, code, checksum, flags, target."""
_MAC_OPTION: Final = struct.Struct("!BB6s")

FILTER: Final = struct.pack(
    "=" + "HBBI" * 9,
    *(0x28, 0, 0, 12),  # 0: load the Ethernet type
    *(0x15, 0, 6, ETHERTYPE),  # 1: another: go to 8
    *(0x30, 0, 0, 20),  # 2: load the next header
    *(0x15, 0, 4, _ICMPV6),  # 3: another: go to 8
    *(0x30, 0, 0, 54),  # 4: load the message's type
    *(0x15, 1, 0, _SOLICITATION),  # 5: go to 7
    *(0x15, 0, 1, _ADVERTISEMENT),  # 6: another: go to 8
    *(0x06, 0, 0, 0xFFFF),  # 7: take it all
    *(0x06, 0, 0, 0),  # 8: take nothing
)
"""A classic BPF program (linux/filter.h) that lets in what :func:`parse` may understand, so that traffic which is
merely forwarded does not wake anybody."""


def probe(mac: bytes, address: IPv6Address) -> bytes:
    """Does anybody have this address? (RFC 4862 section 5.4.2)"""
    return _frame(mac, _NOBODY, solicited_node(address), _MESSAGE.pack(_SOLICITATION, 0, 0, 0, address.packed))


def question(mac: bytes, address: IPv6Address, *, to: bytes | None) -> bytes:
    """Does anybody (the machine ``to``) have this address? (RFC 4861 sections 7.2.2, 7.3.3)

    Asked from the link-local address that belongs to ``mac``, never from nobody: that would be a probe, and a machine
    that is just looking for duplicates of the address (RFC 4862 section 5.4.3) would give it up.
    """
    message = _MESSAGE.pack(_SOLICITATION, 0, 0, 0, address.packed) + _MAC_OPTION.pack(_SOURCE_MAC, 1, mac)
    destination = solicited_node(address) if to is None else address
    return _frame(mac, link_local(mac), destination, message, to=to)


def link_local(mac: bytes) -> IPv6Address:
    """The link-local address of an Ethernet address (RFC 4291 appendix A)."""
    return IPv6Address(b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])


def announcement(mac: bytes, address: IPv6Address) -> bytes:
    """ "I have this address, forget who had it" (RFC 4861 section 7.2.6)."""
    option = _MAC_OPTION.pack(_TARGET_MAC, 1, mac)
    message = _MESSAGE.pack(_ADVERTISEMENT, 0, 0, _OVERRIDE, address.packed) + option
    return _frame(mac, address, _ALL_NODES, message)


def solicited_node(address: IPv6Address) -> IPv6Address:
    """The multicast group in which an address is asked for (RFC 4291 section 2.7.1)."""
    return IPv6Address(_SOLICITED_NODE | int(address) & 0xFF_FFFF)


def parse(frame: bytes) -> Heard | None:
    """Read a frame; None for anything but a valid Neighbor Solicitation or Advertisement (RFC 4861 section 7.1).

    The machine is the one that the link-layer address option names, as neighbours will have it; without, the sender.
    """
    if len(frame) < _HEADERS.size + _MESSAGE.size:
        return None
    _, ether, ethertype, version, size, header, hops, packed_source, packed_destination = _HEADERS.unpack_from(frame)
    message = frame[_HEADERS.size : _HEADERS.size + size]  # Ethernet may pad
    if (ethertype, version >> 28, header, hops) != (ETHERTYPE, 6, _ICMPV6, _HOPS) or len(message) != size:
        return None
    if size < _MESSAGE.size or not _intact(packed_source, packed_destination, message):
        return None
    kind, code, _, flags, packed_target = _MESSAGE.unpack_from(message)
    options = _options(message[_MESSAGE.size :])
    source, target = IPv6Address(packed_source), IPv6Address(packed_target)
    if code != 0 or options is None or target.is_multicast or source.is_multicast:
        return None
    destination = IPv6Address(packed_destination)
    if kind == _SOLICITATION:
        if source == _NOBODY and (destination != solicited_node(target) or _SOURCE_MAC in options):
            return None
        return _heard(options.get(_SOURCE_MAC, ether), ether, source, target)
    if kind == _ADVERTISEMENT and not (destination.is_multicast and flags & _SOLICITED):
        return _heard(options.get(_TARGET_MAC, ether), ether, target, target)
    return None


def _heard(mac: bytes, ether: bytes, sender: IPv6Address, target: IPv6Address) -> Heard:
    return Heard(mac.hex(":"), sender, target, honest=mac == ether)


def _frame(
    mac: bytes, source: IPv6Address, destination: IPv6Address, message: bytes, *, to: bytes | None = None
) -> bytes:
    """Address a message to a multicast group, or to the machine ``to``, and fill in its checksum (0 so far)."""
    addresses = source.packed, destination.packed
    ether = to or b"\x33\x33" + destination.packed[12:]  # RFC 2464 section 7
    headers = _HEADERS.pack(ether, mac, ETHERTYPE, _VERSION, len(message), _ICMPV6, _HOPS, *addresses)
    checksum = transport_checksum(*addresses, _ICMPV6, message) or 0xFFFF
    return headers + message[:2] + checksum.to_bytes(2, "big") + message[4:]


def _intact(source: bytes, destination: bytes, message: bytes) -> bool:
    return transport_checksum(source, destination, _ICMPV6, message) == 0


def _options(data: bytes) -> dict[int, bytes] | None:
    """The Ethernet addresses among the options; None when the options are malformed (RFC 4861 section 4.6)."""
    found: dict[int, bytes] = {}
    position = 0
    while position < len(data):
        if position + 2 > len(data):
            return None
        kind, units = data[position], data[position + 1]
        if units == 0 or position + 8 * units > len(data):
            return None
        if kind in {_SOURCE_MAC, _TARGET_MAC} and units == 1:
            found[kind] = data[position + 2 : position + 8]
        position += 8 * units
    return found
