"""Addresses by DHCP: asked for, shown, kept over restarts and outages. See test_leases_end.py for their end."""

from datetime import datetime, timedelta
from ipaddress import IPv4Address, ip_address

import pytest

from cloudprovider.core.api.loadbalancer import NETWORK_ANNOTATION, ServiceReference
from cloudprovider.core.errors import DataPlaneError, Unavailable
from cloudprovider.dhcp.fake import FakeDhcpServer
from cloudprovider.kube.fakestore import Call
from cloudprovider.kube.resources import LOADBALANCERS
from tests.agent.world import MGMT, VLAN2, World, running, until

FIRST, SECOND = "10.0.0.200", "10.0.0.201"


async def test_a_lease_is_shown_and_its_address_comes_up_when_the_controller_says_so() -> None:
    world = World()
    obj = world.seed_dhcp()
    async with running(world.agent()):
        await until(world.lease)
        found = (await world.lb()).status.lease
        assert found is not None
        assert (found.prefix_length, found.gateway, found.server, found.network) == (24, "10.0.0.1", "10.0.0.1", "")
        assert datetime.fromisoformat(found.expiry_time) == world.now + timedelta(hours=1)
        assert world.dhcp.owners == {IPv4Address(FIRST): obj.metadata.uid}
        assert await world.says("Leased", "Leased")
        assert not world.network.vips
        await world.copy_lease()
        await until(world.holds)
        assert await world.held() == [FIRST]
        assert {str(k.vip) for k in world.network.ledger.forwards} == {FIRST}


async def test_a_renewal_changes_the_times_and_nothing_else() -> None:
    world = World()
    async with running(world.agent()):
        await world.serve_by_dhcp()
        before = await world.lb()
        await world.pass_time(1801)

        async def renewed() -> bool:
            found = (await world.lb()).status.lease
            assert before.status.lease is not None
            return found is not None and found.expiry_time > before.status.lease.expiry_time

        await until(renewed)
        after = await world.lb()
        assert after.status.conditions == before.status.conditions
        assert after.status.holder == before.status.holder
        assert world.network.announced == [ip_address(FIRST)]


async def test_a_restart_keeps_the_lease_and_withdraws_nothing() -> None:
    world = World()
    async with running(world.agent()):
        await world.serve_by_dhcp()
    assert world.dhcp.owners, "a stop gives nothing back"
    world.dhcp.answering = False  # and nobody is needed to go on
    async with running(world.agent()):
        await until(lambda: len(world.leases) == 2 and world.leases[1].state(("t", "a")).lease is not None)
        world.seed("b", "10.0.0.101")
        await until(lambda: world.holds("b"))
        assert await world.held() == [FIRST]
    assert [str(a) for a in world.network.announced] == [FIRST, "10.0.0.101"]


async def test_an_address_of_somebody_else_is_declined() -> None:
    world = World()
    world.seed_dhcp()
    async with running(world.agent()):
        await until(world.lease)
        world.network.neighbours[ip_address(FIRST)] = "02:00:00:00:00:99"  # it came after the client had asked
        await world.copy_lease()

        async def another() -> bool:
            await world.pass_time(11)
            return await world.lease() == SECOND

        await until(another)
        assert IPv4Address(FIRST) in world.dhcp.declined
        await world.copy_lease()
        await until(world.holds)
        assert await world.held() == [SECOND]


async def test_where_this_host_does_not_stand_it_says_so() -> None:
    world = World()
    world.seed_dhcp(network="default/vlan9")
    async with running(world.agent()):
        await until(lambda: world.says("Leased", "NetworkNotConfigured"))
    assert not world.dhcp.owners


async def test_a_server_that_does_not_answer_is_told() -> None:
    world = World()
    world.dhcp.answering = False
    world.seed_dhcp()
    async with running(world.agent()):
        await until(lambda: world.leases)

        async def told() -> bool:
            await world.pass_time(10)
            return await world.says("Leased", "DHCPNoAnswer")

        await until(told)


async def test_an_unusable_host_name_is_told_and_takes_no_lease_away() -> None:
    world = World()
    async with running(world.agent()):
        obj = await world.serve_by_dhcp()
        await world.client.merge_patch(LOADBALANCERS, *obj.key, {"spec": {"dhcpHostname": "stra\u00dfe"}})

        async def told() -> bool:
            found = await world.condition("Leased")
            return found is not None and "is no host name" in found.message and found.status == "True"

        await until(told)
        assert await world.lease() == FIRST
        assert await world.held() == [FIRST]
    async with running(world.agent()):  # nor after a restart
        await until(lambda: world.leases[-1].counts().received.get("ack"))
        await until(told)
        assert await world.lease() == FIRST
        assert await world.held() == [FIRST]
    assert world.network.announced == [ip_address(FIRST)]


@pytest.mark.parametrize(
    ("spec", "says", "right"),
    [
        ({"ip_pool": "p"}, 'spec.ipPool: the DHCP server chooses the address, not the pool "p"', {"ipPool": ""}),
        ({"addresses": ["10.0.0.5"]}, "spec.addresses: the DHCP server chooses the address", {"addresses": []}),
        ({"ip_families": ["IPv6"]}, "spec.ipFamilies: DHCP gives IPv4 addresses only", {"ipFamilies": ["IPv4"]}),
        (
            {"ip_family_policy": "RequireDualStack"},
            "spec.ipFamilyPolicy: RequireDualStack can't be met",
            {"ipFamilyPolicy": "SingleStack"},
        ),
    ],
)
async def test_what_dhcp_can_not_do_is_told_and_nothing_asked_for(
    spec: dict[str, object], says: str, right: dict[str, object]
) -> None:
    """What the webhook would have refused, had it not been away."""
    world = World()
    obj = world.seed_dhcp(**spec)  # type: ignore[arg-type]
    async with running(world.agent()):
        await until(lambda: world.says("Leased", "InvalidSpec"))
        assert await world.says_in("Leased", says)
        assert not world.dhcp.owners
        await world.client.merge_patch(LOADBALANCERS, *obj.key, {"spec": right})
        await until(world.lease)


async def test_what_no_longer_asks_for_a_lease_has_no_trouble_with_it() -> None:
    world = World()
    obj = world.seed_dhcp(dhcp_hostname="stra\u00dfe")
    async with running(world.agent()):
        await until(lambda: world.says("Leased", "InvalidHostname"))
        assert not world.dhcp.owners
        await world.client.merge_patch(LOADBALANCERS, *obj.key, {"spec": {"ipam": "pool"}})

        async def quiet() -> bool:
            return await world.condition("Leased") is None

        await until(quiet)


@pytest.mark.parametrize(
    ("name", "spec", "told"),
    [
        ("a", {"dhcp_hostname": "printer.example.org"}, "printer.example.org"),
        ("a", {"service": ServiceReference(namespace="d", name="web", uid="u")}, "web"),
        ("a.b", {"service": None}, "a-b"),
        ("a" * 62 + "-b", {"service": None}, "a" * 62),
    ],
)
async def test_the_server_is_told_a_host_name(name: str, spec: dict[str, object], told: str) -> None:
    world = World()
    obj = world.seed_dhcp(name=name, **spec)  # type: ignore[arg-type]
    async with running(world.agent()):
        await until(lambda: world.dhcp.owners)
        assert world.leases[-1]._wanted[obj.key].request.hostname == told


async def test_an_outage_of_the_api_server_ends_no_lease() -> None:
    world = World()
    async with running(world.agent()):
        await world.serve_by_dhcp()
        before = (await world.lb()).status.lease
        assert before is not None
        down, refused = True, 0

        async def away(call: Call) -> None:
            nonlocal refused
            if down and call.program == "h1":
                refused += 1
                raise Unavailable("away")

        world.cluster.before = away
        world.cluster.cut_watches()
        for _ in range(3):
            await world.pass_time(1801)
        await until(lambda: refused > 3)
        assert {str(v) for v in world.network.vips} == {FIRST}
        assert (await world.lb()).status.lease == before
        down = False

        async def caught_up() -> bool:
            lease = (await world.lb()).status.lease
            return lease is not None and datetime.fromisoformat(lease.expiry_time) == world.now + timedelta(hours=1)

        await until(caught_up, 20)
        assert world.network.announced == [ip_address(FIRST)]


async def test_a_client_that_fails_is_replaced_and_its_leases_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    agent = world.agent()
    async with running(agent):
        await world.serve_by_dhcp()

        async def fail() -> None:
            raise DataPlaneError("the link is gone")

        monkeypatch.setattr(world.leases[0], "settle", fail)
        world.dhcp.answering = False
        world.deaf = "it does not come back"
        world.seed_dhcp(name="b")  # which wakes it
        await until(lambda: world.says_in("Leased", "it does not come back"))
        assert await world.says("Leased", "Leased")
        world.deaf = ""
        await until(lambda: len(world.leases) == 2, 20)
        assert await world.lease() == FIRST
        assert await world.held() == [FIRST]
        await until(lambda: world.leases[1].counts().sent.get("discover"))
        discovers = sum(client.counts().sent["discover"] for client in world.leases)
        counted = f'dhcp_messages_total{{direction="sent",network="management",type="discover"}} {discovers}.0\n'
        assert counted in (await agent.registry.text()).decode(), "what the client before has sent counts too"
    assert world.network.announced == [ip_address(FIRST)]


async def test_from_one_network_to_another() -> None:
    world = World()
    there = FakeDhcpServer(addresses=[IPv4Address("10.2.0.200")], server=IPv4Address("10.2.0.1"), answering=False)
    world.servers[VLAN2.name] = there
    async with running(world.agent(networks=(MGMT, VLAN2))):
        obj = await world.serve_by_dhcp()
        here, other = world.leases
        annotations = {"metadata": {"annotations": {NETWORK_ANNOTATION: VLAN2.name}}}
        await world.client.merge_patch(LOADBALANCERS, *obj.key, annotations)

        async def told() -> bool:
            found = await world.condition("Leased")
            return found is not None and "no DHCP server has answered on network 'default/vlan2'" in found.message

        await until(told)
        assert await world.lease() == FIRST
        there.answering = True
        await other.settle()

        async def leased() -> bool:
            return await world.lease() == "10.2.0.200"

        await until(leased)
        assert await world.held() == [FIRST], "kept until the controller has another to show"
        assert here.counts().sent.get("release") is None
        await world.copy_lease()

        async def moved() -> bool:
            return await world.held() == ["10.2.0.200"]

        await until(moved)
        await until(lambda: not world.dhcp.owners)
        assert await leased()
