"""How a host stands on one network: the namespace, its link to the network's device, addresses, routes, settings.

Each step makes what is missing and mends what is there, also what an older agent left.
"""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane import bridgevlan, namespace, obstacles, sysctls
from cloudprovider.dataplane.api import NetworkConfig
from cloudprovider.dataplane.naming import LINK, Names
from cloudprovider.dataplane.rtnetlink import IPInterface, Link, RouteSocket, strays

T = TypeVar("T")


@dataclass(frozen=True)
class Joined:
    """Where a network's namespace is, and what that network's device does not allow (see :mod:`.obstacles`)."""

    path: Path
    dsr_obstacle: str
    host_obstacle: str
    hosts: Mapping[IPAddress, str]
    """The host's own addresses that no probe from there can find, and their MAC: those of a macvlan's device."""


def own_addresses(config: NetworkConfig) -> Sequence[IPInterface]:
    """The namespace's own addresses on the network: none, one, or one of each family."""
    return [address for address in (config.address, config.address6) if address is not None]


def establish(names: Names, config: NetworkConfig) -> Joined:
    """Bring namespace, links, addresses and routes into being, or mend what is there. Raises DataPlaneError."""
    return _route(lambda host: _establish(host, names, config))


def join(names: Names, config: NetworkConfig) -> None:
    """Have the host's end of the pair in its bridge, and up: the bridge may have been made anew. Raises
    DataPlaneError."""
    _route(lambda host: _join(host, _device(host, config), names, config))


def configure(path: Path, config: NetworkConfig, mark: str) -> None:
    """Have the namespace's own link up, with its addresses and routes. Raises DataPlaneError."""
    namespace.call_in(path, lambda: _route(lambda route: _configure(route, config, mark)))


def the_link() -> Link:
    """The link to the network, in the namespace of this thread. Raises DataPlaneError."""
    link = _find_link()
    if link is None:
        raise vanished()
    return link


def vanished() -> DataPlaneError:
    """What to raise where the link to the network is gone: sockets and rules went with it."""
    return DataPlaneError(f"link {LINK} has vanished from its namespace; open the network again", errno=errno.ENODEV)


def delete_link() -> None:
    """Delete the link to the network, in the namespace of this thread; the host's end goes with it."""

    def delete(route: RouteSocket) -> None:
        link = route.link(LINK)
        if link is not None:
            route.delete_link(link)

    _route(delete)


def mark_of(path: Path) -> str:
    """What is written on a namespace's loopback."""

    def mark() -> str:
        loopback = _route(lambda route: route.link("lo"))
        return loopback.alias if loopback is not None else ""

    return namespace.call_in(path, mark)


def check_ours(names: Names, path: Path, network: str) -> None:
    """Raise DataPlaneError for a namespace of our name that somebody else made."""
    if names.network(mark_of(path)) != network:
        raise DataPlaneError(
            f"network namespace {path} is not this agent's (instance {names.instance!r}, network {network!r}); "
            "remove it, or give the agent another instance name"
        )


def _establish(host: RouteSocket, names: Names, config: NetworkConfig) -> Joined:
    device = _device(host, config)
    if config.vlan:
        bridgevlan.check(device, config.vlan)
    path = namespace.DIRECTORY / names.namespace(config.name)
    if namespace.is_namespace(path):
        check_ours(names, path, config.name)
        _mend(host, device, names, config, path)
    else:
        try:
            namespace.create(path.name, lambda itself: _mend(host, device, names, config, itself))
        except DataPlaneError:
            half = host.link(names.host_link(config.name))
            if half is not None:  # the kernel would take it away too, but in its own time
                host.delete_link(half)
            raise
    _join(host, device, names, config)
    unseen = [] if device.kind == "bridge" else host.addresses(device)
    hosts = {interface.ip: device.mac for interface in unseen}
    return Joined(path, obstacles.of_dsr(device), obstacles.of_the_host(device), hosts)


def _device(host: RouteSocket, config: NetworkConfig) -> Link:
    device = host.link(config.device)
    if device is None:
        raise DataPlaneError(
            f"network {config.name!r}: there is no device {config.device} on this host; correct its device in the "
            "networks file, or make the bridge"
        )
    return device


def _mend(host: RouteSocket, device: Link, names: Names, config: NetworkConfig, path: Path) -> None:
    if namespace.call_in(path, _find_link) is None:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if device.kind == "bridge":
                host.add_veth(names.host_link(config.name), LINK, handle, device.mtu)
            else:
                host.add_macvlan(LINK, device.index, handle)
        finally:
            os.close(handle)
    configure(path, config, names.mark(config.name))


def _join(host: RouteSocket, device: Link, names: Names, config: NetworkConfig) -> None:
    port = host.link(names.host_link(config.name))
    if port is None:  # a macvlan, not a pair
        return
    sysctls.silence_ipv6(port.name)
    host.set_master(port, device)
    if config.vlan:
        bridgevlan.join(host, port, device, config.vlan)  # before the link comes up: not a frame is to go astray
    host.set_up(port)


def _configure(route: RouteSocket, config: NetworkConfig, mark: str) -> None:
    """Inside the namespace: loopback with the mark, the link up with its own addresses, the default routes."""
    loopback = route.link("lo")
    if loopback is not None:
        route.set_alias(loopback, mark)
        route.set_up(loopback)
    link = the_link()
    ipv6 = sysctls.has_ipv6(LINK)
    if ipv6:
        sysctls.write(sysctls.IPV6)
    elif config.address6 is not None:
        raise DataPlaneError(
            f"network {config.name!r} has the IPv6 address {config.address6}, but no IPv6: enable it in the host's "
            f"kernel, and give {config.device} an MTU of at least 1280; or leave address6 out"
        )
    route.set_up(link)
    own = own_addresses(config)
    route.delete_addresses(link, strays(route.addresses(link), own))
    route.add_addresses(link, own)
    if config.gateway is not None:
        route.set_default_route(link, config.gateway)
    else:
        route.delete_default_route(link, IPv4Address)
    if not ipv6:
        return
    if config.gateway6 is not None:
        route.set_default_route(link, config.gateway6)
    else:
        route.delete_default_route(link, IPv6Address)


def _route(function: Callable[[RouteSocket], T]) -> T:
    route = RouteSocket()
    try:
        return function(route)
    finally:
        route.close()


def _find_link() -> Link | None:
    return _route(lambda route: route.link(LINK))
