"""Leases that end: off the link at once when they are lost, given back only once they are off the link."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from ipaddress import IPv4Address, ip_address

import pytest

from cloudprovider.agent import leases as module
from cloudprovider.core.errors import DataPlaneError, Unavailable
from cloudprovider.core.plan import IPAddress
from cloudprovider.dataplane.api import Claim
from cloudprovider.dataplane.fake import FakeAnnouncer
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import LOADBALANCERS
from tests.agent.world import OLD, World, running, until

FIRST, SECOND = "10.0.0.200", "10.0.0.201"


class Gate:
    """Something that the kernel takes its time for."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.waiting = False

    async def wait(self) -> None:
        self.waiting = True
        await self.may.wait()


@pytest.fixture
def withdrawal(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Addresses come off the link only when it is open."""
    gate, withdraw = Gate(), FakeAnnouncer.withdraw

    async def slow(self: FakeAnnouncer, addresses: Iterable[IPAddress]) -> None:
        await gate.wait()
        await withdraw(self, addresses)

    monkeypatch.setattr(FakeAnnouncer, "withdraw", slow)
    return gate


async def released(world: World) -> bool:
    """Whether the agent has let go of it, for the controller to go on."""
    status = (await world.lb()).status
    return status.lease is None and status.holder is None


async def test_a_lease_that_ended_goes_off_the_link_at_once_and_another_is_sought() -> None:
    world = World()
    async with running(world.agent()):
        await world.serve_by_dhcp()
        world.dhcp.answering = False
        await world.pass_time(3601)
        await until(lambda: not world.network.vips)  # though the status shows the address still

        async def told() -> bool:
            return not await world.lease() and not await world.held()

        await until(told)
        found = await world.condition("Leased")
        assert found is not None
        assert found.status == "False"
        assert found.reason in {"DHCPLeaseExpired", "DHCPNoAnswer"}  # whichever is the newest news
        assert not world.network.vips
        assert [reason for reason, _ in await world.events()] == ["LeaseLost"]
        world.dhcp.answering = True
        await world.pass_time(60)
        await until(world.lease)


async def test_a_lease_that_ends_while_the_api_server_is_away_goes_off_the_link_all_the_same() -> None:
    world = World()
    async with running(world.agent()):
        await world.serve_by_dhcp()

        async def away(call: Call) -> None:
            if call.program == "h1":
                raise Unavailable("away")

        world.cluster.before = away
        world.cluster.cut_watches()
        world.dhcp.answering = False
        await world.pass_time(3601)
        await until(lambda: not world.network.vips)
        assert await world.lease() == FIRST, "which it can't tell yet"


async def test_a_refused_lease_goes_off_the_link_at_once_and_another_takes_its_place() -> None:
    world = World()
    async with running(world.agent()):
        await world.serve_by_dhcp()
        world.dhcp.addresses = [IPv4Address(SECOND)]
        await world.pass_time(1801)

        async def another() -> bool:
            return await world.lease() == SECOND

        await until(another)
        assert (await world.lb()).status.addresses[0].ip == FIRST
        await until(lambda: not world.network.vips)
        await world.copy_lease()

        async def moved() -> bool:
            return await world.held() == [SECOND]

        await until(moved)
        assert {str(v) for v in world.network.vips} == {SECOND}
        assert "LeaseLost" in [reason for reason, _ in await world.events()]


async def test_a_loss_is_told_though_the_next_address_is_not_up_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, claim = Gate(), FakeAnnouncer.claim

    async def slow(self: FakeAnnouncer, addresses: Sequence[IPAddress], *, hurried: bool) -> list[Claim]:
        if ip_address(OLD.ip) in addresses:
            await gate.wait()
        return await claim(self, addresses, hurried=hurried)

    monkeypatch.setattr(FakeAnnouncer, "claim", slow)
    world = World()
    async with running(world.agent()):
        obj = await world.serve_by_dhcp()
        await world.client.merge_patch(LOADBALANCERS, *obj.key, {"spec": {"ipam": "pool"}})
        await world.copy_lease(OLD)
        await until(lambda: gate.waiting)
        world.dhcp.answering = False
        await world.pass_time(3601)

        async def lost() -> bool:
            return not await world.lease()

        await until(lost)
        gate.may.set()

        async def up() -> bool:
            return await world.held() == [OLD.ip]

        await until(up)
        assert {str(v) for v in world.network.vips} == {OLD.ip}


async def test_without_a_client_a_lease_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_FIRST", 1000.0)
    world = World()
    world.dhcp.duration = timedelta(seconds=1)
    async with running(world.agent()):
        await world.serve_by_dhcp()
    world.deaf = "can't open eth0 for DHCP"
    began, at = asyncio.get_running_loop().time(), world.now

    def off() -> bool:
        world.now = at + timedelta(seconds=asyncio.get_running_loop().time() - began)
        return not world.network.vips

    async with running(world.agent()):
        await until(lambda: world.says_in("Leased", "can't open eth0 for DHCP"))
        assert {str(v) for v in world.network.vips} == {FIRST}
        await until(off)
        await until(lambda: released(world))
        assert await world.says("Leased", "DHCPSendFailed")


async def test_a_lease_is_kept_as_long_as_the_status_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where its address could not be brought up."""
    claim = FakeAnnouncer.claim

    async def refuse(self: FakeAnnouncer, addresses: Sequence[IPAddress], *, hurried: bool) -> list[Claim]:
        if ip_address(FIRST) in addresses:
            raise DataPlaneError("no memory")
        return await claim(self, addresses, hurried=hurried)

    monkeypatch.setattr(FakeAnnouncer, "claim", refuse)
    world = World()
    async with running(world.agent()):
        obj = world.seed_dhcp()
        await until(world.lease)
        await world.copy_lease()
        await until(lambda: world.says("Programmed", "KernelRefused"))
        patched = await world.client.merge_patch(LOADBALANCERS, *obj.key, {"spec": {"ipam": "pool"}})

        async def heard() -> bool:
            found = await world.condition("Programmed")
            return found is not None and found.observed_generation == patched.metadata.generation

        await until(heard)
        assert world.dhcp.owners
        await world.controller_says([OLD])
        await until(lambda: not world.dhcp.owners)


async def test_from_dhcp_to_a_pool_the_lease_is_kept_until_the_new_address_is_up() -> None:
    world = World()
    async with running(world.agent()):
        await world.serve_by_dhcp()
        obj = await world.lb()
        await world.client.merge_patch(LOADBALANCERS, *obj.key, {"spec": {"ipam": "pool"}})
        by_dhcp = obj.status.addresses[0]
        await world.controller_says([by_dhcp], [OLD])

        async def both() -> bool:
            return await world.held() == [FIRST, OLD.ip]

        await until(both)
        assert await world.lease() == FIRST
        await world.controller_says([OLD], [])

        async def given_back() -> bool:
            if not world.dhcp.owners:
                assert ip_address(FIRST) not in world.network.vips
            return not await world.lease() and not world.dhcp.owners

        await until(given_back)
        assert await world.held() == [OLD.ip]
        assert await world.condition("Leased") is None


async def test_a_deleted_one_gives_its_lease_back_once_it_is_off_the_link(withdrawal: Gate) -> None:
    world = World()
    async with running(world.agent()):
        obj = await world.serve_by_dhcp("x/y")
        await world.client.delete(LOADBALANCERS, *obj.key)
        await until(lambda: withdrawal.waiting)
        assert world.dhcp.owners
        assert await world.lease() == FIRST
        assert await world.held() == [FIRST]
        withdrawal.may.set()
        await until(lambda: released(world))
        assert not world.network.vips
        await until(lambda: not world.dhcp.owners)


async def test_one_that_vanished_gives_its_lease_back_once_it_is_off_the_link(withdrawal: Gate) -> None:
    world = World()
    async with running(world.agent()):
        obj = await world.serve_by_dhcp()
        await world.client.delete(LOADBALANCERS, *obj.key)
        await until(lambda: withdrawal.waiting)
        assert world.dhcp.owners
        withdrawal.may.set()
        await until(lambda: not world.dhcp.owners)
        assert not world.network.vips


async def test_deleted_while_no_agent_ran(withdrawal: Gate) -> None:
    world = World()
    async with running(world.agent()):
        obj = await world.serve_by_dhcp("x/y")
    await world.client.delete(LOADBALANCERS, *obj.key)
    async with running(world.agent()):
        await until(lambda: withdrawal.waiting)
        assert world.dhcp.owners
        assert not await released(world)
        withdrawal.may.set()
        await until(lambda: released(world))
        await until(lambda: not world.dhcp.owners)
    assert not world.network.vips


async def test_another_one_by_the_same_name_has_a_lease_of_its_own() -> None:
    world = World()
    async with running(world.agent()):
        first = await world.serve_by_dhcp()
    async with running(world.agent()):
        await until(lambda: len(world.leases) == 2 and world.leases[1].counts().received.get("ack"))
        down = True

        async def away(call: Call) -> None:
            if down and call.program == "h1":
                raise Unavailable("away")

        world.cluster.before = away
        world.cluster.cut_watches()
        await world.client.delete(LOADBALANCERS, *first.key)
        second = world.seed_dhcp()
        assert second.metadata.uid != first.metadata.uid
        down = False
        await until(lambda: list(world.dhcp.owners.values()) == [second.metadata.uid], 20)
        assert world.leases[1].counts().sent["discover"] == 1, "what the other one had is nothing to it"


async def test_what_is_given_back_is_given_back_once_though_the_api_server_is_away() -> None:
    world = World()
    async with running(world.agent()):
        obj = await world.serve_by_dhcp("x/y")
        refused = 0

        async def away(call: Call) -> None:
            nonlocal refused
            if call.program == "h1" and call.verb == "apply":
                refused += 1
                raise Unavailable("away")

        world.cluster.before = away
        await world.client.delete(LOADBALANCERS, *obj.key)
        await until(lambda: refused == 4)
        assert world.leases[-1].counts().sent["release"] == 1
        assert await world.lease() == FIRST, "not told yet"
