"""An address that takes another one's place, and one that somebody else has: the agent's part."""

from ipaddress import ip_address

import msgspec

from cloudprovider.core.api.loadbalancer import Address, ForeignAddress, LoadBalancer
from cloudprovider.dataplane.fake import FakeNetwork
from cloudprovider.kube.resources import LOADBALANCERS
from tests.agent.test_agent import VIP, World, running, until
from tests.core.test_forwarding import key

OLD = Address(ip="10.0.0.100", ip_pool="p", prefix_length=24)
NEW = Address(ip="10.0.0.150", ip_pool="q", prefix_length=24)
ELSEWHERE = Address(ip="10.9.0.1", ip_pool="q", prefix_length=24, network="x/y")
MAC = "02:00:00:00:00:99"


async def controller_says(world: World, addresses: list[Address], following: list[Address]) -> None:
    """Write the controller's part of the status."""
    status = {"addresses": msgspec.to_builtins(addresses), "nextAddresses": msgspec.to_builtins(following)}
    obj = await world.lb()
    patch = {
        "apiVersion": LOADBALANCERS.api_version,
        "kind": LOADBALANCERS.kind,
        "metadata": {"uid": obj.metadata.uid},
        "status": status,
    }
    await world.client.apply(
        LOADBALANCERS, *obj.key, patch, field_manager="cloudprovider-controller", subresource="status"
    )


async def held(world: World) -> list[str]:
    holder = (await world.lb()).status.holder
    return [] if holder is None else holder.addresses


async def test_both_are_up_until_the_controller_has_changed_them() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await controller_says(world, [OLD], [NEW])

        async def both() -> bool:
            return await held(world) == [OLD.ip, NEW.ip]

        await until(both)
        assert {str(v) for v in world.network.vips} == {OLD.ip, NEW.ip}
        assert {str(k.vip) for k in world.network.ledger.forwards} == {OLD.ip, NEW.ip}
        assert await world.says("Programmed", "Programmed")
        await controller_says(world, [NEW], [])

        async def only_the_new() -> bool:
            found = await held(world)
            if OLD.ip not in found:  # named until it is off the link, and no longer
                assert VIP not in world.network.vips
            return found == [NEW.ip]

        await until(only_the_new)
        assert key(OLD.ip) not in world.network.ledger.forwards


async def test_a_restart_in_the_middle_withdraws_nothing() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await controller_says(world, [OLD], [NEW])

        async def both() -> bool:
            return len(await held(world)) == 2

        await until(both)
    announced = list(world.network.announced)
    async with running(world.agent()):
        await until(lambda: world.dataplane.segments)
        world.seed("b", "10.0.0.101")
        await until(lambda: world.holds("b"))
        assert await held(world) == [OLD.ip, NEW.ip]
    assert [str(a) for a in world.network.announced[len(announced) :]] == ["10.0.0.101"]


async def test_what_cant_come_up_is_told_beside_what_works() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await controller_says(world, [OLD], [ELSEWHERE])

        async def told() -> bool:
            found = await world.condition("Programmed")
            return found is not None and "x/y" in found.message and found.status == "True"

        await until(told)
        assert await world.says("Ready", "Ready")
        assert await held(world) == [OLD.ip]


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
        assert await held(world) == []
        await controller_says(world, [NEW], [])

        async def changed() -> bool:
            return await held(world) == [NEW.ip] and not await foreign(world)

        await until(changed)
        assert await world.says("Programmed", "Programmed")


async def test_a_conflict_of_the_next_address_leaves_the_present_one_alone() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        world.network.neighbours[ip_address(NEW.ip)] = MAC
        await controller_says(world, [OLD], [NEW])

        async def told() -> bool:
            return await foreign(world) == [ForeignAddress(ip=NEW.ip, hardware_address=MAC)]

        await until(told)
        assert await world.says("Programmed", "Programmed")
        assert await held(world) == [OLD.ip]


async def test_two_on_one_address_and_one_leaves() -> None:
    """Sharing: the address stays up, and the one that leaves lets go of it at once."""
    world = World()
    world.seed()
    other: LoadBalancer = world.seed("b", OLD.ip)
    await world.client.merge_patch(LOADBALANCERS, "t", "b", {"metadata": {"finalizers": ["x/y"]}})
    async with running(world.agent()):
        await until(world.holds)
        await world.client.delete(LOADBALANCERS, *other.key)

        async def let_go() -> bool:
            return (await world.lb("b")).status.holder is None

        await until(let_go)
        assert await held(world) == [OLD.ip]
        assert VIP in world.network.vips
        assert world.network.announced == [VIP]
