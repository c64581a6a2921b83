"""What can be wrong with a request itself: the words of refused Services, of the admission webhook and the bridge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

W = TypeVar("W", bound=str)


@dataclass(frozen=True)
class Meaning:
    """What a reason says, as a part of a sentence, and what to do about it; empty: its message says so itself."""

    text: str
    todo: str = ""


def by_word(table: Mapping[W, Meaning]) -> dict[str, Meaning]:
    """A table of one group, to be joined with those of others."""
    return {str(word): meaning for word, meaning in table.items()}


LimitReason = Literal["PoolNotPermitted", "DHCPNotPermitted", "NetworkNotPermitted", "ScopeNotPermitted"]
"""What a tenant's GuestCluster does not allow."""

ALLOWED: Final[Mapping[LimitReason, Meaning]] = {
    "PoolNotPermitted": Meaning(
        "the GuestCluster's pools do not have the pool asked for",
        "name another pool, or have the host's operator open this one",
    ),
    "DHCPNotPermitted": Meaning(
        "a GuestCluster that names pools has its addresses of these alone", "use a pool, or have pools left empty"
    ),
    "NetworkNotPermitted": Meaning(
        "the GuestCluster's networks do not have the network asked for", "name another network, or have it opened"
    ),
    "ScopeNotPermitted": Meaning(
        "the annotations project or namespace name another scope than the tenant's", "take them away"
    ),
}

AskedReason = Literal[
    LimitReason,
    "Conflict",
    "Duplicate",
    "FamilyMismatch",
    "InvalidValue",
    "Malformed",
    "MalformedValue",
    "NotWithDHCP",
    "NotWithPrimaryService",
    "NotWithProtocol",
    "OutOfRange",
    "PrimaryIsItself",
    "Required",
    "TooLong",
    "TooMany",
    "TooManyNodes",
    "TooManyPorts",
    "TooManySourceRanges",
    "Unexpected",
    "UnknownAnnotation",
    "Unsupported",
    "UnsupportedProtocol",
    "UnsupportedValue",
]
"""What is wrong with a guest's request."""

RuledReason = Literal[
    "AddressNotInPool",
    "Duplicate",
    "FamilyMismatch",
    "Forbidden",
    "IdentityInUse",
    "InUse",
    "InvalidAddress",
    "InvalidCIDR",
    "InvalidHostname",
    "InvalidValue",
    "Malformed",
    "MalformedValue",
    "NotAHost",
    "NotAListener",
    "NotForVirtualMachines",
    "NotTheHolder",
    "NotWithDHCP",
    "NotWithProtocol",
    "OutOfRange",
    "OutsideSubnet",
    "Overlap",
    "QuotaExceeded",
    "Required",
    "Shared",
    "StillExists",
    "TooLong",
    "TooMany",
    "Unreadable",
    "UnusableSubnet",
]
"""What is wrong with an object on the host: words of the admission webhook, the console and the agent."""

RequestReason = Literal[AskedReason, RuledReason]

REQUEST: Final[Mapping[RequestReason, Meaning]] = {
    "PoolNotPermitted": ALLOWED["PoolNotPermitted"],
    "DHCPNotPermitted": ALLOWED["DHCPNotPermitted"],
    "NetworkNotPermitted": ALLOWED["NetworkNotPermitted"],
    "ScopeNotPermitted": ALLOWED["ScopeNotPermitted"],
    "AddressNotInPool": Meaning("a reservation is for an address that the pool does not hand out"),
    "Conflict": Meaning("two annotations or fields ask for different things"),
    "Duplicate": Meaning("the same thing is there twice, or belongs to somebody already"),
    "FamilyMismatch": Meaning("an address is of a family that is not asked for"),
    "Forbidden": Meaning("who is signed in may not do this"),
    "IdentityInUse": Meaning("two load balancers would be one DHCP client"),
    "InUse": Meaning("the change would take an address from somebody; the message names the holders"),
    "InvalidAddress": Meaning("that is no address"),
    "InvalidCIDR": Meaning("that is no subnet, or has host bits"),
    "InvalidHostname": Meaning("that is no host name for a DHCP server (RFC 1123)"),
    "InvalidValue": Meaning("the value can't be read as what it must be"),
    "Malformed": Meaning("the value is not of the form that it must have"),
    "MalformedValue": Meaning("the value is not of the form that it must have"),
    "NotAHost": Meaning("the address is the subnet's own or its broadcast address"),
    "NotAListener": Meaning("the health check's port is none of the backend ports by TCP"),
    "NotForVirtualMachines": Meaning("a load balancer for machines can't share an address"),
    "NotTheHolder": Meaning("the address to be released is not held by whom the annotation names"),
    "NotWithDHCP": Meaning("with DHCP the server chooses: this can't stand beside it"),
    "NotWithPrimaryService": Meaning("who shares an address has what the primary asks for: this can't stand beside it"),
    "NotWithProtocol": Meaning("the health check's protocol does not know this"),
    "OutOfRange": Meaning("the number is too small or too big"),
    "OutsideSubnet": Meaning("the address lies outside of the range's subnet"),
    "Overlap": Meaning("another range, or another pool of the network, hands out these addresses"),
    "PrimaryIsItself": Meaning("the Service names itself as the one whose address it shares"),
    "QuotaExceeded": Meaning("the namespace holds as many of the pool's addresses as it may"),
    "Required": Meaning("something is missing"),
    "Shared": Meaning("the address to be released is in use by others too"),
    "StillExists": Meaning("the holder of the address to be released is still there"),
    "TooLong": Meaning("the text is too long"),
    "TooMany": Meaning("there are too many of these"),
    "TooManyNodes": Meaning("the guest cluster has more nodes than the host takes"),
    "TooManyPorts": Meaning("more ports than the GuestCluster's quota allows"),
    "TooManySourceRanges": Meaning("more source ranges than the GuestCluster's quota allows"),
    "Unexpected": Meaning("the field is for another kind of request"),
    "UnknownAnnotation": Meaning("there is no such annotation; the message has the nearest one"),
    "Unreadable": Meaning("the object can't be read"),
    "Unsupported": Meaning("the host's program does not know the value: it may be older"),
    "UnsupportedProtocol": Meaning("SCTP is not served; the other ports are"),
    "UnsupportedValue": Meaning("the value is none of those there are"),
    "UnusableSubnet": Meaning("no address of the subnet can be handed out"),
}
