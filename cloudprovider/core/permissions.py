"""What our programs, and whoever runs ``kubectl lb``, must be allowed to do. The roles in ``manifests/`` say the same,
as a test sees to."""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from cloudprovider.core.api.bgp import PASSWORDS_SECRET
from cloudprovider.core.naming import (
    AGENT_PROGRAM,
    BRIDGE_SERVICE,
    CA_SECRET,
    GUEST_PROGRAM,
    GUEST_SECRET,
    HOST_PROGRAM,
    RENEWED_SECRET,
    SERVER_SECRET,
)

SYSTEM: Final = "cloudprovider-system"

_LB: Final = "loadbalancer.harvesterhci.io"
_OURS: Final = "cloudprovider.harvesterhci.io"


class Permission(msgspec.Struct, frozen=True, order=True):
    """Something that is to be allowed; ``namespace`` empty: in all; ``name`` empty: whatever the object's name."""

    verb: str
    group: str
    resource: str
    namespace: str = ""
    name: str = ""

    @property
    def text(self) -> str:
        """As ``kubectl auth can-i`` takes it."""
        kind = f"{self.resource}.{self.group}" if self.group else self.resource
        named = f"{kind}/{self.name}" if self.name else kind
        return f"{self.verb} {named}" + (f" in {self.namespace}" if self.namespace else "")


OF_OPERATORS: Final[tuple[Permission, ...]] = (
    Permission("list", _LB, "loadbalancers"),
    Permission("list", _LB, "ippools"),
    Permission("list", _LB, "ipblocks"),
    Permission("list", _OURS, "guestclusters"),
    Permission("list", _OURS, "bgppeers"),
    Permission("list", _OURS, "bgpadvertisements"),
    Permission("list", "coordination.k8s.io", "leases", SYSTEM),
)
OF_GUEST_USERS: Final[tuple[Permission, ...]] = (
    Permission("list", "", "services"),
    Permission("list", "", "nodes"),
    Permission("list", "discovery.k8s.io", "endpointslices"),
    Permission("list", "coordination.k8s.io", "leases", SYSTEM),
)
"""What ``kubectl lb`` reads; without one of them it says less."""


def _each(verbs: str, group: str, *resources: str, namespace: str = "", name: str = "") -> Iterator[Permission]:
    for resource in resources:
        for verb in verbs.split():
            yield Permission(verb, group, resource, namespace, name)


OF_PROGRAMS: Final[Mapping[str, tuple[Permission, ...]]] = {
    HOST_PROGRAM: (
        *_each("get list watch create patch delete", _LB, "loadbalancers"),
        *_each("list watch patch", _LB, "ippools"),
        *_each("get list watch create update", _LB, "ipblocks"),
        *_each("patch", _LB, "loadbalancers/status", "ippools/status"),
        *_each("list watch patch", _OURS, "guestclusters"),
        *_each("patch", _OURS, "guestclusters/status"),
        *_each("list watch", "", "namespaces", "nodes"),
        *_each("list watch", "kubevirt.io", "virtualmachineinstances"),
        *_each("create", "", "events"),
        *_each(
            "get patch",
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
            name="cloudprovider-admission",
        ),
        *_each("get", "apps", "deployments", name="harvester-load-balancer"),
        *_each("get", "", "services", namespace=SYSTEM, name=BRIDGE_SERVICE),
        *_each("list create patch delete", "discovery.k8s.io", "endpointslices", namespace=SYSTEM),
        *_each("delete", "", "endpoints", namespace=SYSTEM, name=BRIDGE_SERVICE),
        *_each("get list watch create update", "coordination.k8s.io", "leases", namespace=SYSTEM),
        *_each("get patch", "", "secrets", namespace=SYSTEM, name="cloudprovider-webhook-tls"),
        *_each("get patch", "", "secrets", namespace=SYSTEM, name=SERVER_SECRET),
        *_each("get", "", "secrets", namespace=SYSTEM, name=CA_SECRET),
    ),
    AGENT_PROGRAM: (
        *_each("list watch", _LB, "loadbalancers"),
        *_each("patch", _LB, "loadbalancers/status"),
        *_each("list watch", _OURS, "guestclusters"),
        *_each("patch", _OURS, "guestclusters/status"),
        *_each("list watch", _OURS, "bgppeers", "bgpadvertisements"),
        *_each("patch", _OURS, "bgppeers/status", "bgpadvertisements/status"),
        *_each("list watch", _LB, "ippools"),
        *_each("list watch", "", "nodes"),
        *_each("get", "", "secrets", namespace=SYSTEM, name=PASSWORDS_SECRET),
        *_each("get", "k8s.cni.cncf.io", "network-attachment-definitions"),
        *_each("create", "", "events"),
        *_each("get list watch create update delete", "coordination.k8s.io", "leases", namespace=SYSTEM),
    ),
    GUEST_PROGRAM: (
        *_each("list watch patch", "", "services"),
        *_each("patch", "", "services/status"),
        *_each("list watch", "", "nodes"),
        *_each("list watch", "discovery.k8s.io", "endpointslices"),
        *_each("get", "", "namespaces", name="kube-system"),
        *_each("create", "", "events"),
        *_each("get create update", "coordination.k8s.io", "leases", namespace=SYSTEM),
        *_each("get", "", "secrets", namespace=SYSTEM, name=GUEST_SECRET),
        *_each("get patch", "", "secrets", namespace=SYSTEM, name=RENEWED_SECRET),
    ),
}
"""By account, which is named as the program; in the namespace SYSTEM."""


def program_of(user: str) -> str:
    """Return which of our programs' accounts a user is; empty: none."""
    name = user.removeprefix(f"system:serviceaccount:{SYSTEM}:")
    return name if name != user and name in OF_PROGRAMS else ""
