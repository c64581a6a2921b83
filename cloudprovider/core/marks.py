"""Every annotation, label and finalizer that is read or written here: on what, whose it is, what it says.

docs/reference is generated from it; a test finds those that are missing.
"""

from dataclasses import dataclass
from typing import Final, Literal

from cloudprovider.core import annotations as a
from cloudprovider.core.api import kubernetes as k
from cloudprovider.core.api import loadbalancer as lb
from cloudprovider.core.api.guestcluster import REBIND_ANNOTATION
from cloudprovider.core.api.pool import BLOCK_POOL_LABEL, MANUALLY_RELEASE_ANNOTATION
from cloudprovider.core.checkrules import MOST, Part
from cloudprovider.core.drain import TAKEN_OUT
from cloudprovider.core.exchange import HealthCheck
from cloudprovider.core.guestmachines import GUEST_CLUSTER_LABEL
from cloudprovider.core.hosts import INSTANCE_LABEL, NODE_ANNOTATION, STANDING_ANNOTATION
from cloudprovider.core.standing import WEIGHT_ANNOTATION
from cloudprovider.core.takeover import SERVICE_LABEL

Whose = Literal["Harvester", "ours", "Kubernetes", "kube-vip", "MetalLB", "Rancher", "cert-manager"]
Sort = Literal["annotation", "label", "finalizer"]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One of them. ``by``: who writes it; ``values`` and ``default`` as people write them."""

    name: str
    on: str
    whose: Whose
    text: str
    sort: Sort = "annotation"
    by: str = "its user"
    values: str = ""
    default: str = ""


def _check(name: str, whose: Whose, values: str, default: str, text: str) -> Mark:
    return Mark(name=a.HEALTHCHECK + name, on="Service", whose=whose, values=values, default=default, text=text)


def _number(name: str, part: Part, default: int, text: str) -> Mark:
    return _check(name, "Harvester", f"1 to {MOST[part]}", str(default), text)


_CHECK: Final = HealthCheck(port=1)
_ADDRESSES: Final = "an address, or one of each family with a comma between them"

SERVICE: Final = (
    Mark(
        name=a.IPAM,
        on="Service",
        whose="Harvester",
        values="`pool` (also `ippool`), `dhcp`",
        default="`pool`",
        text="where the address comes from",
    ),
    Mark(
        name=a.NETWORK,
        on="Service",
        whose="Harvester",
        values="`namespace/name`",
        default="the management network",
        text="the host's network that the address is to be of; a pool that is named may be of any",
    ),
    Mark(
        name=a.IP_POOL,
        on="Service",
        whose="ours",
        values="a pool's name",
        default="chosen",
        text="the pool to take it of",
    ),
    Mark(
        name=a.PROJECT,
        on="Service",
        whose="Harvester",
        values="`c-xxx/p-yyy`",
        default="the tenant's",
        text="scope by which a pool is chosen; here it can only narrow what the tenant has",
    ),
    Mark(
        name=a.NAMESPACE,
        on="Service",
        whose="Harvester",
        values="a namespace of the host",
        default="the tenant's",
        text="scope by which a pool is chosen; here it can only narrow what the tenant has",
    ),
    Mark(
        name=a.LOAD_BALANCER_IPS,
        on="Service",
        whose="ours",
        values=_ADDRESSES,
        default="any",
        text="a fixed address: this one or none; the same as `spec.loadBalancerIP`",
    ),
    Mark(
        name=a.PRIMARY_SERVICE,
        on="Service",
        whose="Harvester",
        values="`namespace/name`, or a name of the same namespace",
        default="an address of its own",
        text="the Service of the same cluster whose address it shares",
    ),
    Mark(
        name=a.MODE,
        on="Service",
        whose="ours",
        values="`auto`, `dsr`, `nat`",
        default="the GuestCluster's `defaultMode`",
        text="how it is forwarded: [dataplane.md](../dataplane.md)",
    ),
    Mark(
        name=a.DRAIN_SECONDS,
        on="Service",
        whose="ours",
        values=f"0 to {lb.MAX_DRAIN_SECONDS}",
        default=str(lb.DRAIN_SECONDS),
        text="seconds for which connections to a node that has left go on",
    ),
    _check(
        "port",
        "Harvester",
        f"1 to {MOST['port']}",
        "no check",
        "a TCP port of the Service, or another one of the nodes",
    ),
    _check("protocol", "ours", "`TCP`, `HTTP`, `HTTPS`, `GRPC`, `GRPCS`", "`TCP`", "what is asked"),
    _number("periodseconds", "period_seconds", _CHECK.period_seconds, "seconds from one check to the next"),
    _number("timeoutseconds", "timeout_seconds", _CHECK.timeout_seconds, "seconds for a whole check"),
    _number("success-threshold", "success_threshold", _CHECK.success_threshold, "successes in a row that bring it in"),
    _number("failure-threshold", "failure_threshold", _CHECK.failure_threshold, "failures in a row that take it out"),
    _check("path", "ours", "a path", "`/`", "HTTP, HTTPS"),
    _check("host", "ours", "a name or an address", "the node's address", "who is asked for; not with TCP"),
    _check("expected-codes", "ours", "up to 16 codes or ranges, with commas", "`200-399`", "HTTP, HTTPS"),
    _check("verify-certificate", "ours", "`true`, `false`", "`false`", "HTTPS, GRPCS"),
    _check("grpc-service", "ours", "a name", "the server as a whole", "GRPC, GRPCS"),
    _check(
        "failed-connections", "ours", "`Keep`, `Reset`", "`Keep`", "what becomes of connections to a node that fails"
    ),
    Mark(
        name=a.KUBE_VIP_ADDRESSES,
        on="Service",
        whose="kube-vip",
        values=f"{_ADDRESSES}; `0.0.0.0` asks for DHCP",
        default="any",
        text="a fixed address",
    ),
    Mark(
        name=a.KUBE_VIP_HOSTNAME,
        on="Service",
        whose="kube-vip",
        values="a host name",
        default="none",
        text="the name that the DHCP server is told",
    ),
    *(
        Mark(name=name, on="Service", whose="MetalLB", values=_ADDRESSES, default="any", text="a fixed address")
        for name in a.FIXED_ADDRESSES
        if name.startswith("metallb")
    ),
    Mark(
        name=a.SOURCE_RANGES,
        on="Service",
        whose="Kubernetes",
        values="CIDRs with commas",
        default="everybody",
        text="who may connect, where `spec.loadBalancerSourceRanges` is empty",
    ),
)

OTHERS: Final = (
    Mark(
        name=a.VIRTUAL_MACHINE,
        on="Node (guest)",
        whose="Harvester",
        by="Harvester's cloud provider",
        values="a machine's name",
        default="the Node's name",
        text="the virtual machine that the node is",
    ),
    *(
        Mark(
            name=name,
            on="Node (guest)",
            whose="Kubernetes",
            sort="label",
            by="its user, `kubectl lb drain`",
            values="any",
            text="nothing new is sent to the node",
        )
        for name in sorted(k.EXCLUDE_LABELS)
    ),
    Mark(
        name=lb.VIP_ON_LOOPBACK_ANNOTATION,
        on="VirtualMachineInstance",
        whose="ours",
        values="`true`",
        default="no",
        text="the machine carries its load balancers' addresses on its loopback: mode dsr is possible",
    ),
    Mark(
        name=TAKEN_OUT,
        on="VirtualMachineInstance",
        whose="ours",
        by="`kubectl lb drain`",
        values="`label=value`",
        text="the label that was taken away, so that no load balancer selects the machine",
    ),
    Mark(
        name=GUEST_CLUSTER_LABEL,
        on="VirtualMachineInstance",
        whose="Harvester",
        sort="label",
        by="Harvester, Rancher",
        values="a guest cluster's name",
        text="whose node the machine is",
    ),
    Mark(
        name=lb.NETWORK_ANNOTATION,
        on="LoadBalancer",
        whose="Harvester",
        by="its user; the bridge",
        values="`namespace/name`",
        default="the management network",
        text="the network that a pool is chosen for",
    ),
    *(
        Mark(
            name=name,
            on="LoadBalancer",
            whose="Harvester",
            by="its user; the bridge",
            values=values,
            text="scope by which a pool is chosen",
        )
        for name, values in (
            (lb.PROJECT_ANNOTATION, "`c-xxx/p-yyy`"),
            (lb.NAMESPACE_ANNOTATION, "a namespace"),
            (lb.CLUSTER_ANNOTATION, "a guest cluster's name"),
        )
    ),
    *(
        Mark(name=name, on="LoadBalancer", whose="Harvester", sort="label", by="the bridge", values=values, text=text)
        for name, values, text in (
            (lb.CLUSTER_LABEL, "a name", "the guest cluster that it is of"),
            (lb.SERVICE_NAMESPACE_LABEL, "a name", "the namespace of its Service there"),
            (lb.SERVICE_NAME_LABEL, "a name", "the name of its Service there"),
        )
    ),
    Mark(
        name=lb.FINALIZER,
        on="LoadBalancer",
        whose="ours",
        sort="finalizer",
        by="the host program",
        text="stays until its addresses are off the network and given back",
    ),
    Mark(
        name=k.SERVICE_FINALIZER,
        on="Service",
        whose="Kubernetes",
        sort="finalizer",
        by="the guest program",
        text="stays until the host has given its addresses back",
    ),
    Mark(
        name=MANUALLY_RELEASE_ANNOTATION,
        on="IPPool",
        whose="Harvester",
        by="an operator; taken away when heeded",
        values="`ADDRESS: namespace/load-balancer`",
        text="give back an address whose load balancer is gone",
    ),
    Mark(
        name=BLOCK_POOL_LABEL,
        on="IPBlock",
        whose="ours",
        sort="label",
        by="the host program",
        values="a pool's name",
        text="whose block it is",
    ),
    Mark(
        name=REBIND_ANNOTATION,
        on="GuestCluster",
        whose="ours",
        by="an operator; taken away when used",
        values="UID of the new cluster's kube-system, or `any`",
        text="let a rebuilt cluster take the tenant over",
    ),
    Mark(
        name="cloudprovider.harvesterhci.io/tenant",
        on="GuestCluster",
        whose="ours",
        sort="finalizer",
        by="the host program",
        text="stays until the grace is over and the tenant's load balancers are gone",
    ),
    Mark(
        name="cloudprovider.harvesterhci.io/holder-node",
        on="Lease",
        whose="ours",
        by="the host program",
        text="the node of the copy that leads: where the other hosts hear that no more, the next copy leads at once",
    ),
    Mark(
        name="cloudprovider.harvesterhci.io/holder-mark",
        on="Lease",
        whose="ours",
        by="the agents",
        text="what proves that the holder is dead, so that nobody waits for its Lease to run out",
    ),
    Mark(
        name=WEIGHT_ANNOTATION,
        on="Node (host)",
        whose="ours",
        values="0 to 100",
        default="1",
        text="the host's share of the load balancers, to the others'; 0: none, what it has goes to others",
    ),
    Mark(
        name=INSTANCE_LABEL,
        on="Lease",
        whose="ours",
        sort="label",
        by="the agents",
        text="the instance whose hosts know each other by it",
    ),
    Mark(name=NODE_ANNOTATION, on="Lease", whose="ours", by="the agents", text="the host whose agent says it"),
    Mark(
        name=STANDING_ANNOTATION,
        on="Lease",
        whose="ours",
        by="the agents",
        values="JSON",
        text="how the host stands on each network: its MAC, its addresses, whether it is ready",
    ),
    Mark(
        name=lb.TRACE_ANNOTATION,
        on="LoadBalancer",
        whose="ours",
        by="the host program",
        values="W3C traceparent",
        text="the trace that its last change belongs to; only where traces are on",
    ),
    Mark(
        name="cert-manager.io/certificate-name",
        on="Secret",
        whose="cert-manager",
        by="cert-manager",
        text="on a certificate of ours: cert-manager renews it, so our own renewal leaves it alone",
    ),
    Mark(
        name="field.cattle.io/projectId",
        on="Namespace (host)",
        whose="Rancher",
        by="Rancher",
        values="`c-xxx:p-yyy`",
        default="no project",
        text="the project of the namespace's tenants and load balancers, for pools' scopes",
    ),
    Mark(
        name=SERVICE_LABEL,
        on="Service (host)",
        whose="Harvester",
        sort="label",
        by="Harvester's controller",
        text="marks the Services by which kube-vip announced: `cloudprovider takeover` deletes them",
    ),
)
MARKS: Final = SERVICE + OTHERS
