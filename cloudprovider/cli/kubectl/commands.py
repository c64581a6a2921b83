"""What each command reads, and what it finds; nothing is printed here."""

import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import aiohttp
import msgspec

from cloudprovider.cli.kubectl.session import SYSTEM, NothingThere, Refused, Session, sentence
from cloudprovider.core.api.guestcluster import GuestCluster
from cloudprovider.core.api.loadbalancer import CLUSTER_LABEL
from cloudprovider.core.drain import Drain, drain_machine, drain_node
from cloudprovider.core.errors import KubeError
from cloudprovider.core.explainguest import GuestView, explain_service
from cloudprovider.core.explainhost import HostView, explain_load_balancer
from cloudprovider.core.naming import AGENT_PROGRAM
from cloudprovider.core.overview import Row, guest_rows, host_rows
from cloudprovider.core.poolmap import PoolMap, pool_maps
from cloudprovider.core.steps import Explanation
from cloudprovider.core.trace import Trace, counters_of, parse_target, trace
from cloudprovider.kube.api import Resource
from cloudprovider.kube.resources import (
    ENDPOINTSLICES,
    GUESTCLUSTERS,
    IPBLOCKS,
    IPPOOLS,
    LEASES,
    LOADBALANCERS,
    NODES,
    PODS,
    SERVICES,
    VIRTUAL_MACHINE_INSTANCES,
)

AGENT_PORT: Final = 8083
_METRICS_SECONDS: Final = 3.0


async def overview(session: Session, *, asked: bool) -> list[Row]:
    """All load balancers that the user may see. ``asked``: a namespace was named, or all."""
    if session.side == "guest":
        services = await (session.all if asked else session.widest)(SERVICES, "Services")
        nodes = await session.seen(NODES, "nodes")
        local = any(s.spec.external_traffic_policy == "Local" for s in services)
        slices = await session.seen(ENDPOINTSLICES, "endpoints") if local else None
        return guest_rows(services, nodes, slices, session.now)
    balancers = await (session.all if asked else session.widest)(LOADBALANCERS, "load balancers")
    return host_rows(balancers, await _clusters(session))


async def explain(session: Session, name: str) -> Explanation:
    """Each step of one load balancer. Raises NothingThere."""
    namespace, name = session.key(name)
    if session.side == "guest":
        service = await session.one(SERVICES, namespace, name)
        return explain_service(
            GuestView(
                service=service,
                now=session.now,
                leases=await session.seen(LEASES, "the guest program", namespace=SYSTEM),
                nodes=await session.seen(NODES, "nodes"),
                slices=await session.seen(ENDPOINTSLICES, "endpoints", namespace=namespace),
            )
        )
    lb = await session.one(LOADBALANCERS, namespace, name)
    clusters = await session.seen(GUESTCLUSTERS, "guest clusters", namespace=namespace)
    cluster = lb.metadata.labels.get(CLUSTER_LABEL, "")
    return explain_load_balancer(
        HostView(
            lb=lb,
            now=session.now,
            leases=await session.seen(LEASES, "the programs", namespace=SYSTEM),
            cluster=next((c for c in clusters or () if c.metadata.name == cluster), None),
            tenants_known=clusters is not None,
            blocks=await session.seen(IPBLOCKS, "the pools' blocks"),
        )
    )


async def pools(session: Session, names: Sequence[str]) -> list[PoolMap]:
    """The pools drawn. Raises NothingThere where a named one does not exist."""
    _only_host(session, "pools")
    found = await session.all(IPPOOLS, "pools")
    blocks = await session.seen(IPBLOCKS, "the pools' blocks")
    maps = pool_maps(found, blocks)
    if missing := sorted(set(names) - {m.name for m in maps}):
        raise NothingThere(f"there is no pool {missing[0]}; kubectl lb pools shows all")
    return [m for m in maps if not names or m.name in names]


async def traced(session: Session, text: str) -> list[Trace]:
    """What there is at an address and port, with the counters of its host's agent."""
    _only_host(session, "trace")
    target = parse_target(text)
    balancers = await (session.all if session.everywhere else session.widest)(LOADBALANCERS, "load balancers")
    blocks = await session.seen(IPBLOCKS, "the pools' blocks")
    found = trace(target, balancers, await _clusters(session), blocks)
    return [await _counted(session, one) if one.host else one for one in found]


async def drain(session: Session, name: str, *, back: bool, dry_run: bool) -> Drain:
    """Take a node of a guest, or a virtual machine, out of all load balancers; ``back``: put it back.

    Raises NothingThere, Impossible, Refused.
    """
    if session.side == "guest":
        node = await session.one(NODES, "", name.removeprefix("node/"))
        plan, seen = drain_node(node, back=back), node.metadata
    else:
        machine = await session.one(VIRTUAL_MACHINE_INSTANCES, *session.key(name))
        seen = machine.metadata
        balancers = await session.all(LOADBALANCERS, "load balancers", namespace=seen.namespace)
        plan = drain_machine(machine, balancers, back=back)
    if plan.patch is not None:
        # Only of what was looked at: a label of somebody else's doing is not to be lost.
        patch = {"metadata": {**plan.patch, "resourceVersion": seen.resource_version}}
        resource: Resource[Any] = NODES if session.side == "guest" else VIRTUAL_MACHINE_INSTANCES
        try:
            await session.cluster.merge_patch(resource, plan.namespace, plan.name, patch, dry_run=dry_run)
        except KubeError as error:
            raise Refused(sentence(error, f"patch {resource.plural}", plan.namespace or None)) from error
    return plan


def _only_host(session: Session, command: str) -> None:
    if session.side == "guest":
        raise Refused(
            f"kubectl lb {command} works on the host: this cluster has no load balancer objects; choose the host's with"
            " --context"
        )


async def _clusters(session: Session) -> Mapping[tuple[str, str], GuestCluster] | None:
    found = await session.seen(GUESTCLUSTERS, "guest clusters' nodes")
    return None if found is None else {c.key: c for c in found}


async def _counted(session: Session, found: Trace) -> Trace:
    """The same with what its host's agent has counted, or why that can't be seen."""
    text, why = await _metrics(session, found.host)
    counters = counters_of(text, found.network, found.owner)
    if text and counters is None:
        why = "nothing yet"
    return msgspec.structs.replace(found, counters=counters, uncounted=why if counters is None else "")


async def _metrics(session: Session, host: str) -> tuple[str, str]:
    """The metrics of a host's agent, or why they can't be had: it listens on loopback, unless it is told otherwise."""
    pods = await session.seen(PODS, "the agents' pods", namespace=SYSTEM)
    mine = [p for p in pods or () if p.spec.node_name == host and p.metadata.name.startswith(AGENT_PROGRAM)]
    async with session.progress.doing(f"asking the agent on {host}"):
        for pod in mine:
            path = f"/api/v1/namespaces/{SYSTEM}/pods/{pod.metadata.name}:{AGENT_PORT}/proxy/metrics"
            with suppress(KubeError):
                return (await session.cluster.read(path)).body.decode(), ""
        if host == socket.gethostname():
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                return await _own_metrics(), ""
    return "", f"the agent's counters can't be reached from here; on {host}: curl 127.0.0.1:{AGENT_PORT}/metrics"


async def _own_metrics() -> str:
    timeout = aiohttp.ClientTimeout(total=_METRICS_SECONDS)
    async with (
        aiohttp.ClientSession(timeout=timeout) as http,
        http.get(f"http://127.0.0.1:{AGENT_PORT}/metrics") as answer,
    ):
        return await answer.text()
