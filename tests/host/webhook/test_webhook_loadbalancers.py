"""Load balancers through a real API server and the real webhook: refused, warned of, never asked."""

import pytest

from cloudprovider.core.api.loadbalancer import Listener, LoadBalancer, LoadBalancerSpec, ServiceReference
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.api.pool import Allocation
from cloudprovider.kube.client import HttpKubeClient
from cloudprovider.kube.resources import IPBLOCKS, LOADBALANCERS
from tests.host.webhook.served import Admin, Json, Outcome, Served, block, connect, load_balancer, pool
from tests.lab.controlplane import ControlPlane

pytestmark = [pytest.mark.apiserver, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

HTTP = {"name": "http", "port": 80, "backendPort": 8080}
NETWORK = "loadbalancer.harvesterhci.io/network"


def name_of(network: str, suffix: str = "") -> str:
    return network.rpartition("/")[2] + suffix


def on(network: str, obj: Json) -> Json:
    return {**obj, "metadata": {**obj["metadata"], "annotations": {NETWORK: network}}}


def denied(outcome: Outcome, field: str, text: str) -> None:
    assert outcome.code == 422, outcome
    assert outcome.message.startswith(
        'admission webhook "loadbalancers.cloudprovider.harvesterhci.io" denied the request: '
    )
    assert f"{field}: " in outcome.message
    assert text in outcome.causes[field][1]


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        ({"listeners": []}, "spec.listeners", "needs at least one listener"),
        ({"listeners": [HTTP, {**HTTP, "port": 81}]}, "spec.listeners", 'two listeners have the same name, "http"'),
        (
            {"listeners": [HTTP, {**HTTP, "name": "x"}]},
            "spec.listeners",
            "two listeners have the same port and protocol, 80",
        ),
        ({"listeners": [{**HTTP, "port": 0}]}, "spec.listeners[0].port", "greater than or equal to 1"),
        ({"listeners": [{**HTTP, "port": 65536}]}, "spec.listeners[0].port", "less than or equal to 65535"),
        (
            {"listeners": [{"name": "x", "port": 80}]},
            "spec.listeners",
            "the listener of port 80 needs a backendPort, the machine's port",
        ),
        (
            {"listeners": [{**HTTP, "backendPort": 70000}]},
            "spec.listeners[0].backendPort",
            "less than or equal to 65535",
        ),
        ({"listeners": [{**HTTP, "protocol": "SCTP"}]}, "spec.listeners[0].protocol", 'Unsupported value: "SCTP"'),
        ({"healthCheck": {"port": 81}}, "spec.healthCheck.port", "81 must be the backendPort of a TCP listener"),
        (
            {
                "listeners": [HTTP, {**HTTP, "name": "u", "protocol": "UDP", "backendPort": 81}],
                "healthCheck": {"port": 81},
            },
            "spec.healthCheck.port",
            "81 must be the backendPort of a TCP listener",
        ),
        *(
            ({"healthCheck": {"port": 8080, key: 0}}, f"spec.healthCheck.{key}", "greater than or equal to 1")
            for key in ("successThreshold", "failureThreshold", "periodSeconds", "timeoutSeconds")
        ),
        ({"addresses": ["banana"]}, "spec.addresses", '"banana" is no IP address'),
        (
            {"addresses": ["10.0.0.5", "10.0.0.6"]},
            "spec.addresses",
            "two addresses must be one of each family: 10.0.0.5 and 10.0.0.6 are not",
        ),
        ({"ipFamilies": ["IPv4", "IPv4"]}, "spec.ipFamilies", "ipFamilies must not name a family twice: IPv4"),
        ({"sourceRanges": ["banana"]}, "spec.sourceRanges", '"banana" is no CIDR'),
        ({"workloadType": "pod"}, "spec.workloadType", 'Unsupported value: "pod"'),
        ({"ipam": "static"}, "spec.ipam", 'Unsupported value: "static"'),
    ],
)
async def test_what_the_definition_refuses(served: Served, admin: Admin, spec: Json, field: str, text: str) -> None:
    """Before the webhook is asked."""
    asked = served.webhook.reviews.total()
    outcome = await admin.create(load_balancer("refused", **spec))
    assert outcome.code == 422
    assert text in outcome.causes[field][1]
    assert served.webhook.reviews.total() == asked


async def test_the_kind_of_workload_stays(served: Served, admin: Admin, network: str) -> None:
    made = load_balancer(name_of(network), workloadType="vm")
    assert (await admin.create(made)).done
    outcome = await admin.merge(made, {"spec": {"workloadType": "cluster"}})
    assert "workloadType can't be changed; delete the load balancer and create it anew" in outcome.message


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        (
            {"ipam": "dhcp", "ipFamilies": ["IPv6"]},
            "spec.ipFamilies",
            'DHCP gives IPv4 addresses only: ask for IPv4, or set ipam to "pool"',
        ),
        (
            {"ipam": "dhcp", "ipFamilyPolicy": "RequireDualStack"},
            "spec.ipFamilyPolicy",
            "RequireDualStack can't be met",
        ),
        ({"ipam": "dhcp", "ipPool": "p"}, "spec.ipPool", 'the DHCP server chooses the address, not the pool "p"'),
        ({"ipam": "dhcp", "addresses": ["10.0.0.5"]}, "spec.addresses", "10.0.0.5 can't be asked for: leave it out"),
        (
            {"addresses": ["fd00::5"], "ipFamilies": ["IPv4"]},
            "spec.addresses[0]",
            "fd00::5 is none of the families asked for (IPv4)",
        ),
        ({"primaryService": "shop/web"}, "spec.primaryService", "only a guest cluster's Service shares the addresses"),
    ],
)
async def test_what_the_webhook_refuses(served: Served, admin: Admin, spec: Json, field: str, text: str) -> None:
    denied(await admin.create(load_balancer("refused", **spec)), field, text)
    sound = load_balancer("sound")
    assert (await admin.create(sound)).done
    denied(await admin.merge(sound, {"spec": spec}), field, text)
    assert (await admin.delete(sound)).done


async def test_everything_at_once(served: Served, admin: Admin, network: str) -> None:
    spec: Json = {"ipam": "dhcp", "ipPool": "p", "ipFamilies": ["IPv6"], "primaryService": "a/b"}
    outcome = await admin.create(load_balancer(name_of(network), **spec))
    assert set(outcome.causes) == {"spec.ipPool", "spec.ipFamilies", "spec.primaryService"}


async def test_what_its_author_may_not_have_meant_is_warned_of(served: Served, admin: Admin, network: str) -> None:
    name = name_of(network)
    assert (await admin.create(pool(name, {"subnet": "10.0.0.0/24"}, selector={"network": network}))).done
    check = {"port": 8080, "timeoutSeconds": 9}
    slow = load_balancer(name, ipPool=name, backendServerSelector={"app": []}, healthCheck=check)
    outcome = await admin.create(on(network, slow))
    assert outcome.done
    selector, timeout = outcome.warnings
    assert selector == "spec.backendServerSelector[app]: has no value, so no virtual machine matches"
    assert timeout.startswith("spec.healthCheck.timeoutSeconds: is longer than periodSeconds")


async def test_a_pool_that_may_still_come_is_warned_of(served: Served, admin: Admin, network: str) -> None:
    name = name_of(network)
    wanting = on(network, load_balancer(name, ipPool=name, addresses=["10.0.7.7"]))
    outcome = await admin.create(wanting)
    assert outcome.done
    (warning,) = outcome.warnings
    assert warning.startswith(f'no address yet: there is no pool "{name}" on this host: ')
    assert (await admin.create(pool(name, {"subnet": "10.0.0.0/24"}, selector={"network": network}))).done
    outcome = await admin.merge(wanting, {"spec": {"description": "again"}})
    assert outcome.done
    (warning,) = outcome.warnings
    assert "the address asked for, 10.0.7.7, is not one that it hands out" in warning
    outcome = await admin.merge(wanting, {"spec": {"addresses": ["10.0.0.7"]}})
    assert (outcome.done, outcome.warnings) == (True, ())


async def test_a_namespaces_quota(served: Served, admin: Admin, client: HttpKubeClient, network: str) -> None:
    name = name_of(network)
    selector = {"network": network, "scope": [{"project": "*", "namespace": "*", "guestCluster": "*"}]}
    limited = pool(name, {"subnet": "10.0.0.0/24"}, selector=selector, addressesPerTenant=2)
    assert (await admin.create(limited)).done
    held = {
        "n5": Allocation(owner="default/one", uid="1", tenant="default"),
        "n6": Allocation(owner="default/shop-x", uid="2", tenant="default/shop"),
    }
    await client.create(IPBLOCKS, block(name, "10.0.0.0", **held))
    assert (await admin.create(on(network, load_balancer(f"{name}-b", ipPool=name)))).done
    more = {"n7": Allocation(owner=f"default/{name}-b", uid="3", tenant="default")}
    await client.create(IPBLOCKS, block(name, "10.0.1.0", **more))
    denied(
        await admin.create(on(network, load_balancer(f"{name}-c", ipPool=name))),
        "spec.ipPool",
        f'the pool "{name}" gives a namespace\'s load balancers at most 2 addresses (its addressesPerTenant), and'
        ' "default" has 2: delete one of them, use another pool, or ask an operator for more',
    )
    outcome = await admin.create(on(network, load_balancer(f"{name}-d")))  # which may get one of another pool some day
    assert outcome.done
    (warning,) = outcome.warnings
    assert warning.startswith(
        f'no address yet: the pool "{name}" gives a namespace\'s load balancers at most 2 addresses'
    )
    has = on(network, load_balancer(f"{name}-b"))
    assert (await admin.merge(has, {"spec": {"description": "what it has counts once"}})).done


async def test_a_guests_load_balancer_never_asks(plane: ControlPlane, served: Served, network: str) -> None:
    """A Service's way is not to pass here: not when its load balancer is made, changed, or given an address."""
    asked = served.webhook.reviews.total()
    name = name_of(network)
    reference = ServiceReference(namespace="shop", name="web", uid="1")
    spec = LoadBalancerSpec(
        workload_type="cluster",
        listeners=[Listener(name="http", port=80, backend_port=30080)],
        service=reference,
        primary_service="shop/first",
    )
    async with connect(plane) as bridge:
        await bridge.create(LOADBALANCERS, LoadBalancer(metadata=ObjectMeta(name=name, namespace="default"), spec=spec))
        await bridge.merge_patch(LOADBALANCERS, "default", name, {"spec": {"sourceRanges": ["10.0.0.0/8"]}})
        patch = {"status": {"addressKey": "k"}}
        await bridge.apply(LOADBALANCERS, "default", name, patch, field_manager="x", subresource="status")
        await bridge.delete(LOADBALANCERS, "default", name)
    assert served.webhook.reviews.total() == asked


async def test_what_changes_no_spec_never_asks(
    served: Served, admin: Admin, client: HttpKubeClient, network: str
) -> None:
    made = load_balancer(name_of(network))
    assert (await admin.create(made)).done
    asked = served.webhook.reviews["loadbalancers", "allowed"]
    assert (await admin.merge(made, {"metadata": {"labels": {"a": "b"}, "finalizers": ["example.org/x"]}})).done
    assert (await admin.delete(made)).done
    # A patch is judged on the server's cached object first, and on the true one if that is old: have it caught up.
    await client.list(LOADBALANCERS, "default")
    assert (await admin.merge(made, {"metadata": {"finalizers": None}, "spec": {"description": "going"}})).done
    assert served.webhook.reviews["loadbalancers", "allowed"] == asked
    assert (await admin.create(made)).done
    assert served.webhook.reviews["loadbalancers", "allowed"] == asked + 1
    assert (await admin.merge(made, {"metadata": {"annotations": {NETWORK: network}}})).done
    assert served.webhook.reviews["loadbalancers", "allowed"] == asked + 2, "another network is another choice of pools"
