"""What a client says: each message with just the fields that RFC 2131 table 5 gives it."""

import random
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from cloudprovider.dhcp.effects import Send
from cloudprovider.dhcp.identity import ClientIdentity
from cloudprovider.dhcp.message import NOBODY, Message, MessageType, Operation, Option
from cloudprovider.dhcp.packet import BROADCAST, BROADCAST_MAC
from cloudprovider.dhcp.terms import Terms

_PARAMETERS: Final = bytes(
    (
        Option.SUBNET_MASK,
        Option.ROUTER,
        Option.LEASE_TIME,
        Option.SERVER_IDENTIFIER,
        Option.RENEWAL_TIME,
        Option.REBINDING_TIME,
    )
)


@dataclass(frozen=True)
class Call:
    """What all messages of an exchange share."""

    identity: ClientIdentity
    xid: int
    secs: int
    hostname: str
    from_link: bool


def discover(call: Call, preferred: IPv4Address | None) -> Send:
    """Who gives an address? If it can be, ``preferred``."""
    return _broadcast(_message(call, MessageType.DISCOVER, requested=preferred), call.from_link)


def select(call: Call, offer: Terms) -> Send:
    """That offer is taken; the other servers hear that theirs are not."""
    message = _message(call, MessageType.REQUEST, requested=offer.address, server=offer.server)
    return _broadcast(message, call.from_link)


def reboot(call: Call, lease: Terms) -> Send:
    """Is this remembered lease still good?"""
    return _broadcast(_message(call, MessageType.REQUEST, requested=lease.address), call.from_link)


def renew(call: Call, lease: Terms) -> Send:
    """Extend it, to the server that gave it."""
    message = _message(call, MessageType.REQUEST, ciaddr=lease.address)
    return Send(message, lease.address, lease.server, lease.server_mac, call.from_link)


def rebind(call: Call, lease: Terms) -> Send:
    """Extend it, to any server."""
    message = _message(call, MessageType.REQUEST, ciaddr=lease.address)
    return Send(message, lease.address, BROADCAST, BROADCAST_MAC, call.from_link)


def decline(identity: ClientIdentity, terms: Terms, rng: random.Random, *, from_link: bool) -> Send:
    """Somebody else has that address."""
    return _broadcast(_last_word(identity, MessageType.DECLINE, terms, rng, requested=terms.address), from_link)


def release(identity: ClientIdentity, terms: Terms, rng: random.Random, *, from_link: bool) -> Send:
    """The address is not needed any more."""
    message = _last_word(identity, MessageType.RELEASE, terms, rng, ciaddr=terms.address)
    return Send(message, terms.address, terms.server, terms.server_mac, from_link)


def _broadcast(message: Message, from_link: bool) -> Send:  # noqa: FBT001 as in Send
    return Send(message, NOBODY, BROADCAST, BROADCAST_MAC, from_link)


def _message(
    call: Call,
    kind: MessageType,
    *,
    requested: IPv4Address | None = None,
    server: IPv4Address | None = None,
    ciaddr: IPv4Address = NOBODY,
) -> Message:
    options: dict[int, bytes] = {Option.CLIENT_IDENTIFIER: call.identity.client_id}
    if requested is not None:
        options[Option.REQUESTED_ADDRESS] = requested.packed
    if server is not None:
        options[Option.SERVER_IDENTIFIER] = server.packed
    if call.hostname:
        options[Option.HOST_NAME] = call.hostname.encode("ascii")
    options[Option.PARAMETER_LIST] = _PARAMETERS
    return Message(
        operation=Operation.REQUEST,
        kind=kind,
        xid=call.xid,
        secs=call.secs,
        chaddr=call.identity.chaddr,
        broadcast=ciaddr == NOBODY,
        ciaddr=ciaddr,
        options=options,
    )


def _last_word(
    identity: ClientIdentity,
    kind: MessageType,
    terms: Terms,
    rng: random.Random,
    *,
    requested: IPv4Address | None = None,
    ciaddr: IPv4Address = NOBODY,
) -> Message:
    """A message that nobody answers."""
    options: dict[int, bytes] = {
        Option.CLIENT_IDENTIFIER: identity.client_id,
        Option.SERVER_IDENTIFIER: terms.server.packed,
    }
    if requested is not None:
        options[Option.REQUESTED_ADDRESS] = requested.packed
    xid = rng.getrandbits(32)
    return Message(
        operation=Operation.REQUEST, kind=kind, xid=xid, chaddr=identity.chaddr, ciaddr=ciaddr, options=options
    )
