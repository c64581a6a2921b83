"""An address that somebody else has, or claims: the agent's part."""

from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import ForeignAddress
from cloudprovider.dataplane.fake import FakeNetwork
from tests.agent.world import MAC, NEW, OLD, VIP, World, running, until


async def foreign(world: World) -> list[ForeignAddress]:
    return (await world.lb()).status.foreign_addresses


async def test_who_has_the_address_is_told_until_it_is_another_one() -> None:
    world = World()
    world.dataplane.namespaces[""] = FakeNetwork(neighbours={VIP: MAC})
    world.seed()
    async with running(world.agent()):

        async def told() -> bool:
            return await foreign(world) == [ForeignAddress(ip=OLD.ip, hardware_address=MAC)]

        await until(told)
        assert await world.says("Programmed", "AddressConflict")
        assert await world.held() == []
        await world.controller_says([NEW], [])

        async def changed() -> bool:
            return await world.held() == [NEW.ip] and not await foreign(world)

        await until(changed)
        assert await world.says("Programmed", "Programmed")


async def test_a_conflict_of_the_next_address_leaves_the_present_one_alone() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        world.network.neighbours[ip_address(NEW.ip)] = MAC
        await world.controller_says([OLD], [NEW])

        async def told() -> bool:
            return await foreign(world) == [ForeignAddress(ip=NEW.ip, hardware_address=MAC)]

        await until(told)
        assert await world.says("Programmed", "Programmed")
        assert await world.held() == [OLD.ip]
