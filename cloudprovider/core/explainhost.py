"""A load balancer explained on the host, from what its object, its tenant, the pools and the Leases say."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Final

from cloudprovider.core.addressing import is_ours
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.kubernetes import Lease
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.api.meta import Condition
from cloudprovider.core.api.pool import IPBlock
from cloudprovider.core.backends import passes, why_none
from cloudprovider.core.checks import NOT_CHECKED
from cloudprovider.core.conditions import find
from cloudprovider.core.lbobject import service_of
from cloudprovider.core.ledger import Ledger
from cloudprovider.core.naming import AGENT_PROGRAM, HOST_PROGRAM
from cloudprovider.core.overview import Count, health_of
from cloudprovider.core.standing import OWNED
from cloudprovider.core.steps import Explanation, Name, State, Step, explanation, running, step_of, todo_of

_ORDER: Final[tuple[Name, ...]] = (
    *("read", "accepted", "pool", "address", "holder", "programmed", "announced", "backends", "shown"),
)


@dataclass(frozen=True, kw_only=True)
class HostView:
    """What can be seen of it. None: may not be read; ``cluster`` None: there is none."""

    lb: LoadBalancer
    now: datetime
    leases: Sequence[Lease] | None = None
    cluster: GuestCluster | None = None
    tenants_known: bool = True
    blocks: Sequence[IPBlock] | None = None


def explain_load_balancer(view: HostView) -> Explanation:
    """Return each step, as far as it can be seen from the host."""
    return explanation("LoadBalancer", view.lb.key, list(_steps(view)))


def _steps(view: HostView) -> Iterator[Step]:
    lb = view.lb
    if not is_ours(lb):
        message = "another cloud provider made this object: its addresses are kept, nothing is forwarded for it"
        todo = "run cloudprovider guest in that cluster, then delete this object: its Service keeps its address"
        yield Step(name="read", state="wrong", message=message, reason="ForeignOwner", todo=todo)
        yield from (Step(name=name, state="waiting") for name in _ORDER[1:])
        return
    yield _read(view)
    yield _accepted(view)
    allocated = find(lb.status.conditions, "Allocated")
    yield from _allocation(view, allocated)
    if not lb.status.addresses:
        yield from (Step(name=name, state="waiting") for name in _ORDER[4:7])
    else:
        yield from _forwarding(view)
    yield _backends(view)
    yield _shown(view)


def _read(view: HostView) -> Step:
    if view.lb.metadata.deletion_timestamp:
        message = f"it is being deleted since {view.lb.metadata.deletion_timestamp}; its address is given back first"
        return Step(name="read", state="waiting", message=message, todo="nothing, while a host still withdraws it")
    state, message = running(HOST_PROGRAM, view.leases, view.now)
    if state == "wrong":
        todo = "kubectl -n cloudprovider-system get pods,leases; what is forwarded goes on meanwhile"
        return Step(name="read", state=state, message=message, reason="NotRunning", todo=todo)
    return Step(name="read", state=state, message=message)


def _accepted(view: HostView) -> Step:
    found = service_of(view.lb)
    if found is None:
        return Step(name="accepted", state="ok", message="for virtual machines of its namespace")
    tenant, service = found
    whose = f"for the Service {service.path} of the guest cluster {tenant.path}"
    if not view.tenants_known:
        return Step(name="accepted", state="unknown", message=f"{whose}, whose GuestCluster can't be read")
    if view.cluster is None:
        todo = "apply its GuestCluster, or delete this object if the cluster is gone"
        message = f"{whose}, which has no GuestCluster on this host"
        return Step(name="accepted", state="wrong", message=message, reason="UnknownTenant", todo=todo)
    if view.cluster.metadata.deletion_timestamp:
        message = f"{whose}, whose GuestCluster is being deleted: it goes with it, after the grace time"
        return Step(name="accepted", state="waiting", message=message, reason="TenantTerminating")
    return Step(name="accepted", state="ok", message=whose)


def _allocation(view: HostView, said: Condition | None) -> Iterator[Step]:
    lb = view.lb
    if said is None and not lb.status.addresses:
        yield Step(name="pool", state="waiting", message="the host program has not decided yet")
        yield Step(name="address", state="waiting")
        return
    wrong = said is not None and said.status == "False"
    if said is not None and wrong and step_of(said.reason, "address") == "pool":
        yield _of("pool", "wrong", said)
        yield Step(name="address", state="waiting")
        return
    pools = sorted({a.ip_pool for a in lb.status.addresses if a.ip_pool})
    if lb.spec.ipam == "dhcp":
        yield Step(name="pool", state="ok", message="none: the network's DHCP server gives the address")
    else:
        yield Step(name="pool", state="ok", message=", ".join(pools) or lb.spec.ip_pool)
    if said is not None and (wrong or said.reason in ("Moving", "AddressKept")):
        yield _of("address", "wrong" if wrong else "waiting", said)
        return
    yield _recorded(view)


def _recorded(view: HostView) -> Step:
    """The block is the truth; the status shows it."""
    lb = view.lb
    given = ", ".join(a.ip for a in lb.status.addresses)
    if view.blocks is None:
        return Step(name="address", state="ok", message=given)
    ledger = Ledger()
    for block in view.blocks:
        with suppress(ValueError):  # none of ours by its name: it counts for nothing
            ledger.load(block)
    for address in lb.status.addresses:
        owners = ledger.owners_of(address.ip_pool, ip_address(address.ip)) if address.ip_pool else None
        if owners is not None and "/".join(lb.key) not in owners:
            whose = f"belongs to {', '.join(owners)}" if owners else "belongs to nobody"
            message = f"{given}, but by the IPBlocks of the pool {address.ip_pool} {address.ip} {whose}"
            todo = "restart the host program if this stays for a minute: it compares both at its start"
            return Step(name="address", state="wrong", message=message, reason="NotRecorded", todo=todo)
    return Step(name="address", state="ok", message=given)


def _forwarding(view: HostView) -> Iterator[Step]:
    """Holder, programmed, announced."""
    lb, holder = view.lb, view.lb.status.holder
    programmed = find(lb.status.conditions, "Programmed")
    if (owned := find(lb.status.conditions, OWNED)) is not None and owned.status == "False":
        yield _of("holder", "wrong", owned)
        yield Step(name="programmed", state="waiting")
        yield Step(name="announced", state="waiting")
        return
    if holder is None and programmed is None:
        state, message = running(AGENT_PROGRAM, view.leases, view.now)
        if state == "wrong":
            todo = "kubectl -n cloudprovider-system get pods,leases"
            yield Step(name="holder", state="wrong", message=message, reason="NotRunning", todo=todo)
        else:
            yield Step(name="holder", state="waiting", message=f"no agent has taken it up yet; {message}")
        yield Step(name="programmed", state="waiting")
        yield Step(name="announced", state="waiting")
        return
    wrong = programmed is not None and programmed.status == "False"
    name = step_of(programmed.reason, "programmed") if programmed is not None and wrong else None
    yield _holder(view)
    if programmed is not None and name == "announced":
        yield Step(name="programmed", state="ok", message="the rules are in the kernel")
        yield _of("announced", "wrong", programmed)
        return
    if programmed is not None and wrong:
        yield _of("programmed", "wrong", programmed)
        yield Step(name="announced", state="waiting")
        return
    if holder is not None and holder.generation < lb.metadata.generation:
        message = f"by generation {holder.generation}, the object is at {lb.metadata.generation}"
        yield Step(name="programmed", state="waiting", message=message, todo="nothing, unless it stays")
    else:
        yield Step(name="programmed", state="ok", message=f"mode {holder.mode}" if holder and holder.mode else "")
    up = [] if holder is None else holder.addresses
    missing = [a.ip for a in lb.status.addresses if a.ip not in up]
    if missing:
        yield Step(name="announced", state="waiting", message=f"{', '.join(missing)} is not up yet")
    else:
        yield Step(name="announced", state="ok", message=", ".join(up))


def _holder(view: HostView) -> Step:
    holder = view.lb.status.holder
    if holder is None:
        return Step(name="holder", state="waiting", message="no host has an address of it up")
    state, message = running(AGENT_PROGRAM, view.leases, view.now, node=holder.node)
    if state == "wrong":
        todo = "start the agent; traffic goes on as long as that host runs"
        message = f"{holder.node}, but {message}"
        return Step(name="holder", state="wrong", message=message, reason="NotRunning", todo=todo)
    older = f"; older connections go on by {holder.before}" if holder.before else ""
    return Step(name="holder", state="ok", message=f"{holder.node}{older}")


def _backends(view: HostView) -> Step:
    lb = view.lb
    counted = health_of(lb, view.cluster) if view.tenants_known else Count()
    ready = find(lb.status.conditions, "Ready")
    if (problem := why_none(lb)) is not None:
        reason = problem.reason
        return Step(
            name="backends", state="wrong", message=problem.message, reason=reason, todo=todo_of(reason, "backends")
        )
    if ready is not None and ready.status == "False" and step_of(ready.reason, "read") == "backends":
        return _of("backends", "wrong", ready)
    if not counted.known:
        return Step(name="backends", state="unknown", message="the guest's nodes can't be read")
    what = "node" if lb.spec.workload_type == "cluster" else "machine"
    if counted.healthy == 0:
        message = f"no {what} takes traffic, connections are refused"
        return Step(name="backends", state="wrong", message=message, reason="NoNodes", todo=todo_of("NoNodes"))
    few = counted.healthy < counted.total
    out = "; ".join(f"{name}: {why.rstrip('.')}" for name, why in _out(view))
    message = f"{counted.healthy} of {counted.total} {what}s take traffic"
    return Step(name="backends", state="ok", message=f"{message} (out: {out})" if few and out else message)


def _out(view: HostView) -> Iterator[tuple[str, str]]:
    """The backends that take no traffic, and why: by what they are, by their check, or by the node probes."""
    found = {}
    if view.cluster is not None:
        found = {n.name: n.health.message for n in view.cluster.status.node_health if not n.health.healthy}
    for b in view.lb.status.backends:
        if b.reason or not passes(view.lb, b.health):
            found[b.name] = b.message or (NOT_CHECKED if b.health is None else b.health.message) or "its check fails"
    yield from sorted(found.items())


def _shown(view: HostView) -> Step:
    lb = view.lb
    if service_of(lb) is None:
        if not lb.status.addresses:
            return Step(name="shown", state="waiting", message="no address yet")
        return Step(name="shown", state="ok", message="kubectl get lb shows the address")
    if lb.status.holder is None or not lb.status.addresses:
        return Step(name="shown", state="waiting", message="the guest is told once the address is up")
    if view.cluster is None or not view.cluster.status.last_seen_time:
        return Step(name="shown", state="unknown", message="the guest is told as soon as it listens")
    seen = view.cluster.status.last_seen_time
    return Step(name="shown", state="ok", message=f"the guest, last seen {seen}, is told {lb.status.address}")


def _of(name: Name, state: State, said: Condition) -> Step:
    return Step(name=name, state=state, message=said.message, reason=said.reason, todo=todo_of(said.reason, name))
