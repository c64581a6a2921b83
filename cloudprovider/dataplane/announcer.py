"""VIPs on a namespace's link: probed, brought up, announced, defended. Meets ``dataplane.api.Announcer`` for IPv4.

Once an address is on the link (/32), the kernel answers ARP for it. Clients that knew another MAC follow a gratuitous
ARP in 2 to 4 ms, and without one after several seconds.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import arp
from cloudprovider.dataplane.api import Claim
from cloudprovider.dataplane.rtnetlink import Link, RouteSocket, host_interface, vips

_logger: Final = logging.getLogger(__name__)

_FRAMES_AT_ONCE: Final = 64
_SEND_DEADLINE: Final = 1.0
"""Seconds that a full transmit queue may take to drain."""
_ADDRESSES_AT_ONCE: Final = 64
"""How many addresses one rtnetlink request carries: the event loop goes on between requests."""
_REPEAT_AFTER: Final = 2.0
"""Seconds until an announcement is repeated, for clients that lost the first (RFC 5227: ANNOUNCE_INTERVAL)."""


@dataclass(frozen=True)
class Timing:
    """How a conflict is looked for, in seconds.

    Shorter than RFC 5227 section 1.1 (three probes within 1 to 2 s, then 2 s of listening), because an address comes
    from a pool that is ours to hand out: a conflict is a mistake in the configuration, not the ordinary case that the
    RFC is made for, and a host answers ARP within milliseconds. Detection goes on for as long as the address is held,
    so one that was late to answer is still reported.
    """

    probes: int = 3
    between: float = 0.05
    listen: float = 0.1
    defend: float = 10.0
    """How often an address is defended and its conflict reported at most (RFC 5227: DEFEND_INTERVAL)."""


class KernelAnnouncer:
    """The VIPs of one link. Made in a running event loop, with sockets of the link's namespace."""

    def __init__(
        self, link: Link, own: IPv4Interface, *, route: RouteSocket, packets: socket.socket, timing: Timing
    ) -> None:
        self._link = link
        self._own = own
        self._route = route
        self._packets = packets
        self._timing = timing
        self._mac = bytes.fromhex(link.mac.replace(":", ""))
        self._held: set[IPv4Address] = set()
        self._probed: dict[IPv4Address, str] = {}
        """Addresses that are being probed, and the MAC that was heard to have each ("" so far nobody)."""
        self._defended: dict[IPv4Address, float] = {}
        self._callback: Callable[[IPAddress, str], None] | None = None
        self._repeats: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(packets, self._listen)

    async def claim(self, addresses: Sequence[IPAddress]) -> list[Claim]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        wanted = [_ipv4(address) for address in addresses]
        fresh = [address for address in dict.fromkeys(wanted) if address not in self._held]
        conflicts = await self._probe(fresh)
        free = [address for address in fresh if not conflicts[address]]
        await self._bring_up(free)
        return [Claim(address=address, conflict=conflicts.get(address, "")) for address in wanted]

    async def withdraw(self, addresses: Iterable[IPAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        gone = [address for address in addresses if isinstance(address, IPv4Address)]
        for part in _parts(gone, _ADDRESSES_AT_ONCE):
            self._route.delete_addresses(self._link, [host_interface(address) for address in part])
            self._held.difference_update(part)
            for address in part:
                self._defended.pop(address, None)
            await asyncio.sleep(0)

    async def held(self) -> frozenset[IPAddress]:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        found = vips(self._route.addresses(self._link), self._own)
        self._held = set(found)
        return frozenset(found)

    def on_conflict(self, callback: Callable[[IPAddress, str], None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.Announcer`."""
        self._callback = callback

    async def close(self) -> None:
        """Let go of the sockets; addresses stay."""
        for task in self._repeats:
            task.cancel()
        await asyncio.gather(*self._repeats, return_exceptions=True)
        self._loop.remove_reader(self._packets)
        self._packets.close()
        self._route.close()

    async def _probe(self, addresses: Sequence[IPv4Address]) -> dict[IPv4Address, str]:
        """Ask for all addresses at once and return the MAC that has each, "" for nobody."""
        if not addresses:
            return {}
        for address in addresses:
            if address in self._probed:
                raise DataPlaneError(f"{address} is being claimed already; wait for that claim to end")
        self._probed.update(dict.fromkeys(addresses, ""))
        try:
            for turn in range(self._timing.probes):
                if turn:
                    await asyncio.sleep(self._timing.between)
                await self._send(arp.probe(self._mac, a) for a in addresses if not self._probed[a])
            await asyncio.sleep(self._timing.listen)
        finally:
            conflicts = {address: self._probed.pop(address) for address in addresses}
        return conflicts

    async def _bring_up(self, addresses: Sequence[IPv4Address]) -> None:
        for part in _parts(addresses, _ADDRESSES_AT_ONCE):
            self._route.add_addresses(self._link, [host_interface(address) for address in part])
            self._held.update(part)
            await self._announce(part)
        if addresses:
            task = self._loop.create_task(self._announce_again(addresses))
            self._repeats.add(task)
            task.add_done_callback(self._repeats.discard)

    async def _announce(self, addresses: Iterable[IPv4Address]) -> None:
        await self._send(frame for a in addresses for frame in arp.announcements(self._mac, a))

    async def _announce_again(self, addresses: Sequence[IPv4Address]) -> None:
        await asyncio.sleep(_REPEAT_AFTER)
        try:
            await self._announce(a for a in addresses if a in self._held)
        except DataPlaneError as error:
            _logger.warning("An announcement was not repeated.", extra={"error": str(error)})

    async def _send(self, frames: Iterable[bytes]) -> None:
        """Send frames, with a yield to the loop now and then. Raises DataPlaneError."""
        deadline = self._loop.time() + _SEND_DEADLINE
        for position, frame in enumerate(frames, start=1):
            while not self._sent(frame):
                if self._loop.time() > deadline:
                    raise DataPlaneError(f"{self._link.name} takes no more ARP frames: its queue stays full")
                await asyncio.sleep(0.001)
            if position % _FRAMES_AT_ONCE == 0:
                deadline = self._loop.time() + _SEND_DEADLINE
                await asyncio.sleep(0)

    def _sent(self, frame: bytes) -> bool:
        try:
            self._packets.send(frame)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.ENOBUFS}:
                return False
            raise DataPlaneError(
                f"can't send ARP on {self._link.name}: {error.strerror}", errno=error.errno or 0
            ) from error
        return True

    def _listen(self) -> None:
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame = self._packets.recv(128)
            except BlockingIOError:
                return
            except OSError as error:  # the link went down: the loop would call again at once, and for ever
                if error.errno == errno.ENETDOWN:
                    return
                raise
            heard = arp.parse(frame)
            if heard is not None and heard.mac != self._link.mac:
                self._hear(heard)

    def _hear(self, heard: arp.Arp) -> None:
        if heard.sender in self._probed:
            self._probed[heard.sender] = heard.mac
        elif heard.is_probe and heard.target in self._probed:  # somebody else is about to take it
            self._probed[heard.target] = heard.mac
        elif heard.sender in self._held:
            self._defend(heard.sender, heard.mac)

    def _defend(self, address: IPv4Address, mac: str) -> None:
        now = self._loop.time()
        if now - self._defended.get(address, -self._timing.defend) < self._timing.defend:
            return
        self._defended[address] = now
        for frame in arp.announcements(self._mac, address):
            try:
                self._sent(frame)
            except DataPlaneError as error:
                _logger.warning("An address was not defended.", extra={"address": str(address), "error": str(error)})
        if self._callback is not None:
            self._callback(address, mac)


def _ipv4(address: IPAddress) -> IPv4Address:
    if not isinstance(address, IPv4Address):
        raise DataPlaneError(
            f"{address} is IPv6, which this data plane does not announce yet", errno=errno.EAFNOSUPPORT
        )
    return address


def _parts(addresses: Sequence[IPv4Address], size: int) -> Iterator[Sequence[IPv4Address]]:
    for start in range(0, len(addresses), size):
        yield addresses[start : start + size]
