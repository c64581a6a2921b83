"""Where a Service wants its address from: a pool, a DHCP server, another Service; or which one it is to be. Pure."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, cast, get_args

from cloudprovider.core import patterns
from cloudprovider.core.annotations import (
    FIXED_ADDRESSES,
    IP_POOL,
    IPAM,
    KUBE_VIP_ADDRESSES,
    KUBE_VIP_HOSTNAME,
    NAMESPACE,
    NETWORK,
    PRIMARY_SERVICE,
    PROJECT,
)
from cloudprovider.core.combinations import Part, Written
from cloudprovider.core.exchange import Ipam, IPFamily
from cloudprovider.core.findings import Findings, annotation_field, listed
from cloudprovider.core.plan import IPAddress

_FAMILIES: Final = get_args(IPFamily)
_IPAMS: Final[dict[str, Ipam]] = {"pool": "pool", "ippool": "pool", "dhcp": "dhcp"}

_LOAD_BALANCER_IP: Final = "spec.loadBalancerIP"
_ZERO_IS_DHCP: Final = frozenset({_LOAD_BALANCER_IP, annotation_field(KUBE_VIP_ADDRESSES)})
"""Where 0.0.0.0 asks for DHCP, as with kube-vip."""


@dataclass(frozen=True, kw_only=True)
class AddressWish:
    """The parts of a LoadBalancerRequest that decide on the address, and where the Service says them."""

    ipam: Ipam
    ip_pool: str
    network: str
    scope_project: str
    scope_namespace: str
    addresses: tuple[IPAddress, ...]
    primary_service: str
    dhcp_hostname: str
    written: Written


@dataclass
class _Fixed:
    """What is said about addresses: by each field, and which of them ask for DHCP by 0.0.0.0."""

    asked: dict[str, tuple[IPAddress, ...]] = field(default_factory=dict)
    zeros: list[str] = field(default_factory=list)


def address_wish(found: Findings, families: tuple[IPFamily, ...]) -> AddressWish:
    """Read where the Service wants its address from; ``families`` are those that it asks for."""
    fixed = _fixed(found, families)
    ipam = _ipam(found, fixed.zeros)
    written: dict[Part, list[str]] = defaultdict(list)
    names: tuple[tuple[Part, str], ...] = (
        ("ipam", IPAM),
        ("ip_pool", IP_POOL),
        ("network", NETWORK),
        ("scope_project", PROJECT),
        ("scope_namespace", NAMESPACE),
        ("primary_service", PRIMARY_SERVICE),
    )
    for part, name in names:
        if found.annotation(name):
            written[part].append(annotation_field(name))
    written["ipam"].extend(fixed.zeros)
    written["addresses"].extend(fixed.asked)
    return AddressWish(
        ipam=ipam,
        ip_pool=found.matching(IP_POOL, patterns.SUBDOMAIN, "the name of an IPPool of the host"),
        network=found.matching(NETWORK, patterns.NETWORK, '"namespace/name" of a network of the host'),
        scope_project=found.matching(PROJECT, patterns.PROJECT, 'a project as "c-xxx/p-yyy"'),
        scope_namespace=found.matching(NAMESPACE, patterns.LABEL, "the name of a namespace"),
        addresses=_agreed(found, fixed.asked),
        primary_service=_primary(found),
        dhcp_hostname=_hostname(found) if ipam == "dhcp" else "",
        written=written,
    )


def families_of(found: Findings) -> tuple[IPFamily, ...]:
    """Read the families that the Service asks for, the first one first."""
    families = found.service.spec.ip_families
    for i, family in enumerate(families):
        found.one_of(f"spec.ipFamilies[{i}]", family, _FAMILIES)
    return tuple(cast("IPFamily", family) for family in families)


def address_or_none(text: str) -> IPAddress | None:
    """Return the address that ``text`` is; one with a zone (fe80::1%eth0) is none to others."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return None if address.version == 6 and address.scope_id else address


def _ipam(found: Findings, zeros: Iterable[str]) -> Ipam:
    value = found.annotation(IPAM)
    if value and value not in _IPAMS:
        found.refuse_annotation(IPAM, "UnsupportedValue", f'"{value}" is not one of {listed(get_args(Ipam))}')
    said = _IPAMS.get(value)
    if said == "pool":
        for where in zeros:
            found.refuse(
                where,
                "Conflict",
                f"0.0.0.0 asks for DHCP, but the annotation {IPAM} for a pool; say the same, or only one",
            )
    return said or ("dhcp" if zeros else "pool")


def _primary(found: Findings) -> str:
    """The Service whose address is to be shared: "namespace/name"."""
    value = found.annotation(PRIMARY_SERVICE)
    if not value:
        return ""
    path = value if "/" in value else f"{found.service.metadata.namespace}/{value}"
    if not patterns.SERVICE.fullmatch(path):
        found.refuse_annotation(
            PRIMARY_SERVICE,
            "MalformedValue",
            f'"{value}" is not "namespace/name" of a Service of this cluster, nor the name of one in this namespace',
        )
        return ""
    return path


def _hostname(found: Findings) -> str:
    return found.matching(
        KUBE_VIP_HOSTNAME,
        patterns.HOSTNAME,
        "a host name (RFC 1123): labels of letters, digits and hyphens with dots between them, at most 63 characters a"
        " label and 253 in all",
    )


def _fixed(found: Findings, families: tuple[IPFamily, ...]) -> _Fixed:
    texts = {_LOAD_BALANCER_IP: found.service.spec.load_balancer_ip.strip()}
    texts |= {annotation_field(name): found.annotation(name) for name in FIXED_ADDRESSES}
    fixed = _Fixed()
    for where, text in texts.items():
        parts = [part.strip() for part in text.split(",")] if text else []
        if where in _ZERO_IS_DHCP and "0.0.0.0" in parts:  # noqa: S104 - nothing is bound to it
            fixed.zeros.append(where)
            parts = [part for part in parts if part != "0.0.0.0"]  # noqa: S104
        if parts:
            fixed.asked[where] = _addresses(found, where, parts, families)
    return fixed


def _addresses(
    found: Findings, where: str, parts: Iterable[str], families: tuple[IPFamily, ...]
) -> tuple[IPAddress, ...]:
    addresses: list[IPAddress] = []
    for part in parts:
        address = address_or_none(part)
        if address is None:
            found.refuse(where, "MalformedValue", f'"{part}" is not an IP address')
        elif address.is_unspecified:
            found.refuse(
                where, "InvalidValue", f"{part} is no address; for DHCP, set the annotation {IPAM} to dhcp instead"
            )
        elif address.is_multicast or address.is_loopback or address.is_link_local:
            found.refuse(where, "InvalidValue", f"{part} can't be the address of a load balancer")
        elif any(address.version == other.version for other in addresses):
            found.refuse(where, "TooMany", f"{part} is a second address of its family; ask for one a family")
        elif families and f"IPv{address.version}" not in families:
            found.refuse(
                where,
                "FamilyMismatch",
                f"{part} is an IPv{address.version} address, but spec.ipFamilies is {listed(families)}",
            )
        else:
            addresses.append(address)
    return tuple(addresses)


def _agreed(found: Findings, asked: dict[str, tuple[IPAddress, ...]]) -> tuple[IPAddress, ...]:
    """The addresses that all fields ask for, in the order of the first one."""
    first, *others = asked.items() or [("", ())]
    for where, addresses in others:
        if set(addresses) != set(first[1]):
            found.refuse(
                where,
                "Conflict",
                f"asks for {_texts(addresses)}, but {first[0]} for {_texts(first[1])}; say the same, or only one",
            )
    return first[1]


def _texts(addresses: Iterable[IPAddress]) -> str:
    return ", ".join(map(str, addresses)) or "nothing that is an address"
