"""From a guest's Service to what is asked of the host, or to precise sentences why not. Pure.

Read are the annotations of Harvester's cloud provider (prefix ``cloudprovider.harvesterhci.io/``) and ours under the
same prefix, the fixed addresses as kube-vip and MetalLB spell them, and Kubernetes' own fields. An annotation of the
prefix that nobody knows is refused, with the nearest known one (:mod:`cloudprovider.core.findings`); where the address
is to come from is read in :mod:`cloudprovider.core.addresswish`, how its nodes are checked in
:mod:`cloudprovider.core.checkwish`.

A Service that mixes protocols keeps the ports that can be served. KEP-1435 leaves that to the implementation; serving
them is what its users (DNS, SIP) want, and the other ports carry an error in ``status.loadBalancer.ingress[].ports``
(:func:`unserved_ports`). A Service none of whose ports can be served is refused as a whole.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network
from typing import Final, cast, get_args

from cloudprovider.core.addresswish import address_or_none, address_wish, families_of
from cloudprovider.core.annotations import DRAIN_SECONDS, MODE, PREFIX, SOURCE_RANGES
from cloudprovider.core.api.kubernetes import Endpoint, EndpointSlice, Service
from cloudprovider.core.api.loadbalancer import MAX_DRAIN_SECONDS, MAX_SOURCE_RANGES
from cloudprovider.core.checkwish import check_wish
from cloudprovider.core.combinations import contradictions, narrowed
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.exchange import (
    IPFamilyPolicy,
    Listener,
    LoadBalancerRequest,
    Mode,
    ServiceKey,
    TrafficPolicy,
)
from cloudprovider.core.findings import Findings, listed
from cloudprovider.core.plan import IPAddress, IPNetwork, L4Protocol

DEFAULT_CLASS: Final = PREFIX + "load-balancer"

SCTP_ERROR: Final = PREFIX + "SCTPNotSupported"
PROTOCOL_ERROR: Final = PREFIX + "ProtocolNotSupported"

_TRAFFIC_POLICIES: Final = get_args(TrafficPolicy)
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
        if ingress.ip and (address := address_or_none(ingress.ip)) is not None
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
    found = Findings(service)
    spec = service.spec
    found.unknown_annotations()
    families = families_of(found)
    wish = address_wish(found, families)
    local = found.one_of("spec.externalTrafficPolicy", spec.external_traffic_policy or "Cluster", _TRAFFIC_POLICIES)
    policy = found.one_of("spec.ipFamilyPolicy", spec.ip_family_policy or "SingleStack", _FAMILY_POLICIES)
    mode = _mode(found)
    request = LoadBalancerRequest(
        listeners=_listeners(found, mode),
        ipam=wish.ipam,
        ip_pool=wish.ip_pool,
        network=wish.network,
        scope_project=wish.scope_project,
        scope_namespace=wish.scope_namespace,
        addresses=wish.addresses,
        ip_families=families,
        ip_family_policy=cast("IPFamilyPolicy", policy),
        mode=mode,
        external_traffic_policy=cast("TrafficPolicy", local),
        endpoint_nodes=endpoint_nodes(service, slices) if local == "Local" else (),
        health_check_node_port=(spec.health_check_node_port or None) if local == "Local" else None,
        affinity_seconds=_affinity(found),
        sources=_sources(found),
        primary_service=wish.primary_service,
        dhcp_hostname=wish.dhcp_hostname,
        drain_seconds=_drain(found),
        health_check=check_wish(found),
    )
    violations = (*found.violations, *contradictions(service_key(service), request, wish.written))
    if violations:
        raise InvalidRequest(*violations)
    return narrowed(request)


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


def _mode(found: Findings) -> Mode | None:
    value = found.annotation(MODE)
    if not value:
        return None
    if value not in get_args(Mode):
        found.refuse_annotation(MODE, "UnsupportedValue", f'"{value}" is not one of {listed(get_args(Mode))}')
        return None
    return cast("Mode", value)


def _listeners(found: Findings, mode: Mode | None) -> tuple[Listener, ...]:
    unserved = unserved_ports(found.service)
    ports = found.service.spec.ports
    if not ports:
        found.refuse("spec.ports", "Required", "a load balancer needs at least one port")
    elif len(unserved) == len(ports):
        found.violations.extend(port.violation for port in unserved)
    listeners: list[Listener] = []
    for i, port in enumerate(ports):
        if port.protocol not in get_args(L4Protocol):
            continue
        for name, value, low in (("port", port.port, 1), ("nodePort", port.node_port, 0)):
            if not low <= value <= 65535:
                found.refuse(f"spec.ports[{i}].{name}", "OutOfRange", f"{value} is no port; use 1 to 65535")
        if mode == "nat" and not port.node_port:
            found.refuse(
                f"spec.ports[{i}].nodePort",
                "Required",
                "mode nat sends to node ports, and this port has none; set spec.allocateLoadBalancerNodePorts"
                f" to true, or the annotation {MODE} to dsr",
            )
        listeners.append(Listener(port.name, cast("L4Protocol", port.protocol), port.port, port.node_port or None))
    return tuple(listeners)


def _affinity(found: Findings) -> int | None:
    spec = found.service.spec
    affinity = spec.session_affinity or "None"
    found.one_of("spec.sessionAffinity", affinity, ("None", "ClientIP"))
    if affinity != "ClientIP":
        return None
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else 10800
    if not 1 <= seconds <= 86400:
        found.refuse("spec.sessionAffinityConfig.clientIP.timeoutSeconds", "OutOfRange", f"{seconds} is not 1 to 86400")
    return seconds


def _drain(found: Findings) -> int | None:
    value = found.annotation(DRAIN_SECONDS)
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 5 and int(value) <= MAX_DRAIN_SECONDS):
        found.refuse_annotation(DRAIN_SECONDS, "OutOfRange", f'"{value}" is not a number from 0 to {MAX_DRAIN_SECONDS}')
        return None
    return int(value)


def _sources(found: Findings) -> tuple[IPNetwork, ...]:
    """The field, else the annotation, as k8s.io/cloud-provider reads them (GetLoadBalancerSourceRanges)."""
    ranges = found.service.spec.load_balancer_source_ranges
    texts = {f"spec.loadBalancerSourceRanges[{i}]": text for i, text in enumerate(ranges)}
    if not ranges and (value := found.annotation(SOURCE_RANGES)):
        texts = {f"metadata.annotations[{SOURCE_RANGES}][{i}]": text for i, text in enumerate(value.split(","))}
    if len(texts) > MAX_SOURCE_RANGES:
        field = next(iter(texts)).removesuffix("[0]")
        found.refuse(field, "TooMany", f"{len(texts)} ranges; a load balancer takes at most {MAX_SOURCE_RANGES}")
        return ()
    networks: dict[IPNetwork, None] = {}
    for field, text in texts.items():
        try:
            if "/" not in text:
                raise ValueError(text)
            networks[ip_network(text.strip(), strict=False)] = None
        except ValueError:
            found.refuse(field, "MalformedValue", f'"{text.strip()}" is not a range; write it as 10.0.0.0/24')
    return tuple(networks)
