"""A rack: a top-of-rack router on the lab's LAN, FRR in a namespace of its own, and clients behind it."""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from tests.lab.client import Api, Object
from tests.lab.lab import AGENT_NUMBER, Lab
from tests.lab.machineroom import AGENTS
from tests.lab.network import Interface, Lan, Namespace, Subnets, run
from tests.lab.traffic import Client
from tests.routing.router import Router, router

ASN, TOR_ASN = 64512, 64513
TOR_NUMBER, REFLECTOR_NUMBER = 240, 241
BEHIND = Subnets(IPv4Network("10.88.0.0/24"), IPv6Network("fd00:88::/64"))
"""Where clients of the router are."""
BFD_MS = 100
GROUP = "/apis/cloudprovider.harvesterhci.io/v1beta1"
PEERS, ADVERTISEMENTS = f"{GROUP}/bgppeers", f"{GROUP}/bgpadvertisements"


@dataclass(frozen=True)
class Rack:
    """``tor``: of another AS, with what it hears in its kernel, several ways at once, and BFD. ``reflector``: a router
    of the hosts' own AS, of IPv4 alone, that nobody's packets go by. ``client``: behind the first."""

    tor: Router
    tor_addresses: list[str]
    reflector: Router
    reflector_address: str
    client: Client

    def know(self, name: str, lan: Lan) -> None:
        """Have sessions with a host."""
        own, own6 = addresses_of(name, lan)
        for address in (own, own6):
            self.tor.know(address, ASN, bfd=True, timers="3 9")
        self.reflector.know(own, ASN)

    def ways(self, vip: str) -> set[str]:
        """The next hops that the router's kernel has for an address."""
        found = json.loads(
            run("ip", "-n", self.tor.namespace, "-6" if ":" in vip else "-4", "-j", "route", "show", vip)
        )
        # Several: of one route (IPv4), or a route each.
        return {hop["gateway"] for route in found for hop in route.get("nexthops", [route]) if "gateway" in hop}

    def drops(self) -> dict[str, tuple[int, str]]:
        """How often the session with each host has ended, and why last."""
        told = json.loads(self.tor.say("show bgp neighbors json"))
        return {host: (one["connectionsDropped"], one.get("lastResetDueTo", "")) for host, one in told.items()}


def addresses_of(name: str, lan: Lan) -> list[str]:
    """What a host's agent has on the LAN."""
    number = int(name.removeprefix("host-"))
    return lan.subnets.addresses(AGENT_NUMBER if number == 1 else AGENTS + number)


@contextlib.contextmanager
def rack(lab: Lab, asn: int = TOR_ASN) -> Iterator[Rack]:
    """The routers, on, and clients behind them; the LAN's gateway knows the way to these. ``asn``: the first one's."""
    lan, behind = lab.lan, Namespace("behind")
    folder = Path(os.environ["TMPDIR"]) / "rack"
    tor_space, reflector_space = lan.station("tor", TOR_NUMBER), lan.station("reflector", REFLECTOR_NUMBER)
    behind.create()
    try:
        for space, number in ((tor_space, TOR_NUMBER), (reflector_space, REFLECTOR_NUMBER)):
            # Always the same: the gateway and the hosts may still know it from the test before, for half a minute.
            space.ip(f"link set eth0 address 02:00:00:00:00:{number:02x}")
        run(
            "ip", "link", "add", "eth0", "netns", behind.name, "type", "veth", "peer", "behind", "netns", tor_space.name
        )
        behind.ip("link set eth0 up", *_address(BEHIND.interfaces(2), "eth0"))
        tor_space.ip("link set behind up", *_address(BEHIND.interfaces(1), "behind"))
        behind.ip(*(f"route add default via {gateway}" for gateway in BEHIND.addresses(1)))
        tor_space.sysctl(
            ipv4__ip_forward=1,
            ipv6__conf__all__forwarding=1,
            # By ports, too: else all of a client's connections go by one host.
            ipv4__fib_multipath_hash_policy=1,
            ipv6__fib_multipath_hash_policy=1,
            ipv4__conf__all__send_redirects=0,
            ipv4__conf__eth0__send_redirects=0,
        )
        ways = list(zip((BEHIND.ipv4, BEHIND.ipv6), lan.subnets.addresses(TOR_NUMBER), strict=True))
        Namespace("").ip(*(f"route add {network} via {via}" for network, via in ways))
        with (
            router(tor_space.name, folder / "tor", asn, kernel=True, bfd=True) as tor,
            router(reflector_space.name, folder / "reflector", ASN) as reflector,
        ):
            its = lan.subnets.addresses(REFLECTOR_NUMBER)[0]
            yield Rack(tor, lan.subnets.addresses(TOR_NUMBER), reflector, its, Client(behind))
        Namespace("").ip(*(f"route del {network} via {via}" for network, via in ways))
    finally:
        behind.remove()
        for space in (tor_space, reflector_space):
            # At once: a namespace ends in the kernel's own time, and until then says whose the address is.
            space.ip("link delete eth0")
            lan.leave(space)


def bgp_peer(name: str, address: str, asn: int, **spec: object) -> Object:
    given = {"myASN": ASN, "peerASN": asn, "peerAddress": address, "holdTime": "9s", **spec}
    return {"apiVersion": GROUP.removeprefix("/apis/"), "kind": "BGPPeer", "metadata": {"name": name}, "spec": given}


def advertisement(name: str, **spec: object) -> Object:
    kind = "BGPAdvertisement"
    return {"apiVersion": GROUP.removeprefix("/apis/"), "kind": kind, "metadata": {"name": name}, "spec": spec}


@contextlib.contextmanager
def said(api: Api, *objects: Object) -> Iterator[None]:
    """Peers and advertisements of the host cluster that are there while the block lasts."""
    paths = {"BGPPeer": PEERS, "BGPAdvertisement": ADVERTISEMENTS}
    try:
        for one in objects:
            api.create(paths[one["kind"]], one)
        yield
    finally:
        for one in objects:
            api.delete(f"{paths[one['kind']]}/{one['metadata']['name']}")


def _address(interfaces: list[Interface], device: str) -> list[str]:
    return [f"address add {interface} dev {device}" for interface in interfaces]
