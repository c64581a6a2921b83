"""Permanent entries of the kernel's neighbour table, by rtnetlink(7). Meets ``dataplane.api.StaticNeighbours``.

The kernel lets neither an ARP answer nor a Neighbor Advertisement change an entry in the state NUD_PERMANENT, counts it
to no limit of the table (``gc_thresh3``), and never ages it. It drops such entries when the link is taken down
(``neigh_ifdown``), not when it loses its carrier.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import netlink
from cloudprovider.dataplane.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NetlinkSocket
from cloudprovider.dataplane.rtnetlink import Link

_RTM_NEWNEIGH: Final = 28
_RTM_DELNEIGH: Final = 29
_RTM_GETNEIGH: Final = 30
_NDA_DST: Final = 1
_NDA_LLADDR: Final = 2
_NDA_IFINDEX: Final = 8
_NUD_PERMANENT: Final = 0x80
_NDMSG: Final = struct.Struct("=BxHiHBB")
_U32: Final = struct.Struct("=I")
_AT_ONCE: Final = 256
"""Entries that one request carries: the event loop goes on between requests."""


def check_static(entries: Mapping[IPAddress, MACAddress | None], *, ipv6: bool) -> None:
    """Raise DataPlaneError for an entry that can't be; ``ipv6``: whether the link can carry IPv6."""
    for address, mac in entries.items():
        if address.version == 6 and not ipv6:
            raise DataPlaneError(
                f"{address} is IPv6, which this network's link has not got: enable IPv6 in the host's kernel, and give "
                "the network's device an MTU of at least 1280",
                errno=errno.EAFNOSUPPORT,
            )
        if address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local:
            raise DataPlaneError(
                f"{address} is no machine's own address: it is loopback, multicast, unspecified or link-local",
                errno=errno.EADDRNOTAVAIL,
            )
        if mac is not None and not mac.is_unicast:
            raise DataPlaneError(f"{mac} is no machine's MAC: it is a group, or zero", errno=errno.EINVAL)


class KernelStaticNeighbours:
    """The permanent neighbours on one link. ``route`` is a netlink socket in its namespace, closed with this."""

    def __init__(self, link: Link, route: NetlinkSocket, *, ipv6: bool) -> None:
        self._link = link
        self._netlink = route
        self._ipv6 = ipv6
        self._wanted: dict[IPAddress, MACAddress] = {}

    async def set(self, wanted: Mapping[IPAddress, MACAddress]) -> None:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        check_static(wanted, ipv6=self._ipv6)
        self._wanted = dict(wanted)
        await self.repair()

    async def change(self, changes: Mapping[IPAddress, MACAddress | None]) -> None:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        check_static(changes, ipv6=self._ipv6)
        for address, mac in changes.items():
            if mac is None:
                self._wanted.pop(address, None)
            else:
                self._wanted[address] = mac
        await self._write(changes)

    async def observe(self) -> Mapping[IPAddress, MACAddress]:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        return self._read()

    async def repair(self) -> int:
        """See :class:`~cloudprovider.dataplane.api.StaticNeighbours`."""
        found = self._read()
        changes: dict[IPAddress, MACAddress | None] = dict.fromkeys(found.keys() - self._wanted.keys())
        changes.update((a, mac) for a, mac in self._wanted.items() if found.get(a) != mac)
        await self._write(changes)
        return len(changes)

    def close(self) -> None:
        """Let go of the socket; entries stay."""
        self._netlink.close()

    async def _write(self, changes: Mapping[IPAddress, MACAddress | None]) -> None:
        remaining = iter(changes.items())
        while part := list(islice(remaining, _AT_ONCE)):
            self._request(part)
            await asyncio.sleep(0)

    def _request(self, part: Iterable[tuple[IPAddress, MACAddress | None]]) -> None:
        messages: list[bytes] = []
        numbers: dict[int, tuple[IPAddress, MACAddress | None]] = {}
        part = list(part)
        for position, (address, mac) in enumerate(part, start=1):
            number = self._netlink.sequence()
            numbers[number] = (address, mac)
            kind, flags = (_RTM_DELNEIGH, 0) if mac is None else (_RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE)
            acknowledge = NLM_F_ACK if position == len(part) else 0
            messages.append(netlink.message(kind, flags | acknowledge, number, self._entry(address, mac)))
        for refusal in self._netlink.request(b"".join(messages), number):
            address, mac = numbers[refusal.sequence]
            if mac is None and refusal.errno == errno.ENOENT:
                continue
            what = f"forget {address}" if mac is None else f"fix {address} to {mac}"
            raise DataPlaneError(
                f"the kernel refused to {what} on {self._link.name}: {refusal.describe()}", errno=refusal.errno
            )

    def _entry(self, address: IPAddress, mac: MACAddress | None) -> bytes:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        state = 0 if mac is None else _NUD_PERMANENT
        body = _NDMSG.pack(family, 0, self._link.index, state, 0, 0) + netlink.attribute(_NDA_DST, address.packed)
        return body if mac is None else body + netlink.attribute(_NDA_LLADDR, mac.packed)

    def _read(self) -> dict[IPAddress, MACAddress]:
        found: dict[IPAddress, MACAddress] = {}
        ask = _NDMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0)
        ask += netlink.attribute(_NDA_IFINDEX, _U32.pack(self._link.index))
        for part in self._netlink.dump(_RTM_GETNEIGH, ask):
            for answer in part:
                family, _, index, state, _, _ = _NDMSG.unpack_from(answer.body)
                if index != self._link.index or not state & _NUD_PERMANENT:
                    continue
                attributes = netlink.attributes(answer.body[_NDMSG.size :])
                packed, mac = attributes.get(_NDA_DST), attributes.get(_NDA_LLADDR)
                if packed is None or mac is None or len(mac) != 6:
                    continue
                if family == socket.AF_INET:
                    found[IPv4Address(bytes(packed))] = MACAddress.unpack(bytes(mac))
                elif family == socket.AF_INET6:
                    found[IPv6Address(bytes(packed))] = MACAddress.unpack(bytes(mac))
        return found
