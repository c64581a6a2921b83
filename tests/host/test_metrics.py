"""What the host program tells of load balancers, pools and guests."""

from datetime import timedelta

import msgspec

from cloudprovider.bridge.api import Hello
from cloudprovider.core.api.pool import IPPoolStatus
from cloudprovider.core.errors import Conflict, Unavailable
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, Tenant
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.host.metrics import HostMetrics
from cloudprovider.host.readings import reading
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.registry import Registry
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS
from tests.host.world import World, eventually, guest_cluster, pool, services, subnet, virtually
from tests.kube.exposed import Labels, exposed

TENANT, AWAY = Tenant("team-a", "blue"), Tenant("team-a", "green")
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))


class Measured(World):
    """A host whose metrics are exposed."""

    def __init__(self) -> None:
        cluster = FakeCluster(utc_now)
        super().__init__(client=FakeKubeClient(cluster), connect=lambda: FakeKubeClient(cluster, program="host"))
        self.cluster = cluster
        self.running: Host | None = None
        self.registry = Registry("host", "0")
        self.metrics = HostMetrics(self.registry)
        self.registry.read(reading(lambda: self.running, self.metrics.bridge, serving=lambda: True))

    async def told(self, name: str) -> dict[Labels, float]:
        """All series of one metric."""
        found = await exposed(self.registry)
        return {labels: n for (metric, labels), n in found.items() if metric == f"cloudprovider_host_{name}"}


async def prepared() -> Measured:
    world = Measured()
    await world.client.create(IPPOOLS, pool("p", subnet("10.0.0.0/24", "10.0.0.10", "10.0.0.12")))
    for tenant in (TENANT, AWAY):
        await world.client.create(GUESTCLUSTERS, guest_cluster(tenant))
    return world


scenario = virtually(prepared)


def told_by(status: IPPoolStatus) -> tuple[int, int]:
    return status.total, status.available


async def ask(host: Host, count: int) -> None:
    for service in services(count):
        await host.backend.ensure(TENANT, service, REQUEST, ())


@scenario
async def test_a_standby_says_only_that_it_stands_by(world: Measured) -> None:
    assert await world.told("leader") == {(): 0}
    assert await world.told("load_balancers") == {}


@scenario
async def test_load_balancers_and_pools_are_told_as_they_stand(world: Measured) -> None:
    async with world.host(metrics=world.metrics) as host, world.agent(host):
        world.running = host
        for tenant in (TENANT, AWAY):
            await host.backend.connect(tenant, Hello(cluster_uid=tenant.cluster, guest_version="1"))
        world.metrics.bridge.streams({TENANT: 1})
        await ask(host, 4)
        caches = host.caches
        await eventually(lambda: sum(bool(lb.status.addresses) for lb in caches.load_balancers.objects.values()) == 3)
        await eventually(lambda: told_by(caches.pools.objects["", "p"].status) == (3, 0))
        states = await world.told("load_balancers")
        assert states[("reason", "PoolExhausted"), ("state", "no_address")] == 1
        assert sum(states.values()) == 4
        assert await world.told("pool_addresses") == {(("pool", "p"),): 3}
        assert await world.told("pool_addresses_available") == {(("pool", "p"),): 0}
        assert await world.told("pool_addresses_allocated") == {(("pool", "p"),): 3}
        assert (await world.told("block_writes_total"))[("outcome", "written"),] >= 1
        assert (await world.told("block_writes_total"))[("outcome", "conflict"),] == 0
        assert await world.told("guest_clusters") == {(): 2}
        assert await world.told("guest_connected") == {
            (("tenant", "team-a/blue"),): 1,
            (("tenant", "team-a/green"),): 0,
        }
        assert await world.told("time_to_address_seconds_count") == {(): 3}
        assert (await world.told("time_to_address_seconds_sum"))[()] < 3, "a second each would be slow"


@scenario
async def test_who_waited_before_this_program_began_is_measured_from_its_creation(world: Measured) -> None:
    async with world.host(metrics=world.metrics) as host:
        await ask(host, 4)
        lbs = host.caches.load_balancers.objects
        await eventually(lambda: sum(bool(lb.status.addresses) for lb in lbs.values()) == 3)
    before = (await world.told("time_to_address_seconds_sum"))[()]
    world.now = lambda: utc_now() + timedelta(hours=1)
    wider = msgspec.to_builtins(subnet("10.0.0.0/24", "10.0.0.10", "10.0.0.20"))
    await world.client.merge_patch(IPPOOLS, "", "p", {"spec": {"ranges": [wider]}})
    async with world.host(metrics=world.metrics) as host:
        lbs = host.caches.load_balancers.objects
        await eventually(lambda: all(lb.status.addresses for lb in lbs.values()))
    assert await world.told("time_to_address_seconds_count") == {(): 4}, "the others had theirs"
    assert 3600 <= (await world.told("time_to_address_seconds_sum"))[()] - before < 3700


@scenario
async def test_a_write_that_meets_somebody_elses_is_told_as_a_conflict(world: Measured) -> None:
    refusals = [Conflict("lost", status=409), Unavailable("busy", status=503)]

    async def refuse(call: Call) -> None:
        if call.resource == IPBLOCKS.plural and call.verb in ("create", "update") and refusals:
            raise refusals.pop(0)

    world.cluster.before = refuse
    async with world.host(metrics=world.metrics) as host:
        await ask(host, 1)
        lbs = host.caches.load_balancers.objects
        await eventually(lambda: all(lb.status.addresses for lb in lbs.values()))
    assert await world.told("block_writes_total") == {
        (("outcome", "conflict"),): 1,
        (("outcome", "failed"),): 1,
        (("outcome", "written"),): 1,
    }


@scenario
async def test_a_tenants_certificate_is_told_as_long_as_there_is_the_tenant(world: Measured) -> None:
    async with world.host(metrics=world.metrics) as host:
        world.running = host
        world.metrics.bridge.shown(TENANT, utc_now())
        assert [*await world.told("tenant_certificate_expiry_timestamp_seconds")] == [(("tenant", "team-a/blue"),)]
        await world.client.delete(GUESTCLUSTERS, TENANT.namespace, TENANT.cluster)
        await eventually(lambda: host.caches.guest_cluster(TENANT) is None)
        assert await world.told("tenant_certificate_expiry_timestamp_seconds") == {}
