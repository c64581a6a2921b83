"""Which virtual machines each load balancer for them should send to, by their instances alone."""

from collections.abc import Iterator, Mapping

from tests.lab.client import Object
from tests.lab.kernelcheck import BalancerName, Node, key_of
from tests.lab.machine import LOOPBACK_ANNOTATION


def is_for_machines(balancer: Object) -> bool:
    return bool(balancer["spec"].get("workloadType") != "cluster")


def machines_behind(balancers: list[Object], machines: list[Object]) -> dict[BalancerName, list[Node]]:
    """The machines of each load balancer for machines, as far as they can be sent to on the management network."""
    return {
        key_of(balancer): [node for vmi in machines if (node := _node(balancer, vmi)) is not None]
        for balancer in balancers
        if is_for_machines(balancer)
    }


def fixed(
    behind: Mapping[BalancerName, list[Node]], tenants: list[Object], machines: list[Object], balancers: list[Object]
) -> dict[str, str]:
    """The addresses that may go to one MAC alone: of machines behind load balancers with addresses, and of tenants'
    nodes whose machine has their name."""
    served = [b for b in balancers if b.get("status", {}).get("addresses")]
    found = {a: node.mac for b in served if is_for_machines(b) for node in behind[key_of(b)] for a in node.addresses}
    for tenant in tenants:
        space = tenant["metadata"]["namespace"]
        if not any(b["metadata"]["namespace"] == space and not is_for_machines(b) for b in served):
            continue
        macs = {vmi["metadata"]["name"]: mac for vmi in machines if _space(vmi) == space for mac, _ in _nics(vmi)}
        for node in tenant.get("status", {}).get("nodes", []):
            if node["name"] in macs:
                found |= dict.fromkeys(node["addresses"], macs[node["name"]])
    return found


def _node(balancer: Object, vmi: Object) -> Node | None:
    metadata, labels = vmi["metadata"], vmi["metadata"].get("labels", {})
    selector = balancer["spec"].get("backendServerSelector", {})
    if _space(vmi) != _space(balancer) or metadata.get("deletionTimestamp") or vmi["status"].get("phase") != "Running":
        return None
    if not selector or any(labels.get(key) not in values for key, values in selector.items()):
        return None
    families = {":" in entry["ip"] for entry in balancer.get("status", {}).get("addresses", [])}
    for mac, reported in _nics(vmi):
        firsts = {":" in address: address for address in reversed(reported) if (":" in address) in families}
        if firsts:
            direct = metadata.get("annotations", {}).get(LOOPBACK_ANNOTATION) == "true"
            return Node(frozenset(firsts.values()), mac, direct=direct)
    return None


def _nics(vmi: Object) -> Iterator[tuple[str, list[str]]]:
    """MAC and reported addresses of the interfaces on the management network."""
    here = {network["name"] for network in vmi["spec"].get("networks", []) if "multus" not in network}
    told = {one["name"]: one.get("ipAddresses", []) for one in vmi["status"].get("interfaces", [])}
    for nic in vmi["spec"]["domain"]["devices"].get("interfaces", []):
        if nic["name"] in here:
            yield nic["macAddress"], told.get(nic["name"], [])


def _space(item: Object) -> str:
    return str(item["metadata"]["namespace"])
