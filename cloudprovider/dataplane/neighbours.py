"""The neighbours on one link: asking them who has an address, telling them, hearing what they say.

ARP for IPv4, Neighbor Discovery for IPv6; nobody above has to tell them apart.
"""

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import arp, frames, ndp
from cloudprovider.dataplane.heard import Heard
from cloudprovider.dataplane.rtnetlink import Link

_FRAMES_AT_ONCE: Final = 64
_SEND_DEADLINE: Final = 1.0
"""Seconds that a full transmit queue may take to drain."""


def check_announceable(addresses: Iterable[IPAddress], *, ipv6: bool) -> None:
    """Raise DataPlaneError for an address that can't be announced; ``ipv6``: whether the link can carry IPv6."""
    for address in addresses:
        if isinstance(address, IPv4Address):
            continue
        if not ipv6:
            raise _lacks_ipv6(address)
        if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_loopback:
            raise DataPlaneError(
                f"{address} can't be announced: it is link-local, multicast, loopback or unspecified; use an address "
                "of the network's own prefix",
                errno=errno.EADDRNOTAVAIL,
            )


class Neighbours:
    """Both sockets of one link, opened in the namespace of the thread that makes this. Raises DataPlaneError."""

    def __init__(self, link: Link, *, ipv6: bool) -> None:
        self.ipv6 = ipv6
        self._link = link
        self._mac = bytes.fromhex(link.mac.replace(":", ""))
        self._arp = frames.open_socket(link.name, arp.ETHERTYPE)
        self._ndp: socket.socket | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ears: list[Callable[[Heard], None]] = []
        if ipv6:
            try:
                # Somebody else's probe goes to the address's own multicast group. Answers, and what concerns an
                # address that is held (whose group the kernel has joined), come in any case.
                self._ndp = frames.open_socket(link.name, ndp.ETHERTYPE, program=ndp.FILTER, all_multicast=True)
            except BaseException:
                self._arp.close()
                raise

    def listen(self, hear: Callable[[Heard], None]) -> None:
        """From now on call ``hear``, too, with all that others say about addresses, on the running event loop."""
        self._ears.append(hear)
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._arp, self._hear_all, self._arp, arp.parse)
        if self._ndp is not None:
            self._loop.add_reader(self._ndp, self._hear_all, self._ndp, ndp.parse)

    async def probe(self, addresses: Iterable[IPAddress]) -> None:
        """Ask once who has each address, without saying that anybody here has it. Raises DataPlaneError."""
        await self._send_all(self._probe(address) for address in addresses)

    async def announce(self, addresses: Iterable[IPAddress]) -> None:
        """Tell everybody that the addresses are here. Raises DataPlaneError."""
        await self._send_all(frame for address in addresses for frame in self._announcements(address))

    def ask(self, address: IPAddress, *, own: IPv4Address | None, to: MACAddress | None) -> None:
        """Ask once who has an address, by broadcast or of the machine ``to`` alone; ``own``: for whom, in IPv4. Now or
        not at all. Raises DataPlaneError."""
        mac = to.packed if to is not None else None
        if isinstance(address, IPv4Address):
            frames.send(self._arp, arp.question(self._mac, address, own=own, to=mac))
        else:
            frames.send(self._for_ipv6(address), ndp.question(self._mac, address, to=mac))

    def insist(self, address: IPAddress) -> None:
        """Announce one address, now or not at all. Raises DataPlaneError."""
        for packets, frame in self._announcements(address):
            frames.send(packets, frame)

    def close(self) -> None:
        """Close the sockets."""
        for packets in (self._arp, self._ndp):
            if packets is not None:
                if self._loop is not None:
                    self._loop.remove_reader(packets)
                packets.close()

    def _probe(self, address: IPAddress) -> tuple[socket.socket, bytes]:
        if isinstance(address, IPv4Address):
            return self._arp, arp.probe(self._mac, address)
        return self._for_ipv6(address), ndp.probe(self._mac, address)

    def _announcements(self, address: IPAddress) -> Sequence[tuple[socket.socket, bytes]]:
        if isinstance(address, IPv4Address):
            return [(self._arp, frame) for frame in arp.announcements(self._mac, address)]
        return [(self._for_ipv6(address), ndp.announcement(self._mac, address))]

    def _for_ipv6(self, address: IPAddress) -> socket.socket:
        if self._ndp is None:
            raise _lacks_ipv6(address)
        return self._ndp

    async def _send_all(self, messages: Iterable[tuple[socket.socket, bytes]]) -> None:
        """Send frames, with a yield to the loop now and then. Raises DataPlaneError."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SEND_DEADLINE
        for position, (packets, frame) in enumerate(messages, start=1):
            while not frames.send(packets, frame):
                if loop.time() > deadline:
                    raise DataPlaneError(f"{self._link.name} takes no more frames: its transmit queue stays full")
                await asyncio.sleep(0.001)
            if position % _FRAMES_AT_ONCE == 0:
                deadline = loop.time() + _SEND_DEADLINE
                await asyncio.sleep(0)

    def _hear_all(self, packets: socket.socket, parse: Callable[[bytes], Heard | None]) -> None:
        for _ in range(_FRAMES_AT_ONCE):
            frame = frames.receive(packets)
            if frame is None:
                return
            heard = parse(frame)
            if heard is not None and heard.mac != self._link.mac:
                for hear in self._ears:
                    hear(heard)


def _lacks_ipv6(address: IPAddress) -> DataPlaneError:
    return DataPlaneError(
        f"{address} is IPv6, which this network's link has not got: enable IPv6 in the host's kernel, and give the "
        "network's device an MTU of at least 1280",
        errno=errno.EAFNOSUPPORT,
    )
