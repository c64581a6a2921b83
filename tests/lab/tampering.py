"""A state of which one place is changed alone, in every way that the checker has to notice."""

from collections.abc import Callable
from copy import deepcopy

from tests.lab import checker
from tests.lab.client import Object
from tests.lab.lab import POOL, TENANT_NAMESPACE
from tests.lab.machine import instance
from tests.lab.snapshot import BY_CLIENT, GROUP_MASK, State
from tests.lab.workload import Port

WEB, DNS = Port(80, 8080), Port(53, 5353, "UDP")
NAMESPACE = "checked"
STRANGER = "10.77.99.99"
Tamper = Callable[[State], object]


# Finding one's way in a state.


def guest_service(state: State, name: str) -> Object:
    return next(s for s in state.services if (s["metadata"]["namespace"], s["metadata"]["name"]) == (NAMESPACE, name))


def balancer(state: State, name: str) -> Object:
    return next(b for b in state.balancers if b["spec"]["service"]["name"] == name)


def pool(state: State) -> Object:
    return next(p for p in state.pools if p["metadata"]["name"] == POOL.name)


def block(state: State) -> Object:
    return next(b for b in state.blocks if b["spec"]["allocations"])


def address(state: State, name: str) -> str:
    return str(balancer(state, name)["status"]["address"])


def listener(state: State, name: str) -> tuple[str, str, int]:
    return address(state, name), "tcp", WEB.port


def group(state: State, name: str) -> int:
    return state.kernel.nat.listeners[listener(state, name)] & GROUP_MASK


def table(state: State, name: str) -> dict[int, str]:
    (found,) = (table for (number, _), table in state.kernel.nat.slots.items() if number == group(state, name))
    return found


def condition(item: Object, kind: str) -> Object:
    return next(c for c in item["status"]["conditions"] if c["type"] == kind)


def ingress(state: State, name: str) -> list[Object]:
    found: list[Object] = guest_service(state, name)["status"]["loadBalancer"]["ingress"]
    return found


def allocation(state: State, name: str) -> Object:
    found: Object = block(state)["spec"]["allocations"][address(state, name)]
    return found


def twice(state: State) -> None:
    """The same address in a block of another pool."""
    other = deepcopy(block(state))
    other["spec"]["pool"] = "reserved"
    state.blocks.append(other)


def left_over(state: State) -> None:
    other = deepcopy(balancer(state, "web"))
    other["spec"]["service"]["name"] = "gone"
    other["status"] = {}
    state.balancers.append(other)


def same_address(state: State) -> None:
    balancer(state, "local")["status"] = deepcopy(balancer(state, "web")["status"])


def with_field(item: Object, *path: str, value: object) -> None:
    for key in path[:-1]:
        item = item.setdefault(key, {})
    item[path[-1]] = value


def without(item: Object, *path: str) -> None:
    for key in path[:-1]:
        item = item[key]
    del item[path[-1]]


def another_group(state: State) -> None:
    """A whole group more, with table and marks, that no listener uses."""
    number, rules = 0xABCDEF, state.kernel.nat
    rules.slots[number, 4_099] = dict(table(state, "web"))
    rules.tables |= {(4, number): "by_flow_4099", (4, number | BY_CLIENT): "by_client_4099"}


def elsewhere(state: State) -> None:
    """The pod of a Service with policy Local is on the other node now."""
    for piece in state.slices:
        if piece["metadata"]["labels"]["kubernetes.io/service-name"] == "local":
            for endpoint in piece["endpoints"]:
                endpoint["nodeName"] = "node-1" if endpoint["nodeName"] == "node-2" else "node-2"


# What is changed, and what is to be said of it.


def node_machine() -> Object:
    """The machine that node-1 is, by its name."""
    made = instance("node-1", {}, "02:00:00:00:00:02", [])
    made["metadata"]["namespace"] = TENANT_NAMESPACE
    return made


TAMPERED: dict[str, tuple[Tamper, str]] = {
    # The guest's Services.
    "service shows another address": (lambda s: ingress(s, "web")[0].update(ip=STRANGER), "guest: Service checked/web"),
    "service shows no address": (lambda s: ingress(s, "web").clear(), "guest: Service checked/web shows no address"),
    "service shows one more address": (lambda s: ingress(s, "web").append({"ip": STRANGER}), "guest: Service checked/"),
    "waiting service shows an address": (
        lambda s: with_field(guest_service(s, "waits"), "status", "loadBalancer", "ingress", value=[{"ip": STRANGER}]),
        "guest: Service checked/waits shows",
    ),
    "service shows another ipMode": (lambda s: ingress(s, "web")[0].update(ipMode="Proxy"), "shows ipMode"),
    "service without finalizer": (
        lambda s: guest_service(s, "web")["metadata"]["finalizers"].clear(),
        "guest: Service checked/web lacks the finalizer",
    ),
    "service still being deleted": (
        lambda s: with_field(guest_service(s, "web"), "metadata", "deletionTimestamp", value="2026-01-01T00:00:00Z"),
        "guest: Service checked/web is still being deleted",
    ),
    "service says that it waits": (
        lambda s: condition(guest_service(s, "web"), checker.SERVICE_READY).update(status="False"),
        "guest: Service checked/web says False",
    ),
    "service says nothing": (lambda s: guest_service(s, "web")["status"]["conditions"].clear(), "says  of being ready"),
    "service of another type shows an address": (
        lambda s: guest_service(s, "web")["spec"].update(type="ClusterIP"),
        "guest: checked/web is of type ClusterIP and still shows an address",
    ),
    "service of another type has a finalizer": (
        lambda s: guest_service(s, "waits")["spec"].update(type="ClusterIP"),
        "guest: checked/waits is of type ClusterIP and still has a finalizer",
    ),
    "service gone": (lambda s: s.services.remove(guest_service(s, "web")), "stands for no Service (of checked/web)"),
    "service made again": (lambda s: guest_service(s, "web")["metadata"].update(uid="new"), "has UID new"),
    # The host's LoadBalancers.
    "load balancer gone": (lambda s: s.balancers.remove(balancer(s, "waits")), "checked/waits has 0 LoadBalancers"),
    "load balancer left over": (left_over, "stands for no Service (of checked/gone)"),
    "load balancer twice": (
        lambda s: s.balancers.append(deepcopy(balancer(s, "web"))),
        "guest: Service checked/web has 2 LoadBalancers",
    ),
    "load balancer without finalizer": (
        lambda s: balancer(s, "web")["metadata"]["finalizers"].clear(),
        "host: LoadBalancer of checked/web lacks the finalizer",
    ),
    "load balancer still being deleted": (
        lambda s: with_field(balancer(s, "web"), "metadata", "deletionTimestamp", value="2026-01-01T00:00:00Z"),
        "is still being deleted",
    ),
    "load balancer in another namespace": (
        lambda s: balancer(s, "web")["metadata"].update(namespace="default"),
        "host: default/",
    ),
    "load balancer of another cluster": (
        lambda s: without(balancer(s, "web"), "metadata", "labels", "cloudprovider.harvesterhci.io/cluster"),
        "is of the cluster None",
    ),
    "load balancer has another address": (
        lambda s: balancer(s, "web")["status"]["addresses"][0].update(ip=STRANGER),
        f"used by ('{TENANT_NAMESPACE}/shop-checked-web",
    ),
    "load balancer without address": (
        lambda s: balancer(s, "web")["status"]["addresses"].clear(),
        "guest: Service checked/web shows",
    ),
    "load balancer records another address": (
        lambda s: balancer(s, "web")["status"].update(address=STRANGER),
        "host: LoadBalancer of checked/web has",
    ),
    "load balancer's allocatedAddress gone": (
        lambda s: without(balancer(s, "web"), "status", "allocatedAddress"),
        "host: LoadBalancer of checked/web has",
    ),
    "load balancer not allocated": (
        lambda s: condition(balancer(s, "web"), "Allocated").update(status="False"),
        "its condition Allocated is False",
    ),
    "load balancer not ready": (
        lambda s: condition(balancer(s, "web"), "Ready").update(status="False"),
        "says False of Ready",
    ),
    "load balancer not programmed": (
        lambda s: condition(balancer(s, "web"), "Programmed").update(status="False"),
        "says False of Programmed",
    ),
    "two load balancers with one address": (same_address, "and ('shops/"),
    "listener gone": (lambda s: balancer(s, "web")["spec"]["listeners"].pop(), "host: Service checked/web has ports"),
    "listener with another node port": (
        lambda s: balancer(s, "web")["spec"]["listeners"][0].update(backendPort=1),
        "host: Service checked/web has ports",
    ),
    "listener with another name": (
        lambda s: balancer(s, "web")["spec"]["listeners"][0].update(name="x"),
        "host: Service checked/web has ports",
    ),
    "other policy": (
        lambda s: balancer(s, "local")["spec"].update(externalTrafficPolicy="Cluster"),
        "host: Service checked/local has externalTrafficPolicy Local",
    ),
    "other health check port": (
        lambda s: balancer(s, "local")["spec"].update(healthCheckNodePort=1),
        "host: Service checked/local has another healthCheckNodePort",
    ),
    "other affinity": (
        lambda s: balancer(s, "sticky")["spec"].update(sessionAffinity="None"),
        "host: Service checked/sticky has sessionAffinity ClientIP",
    ),
    "other clients": (
        lambda s: without(balancer(s, "sticky"), "spec", "sourceRanges"),
        "host: Service checked/sticky is open to",
    ),
    "endpoints' nodes lost": (
        lambda s: without(balancer(s, "local"), "spec", "endpointNodes"),
        "host: LoadBalancer of checked/local names the endpoints' nodes []",
    ),
    "endpoints' nodes where none are needed": (
        lambda s: balancer(s, "web")["spec"].update(endpointNodes=["node-1"]),
        "host: LoadBalancer of checked/web names",
    ),
    "pod moved": (elsewhere, "host: LoadBalancer of checked/local names"),
    "held by nobody": (lambda s: without(balancer(s, "web"), "status", "holder"), "is held by None, not by host-1"),
    "held by another host": (
        lambda s: balancer(s, "web")["status"]["holder"].update(node="host-2"),
        "is held by host-2",
    ),
    "held for another address": (
        lambda s: balancer(s, "web")["status"]["holder"].update(addresses=[STRANGER]),
        f"its holder ['{STRANGER}']",
    ),
    "held as of an older generation": (
        lambda s: balancer(s, "web")["status"]["holder"].update(generation=0),
        "the kernel at 0",
    ),
    "a node less": (lambda s: s.tenants[0]["status"]["nodes"].pop(), "host: GuestCluster shops/shop has the nodes"),
    "no tenant": (lambda s: s.tenants.clear(), "host: there is no GuestCluster"),
    "node left the guest": (lambda s: s.nodes.pop(), "host: GuestCluster shops/shop has the nodes"),
    "node excluded": (
        lambda s: s.nodes[0]["metadata"]["labels"].update({checker.EXCLUDED[0]: "true"}),
        "kernel: ",
    ),
    # Pools and blocks.
    "allocation gone": (lambda s: block(s)["spec"]["allocations"].pop(address(s, "web")), "is held by None, used by"),
    "allocation left over": (
        lambda s: block(s)["spec"]["allocations"].update({"10.77.16.200": {"owner": "shops/gone"}}),
        "pools: 10.77.16.200 is held by ('shops/gone'",
    ),
    "allocation of an agent that takes none": (
        lambda s: block(s)["spec"]["allocations"].update({"10.77.16.200": {"owner": "agent/host-1"}}),
        "pools: 10.77.16.200 is held by ('agent/host-1'",
    ),
    "allocation shared with nobody": (
        lambda s: allocation(s, "web").update(sharers={"shops/gone": "old"}),
        "is held by ('shops/gone', 'old', 'lan') and",
    ),
    "still moving": (
        lambda s: balancer(s, "web")["status"].update(nextAddresses=[{"ip": STRANGER, "ipPool": "reserved"}]),
        f"is still on its way to {STRANGER}",
    ),
    "lease of nobody": (
        lambda s: balancer(s, "web")["status"].update(lease={"ip": STRANGER}),
        f"has [] by DHCP, and a lease of ['{STRANGER}']",
    ),
    "address by DHCP without a lease": (
        lambda s: balancer(s, "web")["status"]["addresses"][0].pop("ipPool"),
        "by DHCP, and a lease of []",
    ),
    "conflict that is over": (
        lambda s: balancer(s, "web")["status"].update(foreignAddresses=[{"ip": STRANGER, "hardwareAddress": "x"}]),
        f"still names ['{STRANGER}'], which somebody else has",
    ),
    "address set aside unseen": (
        lambda s: block(s)["spec"].update(conflicts={"10.77.16.250": {"hardwareAddress": "x", "until": "y"}}),
        "pools: the status of lan says available",
    ),
    "allocation doubled": (twice, "is handed out twice"),
    "allocation of another": (lambda s: allocation(s, "web").update(owner="shops/other"), "is held by ('shops/other'"),
    "allocation of a predecessor": (lambda s: allocation(s, "web").update(uid="old"), "pools: "),
    "allocation of another pool": (lambda s: block(s)["spec"].update(pool="reserved"), "pools: "),
    "block of no pool": (lambda s: block(s)["spec"].update(pool="gone"), "pools: there are blocks of gone"),
    "block with another first": (
        lambda s: block(s)["spec"].update(first="10.77.17.0"),
        "stands in the block of 10.77.17.0",
    ),
    "pool shrunk": (
        lambda s: pool(s)["spec"]["ranges"][0].update(rangeStart="10.77.17.1"),
        "is not in the ranges of lan",
    ),
    "status total": (lambda s: pool(s)["status"].update(total=1), "pools: the status of lan says total 1"),
    "status available": (lambda s: pool(s)["status"].update(available=8190), "pools: the status of lan says available"),
    "status allocated, one less": (lambda s: pool(s)["status"]["allocated"].popitem(), "says allocated"),
    "status allocated, another": (
        lambda s: pool(s)["status"]["allocated"].update({address(s, "web"): "shops/other"}),
        "says allocated",
    ),
    "status history": (
        lambda s: with_field(pool(s), "status", "allocatedHistory", STRANGER, value="shops/gone"),
        "says allocatedHistory",
    ),
    "status full": (
        lambda s: pool(s)["status"]["conditions"].append({"type": "Full", "status": "True"}),
        "pools: the status of lan says that it is Full",
    ),
    "status cut": (lambda s: pool(s)["status"].update(truncated=True), "pools: the status of lan says that it is cut"),
    "no status": (lambda s: pool(s).pop("status"), "pools: the status of lan says total None"),
    # The kernel.
    "link lost an address": (lambda s: s.kernel.addresses.remove(address(s, "web")), "link: answers for []"),
    "link has an address more": (lambda s: s.kernel.addresses.add(STRANGER), f"link: answers for ['{STRANGER}']"),
    "neighbour fixed more": (lambda s: s.kernel.fixed.update({STRANGER: "02:00:00:00:00:01"}), "are {'" + STRANGER),
    "node's machine known": (lambda s: s.machines.append(node_machine()), "fixed neighbours are {}, not {'10.77.0.21'"),
    "listener's mark gone": (lambda s: s.kernel.nat.listeners.pop(listener(s, "web")), "goes to None"),
    "listener's port gone": (lambda s: s.kernel.nat.ports.pop(listener(s, "web")), "goes to port None"),
    "listener's port another": (lambda s: s.kernel.nat.ports.update({listener(s, "web"): 1}), "goes to port 1"),
    "listener more": (lambda s: s.kernel.nat.listeners.update({(STRANGER, "tcp", 80): group(s, "web")}), "not to None"),
    "port more": (lambda s: s.kernel.nat.ports.update({(STRANGER, "tcp", 80): 1}), "goes to port 1, not None"),
    "listener of another group": (
        lambda s: s.kernel.nat.listeners.update({listener(s, "local"): group(s, "web")}),
        "goes to ['10.77.0.21', '10.77.0.22']",
    ),
    "listener refuses": (lambda s: s.kernel.nat.listeners.update({listener(s, "web"): 0}), "goes to [], not to"),
    "listener by client": (
        lambda s: s.kernel.nat.listeners.update({listener(s, "web"): group(s, "web") | BY_CLIENT}),
        "is wrong in choosing by the client's address",
    ),
    "listener open to all": (
        lambda s: s.kernel.nat.listeners.update({listener(s, "sticky"): group(s, "sticky") | BY_CLIENT}),
        "is wrong in looking at source ranges",
    ),
    "listener with a strange mark": (
        lambda s: s.kernel.nat.listeners.update({listener(s, "web"): group(s, "web") | 0x0100_0000}),
        "bits 0x1000000 of its mark",
    ),
    "source range gone": (lambda s: s.kernel.nat.sources.clear(), "is open to [], not to ['10.77.0.0/24']"),
    "source range more": (
        lambda s: s.kernel.nat.sources[listener(s, "sticky")].add("0.0.0.0/0"),
        "is open to ['0.0.0.0/0', '10.77.0.0/24']",
    ),
    "source range of no listener": (
        lambda s: s.kernel.nat.sources.update({(STRANGER, "tcp", 80): {"0.0.0.0/0"}}),
        "is open to ['0.0.0.0/0'], not to []",
    ),
    "slot gone": (lambda s: table(s, "web").pop(711), "has 4098 slots, not 4099"),
    "slot more": (lambda s: table(s, "web").update({4_099: "10.77.0.21"}), "has 4100 slots, not 4099"),
    "slot to a stranger": (lambda s: table(s, "web").update({711: STRANGER}), f"'{STRANGER}'], not to"),
    "table gone": (lambda s: s.kernel.nat.slots.clear(), "has tables of the sizes []"),
    "table of another size too": (
        lambda s: s.kernel.nat.slots.update({(group(s, "web"), 65_537): dict(table(s, "web"))}),
        "has tables of the sizes [4099, 65537]",
    ),
    "mark leads nowhere": (
        lambda s: s.kernel.nat.tables.pop((4, group(s, "web"))),
        "leads to None, not to by_flow_4099",
    ),
    "mark leads elsewhere": (
        lambda s: s.kernel.nat.tables.update({(4, group(s, "web") | BY_CLIENT): "by_flow_4099"}),
        "leads to by_flow_4099, not to by_client_4099",
    ),
    "group left over": (another_group, f"kernel: groups [{0xABCDEF}] are used by no listener"),
    "mark left over": (
        lambda s: s.kernel.nat.tables.update({(4, 0xABCDEF): "by_flow_4099"}),
        "are used by no listener",
    ),
    "rules flushed": (
        lambda s: s.kernel.nat.chains.update({"ip forward": 0}),
        "kernel: the chain ip forward has no rule",
    ),
}
