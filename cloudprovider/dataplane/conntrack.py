"""The namespace's conntrack table over ctnetlink: meets :class:`cloudprovider.dataplane.api.Connections`.

Entries are looked for by a dump that the kernel filters (CTA_FILTER), compared here, and deleted by tuple and id, so
nothing else can be hit. IPv6 is dumped whole: in Linux 6.18 such a filter by an IPv6 address leaves out just those that
it asks for. The kernel may spend 40 ms on a table of 100,000 entries, hence a thread.
Numbers are those of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress, L4Protocol, ListenerKey
from cloudprovider.dataplane import netlink
from cloudprovider.dataplane.elements import version_of
from cloudprovider.dataplane.netlink import NLM_F_ACK, NLM_F_DUMP, NetlinkSocket
from cloudprovider.dataplane.nftables import NETLINK_NETFILTER
from cloudprovider.dataplane.ruleset import Version

_GET: Final = 1 << 8 | 1
_DELETE: Final = 1 << 8 | 2
_GET_STATISTICS: Final = 1 << 8 | 5
_FAMILIES: Final[Mapping[Version, bytes]] = {
    4: struct.pack("=BBH", socket.AF_INET, 0, 0),
    6: struct.pack("=BBH", socket.AF_INET6, 0, 0),
}
_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_ID: Final = 12
_FILTER: Final = 25
_FILTER_ORIGINAL_FLAGS: Final = 1
_FILTER_REPLY_FLAGS: Final = 2
_BY_SOURCE: Final = 1
_BY_DESTINATION: Final = 2
_TUPLE_IP: Final = 1
_TUPLE_PROTOCOL: Final = 2
_SOURCE: Final[Mapping[Version, int]] = {4: 1, 6: 3}
_DESTINATION: Final[Mapping[Version, int]] = {4: 2, 6: 4}
_NUMBER: Final = 1
_DESTINATION_PORT: Final = 3
_PROTOCOLS: Final[dict[int, L4Protocol]] = {6: "TCP", 17: "UDP"}

_FILTERED_DUMPS: Final = 8
"""For more addresses than this, one dump of the whole table is cheaper than one for each."""
_DELETES_AT_ONCE: Final = 500


@dataclass(frozen=True)
class _Flow:
    """An entry: what its first packet asked for, who answers, and how to name the entry to the kernel."""

    listener: ListenerKey
    backend: IPAddress
    handle: bytes


class Conntrack:
    """The conntrack table of one namespace (that of the thread that makes it)."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        self._lock = asyncio.Lock()
        try:
            for _ in self._netlink.dump(
                _GET_STATISTICS, _FAMILIES[4], flags=0
            ):  # loads the kernel's module where it is one
                pass
        except BaseException:
            self._netlink.close()
            raise

    async def forget_listeners(self, listeners: Iterable[ListenerKey]) -> int:
        """See :class:`~cloudprovider.dataplane.api.Connections`."""
        wanted = frozenset(listeners)
        return await self._forget({key.vip for key in wanted}, _by_destination, lambda flow: flow.listener in wanted)

    async def forget_backends(
        self, gone: Mapping[IPAddress, Collection[ListenerKey]], *, protocol: L4Protocol = "UDP"
    ) -> int:
        """See :class:`~cloudprovider.dataplane.api.Connections`."""

        def doomed(flow: _Flow) -> bool:
            return flow.listener.protocol == protocol and flow.listener in gone.get(flow.backend, ())

        return await self._forget([backend for backend in gone if gone[backend]], _by_answerer, doomed)

    async def backends(self) -> Mapping[ListenerKey, Collection[IPAddress]]:
        """See :class:`~cloudprovider.dataplane.api.Connections`."""
        found: dict[ListenerKey, set[IPAddress]] = {}
        for version in _FAMILIES:
            async with self._lock:
                for flow in await asyncio.to_thread(self._find, version, [b""], _translated):
                    found.setdefault(flow.listener, set()).add(flow.backend)
        return found

    async def close(self) -> None:
        """Close the socket; a search that is under way comes to its end first."""
        async with self._lock:
            self._netlink.close()

    def abandon(self) -> None:
        """Close the socket before it was ever used."""
        self._netlink.close()

    async def _forget(
        self,
        addresses: Iterable[IPAddress],
        narrow: Callable[[IPAddress], bytes],
        doomed: Callable[[_Flow], bool],
    ) -> int:
        by_version: dict[Version, list[IPAddress]] = {}
        for address in addresses:
            by_version.setdefault(version_of(address), []).append(address)
        gone = 0
        for version, some in by_version.items():
            narrowed = version == 4 and len(some) <= _FILTERED_DUMPS
            filters = [narrow(address) for address in some] if narrowed else [b""]
            async with self._lock:
                gone += await asyncio.to_thread(self._search, version, filters, doomed)
        return gone

    def _search(self, version: Version, filters: Sequence[bytes], doomed: Callable[[_Flow], bool]) -> int:
        handles = dict.fromkeys(flow.handle for flow in self._find(version, filters, doomed))
        return self._delete(version, list(handles))

    def _find(self, version: Version, filters: Sequence[bytes], wanted: Callable[[_Flow], bool]) -> Iterator[_Flow]:
        for part in filters:
            for answers in self._netlink.dump(_GET, _FAMILIES[version] + part, flags=NLM_F_DUMP):
                for answer in answers:
                    flow = _flow(version, answer.body[4:])
                    if flow is not None and wanted(flow):
                        yield flow

    def _delete(self, version: Version, handles: Sequence[bytes]) -> int:
        gone = 0
        for start in range(0, len(handles), _DELETES_AT_ONCE):
            part = handles[start : start + _DELETES_AT_ONCE]
            messages: list[bytes] = []
            number = 0
            for position, handle in enumerate(part):
                number = self._netlink.sequence()
                acknowledge = NLM_F_ACK if position == len(part) - 1 else 0
                messages.append(netlink.message(_DELETE, acknowledge, number, _FAMILIES[version] + handle))
            refusals = self._netlink.request(b"".join(messages), number)
            gone += len(part) - len(refusals)
            for refusal in refusals:
                if refusal.errno != errno.ENOENT:  # ended by itself meanwhile
                    sentence = f"the kernel refused to delete a conntrack entry: {refusal.describe()}"
                    raise DataPlaneError(sentence, errno=refusal.errno)
        return gone


def _by_destination(address: IPAddress) -> bytes:
    """Only entries whose first packet went to ``address``."""
    return _narrow(_TUPLE_ORIGINAL, _DESTINATION, address, _FILTER_ORIGINAL_FLAGS, _BY_DESTINATION)


def _by_answerer(address: IPAddress) -> bytes:
    """Only entries that ``address`` answers."""
    return _narrow(_TUPLE_REPLY, _SOURCE, address, _FILTER_REPLY_FLAGS, _BY_SOURCE)


def _narrow(side: int, which: Mapping[Version, int], address: IPAddress, flags: int, by: int) -> bytes:
    ip = netlink.nested(_TUPLE_IP, netlink.attribute(which[version_of(address)], address.packed))
    both = {_FILTER_ORIGINAL_FLAGS: 0, _FILTER_REPLY_FLAGS: 0, flags: by}
    bits = (netlink.attribute(kind, struct.pack("=I", value)) for kind, value in both.items())
    return netlink.nested(side, ip) + netlink.nested(_FILTER, *bits)


def _flow(version: Version, data: memoryview) -> _Flow | None:
    """Read an entry; None for protocols without ports, and for the other IP version."""
    found = netlink.attributes(data)
    original = netlink.attributes(found[_TUPLE_ORIGINAL])
    reply = netlink.attributes(found[_TUPLE_REPLY])
    asked, answerer = (netlink.attributes(side[_TUPLE_IP]) for side in (original, reply))
    if _DESTINATION[version] not in asked:
        return None
    transport = netlink.attributes(original[_TUPLE_PROTOCOL])
    protocol = _PROTOCOLS.get(transport[_NUMBER][0])
    if protocol is None:
        return None
    return _Flow(
        listener=ListenerKey(
            _address(asked[_DESTINATION[version]]), protocol, int.from_bytes(transport[_DESTINATION_PORT], "big")
        ),
        backend=_address(answerer[_SOURCE[version]]),
        handle=netlink.attribute(_TUPLE_ORIGINAL | netlink.NLA_F_NESTED, bytes(found[_TUPLE_ORIGINAL]))
        + netlink.attribute(_ID, bytes(found[_ID])),
    )


def _translated(flow: _Flow) -> bool:
    return flow.backend != flow.listener.vip


def _address(data: memoryview) -> IPAddress:
    return IPv4Address(bytes(data)) if len(data) == 4 else IPv6Address(bytes(data))
