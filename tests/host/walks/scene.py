"""Where walks happen: two networks with the same addresses on both, three small pools, two tenants and a machine's load
balancer. Small, so that all that can collide does."""

from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import Any, Final

import msgspec

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, LoadBalancer
from cloudprovider.core.api.pool import IPPool, Range, Reservation, Scope
from cloudprovider.core.combinations import narrowed
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey, Tenant
from cloudprovider.core.plan import L4Protocol
from tests.host.views import vm
from tests.host.world import EVERYBODY
from tests.host.world import pool as made

NAMESPACE: Final = "team-a"
BLUE: Final = Tenant(NAMESPACE, "blue")
GREEN: Final = Tenant(NAMESPACE, "green")
TENANTS: Final = (BLUE, GREEN)
VLAN: Final = "default/vlan2"

SERVICES: Final = {**dict.fromkeys("abcde", BLUE), **dict.fromkeys("xy", GREEN)}
"""The Services there may be; their names say whose they are."""
MACHINES: Final = ("m", "n")
NAMES: Final = (*SERVICES, *MACHINES)
PORTS: Final[dict[str, tuple[L4Protocol, int]]] = {
    "a": ("TCP", 80), "b": ("TCP", 80), "c": ("TCP", 81), "d": ("UDP", 80), "e": ("TCP", 443),
    "x": ("TCP", 80), "y": ("TCP", 80),
}  # fmt: skip
"""Some collide where they share an address."""

LEASES: Final = ("192.0.2.208", "192.0.2.209", "192.0.2.210")
"""What the DHCP server of the management network has; no pool hands them out."""

P: Final = (
    Range(subnet="192.0.2.0/28", range_start="192.0.2.2", range_end="192.0.2.6", exclude=["192.0.2.5"]),
    Range(subnet="2001:db8::/124", range_start="2001:db8::2", range_end="2001:db8::3"),
)
EDITS: Final[dict[str, tuple[tuple[Range, ...], ...]]] = {
    "p": (
        P,
        (Range(subnet="192.0.2.0/28", range_start="192.0.2.2", range_end="192.0.2.9"), P[1]),
        (Range(subnet="192.0.2.0/28", range_start="192.0.2.4", range_end="192.0.2.7", exclude=["192.0.2.6/31"]),),
        (P[0], Range(subnet="2001:db8::/124", exclude=["2001:db8::4-2001:db8::f"])),
        (Range(subnet="192.0.2.0/28", range_start="198.51.100.1"),),  # wrong
    ),
    "q": (
        (Range(subnet="192.0.2.240/28", range_start="192.0.2.245", range_end="192.0.2.247"),),
        (Range(subnet="192.0.2.240/28", gateway="192.0.2.246", range_start="192.0.2.243", range_end="192.0.2.247"),),
        (Range(subnet="192.0.2.0/24", range_start="192.0.2.7", range_end="192.0.2.8", gateway="192.0.2.241"),),
    ),
    "r": (
        (
            Range(subnet="192.0.2.0/28", range_start="192.0.2.2", range_end="192.0.2.4"),
            Range(subnet="2001:db8::/124", range_start="2001:db8::2", range_end="2001:db8::2"),
        ),
        (Range(subnet="192.0.2.0/28", range_start="192.0.2.2", range_end="192.0.2.3"),),
    ),
}
"""What each pool's ranges may become; the first is what it begins with."""
RESERVED: Final = {
    "p": (
        (),
        (Reservation(address="192.0.2.3", namespace=NAMESPACE, guest_cluster="blue", service="default/c"),),
        (
            Reservation(address="192.0.2.4", namespace=NAMESPACE, load_balancer="m"),
            Reservation(address="2001:db8::2", namespace=NAMESPACE, guest_cluster="green", service="default/x"),
        ),
    ),
    "q": ((), (Reservation(address="192.0.2.245", namespace=NAMESPACE, guest_cluster="blue", service="default/e"),)),
    "r": ((),),
}
FIXED: Final = ("192.0.2.3", "192.0.2.4", "192.0.2.5", "192.0.2.246", "2001:db8::3")
INTRUDED: Final = ("192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.245", "2001:db8::2", LEASES[0])
"""Addresses that somebody who is none of ours takes now and then."""


@dataclass(frozen=True)
class Wish:
    """What a load balancer asks for, of what decides on its addresses."""

    ipam: str = "pool"
    ip_pool: str = ""
    network: str = ""
    fixed: str = ""
    families: str = "single"
    primary: str = ""


FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "single": {},
    "IPv6": {"ip_families": ("IPv6",)},
    "prefer": {"ip_family_policy": "PreferDualStack"},
    "require": {"ip_family_policy": "RequireDualStack"},
    "require, IPv6 first": {"ip_families": ("IPv6",), "ip_family_policy": "RequireDualStack"},
}


@dataclass
class Names:
    """The UID of the Service that each name stands for now."""

    count: int = 0
    uids: dict[str, str] = field(default_factory=dict)

    def key(self, name: str) -> ServiceKey:
        """Return the Service of this name that there is, or a new one."""
        if name not in self.uids:
            self.count += 1
            self.uids[name] = f"{name}-{self.count}"
        return ServiceKey("default", name, self.uids[name])

    def gone(self, name: str) -> None:
        self.uids.pop(name, None)


def request(name: str, wish: Wish) -> LoadBalancerRequest:
    """Return what a guest asks for; who shares, or has a DHCP server choose, asks for nothing that they decide."""
    protocol, port = PORTS[name]
    listeners = (Listener("", protocol, port, 30000 + port),)
    if wish.primary not in ("", name):
        return LoadBalancerRequest(listeners=listeners, primary_service=f"default/{wish.primary}")
    if wish.ipam == "dhcp":
        return narrowed(LoadBalancerRequest(listeners=listeners, ipam="dhcp", network=wish.network))
    fixed = (ip_address(wish.fixed),) if wish.fixed else ()
    families: dict[str, Any] = {} if fixed and wish.families == "IPv6" else FAMILIES[wish.families]
    return LoadBalancerRequest(
        listeners=listeners, ip_pool=wish.ip_pool, network=wish.network, addresses=fixed, **families
    )


def machine(name: str, wish: Wish) -> LoadBalancer:
    """Return the load balancer of virtual machines of this name; it shares no addresses."""
    asked = request("a", replace(wish, primary=""))
    lb = vm(
        name,
        NAMESPACE,
        ipam=asked.ipam,
        ip_pool=asked.ip_pool,
        addresses=[str(a) for a in asked.addresses],
        ip_families=list(asked.ip_families),
        ip_family_policy=asked.ip_family_policy,
    )
    annotations = {NETWORK_ANNOTATION: asked.network} if asked.network else {}
    return msgspec.structs.replace(lb, metadata=msgspec.structs.replace(lb.metadata, annotations=annotations))


def pools() -> list[IPPool]:
    """The pools as they begin: on the management network ``p`` for all of the namespace and ``q`` for one tenant,
    ``r`` for everybody on the other network."""
    whole = Scope(project="*", namespace=NAMESPACE, guest_cluster="*")
    own = Scope(project="*", namespace=NAMESPACE, guest_cluster="blue")
    return [
        made("p", *EDITS["p"][0], scope=whole, priority=5),
        made("q", *EDITS["q"][0], scope=own, priority=1),
        made("r", *EDITS["r"][0], scope=EVERYBODY, network=VLAN),
    ]


def changed(pool: IPPool, **spec: Any) -> IPPool:
    """Return the pool with a part of its spec replaced."""
    return msgspec.structs.replace(pool, spec=msgspec.structs.replace(pool.spec, **spec))
