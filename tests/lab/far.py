"""A station behind the LAN's gateway, which is the lab's own namespace, and behind a narrow link."""

import contextlib
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network

from tests.lab.network import Namespace, run

NETWORKS = (IPv4Network("10.78.0.0/24"), IPv6Network("fd00:78::/64"))


@contextlib.contextmanager
def behind_gateway(mtu: int) -> Iterator[Namespace]:
    """A namespace whose link takes no more than ``mtu`` bytes, of which only the gateway knows, as of a tunnel on the
    way: who sends more is told by it (ICMP)."""
    far, here = Namespace("far"), Namespace("")
    far.create()
    here.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
    run("ip", "link", "add", "far", "type", "veth", "peer", "name", "eth0", "netns", far.name)
    try:
        far.ip(
            "link set eth0 up",
            *(f"address add {network[2]}/{network.prefixlen} dev eth0" for network in NETWORKS),
            *(f"route add default via {network[1]}" for network in NETWORKS),
        )
        here.ip(
            "link set far up",
            *(f"address add {network[1]}/{network.max_prefixlen} dev far nodad" for network in NETWORKS),
            *(f"route add {network} dev far mtu {mtu}" for network in NETWORKS),
        )
        yield far
    finally:
        run("ip", "link", "delete", "far")
        far.remove()
