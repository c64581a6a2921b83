"""What is asked of the allocator, and what it answers: plain data.

Structs of msgspec, as many are made in a batch: one costs a tenth of a frozen dataclass.
"""

import msgspec

from cloudprovider.core.plan import IPAddress
from cloudprovider.core.ranges import Version
from cloudprovider.core.reasons import Refusal


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """One address that somebody needs.

    ``fixed``: this one or none. ``preferred``: these first, if they are free and the pool hands them out. ``adopt``:
    an address that its owner already uses, before all else; taken even where the pool's ranges no longer reach, as
    long as it lies in one of its subnets. ``reserved``: what the pool keeps for this owner; nobody else gets it.
    ``leaving``: what it has and is to be replaced. ``group``: owners whose addresses it may share, where ``fixed`` or
    ``adopt`` names one of theirs.
    ``tenant``: whom the address counts for, and ``quota`` how many addresses of all pools that one may have (None:
    no limit), beside the ``leased`` that it has by DHCP. ``uid`` empty: the owner is no object, but a host
    ("agent/NODE").
    """

    owner: str
    uid: str
    pool: str
    version: Version = 4
    fixed: IPAddress | None = None
    preferred: tuple[IPAddress, ...] = ()
    adopt: IPAddress | None = None
    reserved: tuple[IPAddress, ...] = ()
    leaving: frozenset[IPAddress] = frozenset()
    group: frozenset[str] = frozenset()
    tenant: str = ""
    quota: int | None = None
    leased: int = 0


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """An address that somebody gives back. It stays where it is if ``owner`` and ``uid`` do not hold it; with others
    who share it, it stays with them.

    ``conflict`` and ``until`` (RFC 3339): the hardware address of somebody else who was found to have it. Then all
    give it back, and it is not handed out before.
    """

    pool: str
    address: IPAddress
    owner: str
    uid: str
    conflict: str = ""
    until: str = ""


class Reopen(msgspec.Struct, frozen=True, kw_only=True):
    """An address that somebody else had, whose time is over: to be handed out again."""

    pool: str
    address: IPAddress


class Granted(msgspec.Struct, frozen=True):
    """``block``: the write that this depends on; empty when it stands already."""

    want: Want
    address: IPAddress
    block: str


class Refused(msgspec.Struct, frozen=True):
    """No address, and why. It may stand once pools or allocations have changed."""

    want: Want
    reason: Refusal
    message: str
