"""Addresses by DHCP: asked for, shown, kept over restarts, off the link when they end, given back in time."""

from datetime import datetime, timedelta
from ipaddress import IPv4Address, ip_address

import msgspec

from cloudprovider.core.api.loadbalancer import Address, DhcpLease, LoadBalancer
from cloudprovider.kube.resources import LOADBALANCERS
from tests.agent.world import OLD, World, running, until
from tests.core.test_forwarding import HTTP, lb

FIRST, SECOND = "10.0.0.200", "10.0.0.201"


def seed(world: World) -> LoadBalancer:
    return world.cluster.seed(LOADBALANCERS, lb("a", "", HTTP, ipam="dhcp"))


async def lease(world: World) -> DhcpLease | None:
    return (await world.lb()).status.lease


async def leased(world: World, ip: str = FIRST) -> bool:
    found = await lease(world)
    return found is not None and found.ip == ip


async def copy(world: World) -> None:
    """The controller's part: the lease becomes an address."""
    found = await lease(world)
    assert found is not None
    given = Address(ip=found.ip, prefix_length=found.prefix_length, gateway=found.gateway, network=found.network)
    await world.controller_says([given], [])


async def served(world: World) -> None:
    """Bring a load balancer up whose address is by DHCP."""
    await until(lambda: leased(world))
    await copy(world)
    await until(world.holds)


async def pass_time(world: World, seconds: float) -> None:
    world.now += timedelta(seconds=seconds)
    await world.leases[-1].settle()


async def test_a_lease_is_shown_and_its_address_comes_up_when_the_controller_says_so() -> None:
    world = World()
    obj = seed(world)
    async with running(world.agent()):
        await until(lambda: leased(world))
        found = await lease(world)
        assert found is not None
        assert (found.prefix_length, found.gateway, found.server, found.network) == (24, "10.0.0.1", "10.0.0.1", "")
        assert datetime.fromisoformat(found.expiry_time) == world.now + timedelta(hours=1)
        assert world.dhcp.owners == {IPv4Address(FIRST): obj.metadata.uid}
        assert await world.says("Leased", "Leased")
        assert not world.network.vips
        await copy(world)
        await until(world.holds)
        assert await world.held() == [FIRST]
        assert {str(k.vip) for k in world.network.ledger.forwards} == {FIRST}


async def test_a_renewal_changes_the_times_and_nothing_else() -> None:
    world = World()
    seed(world)
    async with running(world.agent()):
        await served(world)
        before = await world.lb()
        await pass_time(world, 1801)

        async def renewed() -> bool:
            found = await lease(world)
            assert before.status.lease is not None
            return found is not None and found.expiry_time > before.status.lease.expiry_time

        await until(renewed)
        after = await world.lb()
        assert after.status.conditions == before.status.conditions
        assert after.status.holder == before.status.holder
        assert world.network.announced == [ip_address(FIRST)]


async def test_a_restart_keeps_the_lease_and_withdraws_nothing() -> None:
    world = World()
    seed(world)
    async with running(world.agent()):
        await served(world)
    assert world.dhcp.owners, "a stop gives nothing back"
    world.dhcp.answering = False  # and nobody is needed to go on
    async with running(world.agent()):
        await until(lambda: len(world.leases) == 2 and world.leases[1].state(("t", "a")).lease is not None)
        world.seed("b", "10.0.0.101")
        await until(lambda: world.holds("b"))
        assert await world.held() == [FIRST]
    assert [str(a) for a in world.network.announced] == [FIRST, "10.0.0.101"]


async def test_a_lease_that_ended_goes_off_the_link_at_once_and_another_is_sought() -> None:
    world = World()
    seed(world)
    async with running(world.agent()):
        await served(world)
        world.dhcp.answering = False
        await pass_time(world, 3601)
        await until(lambda: not world.network.vips)  # though the status shows the address still

        async def told() -> bool:
            return await lease(world) is None and await world.held() == []

        await until(told)
        found = await world.condition("Leased")
        assert found is not None
        assert found.status == "False"
        assert found.reason in {"DHCPLeaseExpired", "DHCPNoAnswer"}  # whichever is the newest news
        assert not world.network.vips
        world.dhcp.answering = True
        await pass_time(world, 60)
        await until(lambda: leased(world))


async def test_an_address_of_somebody_else_is_declined() -> None:
    world = World()
    seed(world)
    async with running(world.agent()):
        await until(lambda: leased(world))
        world.network.neighbours[ip_address(FIRST)] = "02:00:00:00:00:99"  # it came after the client had asked
        await copy(world)

        async def another() -> bool:
            await pass_time(world, 11)
            return await leased(world, SECOND)

        await until(another)
        assert IPv4Address(FIRST) in world.dhcp.declined
        await copy(world)
        await until(world.holds)
        assert await world.held() == [SECOND]


async def test_from_dhcp_to_a_pool_the_lease_is_kept_until_the_new_address_is_up() -> None:
    world = World()
    seed(world)
    async with running(world.agent()):
        await served(world)
        obj = await world.lb()
        await world.client.merge_patch(LOADBALANCERS, *obj.key, {"spec": {"ipam": "pool"}})
        by_dhcp = obj.status.addresses[0]
        await world.controller_says([by_dhcp], [OLD])

        async def both() -> bool:
            return await world.held() == [FIRST, OLD.ip]

        await until(both)
        assert await leased(world)
        await world.controller_says([OLD], [])

        async def given_back() -> bool:
            if not world.dhcp.owners:
                assert ip_address(FIRST) not in world.network.vips
            return await lease(world) is None and not world.dhcp.owners

        await until(given_back)
        assert await world.held() == [OLD.ip]
        assert await world.condition("Leased") is None


async def test_a_deleted_one_gives_its_lease_back_once_it_is_off_the_link() -> None:
    world = World()
    obj = seed(world)
    await world.client.merge_patch(LOADBALANCERS, "t", "a", {"metadata": {"finalizers": ["x/y"]}})
    async with running(world.agent()):
        await served(world)
        await world.client.delete(LOADBALANCERS, *obj.key)

        async def gone() -> bool:
            status = (await world.lb()).status
            if status.lease is None:
                assert not world.network.vips
            return status.lease is None and status.holder is None

        await until(gone)
        await until(lambda: not world.dhcp.owners)


async def test_deleted_while_no_agent_ran() -> None:
    world = World()
    obj = seed(world)
    await world.client.merge_patch(LOADBALANCERS, "t", "a", {"metadata": {"finalizers": ["x/y"]}})
    async with running(world.agent()):
        await served(world)
    await world.client.delete(LOADBALANCERS, *obj.key)
    async with running(world.agent()):

        async def gone() -> bool:
            status = (await world.lb()).status
            return status.lease is None and status.holder is None

        await until(gone)
        await until(lambda: not world.dhcp.owners)
    assert not world.network.vips


async def test_one_that_vanished_gives_its_lease_back() -> None:
    world = World()
    obj = seed(world)
    async with running(world.agent()):
        await served(world)
        await world.client.delete(LOADBALANCERS, *obj.key)
        await until(lambda: not world.dhcp.owners and not world.network.vips)


async def test_where_this_host_does_not_stand_it_says_so() -> None:
    world = World()
    obj = lb("a", "", HTTP, ipam="dhcp")
    annotated = msgspec.structs.replace(
        obj.metadata, annotations={"loadbalancer.harvesterhci.io/network": "default/vlan9"}
    )
    world.cluster.seed(LOADBALANCERS, msgspec.structs.replace(obj, metadata=annotated))
    async with running(world.agent()):
        await until(lambda: world.says("Leased", "NetworkNotConfigured"))
    assert not world.dhcp.owners


async def test_a_server_that_does_not_answer_is_told() -> None:
    world = World()
    world.dhcp.answering = False
    seed(world)
    async with running(world.agent()):
        await until(lambda: bool(world.leases))

        async def told() -> bool:
            await pass_time(world, 10)
            return await world.says("Leased", "DHCPNoAnswer")

        await until(told)
