"""What a lease's state machine wants done, and what it has to tell."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from ipaddress import IPv4Address
from typing import TypeAlias

from cloudprovider.dhcp.message import Message
from cloudprovider.dhcp.terms import Terms


class Reason(StrEnum):
    """What can be wrong with a lease; the words that conditions and events carry."""

    NO_ANSWER = "DHCPNoAnswer"
    NO_OFFER = "DHCPNoOffer"
    REFUSED = "DHCPRefused"
    ADDRESS_CONFLICT = "DHCPAddressConflict"
    LEASE_EXPIRED = "DHCPLeaseExpired"
    INVALID_OFFER = "DHCPInvalidOffer"
    PROBE_FAILED = "DHCPProbeFailed"
    SEND_FAILED = "DHCPSendFailed"


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """Why there is no lease, or why the one there is will not last; ``since`` in monotonic seconds."""

    reason: Reason
    since: float
    address: IPv4Address | None = None
    server: IPv4Address | None = None
    expires: float | None = None
    """When the lease that is still held ends; None where none is held."""
    detail: str = ""
    """A MAC, a server's own words, what is wrong with an offer: by the reason."""


@dataclass(frozen=True)
class Send:
    """Send a message; ``destination_mac`` b"" where it is unknown.

    ``from_link``: with the link's own MAC as the frame's source instead of the lease's. Switches that snoop want the
    lease's (it is chaddr); on some links (macvlan) what
    is sent to it does not arrive, and some servers (Kea) answer even a broadcast to the MAC that it came from.
    """

    message: Message
    source: IPv4Address
    destination: IPv4Address
    destination_mac: bytes
    from_link: bool


@dataclass(frozen=True)
class Probe:
    """Find out whether somebody else has the address, and tell the machine."""

    address: IPv4Address


class Change(Enum):
    """What became of a lease."""

    BOUND = "bound"
    RENEWED = "renewed"
    LOST = "lost"


@dataclass(frozen=True)
class Changed:
    """The lease has come, goes on with new times, or is lost (the machine's ``trouble`` says why)."""

    change: Change
    terms: Terms


@dataclass(frozen=True)
class Ignored:
    """A message that was not asked for, or that can't be followed."""

    reason: str


Effect: TypeAlias = Send | Probe | Changed | Ignored
