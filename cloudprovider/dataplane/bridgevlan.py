"""A bridge port's VLAN (bridge VLAN filtering): frames of that VLAN reach the namespace without their tag.

**Unproven**: the messages are those of bridge(8), byte for byte, but were never seen working, for want of a kernel with
CONFIG_BRIDGE_VLAN_FILTERING where the tests run. That kernel's refusal is tested.
"""

import struct
from typing import Final

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dataplane import netlink
from cloudprovider.dataplane.rtnetlink import Link, RouteSocket

_IFLA_AF_SPEC: Final = 26
_IFLA_BRIDGE_VLAN_INFO: Final = 2
_PVID: Final = 0x2
_UNTAGGED: Final = 0x4
_RANGE_BEGIN: Final = 0x8
_RANGE_END: Final = 0x10
_VLAN_INFO: Final = struct.Struct("=HH")
"""struct bridge_vlan_info: flags, VLAN."""
_LAST: Final = 4094


def check(device: Link, vlan: int) -> None:
    """Raise DataPlaneError for a device on which a port has no VLAN."""
    if device.kind != "bridge":
        raise DataPlaneError(
            f"{device.name} is no bridge, so that VLAN {vlan} can't be joined on it; name a bridge, or the VLAN's own "
            "device without a vlan"
        )
    if not device.filters_vlans:
        raise DataPlaneError(
            f"bridge {device.name} does not filter VLANs, so that a port of it can't join VLAN {vlan}; run "
            f"ip link set {device.name} type bridge vlan_filtering 1, as Harvester does for its cluster networks (the "
            "kernel needs CONFIG_BRIDGE_VLAN_FILTERING)"
        )


def join(host: RouteSocket, port: Link, bridge: Link, vlan: int) -> None:
    """Have the port of a bridge in this VLAN and no other. Safe to repeat, without cutting anything off. Raises
    DataPlaneError."""
    what = f"have {port.name} in VLAN {vlan} of bridge {bridge.name} only"
    host.bridge_vlans(port, joined(vlan), what)
    for others in left(vlan):
        host.bridge_vlans(port, others, what, remove=True)


def joined(vlan: int) -> bytes:
    """What RTM_SETLINK is to say: frames without a tag belong to the VLAN, and its frames go out without one."""
    return _specification((_PVID | _UNTAGGED, vlan))


def left(vlan: int) -> list[bytes]:
    """What RTM_DELLINK is to say, one message each: every other VLAN, the bridge's default one among them."""
    ranges = [(first, last) for first, last in ((1, vlan - 1), (vlan + 1, _LAST)) if first <= last]
    return [
        _specification((0, first)) if first == last else _specification((_RANGE_BEGIN, first), (_RANGE_END, last))
        for first, last in ranges
    ]


def _specification(*entries: tuple[int, int]) -> bytes:
    infos = (netlink.attribute(_IFLA_BRIDGE_VLAN_INFO, _VLAN_INFO.pack(flags, vlan)) for flags, vlan in entries)
    return netlink.attribute(_IFLA_AF_SPEC, b"".join(infos))
