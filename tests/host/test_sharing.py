"""Services of a guest that share an address: whoever comes and goes first, it stays until the last one leaves."""

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from cloudprovider.core.api.guestcluster import GuestClusterSpec
from cloudprovider.core.api.loadbalancer import LoadBalancer
from cloudprovider.core.exchange import Listener, LoadBalancerRequest, ServiceKey, Tenant
from cloudprovider.core.lbobject import wanted_object
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import GUESTCLUSTERS, IPPOOLS, LOADBALANCERS
from tests.host.test_moves import until_allocated
from tests.host.views import condition, given, has_address, refused, seen
from tests.host.world import World, eventually, guest_cluster, pool, subnet

TENANT = Tenant("team-a", "blue")
OTHER = Tenant("team-a", "green")


def lb(name: str, port: int, primary: str = "", *, tenant: Tenant = TENANT, uid: str = "", **spec: Any) -> LoadBalancer:
    """The object of a Service ``name``, which shares with the Service ``primary`` of its namespace."""
    request = LoadBalancerRequest(listeners=(Listener("", "TCP", port, 30000 + port),))
    key = ServiceKey("default", name, uid or f"uid-{name}")
    made = wanted_object(tenant, key, request, cluster_uid="c", limits=GuestClusterSpec())
    changes = {"primary_service": f"default/{primary}" if primary else "", **spec}
    return msgspec.structs.replace(made, spec=msgspec.structs.replace(made.spec, **changes))


@pytest.fixture
async def shop(world: World) -> World:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(IPPOOLS, pool("q", subnet("198.51.100.0/24")))
    for tenant in (TENANT, OTHER):
        await world.client.create(GUESTCLUSTERS, guest_cluster(tenant))
    return world


async def create(world: World, *lbs: LoadBalancer) -> None:
    for one in lbs:
        await world.client.create(LOADBALANCERS, one)


async def delete(world: World, host: Host, one: LoadBalancer) -> None:
    await world.client.delete(LOADBALANCERS, *one.key)
    await eventually(lambda: host.caches.load_balancers.get(*one.key) is None, f"the end of {one.key}")


FAMILY = [lb("web", 80), lb("dns", 53, "web"), lb("mail", 25, "web")]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
async def test_the_order_of_coming_and_going_does_not_matter(shop: World, order: Iterable[int]) -> None:
    members = [FAMILY[i] for i in order]
    async with shop.host() as host, shop.agent(host):
        for one in members:
            await create(shop, one)
        addresses = {await given(host, one) for one in members}
        assert len(addresses) == 1
        assert len({seen(host, one).status.address_key for one in members}) == 1
        for one, rest in ((members[i], members[i + 1 :]) for i in range(3)):
            await delete(shop, host, one)
            for other in rest:
                assert {seen(host, other).status.address} == addresses
            assert set(await shop.allocations()) == (addresses if rest else set())


async def test_of_a_primary_that_is_not_there_the_reason_is_told(shop: World) -> None:
    async with shop.host() as host:
        await create(shop, FAMILY[1])
        assert '"default/web"' in await refused(host, FAMILY[1], "PrimaryNotFound")
        await create(shop, FAMILY[0])
        assert await given(host, FAMILY[1]) == await given(host, FAMILY[0])


async def test_a_new_primary_joins_those_that_are_there(shop: World) -> None:
    web, dns, _ = FAMILY
    again = lb("web", 80, uid="another")
    async with shop.host() as host, shop.agent(host):
        await create(shop, web, dns)
        address = await given(host, dns)
        await delete(shop, host, web)
        await create(shop, lb("unrelated", 443), again)
        assert await given(host, again) == address
        assert set(await shop.allocations()) == {address, await given(host, lb("unrelated", 443))}


async def test_a_port_belongs_to_who_was_there_first(shop: World) -> None:
    web, thief = FAMILY[0], lb("thief", 80, "web")
    udp = lb("udp", 81, "web")
    listener = msgspec.structs.replace(udp.spec.listeners[0], port=80, protocol="UDP")
    udp = msgspec.structs.replace(udp, spec=msgspec.structs.replace(udp.spec, listeners=[listener]))
    async with shop.host() as host, shop.agent(host):
        await create(shop, web)
        address = await given(host, web)
        await create(shop, thief, udp)
        message = await refused(host, thief, "PortConflict")
        assert message.startswith(f'the Service "default/web" has TCP 80 of {address} already')
        assert await given(host, udp) == address  # another protocol is another port
        await delete(shop, host, web)
        assert await given(host, thief) == address  # free now


async def test_a_namesake_without_sharers_has_nothing_in_common(shop: World) -> None:
    old, new = FAMILY[0], lb("web", 80, uid="another")
    async with shop.host() as host:  # no agent: the old one does not go
        await create(shop, old)
        address = await given(host, old)
        await shop.client.delete(LOADBALANCERS, *old.key)
        await create(shop, new)
        assert await given(host, new) != address


async def test_one_that_shares_is_no_primary(shop: World) -> None:
    async with shop.host() as host:
        await create(shop, *FAMILY[:2], lb("deep", 99, "dns"))
        await given(host, FAMILY[1])
        assert "name that one" in await refused(host, lb("deep", 99, "dns"), "PrimaryIsShared")


async def test_nobody_shares_with_another_tenant(shop: World) -> None:
    stranger = lb("dns", 53, "web", tenant=OTHER)
    async with shop.host() as host:
        await create(shop, FAMILY[0], stranger)
        await given(host, FAMILY[0])
        await refused(host, stranger, "PrimaryNotFound")


async def test_all_move_with_the_primary(shop: World) -> None:
    async with shop.host() as host, shop.agent(host):
        await create(shop, *FAMILY)
        for one in FAMILY:
            assert await given(host, one) == "192.0.2.2"
        await shop.client.merge_patch(LOADBALANCERS, *FAMILY[0].key, {"spec": {"ipPool": "q"}})
        for one in FAMILY:
            await eventually(lambda one=one: seen(host, one).status.address == "198.51.100.2")  # type: ignore[misc]
        await until_allocated(shop, host, {"198.51.100.2"})


async def test_leaving_and_joining_in_place(shop: World) -> None:
    web, dns, mail = FAMILY
    async with shop.host() as host, shop.agent(host):
        await create(shop, web, dns, mail)
        shared = await given(host, dns)
        await shop.client.merge_patch(LOADBALANCERS, *dns.key, {"spec": {"primaryService": ""}})
        await eventually(lambda: seen(host, dns).status.address != shared, "an address of its own")
        own = seen(host, dns).status.address
        await until_allocated(shop, host, {shared, own})
        assert {seen(host, one).status.address for one in (web, mail)} == {shared}
        await shop.client.merge_patch(LOADBALANCERS, *dns.key, {"spec": {"primaryService": "default/web"}})
        await eventually(lambda: seen(host, dns).status.address == shared, "back on the shared address")
        await until_allocated(shop, host, {shared})


async def test_a_restart_changes_nothing_and_lost_blocks_are_written_anew(shop: World) -> None:
    from cloudprovider.kube.resources import IPBLOCKS

    async with shop.host() as host, shop.agent(host):
        await create(shop, *FAMILY)
        address = {await given(host, one) for one in FAMILY}
        before = await shop.blocks()
    async with shop.host() as host, shop.agent(host):
        await eventually(lambda: all(has_address(host, one) for one in FAMILY))
        assert await shop.blocks() == before
    for block in before:
        await shop.client.delete(IPBLOCKS, "", block.metadata.name)
    async with shop.host() as host, shop.agent(host):
        await until_allocated(shop, host, address)
        await eventually(lambda: len(_holders(host)) == 3, "all three in the record")
        assert {seen(host, one).status.address for one in FAMILY} == address


async def test_a_quota_counts_a_shared_address_once(shop: World) -> None:
    spec = {"quota": {"addresses": 1}}
    await shop.client.merge_patch(GUESTCLUSTERS, TENANT.namespace, TENANT.cluster, {"spec": spec})
    async with shop.host() as host, shop.agent(host):
        await create(shop, *FAMILY)
        for one in FAMILY:
            await given(host, one)
        own = lb("own", 8080)
        await create(shop, own)
        assert "quota.addresses" in await refused(host, own, "QuotaExceeded")
        for one in FAMILY:
            await delete(shop, host, one)
        assert await given(host, own)
        assert condition(host, own).status == "True"  # type: ignore[union-attr]


def _holders(host: Host) -> set[str]:
    blocks = host.caches.blocks.objects.values()
    return {o for b in blocks for a in b.spec.allocations.values() for o in (a.owner, *a.sharers)}
