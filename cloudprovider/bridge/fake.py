"""The host in memory, for tests: a backend as strict as the real one.

:class:`MemoryBackend` keeps the rules of ``docs/development.md``: it binds cluster UIDs, checks bounds, refuses stale
leaders, deletes by inventory only what a complete one lacks, gives an address from a range, and lets it go only when
it is told that the address is free. Whoever tests says when a load balancer is programmed and when it is gone, or
lets both happen at once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_network

from cloudprovider.bridge.api import (
    Hello,
    IssuedCertificate,
    PeerCertificate,
    QuotaExceeded,
    Reason,
    TenantPolicy,
    Welcome,
)
from cloudprovider.bridge.authority import Authority, renew
from cloudprovider.bridge.statelog import StateLog
from cloudprovider.core.errors import (
    BridgeError,
    NotPermitted,
    Violation,
)
from cloudprovider.core.exchange import (
    GivenAddress,
    Inventory,
    InventoryResult,
    LoadBalancerRequest,
    LoadBalancerState,
    RejectedNode,
    ReportedNode,
    ServiceKey,
    StateCondition,
    Tenant,
)
from cloudprovider.core.plan import IPAddress, IPNetwork

MAX_REMOVED_SHARE = 0.2
"""An inventory that would remove more than this share, and more than MAX_REMOVED, waits for a second one."""
MAX_REMOVED = 10


@dataclass(frozen=True, kw_only=True)
class MemoryTenant:
    """A GuestCluster: its policy and bounds."""

    policy: TenantPolicy = field(default_factory=TenantPolicy)
    load_balancers: int = 10_000
    ports: int = 250
    source_ranges: int = 250
    node_cidrs: tuple[IPNetwork, ...] = (ip_network("0.0.0.0/0"), ip_network("::/0"))
    pools: tuple[str, ...] = ("default",)
    rebind: str = ""
    terminating: bool = False


@dataclass
class _LoadBalancer:
    request: LoadBalancerRequest
    address: IPAddress
    deleting: bool = False


class MemoryBackend:
    """A TenantBackend without a cluster. ``automatic``: programmed, and gone, as soon as it is asked for."""

    def __init__(self, *, automatic: bool = True, network: IPNetwork | None = None) -> None:
        self.automatic = automatic
        self.tenants: dict[Tenant, MemoryTenant] = {}
        self.load_balancers: dict[tuple[Tenant, ServiceKey], _LoadBalancer] = {}
        self.nodes: dict[Tenant, tuple[ReportedNode, ...]] = {}
        self.taken: set[tuple[Tenant, str, str]] = set()
        """(tenant, namespace, name) whose host object's name belongs to something else."""
        self.failure: Exception | None = None
        """Raised by every call while set."""
        self.calls: list[str] = []
        self.traces: dict[str, str] = {}
        """The trace that the last call of each kind came with."""
        self.authority: Authority | None = None
        """The tenants' CA; without it no certificate is renewed."""
        self.shown: dict[Tenant, PeerCertificate] = {}
        """The certificate that each tenant has last connected with."""
        self._addresses = (network or ip_network("192.0.2.0/24")).hosts()
        self._free: list[IPAddress] = []
        self._used: set[IPAddress] = set()
        self._counts: Counter[Tenant] = Counter()
        self._logs: dict[Tenant, StateLog] = {}
        self._inventories: dict[Tenant, tuple[int, frozenset[ServiceKey]]] = {}
        self._listeners: list[Callable[[Tenant], None]] = []

    def set_tenant(self, tenant: Tenant, value: MemoryTenant | None) -> None:
        """Create, change or (None) remove a tenant, as an operator would."""
        if value is None:
            self.tenants.pop(tenant, None)
        else:
            self.tenants[tenant] = value
        for listener in list(self._listeners):
            listener(tenant)

    def policy(self, tenant: Tenant) -> TenantPolicy | None:
        """See TenantBackend."""
        found = self.tenants.get(tenant)
        return found.policy if found else None

    def on_policy_change(self, listener: Callable[[Tenant], None]) -> Callable[[], None]:
        """See TenantBackend."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def states(self, tenant: Tenant) -> StateLog:
        """See TenantBackend."""
        return self._logs.setdefault(tenant, StateLog())

    async def connect(self, tenant: Tenant, hello: Hello, certificate: PeerCertificate | None = None) -> Welcome:
        """See TenantBackend."""
        found = self._begin("connect", tenant)
        if certificate is not None:
            self.shown[tenant] = certificate
        bound = found.policy.cluster_uid
        if bound and bound != hello.cluster_uid:
            if found.rebind not in {hello.cluster_uid, "any"}:
                raise BridgeError(
                    f"GuestCluster {tenant.path} belongs to another cluster (kube-system UID {bound})",
                    reason=Reason.CLUSTER_MISMATCH,
                    retryable=False,
                )
            bound = ""
        if not bound:
            policy = replace(found.policy, cluster_uid=hello.cluster_uid)
            self.set_tenant(tenant, replace(found, policy=policy, rebind=""))
        return Welcome(host_version="0", tenant=tenant, max_ports=found.ports)

    async def renew_certificate(self, certificate: PeerCertificate, request: bytes) -> IssuedCertificate:
        """See TenantBackend."""
        found = self._begin("renew_certificate", certificate.tenant)
        return renew(
            self.authority, certificate, request, now=datetime.now(UTC), not_before=found.policy.revoked_before
        )

    async def ensure(
        self,
        tenant: Tenant,
        service: ServiceKey,
        request: LoadBalancerRequest,
        shown_addresses: tuple[IPAddress, ...],
        *,
        trace: str = "",
    ) -> LoadBalancerState:
        """See TenantBackend."""
        self.traces["ensure"] = trace
        found = self._begin("ensure", tenant)
        self._check(found, request)
        if (tenant, service.namespace, service.name) in self.taken:
            raise BridgeError(
                f"the host's object for Service {service.path} belongs to something else",
                reason=Reason.IDENTITY_MISMATCH,
                retryable=False,
            )
        have = self.load_balancers.get((tenant, service))
        if have is not None and have.deleting:
            raise BridgeError(f"the load balancer of {service.path} is being deleted", reason=Reason.UNAVAILABLE)
        if have is None:
            if self._counts[tenant] >= found.load_balancers:
                raise QuotaExceeded(
                    f"the tenant has {found.load_balancers} load balancers, its limit",
                    subject="loadBalancers",
                    retry_after=30.0,
                )
            have = _LoadBalancer(request, self._take(request, shown_addresses))
            self.load_balancers[(tenant, service)] = have
            self._counts[tenant] += 1
            self._used.add(have.address)
        have.request = request
        log = self.states(tenant)
        if service not in log.states:
            log.publish(self._state(service, have, programmed=False))
        if self.automatic:
            self.program(tenant, service)
        return log.states[service]

    async def delete(self, tenant: Tenant, service: ServiceKey, *, trace: str = "") -> None:
        """See TenantBackend."""
        self.traces["delete"] = trace
        self._begin("delete", tenant)
        self._mark(tenant, service)

    async def report_nodes(self, tenant: Tenant, nodes: Sequence[ReportedNode]) -> Sequence[RejectedNode]:
        """See TenantBackend."""
        found = self._begin("report_nodes", tenant)
        rejected: list[RejectedNode] = []
        accepted: list[ReportedNode] = []
        for node in nodes:
            inside = tuple(a for a in node.addresses if any(a in n for n in found.node_cidrs if n.version == a.version))
            rejected += [
                RejectedNode(node.name, str(a), "OutsideNodeCIDRs", f"{a} is outside the cluster's node networks")
                for a in node.addresses
                if a not in inside
            ]
            if inside:
                accepted.append(replace(node, addresses=inside))
        self.nodes[tenant] = tuple(accepted)
        return rejected

    async def report_inventory(self, tenant: Tenant, inventory: Inventory) -> InventoryResult:
        """See TenantBackend."""
        self._begin("report_inventory", tenant)
        token, held = self._inventories.get(tenant, (0, frozenset()))
        if inventory.fencing_token < token:
            raise BridgeError(
                f"the inventory is of leader {inventory.fencing_token}, there has been leader {token}",
                reason=Reason.STALE_LEADER,
                retryable=False,
            )
        self._inventories[tenant] = (inventory.fencing_token, held)
        if not inventory.complete:
            return InventoryResult()
        mine = {s for (t, s), lb in self.load_balancers.items() if t == tenant and not lb.deleting}
        surplus = frozenset(mine - {item.service for item in inventory.items})
        many = len(surplus) > max(MAX_REMOVED, MAX_REMOVED_SHARE * len(mine))
        if many and not surplus <= held:
            self._inventories[tenant] = (inventory.fencing_token, surplus)
            return InventoryResult(held_back=len(surplus))
        self._inventories[tenant] = (inventory.fencing_token, frozenset())
        for service in surplus:
            self._mark(tenant, service)
        return InventoryResult(deleted=tuple(sorted(surplus)))

    def program(self, tenant: Tenant, service: ServiceKey) -> None:
        """Let the host have programmed a load balancer: its address may be published."""
        self.states(tenant).publish(self._state(service, self.load_balancers[(tenant, service)], programmed=True))

    def fail(self, tenant: Tenant, service: ServiceKey, reason: str, message: str) -> None:
        """Let the host not be able to give an address."""
        conditions = tuple(StateCondition(kind, "False", reason, message) for kind in ("Allocated", "Ready"))
        self.states(tenant).publish(LoadBalancerState(service=service, conditions=conditions))

    def release(self, tenant: Tenant, service: ServiceKey) -> None:
        """Let the host have given back the address of a load balancer marked for deletion."""
        gone = self.load_balancers.pop((tenant, service))
        self._counts[tenant] -= 1
        self._used.discard(gone.address)
        self._free.append(gone.address)
        self.states(tenant).remove(service)

    def _begin(self, call: str, tenant: Tenant) -> MemoryTenant:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure
        found = self.tenants.get(tenant)
        if found is None:
            raise BridgeError(f"there is no GuestCluster {tenant.path}", reason=Reason.UNKNOWN_TENANT, retryable=False)
        if found.terminating and call in {"connect", "ensure"}:
            raise BridgeError(f"GuestCluster {tenant.path} is being deleted", reason=Reason.TENANT_TERMINATING)
        return found

    def _check(self, tenant: MemoryTenant, request: LoadBalancerRequest) -> None:
        violations = [
            Violation(field=field_name, reason="TooMany", message=f"{count} are more than the {limit} allowed")
            for field_name, count, limit in (
                ("spec.ports", len(request.listeners), tenant.ports),
                ("spec.loadBalancerSourceRanges", len(request.sources), tenant.source_ranges),
            )
            if count > limit
        ]
        if request.ip_pool and request.ip_pool not in tenant.pools:
            violations.append(
                Violation(
                    field="metadata.annotations[cloudprovider.harvesterhci.io/ip-pool]",
                    reason="PoolNotPermitted",
                    message=f"pool {request.ip_pool!r} is not open to this cluster, but {', '.join(tenant.pools)}",
                )
            )
        if violations:
            raise NotPermitted(*violations)

    def _take(self, request: LoadBalancerRequest, shown: tuple[IPAddress, ...]) -> IPAddress:
        for wanted in (*request.addresses, *shown):
            if wanted not in self._used:
                return wanted
        while self._free:
            address = self._free.pop()
            if address not in self._used:
                return address
        return next(a for a in self._addresses if a not in self._used)

    def _mark(self, tenant: Tenant, service: ServiceKey) -> None:
        have = self.load_balancers.get((tenant, service))
        if have is None:
            self.states(tenant).remove(service)
            return
        have.deleting = True
        if self.automatic:
            self.release(tenant, service)

    @staticmethod
    def _state(service: ServiceKey, lb: _LoadBalancer, *, programmed: bool) -> LoadBalancerState:
        given = StateCondition("Allocated", "True", "Allocated", f"{lb.address} from pool default")
        if not programmed:
            return LoadBalancerState(service=service, conditions=(given,), host_object=f"fake/{service.name}")
        return LoadBalancerState(
            service=service,
            addresses=(GivenAddress(lb.address, "default"),),
            conditions=(
                given,
                StateCondition("Programmed", "True", "Programmed", "forwarding"),
                StateCondition("Ready", "True", "Ready", f"forwarding {lb.address}"),
            ),
            host_object=f"fake/{service.name}",
            mode="nat",
        )
