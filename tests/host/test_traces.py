"""A trace through the host: it goes with the object, and costs no write of its own but for a deletion's."""

from collections import Counter
from dataclasses import replace

from cloudprovider.core.api.loadbalancer import TRACE_ANNOTATION
from cloudprovider.core.lbobject import object_key
from cloudprovider.core.tracing import NO_TRACER, Tracer
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS
from cloudprovider.tracing.fake import MemoryTracer
from tests.host.test_tenants import HELLO, REQUEST, TENANT
from tests.host.world import World, eventually, guest_cluster, pool, services, subnet

CONTEXTS = [f"00-{number:032x}-{number:016x}-01" for number in range(1, 5)]
(SERVICE,) = services(1)
KEY = object_key(TENANT, SERVICE)


async def story(world: World, cluster: FakeCluster, tracer: Tracer, contexts: list[str]) -> Counter[str]:
    """A Service comes, changes, is asked for once more, and goes; return the requests about its load balancer."""
    requests: Counter[str] = Counter()

    async def count(call: Call) -> None:
        if call.resource.startswith("loadbalancers") and call.verb not in ("list", "watch"):
            requests[f"{call.verb} {call.resource}"] += 1

    cluster.before = count
    await world.client.create(GUESTCLUSTERS, guest_cluster(TENANT))
    await world.client.create(IPPOOLS, pool("p", subnet("10.0.0.0/24")))
    async with world.host(tracer=tracer) as host, world.agent(host):
        await host.backend.connect(TENANT, HELLO)
        states = host.backend.states(TENANT).states

        def noted() -> str:
            lb = host.caches.load_balancers.get(*KEY)
            return "" if lb is None else lb.metadata.annotations.get(TRACE_ANNOTATION, "")

        def settled() -> bool:
            lb = host.caches.load_balancers.get(*KEY)
            return lb is not None and lb.status.holder is not None and lb.status.holder.generation == 2

        await host.backend.ensure(TENANT, SERVICE, REQUEST, (), trace=contexts[0])
        await eventually(lambda: bool(states[SERVICE].addresses))
        assert noted() == contexts[0]
        changed = replace(REQUEST, affinity_seconds=60)
        await host.backend.ensure(TENANT, SERVICE, changed, (), trace=contexts[1])
        await eventually(settled)
        assert noted() == contexts[1]
        await host.backend.ensure(TENANT, SERVICE, changed, (), trace=contexts[2])
        assert noted() == contexts[1]
        await host.backend.delete(TENANT, SERVICE, trace=contexts[3])
        await eventually(lambda: host.caches.load_balancers.get(*KEY) is None)
    return requests


async def test_what_is_traced_costs_what_is_not_but_for_a_deletion(cluster: FakeCluster, world: World) -> None:
    plain = await story(world, cluster, NO_TRACER, ["", "", "", ""])
    other = FakeCluster(cluster.now)
    tracer = MemoryTracer()
    traced = await story(
        World(client=FakeKubeClient(other), connect=lambda: FakeKubeClient(other)), other, tracer, CONTEXTS
    )
    assert traced - plain == Counter({"patch loadbalancers": 1})
    assert plain - traced == Counter()
    spans = {(span.name, span.parent) for span in tracer.spans}
    assert ("controller allocates", CONTEXTS[0]) in spans
    assert ("controller releases", CONTEXTS[3]) in spans
    assert not [parent for _, parent in spans if parent == CONTEXTS[2]]


async def test_a_host_that_no_longer_traces_takes_the_note_away_with_the_next_change(
    cluster: FakeCluster, world: World
) -> None:
    await story(world, cluster, NO_TRACER, [CONTEXTS[0], "", "", ""])
