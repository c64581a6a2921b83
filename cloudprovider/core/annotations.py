"""The annotations that are read on a guest's Service: Harvester's and ours, and what others spell their own way."""

from typing import Final

PREFIX: Final = "cloudprovider.harvesterhci.io/"

IPAM: Final = PREFIX + "ipam"
NETWORK: Final = PREFIX + "network"
PROJECT: Final = PREFIX + "project"
NAMESPACE: Final = PREFIX + "namespace"
IP_POOL: Final = PREFIX + "ip-pool"
LOAD_BALANCER_IPS: Final = PREFIX + "load-balancer-ips"
MODE: Final = PREFIX + "mode"
PRIMARY_SERVICE: Final = PREFIX + "primary-service"
DRAIN_SECONDS: Final = PREFIX + "drain-seconds"
HEALTHCHECK: Final = PREFIX + "healthcheck-"
HEALTH_CHECKS: Final = tuple(
    HEALTHCHECK + name
    for name in (
        *("port", "success-threshold", "failure-threshold", "periodseconds", "timeoutseconds"),  # Harvester's
        *("protocol", "path", "host", "expected-codes", "verify-certificate", "grpc-service", "failed-connections"),
    )
)

KNOWN: Final = frozenset(
    {
        IPAM,
        NETWORK,
        PROJECT,
        NAMESPACE,
        IP_POOL,
        LOAD_BALANCER_IPS,
        MODE,
        PRIMARY_SERVICE,
        DRAIN_SECONDS,
        *HEALTH_CHECKS,
    }
)
"""All of our prefix."""

VIRTUAL_MACHINE: Final = PREFIX + "vm-name-of-guest-cluster-node"
"""On a Node, not on a Service: the virtual machine that it is. Harvester's cloud provider writes it."""

KUBE_VIP_ADDRESSES: Final = "kube-vip.io/loadbalancerIPs"
KUBE_VIP_HOSTNAME: Final = "kube-vip.io/loadbalancerHostname"
"""Host name for the DHCP server, where the address is by DHCP (kube-vip/kube-vip#664)."""

FIXED_ADDRESSES: Final = (
    LOAD_BALANCER_IPS,
    KUBE_VIP_ADDRESSES,
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
)
"""Each a list of addresses with commas between them, one a family."""

SOURCE_RANGES: Final = "service.beta.kubernetes.io/load-balancer-source-ranges"

_OF_OTHERS: Final = frozenset({*FIXED_ADDRESSES, KUBE_VIP_HOSTNAME, SOURCE_RANGES})


def is_read(name: str) -> bool:
    """Whether an annotation says something here."""
    return name.startswith(PREFIX) or name in _OF_OTHERS
