"""Links, addresses and default routes of one namespace, by rtnetlink(7).

Addresses come and go many at once (a thousand VIPs in one message), which is why this is not a subprocess per address.
"""

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, IPv6Network
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import netlink
from cloudprovider.dataplane.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkSocket

_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_GETLINK: Final = 18
_RTM_SETLINK: Final = 19
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25

_IFLA_ADDRESS: Final = 1
_IFLA_IFNAME: Final = 3
_IFLA_MTU: Final = 4
_IFLA_LINK: Final = 5
_IFLA_MASTER: Final = 10
_IFLA_LINKINFO: Final = 18
_IFLA_IFALIAS: Final = 20
_IFLA_NET_NS_FD: Final = 28
_IFLA_CARRIER_CHANGES: Final = 35
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFLA_MACVLAN_MODE: Final = 1
_MACVLAN_MODE_BRIDGE: Final = 4
_VETH_INFO_PEER: Final = 1
_IFF_UP: Final = 1
_IFF_LOWER_UP: Final = 0x1_0000
_IFLA_BR_VLAN_FILTERING: Final = 7
_FIREWALLED: Final = {36: "nf_call_iptables", 37: "nf_call_ip6tables"}
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_CACHEINFO: Final = 6
_IFA_FLAGS: Final = 8
_IFA_F_NODAD: Final = 0x2
_IFA_F_NOPREFIXROUTE: Final = 0x200
_FOREVER: Final = 0xFFFF_FFFF
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_GATEWAY: Final = 5

_IFINFO: Final = struct.Struct("=BxHiII")
_IFADDR: Final = struct.Struct("=BBBBi")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_CACHE_INFO: Final = struct.Struct("=IIII")
_U32: Final = struct.Struct("=I")

IPInterface = IPv4Interface | IPv6Interface


@dataclass(frozen=True)
class Link:
    """A network device. ``kind`` is "bridge", "veth", ... ("" for hardware), ``master`` an index or 0.

    ``running``: it has a carrier; ``interruptions``: how often that came or went. Of a bridge: ``filters_vlans``, and
    the ``firewalled`` switches that are on for its frames.
    """

    index: int
    name: str
    mac: str
    mtu: int
    kind: str
    alias: str
    master: int
    up: bool
    running: bool = False
    interruptions: int = 0
    filters_vlans: bool = False
    firewalled: frozenset[str] = frozenset()


class RouteSocket:
    """rtnetlink in the namespace of the thread that opens it. Every call raises DataPlaneError when refused."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(socket.NETLINK_ROUTE)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def link(self, name: str) -> Link | None:
        """The link of that name, or None."""
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + netlink.text(_IFLA_IFNAME, name)
        try:
            answers = [m for part in self._netlink.dump(_RTM_GETLINK, body, flags=0) for m in part]
        except DataPlaneError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return _link(answers[0].body) if answers else None

    def add_veth(self, name: str, peer: str, namespace: int, mtu: int) -> None:
        """Make a pair: ``name`` here, ``peer`` in the namespace with that file descriptor."""
        other = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + b"".join(
            (
                netlink.text(_IFLA_IFNAME, peer),
                netlink.attribute(_IFLA_MTU, _U32.pack(mtu)),
                netlink.attribute(_IFLA_NET_NS_FD, _U32.pack(namespace)),
            )
        )
        information = netlink.nested(
            _IFLA_LINKINFO,
            netlink.text(_IFLA_INFO_KIND, "veth"),
            netlink.nested(_IFLA_INFO_DATA, netlink.nested(_VETH_INFO_PEER, other)),
        )
        self._add_link(name, netlink.attribute(_IFLA_MTU, _U32.pack(mtu)) + information)

    def add_macvlan(self, name: str, parent: int, namespace: int) -> None:
        """Make a macvlan (mode bridge) on the link ``parent``, in the namespace with that file descriptor."""
        mode = netlink.attribute(_IFLA_MACVLAN_MODE, _U32.pack(_MACVLAN_MODE_BRIDGE))
        information = netlink.nested(
            _IFLA_LINKINFO, netlink.text(_IFLA_INFO_KIND, "macvlan"), netlink.nested(_IFLA_INFO_DATA, mode)
        )
        where = netlink.attribute(_IFLA_LINK, _U32.pack(parent)) + netlink.attribute(
            _IFLA_NET_NS_FD, _U32.pack(namespace)
        )
        self._add_link(name, where + information)

    def set_master(self, link: Link, bridge: Link) -> None:
        """Put a link into a bridge."""
        if link.master != bridge.index:
            put = netlink.attribute(_IFLA_MASTER, _U32.pack(bridge.index))
            body = _IFINFO.pack(0, 0, link.index, 0, 0) + put
            self._one(_RTM_NEWLINK, 0, body, f"put {link.name} into bridge {bridge.name}")

    def set_up(self, link: Link) -> None:
        """Bring a link up."""
        if not link.up:
            body = _IFINFO.pack(0, 0, link.index, _IFF_UP, _IFF_UP)
            self._one(_RTM_NEWLINK, 0, body, f"bring up link {link.name}")

    def bridge_vlans(self, link: Link, specification: bytes, what: str, *, remove: bool = False) -> None:
        """Change the VLANs of a bridge's port: the attributes of IFLA_AF_SPEC for the family of bridges."""
        kind = _RTM_DELLINK if remove else _RTM_SETLINK
        self._one(kind, 0, _IFINFO.pack(socket.AF_BRIDGE, 0, link.index, 0, 0) + specification, what)

    def set_alias(self, link: Link, alias: str) -> None:
        """Write a note (at most 255 bytes) onto a link."""
        body = _IFINFO.pack(0, 0, link.index, 0, 0) + netlink.attribute(_IFLA_IFALIAS, alias.encode())
        self._one(_RTM_NEWLINK, 0, body, f"mark link {link.name}")

    def delete_link(self, link: Link) -> None:
        """Delete a link (a pair's other end goes with it)."""
        self._one(_RTM_DELLINK, 0, _IFINFO.pack(0, 0, link.index, 0, 0), f"delete link {link.name}")

    def addresses(self, link: Link) -> list[IPInterface]:
        """The addresses on a link."""
        found: list[IPInterface] = []
        for part in self._netlink.dump(_RTM_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, link.index)):
            for answer in part:
                family, prefix, _, _, index = _IFADDR.unpack_from(answer.body)
                attributes = netlink.attributes(answer.body[_IFADDR.size :])
                address = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))  # IPv6 has no local one
                if index != link.index or address is None:
                    continue
                if family == socket.AF_INET:
                    found.append(IPv4Interface((bytes(address), prefix)))
                elif family == socket.AF_INET6:
                    found.append(IPv6Interface((bytes(address), prefix)))
        return found

    def add_addresses(self, link: Link, addresses: Sequence[IPInterface]) -> None:
        """Add addresses; those that are there already are left as they are."""
        self._addresses(_RTM_NEWADDR, link, addresses, ignore=errno.EEXIST)

    def delete_addresses(self, link: Link, addresses: Sequence[IPInterface]) -> None:
        """Delete addresses; those that are not there are ignored."""
        self._addresses(_RTM_DELADDR, link, addresses, ignore=errno.EADDRNOTAVAIL)

    def set_default_route(self, link: Link, gateway: IPAddress) -> None:
        """Make ``gateway`` the way to everywhere else."""
        body = _RTMSG.pack(_family(type(gateway)), 0, 0, 0, 254, 4, 0, 1, 0)  # main table, static, universe, unicast
        body += netlink.attribute(_RTA_GATEWAY, gateway.packed) + netlink.attribute(_RTA_OIF, _U32.pack(link.index))
        self._one(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"set the default route via {gateway}")

    def delete_default_route(self, link: Link, kind: type[IPv4Address] | type[IPv6Address]) -> None:
        """Have no way to elsewhere for this kind of addresses."""
        body = _RTMSG.pack(_family(kind), 0, 0, 0, 254, 0, 0, 0, 0) + netlink.attribute(_RTA_OIF, _U32.pack(link.index))
        self._one(_RTM_DELROUTE, 0, body, "delete the default route", ignore=errno.ESRCH)

    def set_neighbours(self, link: Link, network: IPv6Network) -> None:
        """Treat the addresses of a network as neighbours on this link."""
        body = _RTMSG.pack(socket.AF_INET6, network.prefixlen, 0, 0, 254, 4, 0, 1, 0)  # main table, static, unicast
        body += netlink.attribute(_RTA_DST, network.network_address.packed)
        body += netlink.attribute(_RTA_OIF, _U32.pack(link.index))
        self._one(_RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"set the route to {network} on {link.name}")

    def _add_link(self, name: str, attributes: bytes) -> None:
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + netlink.text(_IFLA_IFNAME, name) + attributes
        self._one(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body, f"make link {name}")

    def _addresses(self, kind: int, link: Link, addresses: Sequence[IPInterface], *, ignore: int) -> None:
        if not addresses:
            return
        flags = NLM_F_CREATE | NLM_F_EXCL if kind == _RTM_NEWADDR else 0
        verb = "add" if kind == _RTM_NEWADDR else "delete"
        messages: list[bytes] = []
        numbers: dict[int, IPInterface] = {}
        for position, address in enumerate(addresses):
            number = self._netlink.sequence()
            numbers[number] = address
            body = _address(link, address)
            acknowledge = NLM_F_ACK if position == len(addresses) - 1 else 0
            messages.append(netlink.message(kind, flags | acknowledge, number, body))
        for refusal in self._netlink.request(b"".join(messages), number):
            if refusal.errno != ignore:
                what = f"{verb} {numbers.get(refusal.sequence)} on {link.name}"
                raise DataPlaneError(f"the kernel refused to {what}: {refusal.describe()}", errno=refusal.errno)

    def _one(self, kind: int, flags: int, body: bytes, what: str, *, ignore: int = 0) -> None:
        number = self._netlink.sequence()
        for refusal in self._netlink.request(netlink.message(kind, flags | NLM_F_ACK, number, body), number):
            if refusal.errno != ignore:
                raise DataPlaneError(f"the kernel refused to {what}: {refusal.describe()}", errno=refusal.errno)


def host_interface(address: IPAddress) -> IPInterface:
    """A VIP as it stands on a link: /32 or /128, so that it brings no route to its neighbours with it."""
    if isinstance(address, IPv4Address):
        return IPv4Interface((address, 32))
    return IPv6Interface((address, 128))


def is_host(interface: IPInterface) -> bool:
    """Whether it has no neighbours: a /32 or /128."""
    return interface.network.prefixlen == interface.max_prefixlen


def vips(addresses: Iterable[IPInterface], own: Collection[IPInterface]) -> frozenset[IPAddress]:
    """Which of a link's addresses are VIPs: the /32 and /128 ones but the namespace's own and link-local ones."""
    return frozenset(a.ip for a in addresses if is_host(a) and a not in own and not _link_local(a))


def strays(addresses: Iterable[IPInterface], own: Collection[IPInterface]) -> list[IPInterface]:
    """Which of a link's addresses are neither VIPs, nor the namespace's own, nor the kernel's: a former own one."""
    return [a for a in addresses if not is_host(a) and a not in own and not _link_local(a)]


def _link_local(interface: IPInterface) -> bool:
    return isinstance(interface, IPv6Interface) and interface.ip.is_link_local


def _family(kind: type[IPv4Address] | type[IPv6Address]) -> int:
    return socket.AF_INET if kind is IPv4Address else socket.AF_INET6


def _address(link: Link, interface: IPInterface) -> bytes:
    packed = interface.ip.packed
    if isinstance(interface, IPv4Interface):
        body = _IFADDR.pack(socket.AF_INET, interface.network.prefixlen, 0, 0, link.index)
        return body + netlink.attribute(_IFA_LOCAL, packed) + netlink.attribute(_IFA_ADDRESS, packed)
    body = _IFADDR.pack(socket.AF_INET6, interface.network.prefixlen, 0, 0, link.index)
    body += netlink.attribute(_IFA_LOCAL, packed) + netlink.attribute(_IFA_ADDRESS, packed)
    if not is_host(interface):
        return body + netlink.attribute(_IFA_FLAGS, _U32.pack(_IFA_F_NODAD))
    # Duplicates have been looked for; preferred for 0 s: the kernel is not to choose a VIP as a source of its own.
    body += netlink.attribute(_IFA_FLAGS, _U32.pack(_IFA_F_NODAD | _IFA_F_NOPREFIXROUTE))
    return body + netlink.attribute(_IFA_CACHEINFO, _CACHE_INFO.pack(0, _FOREVER, 0, 0))


def _link(body: memoryview) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = netlink.attributes(body[_IFINFO.size :])
    info = netlink.attributes(found[_IFLA_LINKINFO]) if _IFLA_LINKINFO in found else {}
    kind = netlink.string(info[_IFLA_INFO_KIND]) if _IFLA_INFO_KIND in info else ""
    data = info.get(_IFLA_INFO_DATA) if kind == "bridge" else None
    bridge = netlink.attributes(data) if data is not None else {}
    return Link(
        index=index,
        name=netlink.string(found[_IFLA_IFNAME]),
        mac=bytes(found.get(_IFLA_ADDRESS, b"")).hex(":"),
        mtu=_U32.unpack(found[_IFLA_MTU])[0] if _IFLA_MTU in found else 0,
        kind=kind,
        alias=netlink.string(found[_IFLA_IFALIAS]) if _IFLA_IFALIAS in found else "",
        master=_U32.unpack(found[_IFLA_MASTER])[0] if _IFLA_MASTER in found else 0,
        up=bool(flags & _IFF_UP),
        running=bool(flags & _IFF_LOWER_UP),
        interruptions=_U32.unpack(found[_IFLA_CARRIER_CHANGES])[0] if _IFLA_CARRIER_CHANGES in found else 0,
        filters_vlans=_is_set(bridge.get(_IFLA_BR_VLAN_FILTERING)),
        firewalled=frozenset(name for kind, name in _FIREWALLED.items() if _is_set(bridge.get(kind))),
    )


def _is_set(value: memoryview | None) -> bool:
    return value is not None and any(value)
