"""What is wrong on one side and told on the other: a guest and the real host behind it, in virtual time."""

from dataclasses import replace
from unittest.mock import patch

from cloudprovider.core.annotations import IP_POOL, IPAM
from cloudprovider.core.api.guestcluster import REBIND_ANNOTATION
from cloudprovider.kube.resources import SERVICES
from tests.guest.chain import chain
from tests.guest.world import HELLO, World, in_virtual_time, pass_time

CLONE = replace(HELLO, cluster_uid="uid-of-the-clone")


@in_virtual_time
async def test_a_clone_of_the_cluster_until_an_operator_lets_it_in() -> None:
    """Both run: the original is not disturbed, the clone says what is wrong; after the rebinding it is the other way
    round, and the address moves with what is bound."""
    original, clone = World(), World()
    async with chain() as host, original.leading(host.local()):
        await original.create()
        address = await original.until_ready()
        shown = await original.service()
        assert shown is not None
        clone.cluster.seed(SERVICES, shown)
        touched = await host.versions()
        backend = host.host.backend
        with patch.object(backend, "connect", side_effect=backend.connect) as connects:
            async with clone.leading(host.local(hello=CLONE)) as leadership:
                await clone.create("second")
                condition = await clone.until_reason("ClusterMismatch", "second")
                assert condition.status == "False"
                for words in (HELLO.cluster_uid, CLONE.cluster_uid, "a certificate of its own", REBIND_ANNOTATION):
                    assert words in condition.message
                assert condition.message in leadership.not_ready[0]
                await pass_time(60)
                warnings = await clone.events("Warning")
                assert sorted(e.involved_object.name for e in warnings) == ["second", "web"]
                assert {(e.reason, e.message) for e in warnings} == {("ClusterMismatch", condition.message)}
                writes, asked = clone.writes(), connects.call_count
                await pass_time(600)
                assert clone.writes() == writes
                assert 600 / 15 <= connects.call_count - asked <= 600 / 15 + 1
                assert await clone.ips() == await original.ips() == address
                assert await host.versions() == touched
                await host.edit(metadata={"annotations": {REBIND_ANNOTATION: CLONE.cluster_uid}})
                assert await clone.until_ready("second")
                assert await clone.ips() == address
                assert not leadership.not_ready
                await original.create("third")
                await original.until_reason("ClusterMismatch", "third")
                assert await original.ips() == address
                assert touched.keys() < (await host.versions()).keys()


@in_virtual_time
async def test_a_pool_that_comes_later() -> None:
    guest = World()
    async with chain() as host, guest.leading(host.local()):
        await guest.create(annotations={IP_POOL: "later"})
        condition = await guest.until_reason("PoolNotFound")
        assert condition.status == "False"
        assert 'there is no pool "later"' in condition.message
        await pass_time(60)
        assert [(e.reason, e.message) for e in await guest.events()] == [("PoolNotFound", condition.message)]
        writes, touched = guest.writes(), await host.versions()
        await pass_time(600)
        assert (guest.writes(), await host.versions()) == (writes, touched)
        await host.add_pool("later", "198.51.100.0/24")
        assert (await guest.until_ready())[0].startswith("198.51.100.")


@in_virtual_time
async def test_dhcp_until_an_operator_lets_the_cluster_have_it() -> None:
    guest = World()
    async with chain() as host, guest.leading(host.local()):
        await host.edit(spec={"pools": ["default"]})
        await guest.create(annotations={IPAM: "dhcp"})
        condition = await guest.until_reason("DHCPNotPermitted")
        assert "of the pools that the host names for it (default), not by DHCP" in condition.message
        assert not host.host.caches.load_balancers.objects
        await host.edit(spec={"pools": []})
        await pass_time(600)
        (made,) = host.host.caches.load_balancers.objects.values()
        assert made.spec.ipam == "dhcp"


@in_virtual_time
async def test_a_pool_that_is_not_there_named_by_a_service_with_an_address() -> None:
    guest = World()
    async with chain() as host, guest.leading(host.local()):
        await guest.create()
        address = await guest.until_ready()
        await guest.change(metadata={"annotations": {IP_POOL: "nowhere"}})
        condition = await guest.until_reason("AddressKept")
        assert condition.status == "False"
        assert (
            'what is asked for now can\'t be had: there is no pool "nowhere" open to this cluster' in condition.message
        )
        await pass_time(60)
        assert [(e.reason, e.message) for e in await guest.events("Warning")] == [("AddressKept", condition.message)]
        assert await guest.ips() == address
        await guest.change(metadata={"annotations": {IP_POOL: None}})
        assert await guest.until_ready() == address
