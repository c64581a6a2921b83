"""From a guest's Service to what is asked of the host, or to precise sentences why not. Pure.

Read are the annotations of Harvester's cloud provider (prefix ``cloudprovider.harvesterhci.io/``) and ours under the
same prefix, the fixed addresses as kube-vip and MetalLB spell them, and Kubernetes' own fields. An annotation of the
prefix that nobody knows is refused, with the nearest known one: a typing error must not silently mean "default".

A Service that mixes protocols keeps the ports that can be served. KEP-1435 leaves that to the implementation; serving
them is what its users (DNS, SIP) want, and the other ports carry an error in ``status.loadBalancer.ingress[].ports``
(:func:`unserved_ports`). A Service none of whose ports can be served is refused as a whole.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Final, cast, get_args

from cloudprovider.core.api.kubernetes import Endpoint, EndpointSlice, Service
from cloudprovider.core.api.loadbalancer import MAX_SOURCE_RANGES
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.exchange import (
    Ipam,
    IPFamily,
    IPFamilyPolicy,
    Listener,
    LoadBalancerRequest,
    Mode,
    ServiceKey,
    TrafficPolicy,
)
from cloudprovider.core.plan import IPAddress, IPNetwork, L4Protocol

PREFIX: Final = "cloudprovider.harvesterhci.io/"
DEFAULT_CLASS: Final = "cloudprovider.harvesterhci.io/load-balancer"

IPAM: Final = PREFIX + "ipam"
NETWORK: Final = PREFIX + "network"
PROJECT: Final = PREFIX + "project"
NAMESPACE: Final = PREFIX + "namespace"
IP_POOL: Final = PREFIX + "ip-pool"
MODE: Final = PREFIX + "mode"
PRIMARY_SERVICE: Final = PREFIX + "primary-service"
HEALTH_CHECKS: Final = tuple(
    f"{PREFIX}healthcheck-{name}"
    for name in ("port", "success-threshold", "failure-threshold", "periodseconds", "timeoutseconds")
)

FIXED_ADDRESSES: Final = (
    "kube-vip.io/loadbalancerIPs",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
)
SOURCE_RANGES: Final = "service.beta.kubernetes.io/load-balancer-source-ranges"

KNOWN: Final = frozenset(
    {IPAM, NETWORK, PROJECT, NAMESPACE, IP_POOL, MODE, PRIMARY_SERVICE, *HEALTH_CHECKS},
)

SCTP_ERROR: Final = PREFIX + "SCTPNotSupported"
PROTOCOL_ERROR: Final = PREFIX + "ProtocolNotSupported"

_LABEL: Final = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_LABEL_PATTERN: Final = re.compile(_LABEL)
_SUBDOMAIN_PATTERN: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*")
_NETWORK_PATTERN: Final = re.compile(rf"{_LABEL}/(?=.{{1,63}}\Z){_LABEL}(\.{_LABEL})*")
_PROJECT_PATTERN: Final = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,62}/[A-Za-z0-9][-A-Za-z0-9_.]{0,62}")

_TRAFFIC_POLICIES: Final = get_args(TrafficPolicy)
_FAMILIES: Final = get_args(IPFamily)
_FAMILY_POLICIES: Final = get_args(IPFamilyPolicy)


class Claim(Enum):
    """Whether a Service wants a load balancer, and whether from us."""

    OURS = "ours"
    """Type LoadBalancer, with our class, or without one where we are the default."""
    FOREIGN = "foreign"
    """Type LoadBalancer, for somebody else: left alone."""
    NONE = "none"
    """Another type."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Which Services are ours: those of ``own`` class, and where ``default`` is set those without a class as well
    (only once the cluster's other service controller is off)."""

    own: str = DEFAULT_CLASS
    default: bool = False

    def claim(self, service: Service) -> Claim:
        """Tell whose ``service`` is. Its deletion is no matter here."""
        if service.spec.type != "LoadBalancer":
            return Claim.NONE
        wanted = service.spec.load_balancer_class
        return Claim.OURS if wanted == self.own or (not wanted and self.default) else Claim.FOREIGN


@dataclass(frozen=True, kw_only=True)
class UnservedPort:
    """A port that is left out. ``error`` is for ``ingress[].ports[].error`` ("domain/CamelCase")."""

    port: int
    protocol: str
    error: str
    violation: Violation


def service_key(service: Service) -> ServiceKey:
    """Return the Service's identity."""
    meta = service.metadata
    return ServiceKey(meta.namespace, meta.name, meta.uid)


def shown_addresses(service: Service) -> tuple[IPAddress, ...]:
    """Return the addresses in the Service's status, in their order."""
    return tuple(
        address
        for ingress in service.status.load_balancer.ingress
        if ingress.ip and (address := _address_or_none(ingress.ip)) is not None
    )


def unserved_ports(service: Service) -> tuple[UnservedPort, ...]:
    """Return the ports whose protocol no load balancer of ours can serve."""
    return tuple(
        UnservedPort(
            port=port.port,
            protocol=port.protocol,
            error=SCTP_ERROR if port.protocol == "SCTP" else PROTOCOL_ERROR,
            violation=Violation(
                field=f"spec.ports[{i}].protocol",
                reason="UnsupportedProtocol",
                message=f"{port.protocol} is not offered, port {port.port} is not served; use TCP or UDP,"
                " or put this port into a Service of another type",
            ),
        )
        for i, port in enumerate(service.spec.ports)
        if port.protocol not in get_args(L4Protocol)
    )


def translate(service: Service, slices: Iterable[EndpointSlice] = ()) -> LoadBalancerRequest:
    """Say what to ask of the host for ``service``.

    ``slices`` are the Service's EndpointSlices; they are read for policy Local only.

    Raises:
        InvalidRequest: with every violation there is, not just the first.
    """
    found = _Findings(service)
    spec = service.spec
    found.unknown_annotations()
    found.not_yet()
    families = found.families()
    addresses = found.fixed_addresses(families)
    local = found.one_of("spec.externalTrafficPolicy", spec.external_traffic_policy or "Cluster", _TRAFFIC_POLICIES)
    policy = found.one_of("spec.ipFamilyPolicy", spec.ip_family_policy or "SingleStack", _FAMILY_POLICIES)
    mode = found.mode()
    request = LoadBalancerRequest(
        listeners=found.listeners(mode),
        ipam=found.ipam(),
        ip_pool=found.matching(IP_POOL, _SUBDOMAIN_PATTERN, "the name of an IPPool of the host"),
        network=found.matching(NETWORK, _NETWORK_PATTERN, '"namespace/name" of a network of the host'),
        scope_project=found.matching(PROJECT, _PROJECT_PATTERN, 'a project as "c-xxx/p-yyy"'),
        scope_namespace=found.matching(NAMESPACE, _LABEL_PATTERN, "the name of a namespace"),
        addresses=addresses,
        ip_families=families,
        ip_family_policy=cast("IPFamilyPolicy", policy),
        mode=mode,
        external_traffic_policy=cast("TrafficPolicy", local),
        endpoint_nodes=endpoint_nodes(service, slices) if local == "Local" else (),
        health_check_node_port=(spec.health_check_node_port or None) if local == "Local" else None,
        affinity_seconds=found.affinity(),
        sources=found.sources(),
    )
    if found.violations:
        raise InvalidRequest(*found.violations)
    return request


def endpoint_nodes(service: Service, slices: Iterable[EndpointSlice]) -> tuple[str, ...]:
    """Return the names of the nodes with endpoints to send to, sorted.

    As kube-proxy does (KEP-1669): the nodes with a ready endpoint; where there is none at all, those whose endpoints
    terminate but still serve, so that a rolling update or a drained node loses no connection. With
    ``publishNotReadyAddresses`` a slice calls endpoints ready that are not, and that is what the user wants.
    """
    endpoints = [e for s in slices for e in s.endpoints or () if e.node_name]
    publish = service.spec.publish_not_ready_addresses
    ready = {e.node_name for e in endpoints if _ready(e, publish=publish)}
    return tuple(sorted(ready or {e.node_name for e in endpoints if _serving_to_the_end(e)}))


def _ready(endpoint: Endpoint, *, publish: bool) -> bool:
    conditions = endpoint.conditions
    return conditions.ready is not False and (publish or not conditions.terminating)


def _serving_to_the_end(endpoint: Endpoint) -> bool:
    conditions = endpoint.conditions
    return conditions.serving is not False and conditions.terminating is True


class _Findings:
    """Reads one Service and gathers what is wrong with it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.violations: list[Violation] = []

    def annotation(self, name: str) -> str:
        return self.service.metadata.annotations.get(name, "").strip()

    def refuse(self, field: str, reason: str, message: str) -> None:
        self.violations.append(Violation(field=field, reason=reason, message=message))

    def refuse_annotation(self, name: str, reason: str, message: str) -> None:
        self.refuse(f"metadata.annotations[{name}]", reason, message)

    def unknown_annotations(self) -> None:
        for name in sorted(self.service.metadata.annotations):
            if name.startswith(PREFIX) and name not in KNOWN:
                own = {known.removeprefix(PREFIX): known for known in KNOWN}
                near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), own, n=1, cutoff=0.0)
                self.refuse_annotation(
                    name, "UnknownAnnotation", f"there is no such annotation; did you mean {own[near[0]]}?"
                )

    def not_yet(self) -> None:
        for name in (PRIMARY_SERVICE, *HEALTH_CHECKS):
            if name in self.service.metadata.annotations:
                what = "sharing an address" if name == PRIMARY_SERVICE else "a health check of the user's own"
                self.refuse_annotation(
                    name, "NotSupported", f"this version does not have {what} yet; remove the annotation"
                )

    def one_of(self, field: str, value: str, allowed: tuple[str, ...]) -> str:
        if value not in allowed:
            self.refuse(field, "UnsupportedValue", f'"{value}" is not one of {_listed(allowed)}')
        return value

    def matching(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        value = self.annotation(name)
        if value and not pattern.fullmatch(value):
            self.refuse_annotation(name, "MalformedValue", f'"{value}" is not {what}')
            return ""
        return value

    def ipam(self) -> Ipam:
        value = self.annotation(IPAM)
        if value == "dhcp":
            self.refuse_annotation(
                IPAM, "NotSupported", "this version does not have DHCP yet; use pool, or remove the annotation"
            )
        elif value not in {"", "pool", "ippool"}:
            self.refuse_annotation(IPAM, "UnsupportedValue", f'"{value}" is not one of "pool", "dhcp"')
        return "pool"

    def mode(self) -> Mode | None:
        value = self.annotation(MODE)
        if not value:
            return None
        if value not in get_args(Mode):
            self.refuse_annotation(MODE, "UnsupportedValue", f'"{value}" is not one of {_listed(get_args(Mode))}')
            return None
        return cast("Mode", value)

    def listeners(self, mode: Mode | None) -> tuple[Listener, ...]:
        unserved = unserved_ports(self.service)
        ports = self.service.spec.ports
        if not ports:
            self.refuse("spec.ports", "Required", "a load balancer needs at least one port")
        elif len(unserved) == len(ports):
            self.violations.extend(port.violation for port in unserved)
        listeners: list[Listener] = []
        for i, port in enumerate(ports):
            if port.protocol not in get_args(L4Protocol):
                continue
            for name, value, low in (("port", port.port, 1), ("nodePort", port.node_port, 0)):
                if not low <= value <= 65535:
                    self.refuse(f"spec.ports[{i}].{name}", "OutOfRange", f"{value} is no port; use 1 to 65535")
            if mode == "nat" and not port.node_port:
                self.refuse(
                    f"spec.ports[{i}].nodePort",
                    "Required",
                    "mode nat sends to node ports, and this port has none; set spec.allocateLoadBalancerNodePorts"
                    f" to true, or the annotation {MODE} to dsr",
                )
            listeners.append(Listener(port.name, cast("L4Protocol", port.protocol), port.port, port.node_port or None))
        return tuple(listeners)

    def families(self) -> tuple[IPFamily, ...]:
        families = self.service.spec.ip_families
        for i, family in enumerate(families):
            self.one_of(f"spec.ipFamilies[{i}]", family, _FAMILIES)
        return tuple(cast("IPFamily", family) for family in families)

    def fixed_addresses(self, families: tuple[IPFamily, ...]) -> tuple[IPAddress, ...]:
        asked: dict[str, tuple[IPAddress, ...]] = {}
        texts = {f"metadata.annotations[{name}]": self.annotation(name) for name in FIXED_ADDRESSES}
        for field, text in {"spec.loadBalancerIP": self.service.spec.load_balancer_ip.strip(), **texts}.items():
            if text:
                asked[field] = self._addresses(field, text, families)
        first, *others = asked.items() or [("", ())]
        for field, addresses in others:
            if set(addresses) != set(first[1]):
                self.refuse(
                    field,
                    "Conflict",
                    f"asks for {_texts(addresses)}, but {first[0]} for {_texts(first[1])}; say the same, or only one",
                )
        return first[1]

    def _addresses(self, field: str, text: str, families: tuple[IPFamily, ...]) -> tuple[IPAddress, ...]:
        addresses: list[IPAddress] = []
        for part in (p.strip() for p in text.split(",")):
            address = _address_or_none(part)
            if address is None:
                self.refuse(field, "MalformedValue", f'"{part}" is not an IP address')
            elif address.is_unspecified:
                self.refuse(
                    field, "NotSupported", f"{part} asks for DHCP, which this version does not have; name an address"
                )
            elif address.is_multicast or address.is_loopback or address.is_link_local:
                self.refuse(field, "InvalidValue", f"{part} can't be the address of a load balancer")
            elif any(address.version == other.version for other in addresses):
                self.refuse(field, "TooMany", f"{part} is a second address of its family; ask for one a family")
            elif families and f"IPv{address.version}" not in families:
                self.refuse(
                    field,
                    "FamilyMismatch",
                    f"{part} is an IPv{address.version} address, but spec.ipFamilies is {_listed(families)}",
                )
            else:
                addresses.append(address)
        return tuple(addresses)

    def affinity(self) -> int | None:
        spec = self.service.spec
        affinity = spec.session_affinity or "None"
        self.one_of("spec.sessionAffinity", affinity, ("None", "ClientIP"))
        if affinity != "ClientIP":
            return None
        config = spec.session_affinity_config
        seconds = config.client_ip.timeout_seconds if config and config.client_ip else 10800
        if not 1 <= seconds <= 86400:
            self.refuse(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds", "OutOfRange", f"{seconds} is not 1 to 86400"
            )
        return seconds

    def sources(self) -> tuple[IPNetwork, ...]:
        """The field, else the annotation, as k8s.io/cloud-provider reads them (GetLoadBalancerSourceRanges)."""
        ranges = self.service.spec.load_balancer_source_ranges
        texts = {f"spec.loadBalancerSourceRanges[{i}]": text for i, text in enumerate(ranges)}
        if not ranges and (value := self.annotation(SOURCE_RANGES)):
            texts = {f"metadata.annotations[{SOURCE_RANGES}][{i}]": text for i, text in enumerate(value.split(","))}
        if len(texts) > MAX_SOURCE_RANGES:
            field = next(iter(texts)).removesuffix("[0]")
            self.refuse(field, "TooMany", f"{len(texts)} ranges; a load balancer takes at most {MAX_SOURCE_RANGES}")
            return ()
        networks: dict[IPNetwork, None] = {}
        for field, text in texts.items():
            try:
                if "/" not in text:
                    raise ValueError(text)
                networks[ip_network(text.strip(), strict=False)] = None
            except ValueError:
                self.refuse(field, "MalformedValue", f'"{text.strip()}" is not a range; write it as 10.0.0.0/24')
        return tuple(networks)


def _address_or_none(text: str) -> IPAddress | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return None if address.version == 6 and address.scope_id else address


def _listed(values: Iterable[str]) -> str:
    return ", ".join(f'"{v}"' for v in values)


def _texts(addresses: Iterable[IPAddress]) -> str:
    return ", ".join(map(str, addresses)) or "nothing that is an address"
