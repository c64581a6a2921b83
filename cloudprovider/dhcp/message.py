"""DHCP messages (RFC 2131 section 2) and their options (RFC 2132), read strictly and written."""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address
from typing import Final

from cloudprovider.core.errors import CloudProviderError

NOBODY: Final = IPv4Address(0)

_HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s16s64s128s4s")
"""op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, magic cookie."""
_COOKIE: Final = bytes((99, 130, 83, 99))
_ETHERNET: Final = 1
_BROADCAST: Final = 0x8000
_LEAST: Final = 300
"""Octets of the least BOOTP message (RFC 1542 section 2.1); relays may drop what is shorter."""
_LONGEST_OPTION: Final = 255


class MalformedPacket(CloudProviderError):
    """A frame or message that can't be read as what it claims to be. ``reason`` is one of few words, for counting."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Operation(IntEnum):
    """Field ``op``: who speaks."""

    REQUEST = 1
    REPLY = 2


class MessageType(IntEnum):
    """Option 53 (RFC 2132 section 9.6)."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    DECLINE = 4
    ACK = 5
    NAK = 6
    RELEASE = 7
    INFORM = 8


class Option(IntEnum):
    """The options that are used here, by RFC 2132's numbers."""

    PAD = 0
    SUBNET_MASK = 1
    ROUTER = 3
    HOST_NAME = 12
    REQUESTED_ADDRESS = 50
    LEASE_TIME = 51
    OVERLOAD = 52
    MESSAGE_TYPE = 53
    SERVER_IDENTIFIER = 54
    PARAMETER_LIST = 55
    MESSAGE = 56
    RENEWAL_TIME = 58
    REBINDING_TIME = 59
    CLIENT_IDENTIFIER = 61
    END = 255


@dataclass(frozen=True, kw_only=True)
class Message:
    """One DHCP message on Ethernet. ``options`` holds all but the message type, by number, undecoded.

    Server name and boot file are read only as far as they hold options (option 52), and written empty.
    """

    operation: Operation
    kind: MessageType
    xid: int
    chaddr: bytes
    secs: int = 0
    broadcast: bool = False
    ciaddr: IPv4Address = NOBODY
    yiaddr: IPv4Address = NOBODY
    siaddr: IPv4Address = NOBODY
    giaddr: IPv4Address = NOBODY
    options: Mapping[int, bytes] = field(default_factory=dict)

    def address(self, option: Option) -> IPv4Address | None:
        """An option that is one address; None where it is absent. Raises MalformedPacket."""
        found = self.options.get(option)
        if found is None:
            return None
        if len(found) != 4:
            raise MalformedPacket("option-length", f"option {option} has {len(found)} octets; an address has 4")
        return IPv4Address(found)

    def addresses(self, option: Option) -> tuple[IPv4Address, ...]:
        """An option that is a list of addresses; empty where it is absent. Raises MalformedPacket."""
        found = self.options.get(option, b"")
        if len(found) % 4:
            raise MalformedPacket("option-length", f"option {option} has {len(found)} octets; addresses have 4 each")
        return tuple(IPv4Address(found[at : at + 4]) for at in range(0, len(found), 4))

    def seconds(self, option: Option) -> int | None:
        """An option that is a time in seconds; None where it is absent. Raises MalformedPacket."""
        found = self.options.get(option)
        if found is None:
            return None
        if len(found) != 4:
            raise MalformedPacket("option-length", f"option {option} has {len(found)} octets; a time has 4")
        return int.from_bytes(found, "big")

    def text(self, option: Option) -> str:
        """An option that is text; empty where it is absent. What is not printable ASCII is left out."""
        return "".join(c for c in self.options.get(option, b"").decode("ascii", "ignore") if c.isprintable())


def encode(message: Message) -> bytes:
    """The message's octets, padded to the least length. Options longer than 255 octets are split (RFC 3396)."""
    header = _HEADER.pack(
        message.operation,
        _ETHERNET,
        len(message.chaddr),
        0,
        message.xid,
        message.secs,
        _BROADCAST if message.broadcast else 0,
        message.ciaddr.packed,
        message.yiaddr.packed,
        message.siaddr.packed,
        message.giaddr.packed,
        message.chaddr,
        b"",
        b"",
        _COOKIE,
    )
    parts = [header, bytes((Option.MESSAGE_TYPE, 1, message.kind))]
    for number, value in message.options.items():
        for at in range(0, max(len(value), 1), _LONGEST_OPTION):
            piece = value[at : at + _LONGEST_OPTION]
            parts += (bytes((number, len(piece))), piece)
    parts.append(bytes((Option.END,)))
    return b"".join(parts).ljust(_LEAST, b"\0")


def decode(data: bytes) -> Message:
    """Read a message. Raises MalformedPacket, and nothing else, for whatever is no DHCP message on Ethernet."""
    if len(data) < _HEADER.size:
        raise MalformedPacket("short-message", f"{len(data)} octets are no DHCP message: it has {_HEADER.size} or more")
    op, htype, hlen, _, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file, cookie = (
        _HEADER.unpack_from(data)
    )
    if op not in {Operation.REQUEST, Operation.REPLY}:
        raise MalformedPacket("operation", f"op {op} is neither request nor reply")
    if (htype, hlen) != (_ETHERNET, 6):
        raise MalformedPacket("hardware", f"htype {htype} with {hlen} octets is not Ethernet")
    if cookie != _COOKIE:
        raise MalformedPacket("cookie", f"magic cookie {cookie.hex()} is not DHCP's")
    options = _options(data[_HEADER.size :], file, sname)
    kind = options.pop(Option.MESSAGE_TYPE, b"")
    if len(kind) != 1 or not MessageType.DISCOVER <= kind[0] <= MessageType.INFORM:
        raise MalformedPacket("message-type", f"message type {kind.hex() or 'absent'} is not one of RFC 2132's")
    return Message(
        operation=Operation(op),
        kind=MessageType(kind[0]),
        xid=xid,
        chaddr=chaddr[:6],
        secs=secs,
        broadcast=bool(flags & _BROADCAST),
        ciaddr=IPv4Address(ciaddr),
        yiaddr=IPv4Address(yiaddr),
        siaddr=IPv4Address(siaddr),
        giaddr=IPv4Address(giaddr),
        options=options,
    )


def _options(field_: bytes, file: bytes, sname: bytes) -> dict[int, bytes]:
    """All options; one that comes several times is joined, over the fields in RFC 3396's order."""
    found: dict[int, bytes] = {}
    _join(found, field_)
    overload = found.pop(Option.OVERLOAD, b"\0")
    if len(overload) != 1 or overload[0] > 3:
        raise MalformedPacket("overload", f"option overload {overload.hex()} is not 1, 2 or 3")
    if overload[0] & 1:
        _join(found, file)
    if overload[0] & 2:
        _join(found, sname)
    return found


def _join(found: dict[int, bytes], field_: bytes) -> None:
    for number, value in _each(field_):
        found[number] = found.get(number, b"") + value


def _each(field_: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(field_):  # an end that is missing is forgiven: every server's parser does so
        number = field_[at]
        if number == Option.END:
            return
        at += 1
        if number == Option.PAD:
            continue
        if at >= len(field_) or at + 1 + field_[at] > len(field_):
            raise MalformedPacket("truncated-option", f"option {number} goes beyond its field")
        yield number, field_[at + 1 : at + 1 + field_[at]]
        at += 1 + field_[at]
