"""What the console's tests show: objects as the host program and the agents leave them, written by hand."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from tests.lab.client import Object
from tests.lab.controlplane import ControlPlane
from tests.lab.process import wait_for

GROUP: Final = "/apis/loadbalancer.harvesterhci.io/v1beta1"
CLUSTERS: Final = "/apis/cloudprovider.harvesterhci.io/v1beta1"
MACHINES: Final = "/apis/kubevirt.io/v1"
RELEASE: Final = "loadbalancer.harvesterhci.io/manuallyReleaseIP"
RBAC: Final = "/apis/rbac.authorization.k8s.io/v1"


def ago(**parts: float) -> str:
    """RFC 3339 of a time before now."""
    return (datetime.now(UTC) - timedelta(**parts)).strftime("%Y-%m-%dT%H:%M:%SZ")


def namespace(plane: ControlPlane, name: str) -> None:
    plane.api.create("/api/v1/namespaces", {"metadata": {"name": name}})


def machine(name: str, namespace: str, address: str = "", **labels: str) -> Object:
    interfaces = [{"name": "default", "ipAddress": address, "infoSource": "domain, guest-agent"}] if address else []
    return {
        "apiVersion": "kubevirt.io/v1",
        "kind": "VirtualMachineInstance",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {"domain": {"devices": {"interfaces": [{"name": "default"}]}}},
        "status": {"phase": "Running", "nodeName": "host-1", "interfaces": interfaces},
    }


def add_machine(plane: ControlPlane, body: Object) -> None:
    plane.api.create(f"{MACHINES}/namespaces/{body['metadata']['namespace']}/virtualmachineinstances", body)


def condition(kind: str, status: str, reason: str, message: str = "", **since: float) -> Object:
    time = ago(**since or {"minutes": 42})
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": time,
        "lastUpdateTime": time,
    }


def backend(name: str, address: str, *, healthy: bool | None = True, **more: object) -> Object:
    found: Object = {"name": name, "addresses": [address] if address else [], "macAddress": "52:54:00:00:00:01"}
    if healthy is not None:
        found["health"] = {
            "healthy": healthy,
            "since": ago(minutes=12),
            "message": "" if healthy else "connection refused (TCP 8080)",
            "history": [
                {"time": ago(hours=5), "healthy": False},
                {"time": ago(hours=4, minutes=50), "healthy": True},
                {"time": ago(hours=1, minutes=10), "healthy": False},
                {"time": ago(hours=1), "healthy": True},
                *([] if healthy else [{"time": ago(minutes=12), "healthy": False}]),
            ],
        }
    return {**found, **more}


def load_balancer(
    plane: ControlPlane,
    namespace: str,
    name: str,
    spec: Mapping[str, object] | None = None,
    status: Mapping[str, object] | None = None,
    *,
    metadata: Mapping[str, object] | None = None,
) -> Object:
    """Create one, and write its status as its managers would."""
    wanted = {
        "listeners": [{"name": "http", "port": 80, "protocol": "TCP", "backendPort": 8080}],
        "backendServerSelector": {"app": [name]},
        **(spec or {}),
    }
    body = {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "LoadBalancer",
        "metadata": {"name": name, "namespace": namespace, **(metadata or {})},
        "spec": wanted,
    }
    path = f"{GROUP}/namespaces/{namespace}/loadbalancers"
    made = plane.api.create(path, body)
    if status is not None:
        return plane.api.patch(f"{path}/{name}/status", {"status": dict(status)})
    return made


def up(address: str, pool: str, backends: Sequence[Object] = (), **more: object) -> Object:
    """The status of one that serves."""
    return {
        "address": address,
        "allocatedAddress": {"ipPool": pool, "ip": address, "mask": "255.255.255.0", "gateway": "10.0.8.1"},
        "addresses": [
            {
                "ip": address,
                "ipPool": pool,
                "prefixLength": 24,
                "gateway": "10.0.8.1",
                "network": "default/vlan8",
            }
        ],
        "backends": list(backends),
        "backendServers": [b["addresses"][0] for b in backends if b["addresses"]],
        "holder": {"node": "host-1", "generation": 1, "addresses": [address], "mode": "nat"},
        "conditions": [
            condition("Allocated", "True", "Allocated", f'{address} of the pool "{pool}"'),
            *(
                [condition("BackendsFound", "True", "BackendsFound", f"{len(backends)} virtual machines match")]
                if backends
                else []
            ),
            condition("Programmed", "True", "Programmed", "host-1 forwards it (nat)"),
            condition("Ready", "True", "Programmed", "it is up and forwarded"),
        ],
        **more,
    }


def pool(plane: ControlPlane, name: str, *ranges: Mapping[str, object], **spec: object) -> Object:
    body = {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "IPPool",
        "metadata": {"name": name},
        "spec": {"ranges": [dict(r) for r in ranges], **spec},
    }
    return plane.api.create(f"{GROUP}/ippools", body)


def block(plane: ControlPlane, pool: str, first: str, owners: Mapping[str, str], **more: object) -> Object:
    """A block of a pool's addresses, and who has them."""
    since = ago(hours=3)
    body = {
        "apiVersion": "loadbalancer.harvesterhci.io/v1beta1",
        "kind": "IPBlock",
        "metadata": {
            "name": f"{pool}-{first.replace(':', '-')}",
            "labels": {"loadbalancer.harvesterhci.io/pool": pool},
        },
        "spec": {
            "pool": pool,
            "first": first,
            "allocations": {
                address: {"owner": owner, "uid": "" if owner.startswith("agent/") else f"uid-{owner}", "since": since}
                for address, owner in owners.items()
            },
            **more,
        },
    }
    return plane.api.create(f"{GROUP}/ipblocks", body)


def guest_cluster(plane: ControlPlane, namespace: str, name: str, nodes: Mapping[str, str], *, failing: str) -> None:
    """A tenant, one of whose nodes does not answer its probes."""
    path = f"{CLUSTERS}/namespaces/{namespace}/guestclusters"
    metadata = {"name": name, "namespace": namespace}
    version = CLUSTERS.removeprefix("/apis/")
    plane.api.create(path, {"apiVersion": version, "kind": "GuestCluster", "metadata": metadata, "spec": {}})
    silent = {
        "healthy": False,
        "since": ago(minutes=12),
        "message": "Nothing comes back from the node any more (port 10256)",
        "history": [
            {"time": ago(hours=2), "healthy": False},
            {"time": ago(hours=1, minutes=40), "healthy": True},
            {"time": ago(minutes=12), "healthy": False},
        ],
    }
    status = {
        "nodes": [{"name": node, "addresses": [address]} for node, address in nodes.items()],
        "nodeHealth": [{"name": failing, "health": silent}],
    }
    plane.api.patch(f"{path}/{name}/status", {"status": status})


EVERYTHING: Final[Sequence[Object]] = (
    {"apiGroups": ["loadbalancer.harvesterhci.io"], "resources": ["*"], "verbs": ["*"]},
    {"apiGroups": ["cloudprovider.harvesterhci.io"], "resources": ["guestclusters"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["kubevirt.io"], "resources": ["virtualmachineinstances"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["namespaces", "events"], "verbs": ["get", "list", "watch"]},
)


def user(plane: ControlPlane, name: str, rules: Sequence[Object], *, namespace: str = "") -> str:
    """Make an account with just these rights, in all namespaces or in one, and return a token of it."""
    plane.api.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
    where, kind = (f"{RBAC}/namespaces/{namespace}", "Role") if namespace else (RBAC, "ClusterRole")
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    plane.api.create(f"{where}/{kind.lower()}s", {"metadata": metadata, "rules": list(rules)})
    binding = {
        "metadata": metadata,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": "default"}],
    }
    plane.api.create(f"{where}/{kind.lower()}bindings", binding)
    _wait_permitted(plane, name, rules[0], namespace)
    return token(plane, name)


def token(plane: ControlPlane, name: str) -> str:
    path = f"/api/v1/namespaces/default/serviceaccounts/{name}/token"
    review = plane.api.create(path, {"spec": {"expirationSeconds": 3600}})
    return str(review["status"]["token"])


def _wait_permitted(plane: ControlPlane, name: str, rule: Object, namespace: str) -> None:
    """Until the API server has learnt of the role: its authorizer follows by watch."""
    where = {
        "namespace": namespace,
        "verb": "list",
        "group": rule["apiGroups"][0],
        "resource": rule["resources"][0],
    }
    review: Object = {"spec": {"user": f"system:serviceaccount:default:{name}", "resourceAttributes": where}}

    def allowed() -> bool:
        told = plane.api.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(told["status"]["allowed"])

    wait_for(f"rights of {name}", allowed, timeout=10)


def furnish(plane: ControlPlane) -> None:
    """A host as one finds it: two teams, a guest cluster, pools half full, something pending, something sick."""
    for name in ("shops", "team-a"):
        namespace(plane, name)
    pool(
        plane,
        "vlan8",
        {
            "subnet": "10.0.8.0/24",
            "rangeStart": "10.0.8.100",
            "rangeEnd": "10.0.8.199",
            "gateway": "10.0.8.1",
            "exclude": ["10.0.8.150-10.0.8.159"],
        },
        description="Shops, VLAN 8",
        selector={
            "network": "default/vlan8",
            "priority": 10,
            "scope": [
                {"project": "*", "namespace": "shops", "guestCluster": "*"},
                {"project": "*", "namespace": "team-a", "guestCluster": "*"},
            ],
        },
        reservations=[{"address": "10.0.8.190", "namespace": "shops", "loadBalancer": "ledger"}],
    )
    pool(plane, "campus", {"subnet": "10.20.0.0/16"}, {"subnet": "fd00:20::/64"}, description="The whole campus")
    for i, name in enumerate(("web-1", "web-2", "web-3")):
        add_machine(plane, machine(name, "shops", f"10.0.8.{20 + i}", app="web", tier="front"))
    add_machine(plane, machine("db-1", "shops", "10.0.8.30", app="ledger", tier="back"))
    add_machine(plane, machine("db-2", "shops", "", app="ledger", tier="back"))
    check = {"port": 8080, "protocol": "HTTP", "path": "/healthz", "periodSeconds": 5}
    servers = [
        backend("web-1", "10.0.8.20"),
        backend("web-2", "10.0.8.21"),
        backend("web-3", "10.0.8.22", healthy=False),
    ]
    web = {
        "description": "The shop's front page",
        "ipPool": "vlan8",
        "healthCheck": check,
        "backendServerSelector": {"app": ["web"]},
        "listeners": [
            {"name": "http", "port": 80, "protocol": "TCP", "backendPort": 8080},
            {"name": "https", "port": 443, "protocol": "TCP", "backendPort": 8443},
        ],
    }
    load_balancer(plane, "shops", "web", web, up("10.0.8.100", "vlan8", servers))
    ledger = {"backendServerSelector": {"app": ["ledger"]}, "description": "Nightly bookings"}
    missing = {
        "reason": "NoAddress",
        "message": "the machine's guest agent reports no address: install or start qemu-guest-agent in it",
    }
    load_balancer(
        plane,
        "shops",
        "ledger",
        ledger,
        up(
            "10.0.8.190",
            "vlan8",
            [backend("db-1", "10.0.8.30", healthy=None), backend("db-2", "", healthy=None, **missing)],
        ),
    )
    nowhere = (
        'no pool matches the request; pool "campus": its scope is empty, which matches nobody: an operator must add'
        ' one; pool "vlan8": it is on the network "default/vlan8", the request is for the management network: ask for'
        " the pool's network"
    )
    load_balancer(
        plane,
        "team-a",
        "reports",
        {"description": "Nobody has given it a network"},
        {
            "conditions": [
                condition("Allocated", "False", "NoPoolMatches", nowhere, minutes=7),
                condition("Ready", "False", "NoPoolMatches", nowhere, minutes=7),
            ]
        },
    )
    lease = {
        "ip": "10.0.8.220",
        "prefixLength": 24,
        "gateway": "10.0.8.1",
        "server": "10.0.8.2",
        "acquiredTime": ago(hours=2),
    }
    load_balancer(
        plane,
        "team-a",
        "printers",
        {"ipam": "dhcp", "listeners": [{"port": 631, "protocol": "TCP", "backendPort": 631}]},
        {**up("10.0.8.220", "", [backend("cups", "10.0.8.40", healthy=None)]), "lease": lease},
    )
    for i, service in enumerate(("default/web", "default/api", "kube-system/ingress", "dns/resolver")):
        where, name = service.split("/")
        load_balancer(
            plane,
            "shops",
            f"shop-{where}-{name}-{i:08x}",
            {
                "workloadType": "cluster",
                "backendServerSelector": {},
                "listeners": [
                    {"name": "a", "port": 80, "protocol": "TCP", "backendPort": 30080 + i},
                    {"name": "b", "port": 53, "protocol": "UDP", "backendPort": 30180 + i},
                ],
                "service": {"namespace": where, "name": name, "uid": f"uid-{i}"},
            },
            up(f"10.0.8.{101 + i}", "vlan8"),
            metadata={
                "annotations": {"loadbalancer.harvesterhci.io/cluster": "shop"},
                "labels": {"cloudprovider.harvesterhci.io/cluster": "shop"},
            },
        )
    guest_cluster(
        plane, "shops", "shop", {f"shop-node-{i}": f"10.0.8.{60 + i}" for i in (1, 2, 3)}, failing="shop-node-3"
    )
    taken = {f"10.0.8.{101 + i}": f"shops/shop-{i}" for i in range(4)}
    owners = {"10.0.8.100": "shops/web", "10.0.8.190": "shops/ledger", "10.0.8.110": "agent/host-1", **taken}
    gone = {"10.0.8.130": "shops/long-gone"}
    conflicts = {"10.0.8.140": {"hardwareAddress": "52:54:00:aa:bb:cc", "until": ago(minutes=-9)}}
    block(plane, "vlan8", "10.0.8.0", {**owners, **gone}, conflicts=conflicts)
    for third in (0, 1, 2, 40, 41, 200):
        many = {f"10.20.{third}.{i}": f"team-a/lb-{third}-{i}" for i in range(2, 2 + (third * 37) % 250 + 3)}
        block(plane, "campus", f"10.20.{third}.0", many)
    summary = {"total": 89, "available": 80, "lastAllocated": "10.0.8.104"}
    plane.api.patch(f"{GROUP}/ippools/vlan8/status", {"status": summary})
