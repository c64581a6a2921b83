"""BGP's objects for tests, and the host that they are for."""

from ipaddress import ip_address, ip_interface
from typing import Any

import msgspec

from cloudprovider.core.api.bgp import BGPAdvertisement, BGPPeer
from cloudprovider.core.bgpwish import Host, Served, Standing


def peer(name: str = "tor", address: str = "10.0.0.1", **spec: Any) -> BGPPeer:
    given = {"myASN": 64512, "peerASN": 64513, "peerAddress": address, **spec}
    return msgspec.convert({"metadata": {"name": name}, "spec": given}, BGPPeer)


def advertisement(name: str = "all", **spec: Any) -> BGPAdvertisement:
    return msgspec.convert({"metadata": {"name": name}, "spec": spec}, BGPAdvertisement)


def standing(*interfaces: str) -> Standing:
    own = [ip_interface(text) for text in interfaces]
    return Standing(addresses={i.version: i.ip for i in own}, subnets=tuple(i.network for i in own))


def host(*interfaces: str, labels: dict[str, str] | None = None) -> Host:
    return Host(labels=labels or {}, networks={"": standing(*(interfaces or ("10.0.0.2/24", "fd00::2/64")))})


def served(*addresses: str, pool: str = "lan", network: str = "") -> list[Served]:
    return [Served(network, ip_address(address), pool) for address in addresses]
