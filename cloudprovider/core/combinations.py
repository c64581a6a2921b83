"""What can't be asked for together: who gives the address decides what else a request may say. Pure.

The same rules are held against a Service as its user wrote it, and against what came over the bridge.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, Literal

from cloudprovider.core.errors import Violation
from cloudprovider.core.exchange import LoadBalancerRequest, ServiceKey

Part = Literal["ipam", "ip_pool", "network", "scope_project", "scope_namespace", "addresses", "primary_service"]
"""A field of LoadBalancerRequest that decides on the address."""
Written = Mapping[Part, Sequence[str]]
"""Where each part is said: the fields as their author knows them; a part that is not said is not there."""

_THE_PRIMARYS: Final[tuple[Part, ...]] = (
    "ipam",
    "ip_pool",
    "network",
    "scope_project",
    "scope_namespace",
    "addresses",
)
_THE_SERVERS: Final[tuple[Part, ...]] = ("ip_pool", "addresses")

NOT_WITH_DHCP: Final = "NotWithDHCP"
NOT_WITH_PRIMARY: Final = "NotWithPrimaryService"
PRIMARY_IS_ITSELF: Final = "PrimaryIsItself"


def contradictions(service: ServiceKey, request: LoadBalancerRequest, written: Written) -> Iterator[Violation]:
    """Return what of ``request`` can't stand together, each where it is ``written``."""
    if request.primary_service:
        yield from _with_primary(service, request.primary_service, written)
    elif request.ipam == "dhcp":
        yield from _with_dhcp(request, written)


def _with_primary(service: ServiceKey, primary: str, written: Written) -> Iterator[Violation]:
    if primary == service.path:
        for field in written.get("primary_service", ()):
            message = f"{primary} is this Service itself: name the one whose address it is to share, or remove this"
            yield Violation(field=field, reason=PRIMARY_IS_ITSELF, message=message)
        return
    message = f"the address is the one of the Service {primary}: remove this here, or set it on {primary}"
    for part in _THE_PRIMARYS:
        for field in written.get(part, ()):
            yield Violation(field=field, reason=NOT_WITH_PRIMARY, message=message)


def _with_dhcp(request: LoadBalancerRequest, written: Written) -> Iterator[Violation]:
    if request.ip_family_policy == "RequireDualStack":
        yield Violation(
            field="spec.ipFamilyPolicy",
            reason=NOT_WITH_DHCP,
            message="DHCP here is IPv4 only, so RequireDualStack can't be met: use SingleStack or PreferDualStack, or"
            " do without DHCP",
        )
    elif "IPv6" in request.ip_families and not _ipv4_will_do(request):
        yield Violation(
            field="spec.ipFamilies",
            reason=NOT_WITH_DHCP,
            message="DHCP here is IPv4 only: ask for IPv4 alone, or do without DHCP",
        )
    message = "the DHCP server chooses the address: remove this, or do without DHCP"
    for part in _THE_SERVERS:
        for field in written.get(part, ()):
            yield Violation(field=field, reason=NOT_WITH_DHCP, message=message)


def narrowed(request: LoadBalancerRequest) -> LoadBalancerRequest:
    """Return ``request`` as it can be served: one by DHCP that prefers two families is one for IPv4 alone.

    Done on both sides of the bridge, so that the host's object never waits for a family that DHCP does not have.
    """
    if request.ipam == "dhcp" and _ipv4_will_do(request):
        return replace(request, ip_families=("IPv4",), ip_family_policy="SingleStack")
    return request


def _ipv4_will_do(request: LoadBalancerRequest) -> bool:
    """Whether a request that may get two families can be served by IPv4 alone."""
    return request.ip_family_policy == "PreferDualStack" and (not request.ip_families or "IPv4" in request.ip_families)
