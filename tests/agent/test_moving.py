"""An address that takes another one's place: the agent's part."""

from ipaddress import ip_address

from cloudprovider.core.api.loadbalancer import Address, LoadBalancer
from cloudprovider.dataplane.fake import FakeFlow
from cloudprovider.kube.resources import LOADBALANCERS
from tests.agent.world import MGMT, NEW, OLD, VIP, VLAN2, World, running, until
from tests.core.test_forwarding import key

ELSEWHERE = Address(ip="10.9.0.1", ip_pool="q", prefix_length=24, network="x/y")


async def test_both_are_up_until_the_controller_has_changed_them() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await world.controller_says([OLD], [NEW])

        async def both() -> bool:
            return await world.held() == [OLD.ip, NEW.ip]

        await until(both)
        assert {str(v) for v in world.network.vips} == {OLD.ip, NEW.ip}
        assert {str(k.vip) for k in world.network.ledger.forwards} == {OLD.ip, NEW.ip}
        assert await world.says("Programmed", "Programmed")
        await world.controller_says([NEW], [])

        async def only_the_new() -> bool:
            found = await world.held()
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
        await world.controller_says([OLD], [NEW])

        async def both() -> bool:
            return len(await world.held()) == 2

        await until(both)
    announced = list(world.network.announced)
    async with running(world.agent()):
        await until(lambda: world.dataplane.segments)
        world.seed("b", "10.0.0.101")
        await until(lambda: world.holds("b"))
        assert await world.held() == [OLD.ip, NEW.ip]
    assert [str(a) for a in world.network.announced[len(announced) :]] == ["10.0.0.101"]


async def test_what_cant_come_up_is_told_beside_what_works() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await world.controller_says([OLD], [ELSEWHERE])

        async def told() -> bool:
            found = await world.condition("Programmed")
            return found is not None and "x/y" in found.message and found.status == "True"

        await until(told)
        assert await world.says("Ready", "Ready")
        assert await world.held() == [OLD.ip]


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
        assert await world.held() == [OLD.ip]
        assert VIP in world.network.vips
        assert world.network.announced == [VIP]


async def test_connections_to_the_old_address_live_until_it_is_withdrawn() -> None:
    world = World()
    world.seed()
    old = FakeFlow(key(OLD.ip), ip_address("10.0.0.11"))
    async with running(world.agent()):
        await until(world.holds)
        world.network.flows.add(old)
        await world.controller_says([OLD], [NEW])

        async def both() -> bool:
            return await world.held() == [OLD.ip, NEW.ip]

        await until(both)
        new = FakeFlow(key(NEW.ip), ip_address("10.0.0.11"))
        world.network.flows.add(new)
        assert old in world.network.flows
        await world.controller_says([NEW])

        async def only_the_new() -> bool:
            found = await world.held()
            if OLD.ip not in found:  # and named until they are cut
                assert old not in world.network.flows
            return found == [NEW.ip]

        await until(only_the_new)
        assert world.network.flows == {new}


async def test_from_one_network_to_another() -> None:
    there = Address(ip="10.2.0.100", ip_pool="r", prefix_length=24, network=VLAN2.name)
    world = World()
    world.seed()
    async with running(world.agent(networks=(MGMT, VLAN2))):
        await until(world.holds)
        await world.controller_says([OLD], [there])

        async def both() -> bool:
            return await world.held() == [OLD.ip, there.ip]

        await until(both)
        other = world.dataplane.namespaces[VLAN2.name]
        assert (world.network.vips, other.vips) == ({VIP}, {ip_address(there.ip)})
        assert {str(k.vip) for k in other.ledger.forwards} == {there.ip}
        await world.controller_says([there])

        async def only_there() -> bool:
            return await world.held() == [there.ip]

        await until(only_there)
        assert not world.network.vips
        assert not world.network.ledger.forwards
        assert await world.says("Programmed", "Programmed")


async def test_a_listener_that_another_one_has_on_the_next_address_does_not_spoil_this_one() -> None:
    world = World()
    world.seed()
    world.seed("b", NEW.ip)
    async with running(world.agent()):
        await until(world.holds)
        await until(lambda: world.holds("b"))
        await world.controller_says([OLD], [NEW])

        async def told() -> bool:
            found = await world.condition("Programmed")
            return found is not None and "LoadBalancer b's already" in found.message and found.status == "True"

        await until(told)
        assert await world.says("Ready", "Ready")


async def test_an_ipv6_address_is_not_claimed_and_told_beside_what_works() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        await world.controller_says([OLD, Address(ip="2001:db8::1", ip_pool="s", prefix_length=64)])
        await until(lambda: world.says("Ready", "ModeNotPossible"))
        assert await world.says("Programmed", "Programmed")
        assert await world.held() == [OLD.ip]
        assert world.network.vips == {VIP}
