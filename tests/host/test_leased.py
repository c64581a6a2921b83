"""Addresses by DHCP: the agent has the lease, the controller copies its address, or empties the status."""

from typing import Any

import msgspec

from cloudprovider.core.api.loadbalancer import Address, DhcpLease, Holder, LoadBalancer
from cloudprovider.core.api.meta import Condition
from cloudprovider.host.assembly import Host
from cloudprovider.kube.resources import IPPOOLS, LOADBALANCERS
from tests.host.test_moves import until_allocated
from tests.host.views import condition, given, refused, seen, vm
from tests.host.world import World, eventually, pool, subnet

LEASE = DhcpLease(ip="10.0.0.200", prefix_length=24, gateway="10.0.0.1", network="", server="10.0.0.1")
ADDRESS = Address(ip="10.0.0.200", prefix_length=24, gateway="10.0.0.1")
NO_ANSWER = Condition(type="Leased", status="False", reason="DHCPNoAnswer", message="No DHCP server has answered.")


async def agent_says(
    world: World,
    host: Host,
    lb: LoadBalancer,
    lease: DhcpLease | None,
    *up: str,
    conditions: tuple[Condition, ...] = (),
) -> None:
    """Write all that the agent owns of the status."""
    generation = seen(host, lb).metadata.generation
    if lease is not None:
        leased = Condition(type="Leased", status="True", reason="Leased", observed_generation=generation)
        conditions = (*conditions, leased)
    status: dict[str, Any] = {"conditions": msgspec.to_builtins(list(conditions))}
    if lease is not None:
        status["lease"] = msgspec.to_builtins(lease)
    if up:
        holder = Holder(node="h", generation=generation, addresses=list(up), mode="nat")
        status["holder"] = msgspec.to_builtins(holder)
    patch = {
        "apiVersion": LOADBALANCERS.api_version,
        "kind": LOADBALANCERS.kind,
        "metadata": {"uid": seen(host, lb).metadata.uid},
        "status": status,
    }
    await world.client.apply(LOADBALANCERS, *lb.key, patch, field_manager="cloudprovider-agent", subresource="status")


async def test_a_lease_becomes_the_address_and_its_end_empties_the_status(world: World) -> None:
    lb = vm(ipam="dhcp")
    await world.client.create(LOADBALANCERS, lb)
    async with world.host() as host:
        assert "no agent" in await refused(host, lb, "WaitingForLease")
        await agent_says(world, host, lb, None, conditions=(NO_ANSWER,))
        assert await refused(host, lb, "DHCPNoAnswer") == NO_ANSWER.message
        await agent_says(world, host, lb, LEASE)
        assert await given(host, lb) == LEASE.ip
        status = seen(host, lb).status
        assert status.addresses == [ADDRESS]
        found = condition(host, lb)
        assert found is not None
        assert (found.status, found.message) == ("True", "10.0.0.200 by DHCP")
        await agent_says(world, host, lb, LEASE, LEASE.ip)
        await agent_says(world, host, lb, None, conditions=(NO_ANSWER,))
        await refused(host, lb, "DHCPNoAnswer")
        assert seen(host, lb).status.addresses == []
        assert seen(host, lb).status.address == ""
        another = msgspec.structs.replace(LEASE, ip="10.0.0.201")
        await agent_says(world, host, lb, another)
        assert await given(host, lb) == "10.0.0.201"
    assert await world.allocations() == {}


async def test_from_pool_to_dhcp_and_back(world: World) -> None:
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(LOADBALANCERS, vm())
    async with world.host() as host:
        assert await given(host, vm()) == "192.0.2.2"
        await agent_says(world, host, vm(), None, "192.0.2.2")
        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipam": "dhcp"}})

        def kept() -> bool:
            found = condition(host, vm())
            return found is not None and found.reason == "AddressKept"

        await eventually(kept, "the pool's address kept")
        assert seen(host, vm()).status.address == "192.0.2.2"
        await agent_says(world, host, vm(), LEASE, "192.0.2.2")
        await eventually(lambda: seen(host, vm()).status.next_addresses == [ADDRESS])
        await agent_says(world, host, vm(), LEASE, "192.0.2.2", LEASE.ip)
        await eventually(lambda: seen(host, vm()).status.addresses == [ADDRESS])
        assert set(await world.allocations()) == {"192.0.2.2"}  # still on a link
        await agent_says(world, host, vm(), LEASE, LEASE.ip)
        await until_allocated(world, host, set())

        await world.client.merge_patch(LOADBALANCERS, *vm().key, {"spec": {"ipam": "pool"}})
        await eventually(lambda: bool(seen(host, vm()).status.next_addresses))
        (coming,) = seen(host, vm()).status.next_addresses
        assert coming.ip_pool == "p"
        assert seen(host, vm()).status.addresses == [ADDRESS]
        await agent_says(world, host, vm(), LEASE, LEASE.ip, coming.ip)
        await eventually(lambda: seen(host, vm()).status.addresses == [coming])
        await agent_says(world, host, vm(), None, coming.ip)
        await until_allocated(world, host, {coming.ip})
        assert seen(host, vm()).status.addresses == [coming]


async def test_a_lease_that_is_about_to_be_given_back_is_no_lease_for_who_asks_again(world: World) -> None:
    """To DHCP again while the agent still shows the lease, and the address, that it withdraws."""
    await world.client.create(IPPOOLS, pool("p", subnet("192.0.2.0/24")))
    await world.client.create(LOADBALANCERS, vm(ipam="dhcp"))
    async with world.host() as host:
        lb = vm()
        await refused(host, lb, "WaitingForLease")
        await agent_says(world, host, lb, LEASE, LEASE.ip)
        await given(host, lb)
        await world.client.merge_patch(LOADBALANCERS, *lb.key, {"spec": {"ipam": "pool"}})
        await eventually(lambda: bool(seen(host, lb).status.next_addresses))
        (coming,) = seen(host, lb).status.next_addresses
        await agent_says(world, host, lb, LEASE, LEASE.ip, coming.ip)
        await eventually(lambda: seen(host, lb).status.addresses == [coming])
        await world.client.merge_patch(LOADBALANCERS, *lb.key, {"spec": {"ipam": "dhcp"}})

        def kept() -> bool:
            found = condition(host, lb)
            return found is not None and found.reason == "AddressKept"

        await eventually(kept, "the pool's address kept")
        assert (seen(host, lb).status.addresses, seen(host, lb).status.next_addresses) == ([coming], [])
        another = msgspec.structs.replace(LEASE, ip="10.0.0.201")
        await agent_says(world, host, lb, another, coming.ip)
        await eventually(lambda: [a.ip for a in seen(host, lb).status.next_addresses] == [another.ip])
        await agent_says(world, host, lb, another, coming.ip, another.ip)
        await eventually(lambda: seen(host, lb).status.address == another.ip)


async def test_a_deleted_one_goes_when_its_lease_is_given_back(world: World) -> None:
    lb = vm(ipam="dhcp")
    await world.client.create(LOADBALANCERS, lb)
    async with world.host() as host:
        await refused(host, lb, "WaitingForLease")
        await agent_says(world, host, lb, LEASE, LEASE.ip)
        await given(host, lb)
        await world.client.delete(LOADBALANCERS, *lb.key)
        await agent_says(world, host, lb, LEASE)  # off the link, not yet released
        await eventually(lambda: seen(host, lb).status.holder is None)
        await world.client.create(LOADBALANCERS, vm("later", ipam="dhcp"))
        await refused(host, vm("later", ipam="dhcp"), "WaitingForLease")  # a whole round later
        assert host.caches.load_balancers.get(*lb.key) is not None
        await agent_says(world, host, lb, None)
        await eventually(lambda: host.caches.load_balancers.get(*lb.key) is None)


async def test_ipv6_by_dhcp_is_refused(world: World) -> None:
    lb = vm(ipam="dhcp", ip_families=["IPv6"])
    await world.client.create(LOADBALANCERS, lb)
    async with world.host() as host:
        assert "IPv4 addresses only" in await refused(host, lb, "UnsupportedIPAM")


async def test_a_restart_changes_nothing(world: World) -> None:
    lb = vm(ipam="dhcp")
    await world.client.create(LOADBALANCERS, lb)
    async with world.host() as host:
        await refused(host, lb, "WaitingForLease")
        await agent_says(world, host, lb, LEASE, LEASE.ip)
        await given(host, lb)
        before = seen(host, lb)
    async with world.host() as host:
        await world.client.create(LOADBALANCERS, vm("later", ipam="dhcp"))
        await refused(host, vm("later", ipam="dhcp"), "WaitingForLease")
        assert seen(host, lb).status == before.status
