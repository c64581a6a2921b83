"""Flows that the kernel has pinned to their node, as it tells of them: see :mod:`cloudprovider.dataplane.ruleset_dsr`.

An IPv6 VIP stands in a pin by its last four bytes: two VIPs of a network that have these in common, and the same port,
would be told of together.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from cloudprovider.core.mac import MACAddress
from cloudprovider.core.plan import L4Protocol, ListenerKey
from cloudprovider.dataplane import ruleset_dsr
from cloudprovider.dataplane.elements import version_of
from cloudprovider.dataplane.nftables import SetName, each_element
from cloudprovider.dataplane.ruleset import VERSIONS, Version

PIN_SETS: Final[Mapping[SetName, tuple[Version, L4Protocol]]] = {
    ruleset_dsr.pins(version, protocol): (version, protocol) for version in VERSIONS for protocol in ("TCP", "UDP")
}
"""The maps of flow to MAC."""

_FLOW: Final = struct.Struct("=4x4s2xxx2sxx")


class Listeners:
    """Finds the listener of a pin among those that can have some."""

    def __init__(self, tracked: Iterable[ListenerKey]) -> None:
        self._found: dict[tuple[Version, L4Protocol, bytes, bytes], ListenerKey] = {}
        for key in tracked:
            suffix, port = key.vip.packed[-4:], key.port.to_bytes(2, "big")
            self._found[version_of(key.vip), key.protocol, suffix, port] = key

    def read(self, name: SetName, part: memoryview) -> Iterator[tuple[bytes, ListenerKey | None, MACAddress]]:
        """Yield the key, the listener (None for none that has pins) and the node of each pin of a dump."""
        version, protocol = PIN_SETS[name]
        for item in each_element(part):
            vip, port = _FLOW.unpack(item.key)
            yield item.key, self._found.get((version, protocol, vip, port)), MACAddress.unpack(item.value())
