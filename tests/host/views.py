"""Load balancers as tests of the host make them, and what the host knows of them."""

import asyncio

from cloudprovider.core.api.kubernetes import Event
from cloudprovider.core.api.loadbalancer import Listener, LoadBalancer, LoadBalancerSpec
from cloudprovider.core.api.meta import Condition, ObjectMeta
from cloudprovider.core.conditions import find
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import EVENTS, LOADBALANCERS
from tests.host.world import LIMIT, World, eventually


def vm(name: str = "vm", namespace: str = "team-a", **spec: object) -> LoadBalancer:
    fields = {"workload_type": "vm", "listeners": [Listener(name="http", port=80, backend_port=8080)], **spec}
    return LoadBalancer(
        api_version=LOADBALANCERS.api_version,
        kind=LOADBALANCERS.kind,
        metadata=ObjectMeta(name=name, namespace=namespace),
        spec=LoadBalancerSpec(**fields),  # type: ignore[arg-type]
    )


def seen(host: Host, lb: LoadBalancer) -> LoadBalancer:
    found = host.caches.load_balancers.get(*lb.key)
    assert found is not None
    return found


def condition(host: Host, lb: LoadBalancer, kind: str = "Allocated") -> Condition | None:
    found = host.caches.load_balancers.get(*lb.key)
    return find(found.status.conditions, kind) if found is not None else None


def has_address(host: Host, lb: LoadBalancer) -> bool:
    found = host.caches.load_balancers.get(*lb.key)
    return found is not None and bool(found.status.address)


async def given(host: Host, lb: LoadBalancer) -> str:
    await eventually(lambda: has_address(host, lb))
    return seen(host, lb).status.address


async def refused(host: Host, lb: LoadBalancer, reason: str) -> str:
    def holds() -> bool:
        found = condition(host, lb)
        return found is not None and found.status == "False" and found.reason == reason

    await eventually(holds, f"{lb.key} {reason}")
    found = condition(host, lb)
    assert found is not None
    return found.message


async def told(world: World, reason: str) -> Event:
    """The one event with this reason, as soon as it is posted."""
    found: list[Event] = []
    async with asyncio.timeout(LIMIT):
        while not found:
            await asyncio.sleep(0.005)
            found = [e for e in (await world.client.list(EVENTS)).items if e.reason == reason]
    assert len(found) == 1, [(e.involved_object.name, e.message) for e in found]
    return found[0]
