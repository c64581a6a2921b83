"""After a restore: what Services show goes back to them, whoever else asks first. And a mere restart delays nobody."""

import asyncio
from ipaddress import IPv4Address

import msgspec
import pytest

from cloudprovider.bridge.api import Hello
from cloudprovider.core.api.guestcluster import GuestClusterSpec, GuestClusterStatus
from cloudprovider.core.api.loadbalancer import LoadBalancer, LoadBalancerStatus
from cloudprovider.core.api.pool import IPPoolStatus
from cloudprovider.core.errors import BridgeError, Unavailable
from cloudprovider.core.exchange import Inventory, InventoryItem, Listener, LoadBalancerRequest, ServiceKey, Tenant
from cloudprovider.core.lbobject import object_key, wanted_object
from cloudprovider.host.assembly import Host
from cloudprovider.host.clock import utc_now
from cloudprovider.kube.fake import Call, FakeCluster, FakeKubeClient
from cloudprovider.kube.resources import GUESTCLUSTERS, IPBLOCKS, IPPOOLS, LOADBALANCERS
from tests.host.views import given, refused, vm
from tests.host.world import World, eventually, guest_cluster, pool, services, subnet, virtually

BLUE, GREEN = Tenant("team-a", "blue"), Tenant("team-b", "green")
OLD, NEW = ServiceKey("default", "old", "uid-old"), ServiceKey("default", "new", "uid-new")
REQUEST = LoadBalancerRequest(listeners=(Listener("http", "TCP", 80, 30080),))
SHOWN = IPv4Address("192.0.2.10")
OTHER = IPv4Address("192.0.2.11")
WAIT = 30.0
BLUE_KEY = (BLUE.namespace, BLUE.cluster)


class Restored(World):
    """A host whose pool of two addresses has given the first one to a Service of blue's, and green has nothing."""

    def __init__(self) -> None:
        self.cluster = FakeCluster(utc_now)
        super().__init__(client=FakeKubeClient(self.cluster), connect=lambda: FakeKubeClient(self.cluster))

    async def prepare(self) -> None:
        await self.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24", str(SHOWN), str(OTHER))))
        for tenant in (BLUE, GREEN):
            await self.client.create(GUESTCLUSTERS, guest_cluster(tenant))
        async with self.host() as host:
            for tenant in (BLUE, GREEN):
                await connect(host, tenant)
            assert await ask(host, BLUE, OLD) == SHOWN
            await report(host, BLUE, (OLD, SHOWN))
            await eventually(lambda: bool(host.caches.pools.objects["", "p"].status.allocated), "the pool's summary")

    async def lose(self, *what: str) -> None:
        """Take "blocks", "statuses" or "objects" (the load balancers) away, as a backup may lack them."""
        if "blocks" in what:
            for block in await self.blocks():
                await self.client.delete(IPBLOCKS, "", block.metadata.name)
        for lb in await self.load_balancers():
            if "objects" in what:
                await self.client.merge_patch(LOADBALANCERS, *lb.key, {"metadata": {"finalizers": None}})
                await self.client.delete(LOADBALANCERS, *lb.key)
            elif "statuses" in what:
                self.cluster.seed(LOADBALANCERS, msgspec.structs.replace(lb, status=LoadBalancerStatus()))
        if "statuses" in what:
            for cluster in (await self.client.list(GUESTCLUSTERS)).items:
                self.cluster.seed(GUESTCLUSTERS, msgspec.structs.replace(cluster, status=GuestClusterStatus()))
        for one in (await self.client.list(IPPOOLS)).items:  # else the search would go on behind what is shown
            self.cluster.seed(IPPOOLS, msgspec.structs.replace(one, status=IPPoolStatus()))


async def prepared() -> Restored:
    world = Restored()
    await world.prepare()
    return world


scenario = virtually(prepared)


async def connect(host: Host, tenant: Tenant) -> None:
    await host.backend.connect(tenant, Hello(cluster_uid=f"uid-{tenant.cluster}", guest_version="1"))


async def report(host: Host, tenant: Tenant, *shown: tuple[ServiceKey, IPv4Address | None], version: str = "1") -> None:
    items = tuple(InventoryItem(key, () if address is None else (address,)) for key, address in shown)
    await host.backend.report_inventory(tenant, Inventory(items, version, complete=True, fencing_token=1))


async def ask(host: Host, tenant: Tenant, service: ServiceKey, *shown: IPv4Address) -> IPv4Address:
    """Ask for a load balancer, and wait for its address."""
    await host.backend.ensure(tenant, service, REQUEST, shown)
    return await address_of(host, tenant, service)


async def address_of(host: Host, tenant: Tenant, service: ServiceKey) -> IPv4Address:
    return IPv4Address(await given(host, host.caches.load_balancers.objects[object_key(tenant, service)]))


async def begin(world: World, host: Host, contender: str, name: ServiceKey = NEW) -> LoadBalancer:
    """Let somebody who shows nothing ask for an address: a Service of green's, or a virtual machine's load balancer."""
    if contender == "vm":
        return await world.client.create(LOADBALANCERS, vm(name.name))
    await host.backend.ensure(GREEN, name, REQUEST, ())
    return host.caches.load_balancers.objects[object_key(GREEN, name)]


async def address_after(host: Host, lb: LoadBalancer, seconds: float) -> str:
    """Return the address that it has when so much (virtual) time has passed."""
    await asyncio.sleep(seconds)
    return host.caches.load_balancers.objects[lb.key].status.address


CONTENDERS = pytest.mark.parametrize("contender", ["service", "vm"])


class TestAfterALoss:
    @CONTENDERS
    @pytest.mark.parametrize("lost", [("blocks", "statuses"), ("blocks", "objects")], ids=" and ".join)
    @scenario
    async def test_who_shows_nothing_waits_until_all_have_been_heard(
        self, world: Restored, contender: str, lost: tuple[str, ...]
    ) -> None:
        await world.lose(*lost)
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, GREEN)
            new = await begin(world, host, contender)
            assert "lost records" in await refused(host, new, "WaitingForGuests")
            await report(host, GREEN, *([(NEW, None)] if contender == "service" else []))
            await connect(host, BLUE)
            assert await address_after(host, new, 5.0) == ""
            await report(host, BLUE, (OLD, SHOWN))
            assert await given(host, new) == str(OTHER)
            assert await ask(host, BLUE, OLD, SHOWN) == SHOWN

    @CONTENDERS
    @scenario
    async def test_no_longer_than_the_wait(self, world: Restored, contender: str) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, GREEN)
            new = await begin(world, host, contender)
            assert await address_after(host, new, WAIT - 1) == ""
            assert await address_after(host, new, 2.0) != "", "blue has had its time"

    @CONTENDERS
    @scenario
    async def test_what_is_shown_is_kept_when_nobody_waits_any_more(self, world: Restored, contender: str) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=0) as host:
            await connect(host, BLUE)
            await connect(host, GREEN)
            await report(host, BLUE, (OLD, SHOWN))
            first, second = [await begin(world, host, contender, name) for name in services(2)]
            assert await given(host, first) == str(OTHER)
            await refused(host, second, "PoolExhausted")
            # Blue's guest has given its Service up: nobody asks for the address again.
            await report(host, BLUE, version="2")
            assert await given(host, second) == str(SHOWN)

    @scenario
    async def test_nor_is_it_given_to_who_asks_for_it_by_name(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, BLUE)
            await report(host, BLUE, (OLD, SHOWN))
            named = await world.client.create(LOADBALANCERS, vm(addresses=[str(SHOWN)]))
            await refused(host, named, "WaitingForGuests")
            await report(host, GREEN)
            await refused(host, named, "AddressInUse")
            assert await ask(host, BLUE, OLD, SHOWN) == SHOWN

    @scenario
    async def test_an_ensure_says_it_as_well_and_is_served_at_once(self, world: Restored) -> None:
        await world.lose("blocks", "statuses")
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, BLUE)
            new = await begin(world, host, "vm")
            begun = asyncio.get_running_loop().time()
            assert await ask(host, BLUE, OLD, SHOWN) == SHOWN
            assert asyncio.get_running_loop().time() - begun < 1
            await refused(host, new, "WaitingForGuests")

    @scenario
    async def test_an_inventory_is_enough_for_a_load_balancer_that_is_there(self, world: Restored) -> None:
        await world.lose("blocks", "statuses")
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, BLUE)
            begun = asyncio.get_running_loop().time()
            await report(host, BLUE, (OLD, SHOWN))
            assert await address_of(host, BLUE, OLD) == SHOWN
            assert asyncio.get_running_loop().time() - begun < 1

    @scenario
    async def test_who_can_not_have_what_it_shows_waits_like_the_others(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, GREEN)
            await host.backend.ensure(GREEN, NEW, REQUEST, (IPv4Address("203.0.113.1"),))
            await refused(host, host.caches.load_balancers.objects[object_key(GREEN, NEW)], "WaitingForGuests")

    @scenario
    async def test_of_two_that_show_one_address_the_first_keeps_it(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, BLUE)
            await connect(host, GREEN)
            await report(host, BLUE, (OLD, SHOWN))
            await report(host, GREEN, (NEW, SHOWN))
            assert await ask(host, GREEN, NEW, SHOWN) == OTHER
            assert await ask(host, BLUE, OLD, SHOWN) == SHOWN

    @scenario
    async def test_records_of_a_namesake_are_taken_over(self, world: Restored) -> None:
        """Blocks restored as they were, and load balancers made anew: other UIDs, no status."""
        machine = await world.client.create(LOADBALANCERS, vm())
        async with world.host() as host:
            assert await given(host, machine) == str(OTHER)
        await world.lose("objects")
        strangers = [await world.client.create(LOADBALANCERS, vm(f"a-stranger-{i}")) for i in range(2)]
        await world.client.create(LOADBALANCERS, vm())
        async with world.host(readoption_seconds=WAIT) as host:
            assert await given(host, vm()) == str(OTHER)
            for stranger in strangers:
                await refused(host, stranger, "WaitingForGuests")
            await report(host, BLUE)
            await report(host, GREEN)
            assert await given(host, strangers[0]) == str(SHOWN)
            await refused(host, strangers[1], "PoolExhausted")

    @scenario
    async def test_what_is_shown_later_is_given_at_once(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, BLUE)
            await host.backend.ensure(BLUE, OLD, REQUEST, ())
            lb = host.caches.load_balancers.objects[object_key(BLUE, OLD)]
            await refused(host, lb, "WaitingForGuests")
            await report(host, BLUE, (OLD, SHOWN))
            assert await address_after(host, lb, 1.0) == str(SHOWN)

    @scenario
    async def test_a_request_that_fails_takes_back_nothing_that_was_shown(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=0) as host:
            await report(host, BLUE, (OLD, SHOWN))

            async def refuse(call: Call) -> None:
                if call.verb == "create":
                    raise Unavailable("busy", status=503)

            world.cluster.before = refuse
            with pytest.raises(Unavailable):
                await host.backend.ensure(BLUE, OLD, REQUEST, (SHOWN,))
            world.cluster.before = None
            first, second = [await begin(world, host, "vm", name) for name in services(2)]
            assert await given(host, first) == str(OTHER)
            await refused(host, second, "PoolExhausted")

    @scenario
    async def test_an_older_backup_shows_itself_by_what_a_guest_shows(self, world: Restored) -> None:
        """All that the backup has fits together; what came after it is missing."""
        backup = world.cluster.snapshot()
        async with world.host() as host:
            assert await ask(host, GREEN, NEW) == OTHER
        world.cluster.restore(backup)
        async with world.host(readoption_seconds=WAIT) as host:
            await report(host, GREEN, (NEW, OTHER))
            waiting = await world.client.create(LOADBALANCERS, vm())
            await refused(host, waiting, "WaitingForGuests")
            await report(host, BLUE, (OLD, SHOWN))
            await refused(host, waiting, "PoolExhausted")
            assert await ask(host, GREEN, NEW, OTHER) == OTHER


class TestBounds:
    @scenario
    async def test_a_guest_keeps_nothing_of_a_pool_that_is_not_open_to_it(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        await world.client.merge_patch(GUESTCLUSTERS, *BLUE_KEY, {"spec": {"pools": ["another"]}})
        async with world.host(readoption_seconds=0) as host:
            await report(host, BLUE, (OLD, SHOWN))
            assert await ask(host, GREEN, NEW) == SHOWN

    @scenario
    async def test_nor_more_than_it_may_have_load_balancers(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        await world.client.merge_patch(GUESTCLUSTERS, *BLUE_KEY, {"spec": {"quota": {"loadBalancers": 1}}})
        async with world.host(readoption_seconds=0) as host:
            await report(host, BLUE, (OLD, SHOWN), (NEW, OTHER))
            assert await ask(host, GREEN, NEW) in (SHOWN, OTHER)

    @scenario
    async def test_an_inventory_that_was_on_its_way_keeps_nothing_for_who_is_gone(self, world: Restored) -> None:
        async with world.host() as host:
            await host.backend.delete(BLUE, OLD)
            await eventually(lambda: not host.caches.load_balancers.objects, "it is gone")
            await report(host, BLUE, (OLD, SHOWN), version="2")
            for one in services(2):
                await ask(host, GREEN, one)

    @scenario
    async def test_a_tenant_that_has_ended_is_not_waited_for(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=WAIT) as host:
            new = await begin(world, host, "vm")
            await report(host, GREEN)
            await refused(host, new, "WaitingForGuests")
            await world.client.delete(GUESTCLUSTERS, *BLUE_KEY)
            assert await address_after(host, new, 1.0) != ""

    @scenario
    async def test_nor_is_anything_kept_for_it(self, world: Restored) -> None:
        await world.lose("blocks", "objects")
        async with world.host(readoption_seconds=0) as host:
            await report(host, BLUE, (OLD, SHOWN))
            first, second = [await begin(world, host, "vm", name) for name in services(2)]
            assert await given(host, first) == str(OTHER)
            await refused(host, second, "PoolExhausted")
            await world.client.delete(GUESTCLUSTERS, *BLUE_KEY)
            assert await given(host, second) == str(SHOWN)
            assert not list(host.controller._hints.unsettled())

    @scenario
    async def test_nothing_is_told_of_somebody_elses_object(self, world: Restored) -> None:
        foreign = await world.client.create(LOADBALANCERS, vm(object_key(BLUE, NEW)[1]))
        told: list[tuple[str, str]] = []
        async with world.host() as host:
            host.controller._hints.on_told(told.append)
            with pytest.raises(BridgeError, match="not this Service's"):
                await host.backend.ensure(BLUE, NEW, REQUEST, (SHOWN,))
            await report(host, BLUE, (OLD, SHOWN), (NEW, SHOWN))
        assert foreign.key not in told


class TestAMereRestart:
    @CONTENDERS
    @pytest.mark.parametrize("unserved", [False, True], ids=["all served", "killed before one was served"])
    @scenario
    async def test_delays_nobody(self, world: Restored, contender: str, unserved: bool) -> None:
        """Also while no guest has been heard again, and one never will be."""
        if unserved:
            left = wanted_object(BLUE, NEW, REQUEST, cluster_uid="uid-blue", limits=GuestClusterSpec())
            await world.client.create(LOADBALANCERS, left)
        async with world.host(readoption_seconds=WAIT) as host:
            begun = asyncio.get_running_loop().time()
            new = await begin(world, host, contender, ServiceKey("default", "newer", "uid-newer"))
            assert await given(host, new) == str(OTHER)
            assert asyncio.get_running_loop().time() - begun < 0.1

    @scenario
    async def test_nor_does_what_guests_show_again(self, world: Restored) -> None:
        async with world.host(readoption_seconds=WAIT) as host:
            await connect(host, BLUE)
            await report(host, BLUE, (OLD, SHOWN))
            begun = asyncio.get_running_loop().time()
            assert await ask(host, BLUE, OLD, SHOWN) == SHOWN
            assert await ask(host, GREEN, NEW) == OTHER
            assert asyncio.get_running_loop().time() - begun < 0.1
            assert not list(host.controller._hints.unsettled()), "what is recorded need not be looked at again"
