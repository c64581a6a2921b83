"""The shipped fake: a DHCP server in memory, and clients as strict as the real one, for tests of whoever uses leases.

Its clock is the caller's. Nothing happens by itself when time passes: set the clock, then call ``settle``.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from ipaddress import IPv4Address

from cloudprovider.core.errors import CloudProviderError, InvalidRequest, Violation
from cloudprovider.dhcp.api import Counts, Key, Lease, LeaseRequest, LeaseState
from cloudprovider.dhcp.effects import Reason, Trouble
from cloudprovider.dhcp.problems import problem
from cloudprovider.dhcp.terms import REBIND_SHARE, RENEW_SHARE


@dataclass(kw_only=True)
class FakeDhcpServer:
    """What all clients of a network share. Change it at will, then ``settle`` the clients.

    ``addresses``: its range. ``answering``: False while it is down. ``owners``: to whom each address is leased, by
    the owner's UID. ``declined``: addresses that clients found to be somebody else's.
    """

    addresses: Sequence[IPv4Address]
    prefix_length: int = 24
    gateway: IPv4Address | None = None
    server: IPv4Address
    duration: timedelta | None = timedelta(hours=1)
    answering: bool = True
    owners: dict[IPv4Address, str] = field(default_factory=dict)
    declined: set[IPv4Address] = field(default_factory=set)

    def offer(self, owner: str, preferred: IPv4Address | None) -> IPv4Address | None:
        """The address that the owner has, would have, or the first free one."""
        free = [a for a in self.addresses if self.owners.get(a, owner) == owner and a not in self.declined]
        mine = [a for a in free if a in self.owners]
        return next((a for a in (*mine, preferred, *free) if a is not None and a in free), None)


@dataclass
class _Wanted:
    request: LeaseRequest
    since: datetime
    preferred: IPv4Address | None = None
    not_before: datetime | None = None
    confirmed: bool = False
    state: LeaseState = field(default_factory=LeaseState)


class FakeDhcpClient:
    """See :class:`~cloudprovider.dhcp.api.DhcpClient`. ``probe`` as for the real one."""

    def __init__(
        self,
        server: FakeDhcpServer,
        *,
        network: str,
        now: Callable[[], datetime],
        probe: Callable[[IPv4Address], Awaitable[str]] | None = None,
    ) -> None:
        self._server = server
        self._network = network
        self._now = now
        self._probe = probe
        self._wanted: dict[Key, _Wanted] = {}
        self._callback: Callable[[Key], None] | None = None
        self._wake = asyncio.Event()
        self._settling = asyncio.Lock()
        self._sent: Counter[str] = Counter()
        self._received: Counter[str] = Counter()

    def want(self, request: LeaseRequest) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        former = self._wanted.get(request.key)
        if former is not None and former.request.identity == request.identity:
            former.request = replace(former.request, hostname=request.hostname)
            return
        for key, other in self._wanted.items():
            if other.request.identity == request.identity:
                message = f"{request.identity} is the owner of {'/'.join(key)} already; drop that lease first"
                raise InvalidRequest(Violation(field="metadata.uid", reason="IdentityInUse", message=message))
        if former is not None:
            self.drop(request.key, release=True)
        wanted = _Wanted(request, since=self._now())
        remembered = request.remembered
        if remembered is not None and (remembered.expires_at is None or self._now() < remembered.expires_at):
            wanted.state = LeaseState(lease=remembered)
        elif remembered is not None:
            wanted.preferred = remembered.address
        self._wanted[request.key] = wanted
        self._wake.set()

    def drop(self, key: Key, *, release: bool) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        wanted = self._wanted.pop(key, None)
        if wanted is None or not release or wanted.state.lease is None:
            return
        self._sent["release"] += 1
        address = wanted.state.lease.address
        if self._server.answering and self._server.owners.get(address) == wanted.request.identity:
            del self._server.owners[address]

    def conflict(self, key: Key, mac: str) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        wanted = self._wanted.get(key)
        if wanted is not None and wanted.state.lease is not None:
            self._decline(key, wanted, wanted.state.lease.address, mac)

    def state(self, key: Key) -> LeaseState:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        wanted = self._wanted.get(key)
        return wanted.state if wanted is not None else LeaseState()

    def on_change(self, callback: Callable[[Key], None]) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        self._callback = callback

    def counts(self) -> Counts:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        return Counts(sent=dict(self._sent), received=dict(self._received))

    async def run(self) -> None:
        """See :class:`~cloudprovider.dhcp.api.DhcpClient`."""
        while True:
            self._wake.clear()
            await self.settle()
            await self._wake.wait()

    async def settle(self) -> None:
        """Do all that is due at the clock's present time, as the real one would have done by then."""
        async with self._settling:
            for key, wanted in list(self._wanted.items()):
                if self._wanted.get(key) is wanted:
                    await self._settle(key, wanted)

    async def _settle(self, key: Key, wanted: _Wanted) -> None:
        lease, now = wanted.state.lease, self._now()
        if lease is not None and lease.expires_at is not None and now >= lease.expires_at:
            self._trouble(key, wanted, Reason.LEASE_EXPIRED, lease.address)
            wanted.preferred, wanted.since, lease = lease.address, now, None
        if lease is not None:
            if not wanted.confirmed or (lease.renew_at is not None and now >= lease.renew_at):
                self._confirm(key, wanted, lease)
        elif wanted.not_before is None or now >= wanted.not_before:
            await self._acquire(key, wanted)

    def _confirm(self, key: Key, wanted: _Wanted, lease: Lease) -> None:
        """INIT-REBOOT, RENEWING and REBINDING in one."""
        self._sent["request"] += 1
        owner = wanted.request.identity
        if not self._server.answering:
            self._trouble(key, wanted, Reason.NO_ANSWER, lease.address, lease=lease)
        elif lease.address in self._server.addresses and self._server.owners.get(lease.address, owner) == owner:
            self._grant(key, wanted, lease.address)
        else:
            self._received["nak"] += 1
            wanted.since, wanted.preferred = self._now(), None
            self._trouble(key, wanted, Reason.REFUSED, lease.address)
            self._wake.set()

    async def _acquire(self, key: Key, wanted: _Wanted) -> None:
        self._sent["discover"] += 1
        owner = wanted.request.identity
        address = self._server.offer(owner, wanted.preferred) if self._server.answering else None
        if address is None:
            self._trouble(key, wanted, Reason.NO_ANSWER, None)
            return
        self._server.owners[address] = owner
        try:
            mac = await self._probe(address) if self._probe is not None else ""
        except (CloudProviderError, OSError) as error:
            if self._wanted.get(key) is wanted:
                self._trouble(key, wanted, Reason.PROBE_FAILED, address, detail=str(error))
            return
        if self._wanted.get(key) is not wanted:
            self._server.owners.pop(address, None)
        elif mac:
            self._decline(key, wanted, address, mac)
        else:
            self._grant(key, wanted, address)

    def _grant(self, key: Key, wanted: _Wanted, address: IPv4Address) -> None:
        self._received["ack"] += 1
        self._server.owners[address] = wanted.request.identity
        now, duration = self._now(), self._server.duration
        lease = Lease(
            address=address,
            prefix_length=self._server.prefix_length,
            gateway=self._server.gateway,
            server=self._server.server,
            acquired_at=now,
            renew_at=now + duration * RENEW_SHARE if duration is not None else None,
            rebind_at=now + duration * REBIND_SHARE if duration is not None else None,
            expires_at=now + duration if duration is not None else None,
        )
        wanted.confirmed, wanted.preferred, wanted.not_before = True, None, None
        self._become(key, wanted, LeaseState(lease=lease))

    def _decline(self, key: Key, wanted: _Wanted, address: IPv4Address, mac: str) -> None:
        self._sent["decline"] += 1
        self._server.owners.pop(address, None)
        self._server.declined.add(address)
        wanted.since, wanted.preferred = self._now(), None
        wanted.not_before = self._now() + timedelta(seconds=10)
        self._trouble(key, wanted, Reason.ADDRESS_CONFLICT, address, detail=mac)

    def _trouble(
        self,
        key: Key,
        wanted: _Wanted,
        reason: Reason,
        address: IPv4Address | None,
        *,
        lease: Lease | None = None,
        detail: str = "",
    ) -> None:
        expires = lease.expires_at.timestamp() if lease is not None and lease.expires_at is not None else None
        trouble = Trouble(
            reason=reason,
            since=wanted.since.timestamp(),
            address=address,
            server=self._server.server if address is not None else None,
            expires=expires,
            detail=detail,
        )
        found = problem(
            trouble,
            network=self._network,
            wall=lambda moment: datetime.fromtimestamp(moment, wanted.since.tzinfo),
            answering=self._server.server if self._server.answering else None,
        )
        self._become(key, wanted, LeaseState(lease=lease, problem=found))

    def _become(self, key: Key, wanted: _Wanted, state: LeaseState) -> None:
        if state == wanted.state:
            return
        wanted.state = state
        if self._callback is not None:
            self._callback(key)
