"""The seam to a link's DHCP client, met by the real one (:mod:`cloudprovider.dhcp.client`) and by the shipped fake
(:mod:`cloudprovider.dhcp.fake`). IPv4 only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address
from typing import Protocol, TypeAlias

from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.dhcp.effects import Reason

Key: TypeAlias = tuple[str, str]
"""Namespace and name of whom the lease is for."""

_LONGEST_HOSTNAME = 253


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What a server gave; aware datetimes of the wall clock. An infinite lease has neither T1, T2 nor expiry."""

    address: IPv4Address
    prefix_length: int
    gateway: IPv4Address | None
    server: IPv4Address
    acquired_at: datetime
    renew_at: datetime | None
    rebind_at: datetime | None
    expires_at: datetime | None

    def __post_init__(self) -> None:
        """Raises ValueError for a naive time, and where only some of T1, T2 and expiry are there."""
        ends = (self.renew_at, self.rebind_at, self.expires_at)
        if len({end is None for end in ends}) > 1:
            raise ValueError(f"the lease of {self.address} has only some of T1, T2 and expiry: {ends}")
        for moment in (self.acquired_at, *ends):
            if moment is not None and moment.tzinfo is None:
                raise ValueError(f"the lease of {self.address} has a time without a time zone: {moment}")


@dataclass(frozen=True, kw_only=True)
class LeaseRequest:
    """Somebody wants an address.

    ``identity``: the owner's UID; the client identifier and the lease's hardware address derive from it alone
    (:mod:`cloudprovider.dhcp.identity`), so that any host goes on as the same client. ``hostname``: told to the
    server (option 12), "" for none. ``remembered``: the lease that the owner had, from whichever host.
    """

    key: Key
    identity: str
    hostname: str = ""
    remembered: Lease | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequest for an unusable host name, ValueError for an empty identity."""
        if not self.identity:
            raise ValueError(f"the DHCP lease for {'/'.join(self.key)} has no identity; it is the owner's UID")
        if len(self.hostname) > _LONGEST_HOSTNAME or not (self.hostname.isascii() and self.hostname.isprintable()):
            raise InvalidRequest(
                Violation(
                    field="spec.dhcpHostname",
                    reason="InvalidHostname",
                    message=f"{self.hostname!r} is no host name; use at most {_LONGEST_HOSTNAME} ASCII characters",
                )
            )


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong: a CamelCase word for programs, a sentence for people."""

    reason: Reason
    message: str


@dataclass(frozen=True, kw_only=True)
class LeaseState:
    """How it stands with one request. Both may be there: a lease that is held, and cannot be renewed at the time."""

    lease: Lease | None = None
    problem: Problem | None = None


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Since the client was made: messages by type (lower case), and what was not taken or sent, by reason."""

    sent: Mapping[str, int] = field(default_factory=dict)
    received: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        """Those of two clients."""
        return Counts(
            sent=_sum(self.sent, other.sent),
            received=_sum(self.received, other.received),
            dropped=_sum(self.dropped, other.dropped),
        )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in one.keys() | other.keys()}


class DhcpClient(Protocol):
    """The leases of one network. All but ``run`` return at once; messages go out while ``run`` runs."""

    def want(self, request: LeaseRequest) -> None:
        """Get a lease and keep it renewed, until ``drop``.

        A remembered lease that has not expired is held at once, and confirmed with the server beside it; of one that
        has expired the address is asked for again. Repeating a request changes nothing but the host name that is
        told from then on; its ``remembered`` counts only the first time. The same key with another identity is
        another owner: the former one's lease is released. Raises InvalidRequest where another key has the identity.
        """
        ...

    def drop(self, key: Key, *, release: bool) -> None:
        """End it. ``release``: tell the server that the address is free; else the lease stays, for another host.
        Unknown keys are ignored. The key is not called back about any more."""
        ...

    def conflict(self, key: Key, mac: str) -> None:
        """Somebody else, with this MAC, was found to have the lease's address after all: decline it, and seek another
        one (not before ten seconds are over). Without a lease, nothing happens."""
        ...

    def state(self, key: Key) -> LeaseState:
        """How it stands; empty for unknown keys."""
        ...

    def on_change(self, callback: Callable[[Key], None]) -> None:
        """Call back whenever ``state(key)`` has become another one by itself (not by ``want``). The callback may call
        this client; it replaces the one before."""
        ...

    def counts(self) -> Counts:
        """What was sent, received and dropped."""
        ...

    async def run(self) -> None:
        """Work until cancelled; leases stay with their server. Raises DataPlaneError where the link is lost for good:
        open it again and make another client, with the leases as remembered."""
        ...
