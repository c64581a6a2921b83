"""Situations that ``kubectl lb`` is asked in; what it prints in each stands in ``printed/NAME.txt``."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from cloudprovider.cli.kubectl.session import SYSTEM
from cloudprovider.core.api.apps import Pod, PodSpec
from cloudprovider.core.api.kubernetes import ServicePort
from cloudprovider.core.api.loadbalancer import Address, Holder, LoadBalancer
from cloudprovider.core.api.meta import Condition, ObjectMeta
from cloudprovider.core.api.pool import IPBlock, IPPoolStatus, Range
from cloudprovider.core.errors import Forbidden
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import (
    GUESTCLUSTERS,
    IPBLOCKS,
    IPPOOLS,
    LEASES,
    LOADBALANCERS,
    NODES,
    PODS,
    VIRTUAL_MACHINE_INSTANCES,
)
from tests.cli.kubectl import scene
from tests.cli.kubectl.scene import DNS_OBJECT, GOOD, WEB, WEB_OBJECT, Scene, condition, service

AGENT_METRICS = "# TYPE cloudprovider_agent_client_packets_total counter\n" + "".join(
    f'cloudprovider_agent_client_{what}_total{{network="{network}",load_balancer="{WEB_OBJECT}"}} {float(number)}\n'
    for what, network, number in (
        ("packets", "default/vlan8", 1200),
        ("bytes", "default/vlan8", 98765),
        ("packets", "management", 1),
    )
)


@dataclass(frozen=True)
class Situation:
    """``scene`` and ``arguments``; ``width`` of the terminal, if it is one."""

    scene: Callable[[], Scene]
    arguments: str
    width: int | None = None
    color: bool = False
    code: int = 0


def web(**status: object) -> Callable[[], Scene]:
    """The host with another state of the first load balancer."""

    def made() -> Scene:
        found = scene.host()
        lb = scene.guest_balancer(WEB, 80, 443, address="10.0.8.100", mode="dsr")
        found.add(LOADBALANCERS, scene.patched(lb, **status))
        return found

    return made


def web_is(change: Callable[[LoadBalancer], LoadBalancer]) -> Callable[[], Scene]:
    def made() -> Scene:
        found = scene.host()
        found.add(LOADBALANCERS, change(scene.guest_balancer(WEB, 80, 443, address="10.0.8.100", mode="dsr")))
        return found

    return made


def without(*kinds: str) -> Callable[[], Scene]:
    """The host for somebody who may not read these kinds."""

    def made() -> Scene:
        found = scene.host()

        async def before(call: Call) -> None:
            if call.resource in kinds:
                raise Forbidden(f"{call.verb} {call.resource}: forbidden", status=403)

        found.cluster.before = before
        return found

    return made


def with_lease(name: str, holder: str, ago: int) -> Callable[[], Scene]:
    def made() -> Scene:
        found = scene.host()
        found.add(LEASES, scene.lease(name, holder, ago))
        return found

    return made


def nobody_runs() -> Scene:
    found = web(holder=None, conditions=[condition("Allocated")])()
    for number in (1, 2):
        found.add(LEASES, scene.lease(f"cloudprovider-agent-default-host-{number}", ""))
    return found


def no_tenant() -> Scene:
    found = scene.host()
    del found.cluster._objects[(GUESTCLUSTERS.group, GUESTCLUSTERS.plural)]
    return found


def stock(lb: LoadBalancer) -> LoadBalancer:
    return msgspec.structs.replace(lb, spec=msgspec.structs.replace(lb.spec, service=None))


def deleted(lb: LoadBalancer) -> LoadBalancer:
    meta = msgspec.structs.replace(lb.metadata, deletion_timestamp="2026-01-01T11:59:00Z", finalizers=["x/y"])
    return msgspec.structs.replace(lb, metadata=meta)


def waiting_for_lease(lb: LoadBalancer) -> LoadBalancer:
    message = "no DHCP server of default/vlan8 has answered within 60 s"
    said = [condition(kind, "DHCPNoAnswer", message) for kind in ("Allocated", "Leased", "Ready")]
    asked = msgspec.structs.replace(lb, spec=msgspec.structs.replace(lb.spec, ipam="dhcp"))
    return scene.patched(asked, addresses=[], address="", holder=None, conditions=said)


def newer(lb: LoadBalancer) -> LoadBalancer:
    return msgspec.structs.replace(lb, metadata=msgspec.structs.replace(lb.metadata, generation=2))


def sick() -> Scene:
    found = scene.host()
    found.add(
        LOADBALANCERS,
        scene.machine_balancer(
            "intranet",
            scene.backend("vm-1", "10.0.9.31", healthy=False, message="connection refused"),
            scene.backend("vm-2", "10.0.9.32", healthy=False, message="no answer within 3 s"),
        ),
    )
    return found


def counted() -> Scene:
    found = scene.host()
    pod = Pod(metadata=ObjectMeta(name="cloudprovider-agent-x7k2p", namespace=SYSTEM), spec=PodSpec(node_name="host-1"))
    found.add(PODS, pod)
    path = f"/api/v1/namespaces/{SYSTEM}/pods/cloudprovider-agent-x7k2p:8083/proxy/metrics"
    found.cluster.documents[path] = AGENT_METRICS.encode()
    return found


def pools_of_all_sizes() -> Scene:
    found = Scene("host")
    found.add(
        IPPOOLS,
        scene.pool("big", Range(subnet="10.16.0.0/16", gateway="10.16.0.1"), network="default/big"),
        scene.pool("six", Range(subnet="fd00:8::/64"), network="default/six"),
        scene.pool("two", Range(subnet="10.0.5.0/28"), Range(subnet="10.0.6.0/29"), network="default/two"),
        scene.pool("wrong", Range(subnet="10.0.7.0/33")),
    )
    found.add(
        IPBLOCKS,
        *(
            scene.block(
                "big", {f"10.16.{third}.{n}": (f"team-{n % 30}/lb", f"team-{n % 30}/c") for n in range(2, 252, step)}
            )
            for third, step in ((0, 1), (1, 2), (2, 50), (250, 1))
        ),
        scene.block("six", {"fd00:8::2": ("shops/a", "shops/shop"), "fd00:8::3": ("shops/b", "shops/shop")}),
        scene.block("two", {f"10.0.5.{n}": ("lab/a", "lab") for n in range(2, 15)}),
        scene.block("two", {f"10.0.6.{n}": ("lab/a", "lab") for n in (3, 5)}),
    )
    return found


def by_status_alone() -> Scene:
    found = without("ipblocks")()
    shop = scene.pool("shop", Range(subnet="10.0.8.0/24", range_start="10.0.8.100", range_end="10.0.8.109"))
    status = IPPoolStatus(
        total=10,
        available=1,
        allocated={f"10.0.8.10{n}": f"shops/{n}" for n in range(9)},
        conditions=[Condition(type="NearlyFull", status="True", reason="AboveThreshold")],
    )
    found.add(IPPOOLS, msgspec.structs.replace(shop, status=status))
    return found


def had_it_last() -> Scene:
    found = scene.host()
    (block,) = (b for b in found.cluster.select(IPBLOCKS, "", lambda _: True) if b.spec.pool == "shop")
    spec = msgspec.structs.replace(block.spec, history={"10.0.8.110": "shops/former"})
    found.add(IPBLOCKS, IPBlock(metadata=block.metadata, spec=spec))
    return found


def taken_out() -> Scene:
    found = scene.host()
    (machine,) = (
        m for m in found.cluster.select(VIRTUAL_MACHINE_INSTANCES, "", lambda _: True) if m.metadata.name == "vm-1"
    )
    annotations = {"loadbalancer.harvesterhci.io/taken-out": "app=intranet"}
    meta = msgspec.structs.replace(machine.metadata, labels={"os": "debian"}, annotations=annotations)
    found.add(VIRTUAL_MACHINE_INSTANCES, msgspec.structs.replace(machine, metadata=meta))
    return found


def one(*, endpoints: bool = True, **fields: object) -> Callable[[], Scene]:
    """A guest with one Service."""
    return lambda: scene.guest(service("web", **fields), slices=endpoints)  # type: ignore[arg-type]


def guest_without(program: bool = True, nodes: bool = True) -> Callable[[], Scene]:
    def made() -> Scene:
        found = scene.guest(service("web"))
        if not program:
            found.add(LEASES, scene.lease("cloudprovider-guest", "worker-1_0badcafe", 300))
        if not nodes:
            label = {"node.kubernetes.io/exclude-from-external-load-balancers": ""}
            found.add(NODES, scene.node("worker-1", labels=label), scene.node("worker-2", ready=False))
        return found

    return made


NO_POOL = (
    'no pool matches the request; pool "shop": it is on the network "default/vlan8", the request is for the management'
    " network: ask for the pool's network"
)
CONFLICT = "10.0.8.100 is used on the network by 52:54:00:00:00:09. Another address is taken."
EXPLAIN_WEB, EXPLAIN = f"explain {WEB_OBJECT}", "explain web"
NEXT = Address(ip="10.0.8.103", ip_pool="shop", prefix_length=24, network="default/vlan8")

SITUATIONS = {
    "list-host": Situation(scene.host, "list -A"),
    "list-host-narrow": Situation(scene.host, "list -A", width=80),
    "list-host-json": Situation(scene.host, "list -n office -o json"),
    "list-host-yaml": Situation(scene.host, "list -n office -o yaml"),
    "list-host-blind": Situation(without("guestclusters"), "list"),
    "list-empty": Situation(scene.host, "list -n nowhere"),
    "list-guest": Situation(
        lambda: scene.guest(
            service("web"),
            service("api", reason="NoPoolMatches", message=NO_POOL, address=""),
            service("new", known=False, address=""),
            service("local", external_traffic_policy="Local"),
            service("inside", type="ClusterIP"),
        ),
        "list -A",
    ),
    "explain-fine": Situation(scene.host, EXPLAIN_WEB),
    "explain-fine-json": Situation(scene.host, f"{EXPLAIN_WEB} -o json"),
    "explain-full": Situation(scene.host, f"explain {DNS_OBJECT}", code=1),
    "explain-full-color": Situation(scene.host, f"explain {DNS_OBJECT}", width=80, color=True, code=1),
    "explain-no-pool": Situation(
        web(addresses=[], holder=None, conditions=[condition("Allocated", "NoPoolMatches", NO_POOL)]),
        EXPLAIN_WEB,
        code=1,
    ),
    "explain-undecided": Situation(web(addresses=[], holder=None, conditions=[]), EXPLAIN_WEB, code=1),
    "explain-host-dead": Situation(with_lease("cloudprovider-host", "host-1_0", 900), EXPLAIN_WEB, code=1),
    "explain-agent-dead": Situation(
        with_lease("cloudprovider-agent-default-host-1", "host-1", 900), EXPLAIN_WEB, code=1
    ),
    "explain-no-agent": Situation(nobody_runs, EXPLAIN_WEB, code=1),
    "explain-coming-up": Situation(
        web(holder=Holder(node="host-1", generation=1, mode="dsr"), conditions=[condition("Allocated")]),
        EXPLAIN_WEB,
        code=1,
    ),
    "explain-moved": Situation(
        web(holder=Holder(node="host-1", generation=1, addresses=["10.0.8.100"], mode="nat", before="host-2")),
        EXPLAIN_WEB,
    ),
    "explain-newer": Situation(web_is(newer), EXPLAIN_WEB, code=1),
    "explain-moving": Situation(
        web(
            next_addresses=[NEXT],
            conditions=[
                Condition(
                    type="Allocated",
                    status="True",
                    reason="Moving",
                    message="10.0.8.100 from pool shop; 10.0.8.103 from pool shop takes its place as soon as a host has"
                    " it up",
                ),
                *GOOD[1:],
            ],
        ),
        EXPLAIN_WEB,
        code=1,
    ),
    "explain-conflict": Situation(
        web(
            holder=None,
            conditions=[GOOD[0], *(condition(k, "AddressConflict", CONFLICT) for k in ("Programmed", "Ready"))],
        ),
        EXPLAIN_WEB,
        code=1,
    ),
    "explain-no-network": Situation(
        web(
            holder=None,
            conditions=[
                GOOD[0],
                condition(
                    "Programmed",
                    "NetworkNotConfigured",
                    "This host does not stand on default/vlan8 (it stands on: management). Add it to the agent's"
                    " networks file.",
                ),
            ],
        ),
        EXPLAIN_WEB,
        code=1,
    ),
    "explain-waiting-for-nodes": Situation(
        web(
            conditions=[
                *GOOD[:2],
                condition(
                    "Ready",
                    "WaitingForNodes",
                    "worker-1 sent back what came for the address: kube-proxy there has not taken it up.",
                ),
            ]
        ),
        EXPLAIN_WEB,
        code=1,
    ),
    "explain-unrecorded": Situation(
        web(addresses=[Address(ip="10.0.8.101", ip_pool="shop", prefix_length=24)]), EXPLAIN_WEB, code=1
    ),
    "explain-no-tenant": Situation(no_tenant, EXPLAIN_WEB, code=1),
    "explain-stock": Situation(web_is(stock), EXPLAIN_WEB, code=1),
    "explain-dhcp": Situation(web_is(waiting_for_lease), EXPLAIN_WEB, code=1),
    "explain-deleted": Situation(web_is(deleted), EXPLAIN_WEB, code=1),
    "explain-machines": Situation(scene.host, "explain office/intranet"),
    "explain-machines-sick": Situation(sick, "explain office/intranet", code=1),
    "explain-blind": Situation(without("leases", "guestclusters", "ipblocks"), EXPLAIN_WEB),
    "guest-fine": Situation(one(), EXPLAIN),
    "guest-no-pool": Situation(one(reason="NoPoolMatches", message=NO_POOL, address=""), EXPLAIN, code=1),
    "guest-misspelt": Situation(
        one(
            reason="UnsupportedValue",
            message="spec.externalTrafficPolicy",
            address="",
            external_traffic_policy="Near",
        ),
        EXPLAIN,
        code=1,
    ),
    "guest-left-out": Situation(one(ports=[ServicePort(port=80), ServicePort(port=9, protocol="SCTP")]), EXPLAIN),
    "guest-other-class": Situation(
        one(known=False, address="", load_balancer_class="example.org/other"), EXPLAIN, code=1
    ),
    "guest-other-type": Situation(one(known=False, address="", type="ClusterIP"), EXPLAIN, code=1),
    "guest-new": Situation(one(known=False, address=""), EXPLAIN, code=1),
    "guest-foreign": Situation(
        one(reason="ForeignOwner", message="10.0.0.7 was written by somebody else"), EXPLAIN, code=1
    ),
    "guest-no-bridge": Situation(
        one(reason="HostNotReached", message="the host's bridge has not answered yet", address=""), EXPLAIN, code=1
    ),
    "guest-certificate": Situation(
        one(reason="CertificateExpired", message="this guest's certificate has ended on 2025-12-31", address=""),
        EXPLAIN,
        code=1,
    ),
    "guest-pending": Situation(
        one(
            reason="Pending",
            message="waiting for the host's load balancer shops/x: it has said nothing yet",
            address="",
        ),
        EXPLAIN,
        code=1,
    ),
    "guest-no-endpoints": Situation(one(endpoints=False), EXPLAIN, code=1),
    "guest-no-nodes": Situation(guest_without(nodes=False), EXPLAIN, code=1),
    "guest-dead": Situation(guest_without(program=False), EXPLAIN, code=1),
    "pools": Situation(scene.host, "pools"),
    "pools-json": Situation(scene.host, "pools office -o json"),
    "pools-of-all-sizes": Situation(pools_of_all_sizes, "pools", width=100),
    "pools-by-status": Situation(by_status_alone, "pools shop"),
    "trace-dsr": Situation(scene.host, "trace 10.0.8.100:80"),
    "trace-counted": Situation(counted, "trace 10.0.8.100:443/tcp"),
    "trace-machines": Situation(scene.host, "trace 10.0.9.10:443"),
    "trace-no-port": Situation(scene.host, "trace 10.0.8.100:81", code=1),
    "trace-hosts-own": Situation(scene.host, "trace 10.0.8.102:81", code=1),
    "trace-had-it-last": Situation(had_it_last, "trace 10.0.8.110:80", code=1),
    "trace-nobody": Situation(scene.host, "trace [fd00::1]:53/UDP", code=1),
    "trace-json": Situation(scene.host, "trace 10.0.8.100:81 -o json", code=1),
    "drain-node": Situation(one(), "drain worker-1"),
    "drain-node-dry": Situation(one(), "drain worker-1 --dry-run"),
    "drain-node-again": Situation(guest_without(nodes=False), "drain worker-1"),
    "drain-node-back": Situation(guest_without(nodes=False), "drain worker-1 --back"),
    "drain-node-not-out": Situation(one(), "drain worker-1 --back"),
    "drain-machine": Situation(scene.host, "drain office/vm-1"),
    "drain-machine-again": Situation(taken_out, "drain office/vm-1"),
    "drain-machine-back": Situation(taken_out, "drain office/vm-1 --back -o json"),
}
