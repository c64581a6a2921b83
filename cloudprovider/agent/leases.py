"""The DHCP leases of one network's load balancers: asked for, kept, shown in their status, given back in time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address, ip_address
from typing import Final

from cloudprovider.core.agentstatus import Leasing
from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, DhcpLease, LoadBalancer
from cloudprovider.core.errors import CloudProviderError, DataPlaneError, InvalidRequest
from cloudprovider.core.reasons import Heard
from cloudprovider.core.rules.loadbalancers import dhcp_violations
from cloudprovider.core.times import rfc3339
from cloudprovider.core.wanted import LoadBalancerKey, Problem
from cloudprovider.dataplane.api import Segment
from cloudprovider.dhcp.api import Counts, DhcpClient, Lease, LeaseRequest
from cloudprovider.dhcp.identity import client_identity

log = logging.getLogger(__name__)

Connect = Callable[[Segment, str, Callable[[IPv4Address], Awaitable[str]]], AbstractAsyncContextManager[DhcpClient]]
"""Makes the client of an opened segment, given the network's name and how to ask whether somebody has an address."""

_RETRY_FIRST: Final = 0.5
_RETRY_MOST: Final = 30.0
_SOUND: Final = 60.0
"""Seconds after which a client that fails counts as one that had worked."""
_HOSTNAME: Final = 63


class Leases:
    """``changed(key)``: the lease of a load balancer has become another one. ``now``: the wall clock. ``jitter``: of
    [0, 1)."""

    def __init__(
        self,
        network: str,
        connect: Connect,
        changed: Callable[[LoadBalancerKey], None],
        *,
        now: Callable[[], datetime],
        jitter: Callable[[], float],
    ) -> None:
        self._network = network
        self._connect = connect
        self._changed = changed
        self._now = now
        self._jitter = jitter
        self._client: DhcpClient | None = None
        self._counts = Counts()
        """Of the clients before this one."""
        self._wanted: dict[LoadBalancerKey, LeaseRequest] = {}
        self._refused: dict[LoadBalancerKey, Problem] = {}
        self._released: dict[LoadBalancerKey, LeaseRequest] = {}
        """To be released as soon as there is a client."""
        self._returned: dict[LoadBalancerKey, DhcpLease] = {}
        """What has been given back, and is still shown: not good for anything any more."""
        self._trouble = ""
        """Why there is no client."""

    # What the agent asks.

    def follow(self, lb: LoadBalancer, *, in_use: bool) -> None:
        """Take a load balancer as it is now. ``in_use``: its lease's address is shown in its status, or still up; so
        long it is kept, whatever else the load balancer asks for."""
        key = lb.key
        if key in self._returned and lb.status.lease != self._returned[key]:
            del self._returned[key]
        on_network = lb.metadata.annotations.get(NETWORK_ANNOTATION, "") == self._network
        asked = lb.spec.ipam == "dhcp" and on_network and not lb.metadata.deletion_timestamp
        remembered = lb.status.lease
        left = remembered is not None and remembered.network == self._network and key not in self._returned
        ours = key in self._wanted or left
        if asked or (ours and in_use):
            self._want(lb)
        elif ours:
            self._give_back(lb)
        else:
            self._refused.pop(key, None)

    def forget(self, key: LoadBalancerKey) -> None:
        """The load balancer is gone, and its address is off the link."""
        request = self._wanted.pop(key, None)
        self._refused.pop(key, None)
        self._returned.pop(key, None)
        if request is not None:
            self._release(request)

    def abandon(self, key: LoadBalancerKey) -> None:
        """Another host goes on with its lease: it is not given back."""
        request = self._wanted.pop(key, None)
        self._refused.pop(key, None)
        self._returned.pop(key, None)
        if request is not None and self._client is not None:
            self._client.drop(key, release=False)

    def conflict(self, key: LoadBalancerKey, mac: str) -> None:
        """Somebody else has the leased address after all."""
        if self._client is not None:
            self._client.conflict(key, mac)

    def address(self, key: LoadBalancerKey) -> IPv4Address | None:
        """The address that is leased for a load balancer now."""
        lease = self._lease(key)
        return None if lease is None else lease.address

    def leasing(self, lb: LoadBalancer) -> Leasing | None:
        """How it stands with its lease; None: it has none on this network, and needs none."""
        key = lb.key
        if key not in self._wanted and key not in self._refused:
            return None
        lease = self._lease(key)
        shown = None if lease is None else _shown(lease, self._network, self._wanted[key].identity)
        return Leasing(shown, self._refused.get(key) or self._problem(key))

    def counts(self) -> Counts:
        """What was sent, received and dropped."""
        return self._counts if self._client is None else self._counts + self._client.counts()

    def states(self) -> Mapping[str, int]:
        """How many are held, are held with trouble, and are sought."""
        found = dict.fromkeys(("held", "troubled", "seeking"), 0)
        for key in self._wanted.keys() | self._refused.keys():
            troubled = key in self._refused or self._problem(key) is not None
            found["seeking" if self._lease(key) is None else "troubled" if troubled else "held"] += 1
        return found

    def earliest_expiry(self) -> datetime | None:
        """When the first of the leases ends, if it is not renewed."""
        leases = (self._lease(key) for key in self._wanted)
        return min((lease.expires_at for lease in leases if lease is not None and lease.expires_at), default=None)

    def _lease(self, key: LoadBalancerKey) -> Lease | None:
        if key not in self._wanted:
            return None
        if self._client is not None:
            return self._client.state(key).lease
        # Not connected: what the client before, or the last agent, left is good until its end.
        remembered = self._wanted[key].remembered
        if remembered is None or (remembered.expires_at is not None and remembered.expires_at <= self._now()):
            return None
        return remembered

    def _problem(self, key: LoadBalancerKey) -> Problem | None:
        if self._client is None:
            return Problem("DHCPSendFailed", f"{self._trouble}.") if self._trouble else None
        found = self._client.state(key).problem
        return None if found is None else Problem(Heard(found.reason), found.message)

    # The work.

    async def run(self, segment: Segment) -> None:
        """Hold the leases on this segment until cancelled; nothing is given back then: the next agent goes on."""

        async def probe(address: IPv4Address) -> str:
            (claim,) = await segment.announcer.probe([address])
            return claim.conflict

        delay = _RETRY_FIRST
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with self._connect(segment, self._network, probe) as client:
                    await self._hold(client)
            except DataPlaneError as error:
                if asyncio.get_running_loop().time() - began > _SOUND:
                    delay = _RETRY_FIRST
                log.warning("no DHCP on a network for now", extra={"network": self._network, "error": str(error)})
                self._trouble = str(error).rstrip(".")
                for key in list(self._wanted):
                    self._changed(key)
            await self._pause(delay * (0.5 + self._jitter()))
            delay = min(_RETRY_MOST, 2.0 * delay)

    async def _pause(self, seconds: float) -> None:
        """Let time pass without a client: leases that end meanwhile are told of."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        seen = self._now()
        while (left := until - loop.time()) > 0:
            ends = (r.remembered.expires_at for r in self._wanted.values() if r.remembered is not None)
            coming = ((end - seen).total_seconds() for end in ends if end is not None and end > seen)
            await asyncio.sleep(min((left, *coming)))
            before, seen = seen, self._now()
            for key, request in list(self._wanted.items()):
                end = None if request.remembered is None else request.remembered.expires_at
                if end is not None and before < end <= seen:
                    self._changed(key)

    async def _hold(self, client: DhcpClient) -> None:
        client.on_change(self._changed)
        self._client = client
        self._trouble = ""
        for request in self._released.values():
            client.want(request)
            client.drop(request.key, release=True)
        self._released.clear()
        for key, request in list(self._wanted.items()):
            self._ask(client, key, request)
            self._changed(key)
        try:
            await client.run()
        finally:
            self._counts += client.counts()
            self._client = None
            for key, request in self._wanted.items():  # what it had, for the next one
                self._wanted[key] = replace(request, remembered=client.state(key).lease)

    def _want(self, lb: LoadBalancer) -> None:
        key = lb.key
        known = self._wanted.get(key)
        if known is not None and known.identity != lb.metadata.uid:  # another one by the same name
            self.forget(key)
            known = None
        if known is not None:
            remembered = known.remembered
        else:
            remembered = None if key in self._returned else _remembered(lb.status.lease, self._network)
        hostname = _hostname(lb)
        wrong = _wrong(lb, hostname)
        if wrong is None:
            self._refused.pop(key, None)
        else:
            self._refused[key] = wrong
            if known is not None or remembered is None:
                return
            hostname = ""  # the lease that it has from an agent before this one stays
        request = LeaseRequest(key=key, identity=lb.metadata.uid, hostname=hostname, remembered=remembered)
        self._wanted[key] = request
        if request != known and self._client is not None:
            self._ask(self._client, key, request)

    def _ask(self, client: DhcpClient, key: LoadBalancerKey, request: LeaseRequest) -> None:
        try:
            client.want(request)
        except CloudProviderError as wrong:
            self._refused[key] = Problem("InvalidSpec", f"{wrong}.")

    def _give_back(self, lb: LoadBalancer) -> None:
        request = self._wanted.pop(lb.key, None)
        self._refused.pop(lb.key, None)
        if lb.status.lease is not None:
            self._returned[lb.key] = lb.status.lease
        if request is None:  # of an agent before this one
            remembered = _remembered(lb.status.lease, self._network)
            request = LeaseRequest(key=lb.key, identity=lb.metadata.uid, remembered=remembered)
            if self._client is not None:
                self._client.want(request)
        self._release(request)

    def _release(self, request: LeaseRequest) -> None:
        if self._client is not None:
            self._client.drop(request.key, release=True)
        else:
            self._released[request.key] = request


def _wrong(lb: LoadBalancer, hostname: str) -> Problem | None:
    """Why no lease can be asked for as the load balancer asks."""
    if violations := tuple(dhcp_violations(lb.spec)):
        return Problem("InvalidSpec", f"{InvalidRequest(*violations)}.")
    try:
        LeaseRequest(key=lb.key, identity=lb.metadata.uid, hostname=hostname)
    except InvalidRequest as error:
        return Problem("InvalidHostname", f"{error}.")
    return None


def _hostname(lb: LoadBalancer) -> str:
    """What is asked for, else the Service's (the object's) name as one label (RFC 1123)."""
    name = lb.spec.service.name if lb.spec.service is not None else lb.metadata.name
    return lb.spec.dhcp_hostname or name.replace(".", "-")[:_HOSTNAME].rstrip("-")


def _shown(lease: Lease, network: str, identity: str) -> DhcpLease:
    chaddr = client_identity(identity).chaddr
    return DhcpLease(
        ip=str(lease.address),
        prefix_length=lease.prefix_length,
        gateway="" if lease.gateway is None else str(lease.gateway),
        network=network,
        server=str(lease.server),
        hardware_address=":".join(f"{octet:02x}" for octet in chaddr),
        acquired_time=_text(lease.acquired_at),
        renew_time=_text(lease.renew_at),
        rebind_time=_text(lease.rebind_at),
        expiry_time=_text(lease.expires_at),
    )


def _remembered(shown: DhcpLease | None, network: str) -> Lease | None:
    """What an agent wrote into the status; None where that is of another network, or not a lease."""
    if shown is None or shown.network != network:
        return None
    try:
        gateway = ip_address(shown.gateway) if shown.gateway else None
        address, server = ip_address(shown.ip), ip_address(shown.server)
        if not isinstance(address, IPv4Address) or not isinstance(server, IPv4Address):
            return None
        return Lease(
            address=address,
            prefix_length=shown.prefix_length,
            gateway=gateway if isinstance(gateway, IPv4Address) else None,
            server=server,
            acquired_at=datetime.fromisoformat(shown.acquired_time),
            renew_at=_moment(shown.renew_time),
            rebind_at=_moment(shown.rebind_time),
            expires_at=_moment(shown.expiry_time),
        )
    except ValueError:  # somebody else's writing
        return None


def _text(moment: datetime | None) -> str:
    return "" if moment is None else rfc3339(moment)


def _moment(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
