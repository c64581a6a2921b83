"""An address that somebody else has, or claims: the agent's part."""

from ipaddress import ip_address

import pytest

from cloudprovider.agent import claims
from cloudprovider.core.api.loadbalancer import ForeignAddress
from cloudprovider.dataplane.fake import FakeNetwork
from cloudprovider.kube.resources import LOADBALANCERS
from tests.agent.world import MAC, NEW, OLD, VIP, World, running, until
from tests.core.test_forwarding import HTTP, lb


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


async def test_one_that_was_asked_for_by_name_is_tried_again_until_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "CONFLICT_RETRY", 0.05)
    world = World()
    world.dataplane.namespaces[""] = FakeNetwork(neighbours={VIP: MAC})
    world.cluster.seed(LOADBALANCERS, lb("a", OLD.ip, HTTP, addresses=[OLD.ip]))
    async with running(world.agent()):
        await until(lambda: world.network.probed.count(VIP) > 2)
        assert await foreign(world) == [ForeignAddress(ip=OLD.ip, hardware_address=MAC)]
        found = await world.condition("Programmed")
        assert found is not None
        assert found.message == (
            f"{OLD.ip} is in use on this network by {MAC}. It was asked for by name, so it is tried again every minute:"
            " free it there, or ask for another."
        )
        world.network.neighbours.clear()
        await until(world.holds)
        assert not await foreign(world)
        assert await world.says("Programmed", "Programmed")


async def test_a_claim_on_an_address_that_is_up_is_defended_and_told() -> None:
    world = World()
    world.seed()
    async with running(world.agent()):
        await until(world.holds)
        before = await world.lb()
        for _ in range(2):  # the same news are told once
            world.dataplane.segments[""].announcer.hear(VIP, MAC)
        await until(world.events)
        assert await world.events() == [
            ("AddressClaimedByOther", f"{MAC} claims {VIP} too, which host h1 has up and defends: change it there.")
        ]
        assert VIP in world.network.vips
        assert (await world.lb()).status == before.status
