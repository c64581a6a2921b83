"""The client while its server is away, and when it comes back with another mind."""

from datetime import UTC, datetime
from ipaddress import IPv4Address

import pytest

from cloudprovider.dhcp.effects import Reason
from cloudprovider.dhcp.timing import Timing
from tests.dhcp.lan import SUBNET, Station, host, station
from tests.dhcp.networks import key
from tests.dhcp.servers import Kea, Server, Terms
from tests.dhcp.waiting import until

pytestmark = pytest.mark.kernel

FIRST, LAST = SUBNET[256], SUBNET[400]


async def test_a_server_that_is_down_past_t1_is_told_and_waited_for(kea: Kea, link: Station) -> None:
    terms = Terms(first=FIRST, last=LAST, lease=30, renew=1, rebind=8)
    kea.start(terms)
    async with host(link) as here:
        here.want(0)
        (had,) = await here.leased(0)
        kea.stop()
        said = await here.told_of(Reason.NO_ANSWER)
        assert f"DHCP server {SUBNET[2]} on network 'default/lan' has not confirmed {had.address} since 20" in said
        assert "stays in use until the lease ends" in said
        (kept,) = here.leases(1)
        assert kept.rebind_at is not None
        assert datetime.now(UTC) < kept.rebind_at
        kea.start(terms)
        assert (await here.renewed()).address == had.address
        assert here.reasons() == [Reason.NO_ANSWER]


async def test_a_server_that_is_down_past_t2_is_found_again(kea: Kea, link: Station) -> None:
    terms = Terms(first=FIRST, last=LAST, lease=20, renew=1, rebind=2)
    kea.start(terms)
    async with host(link) as here:
        here.want(0)
        (had,) = await here.leased(0)
        kea.stop()
        assert had.rebind_at is not None
        rebind_at = had.rebind_at
        await until("T2", lambda: datetime.now(UTC) > rebind_at)
        sent = here.client.counts().sent["request"]
        await until("a broadcast", lambda: here.client.counts().sent["request"] > sent)
        assert here.leases(1)[0].address == had.address
        kea.start(terms)
        assert (await here.renewed()).address == had.address
        assert here.reasons() == [Reason.NO_ANSWER]


async def test_a_server_that_is_down_past_expiry_ends_the_lease_and_begins_another(kea: Kea, link: Station) -> None:
    terms = Terms(first=FIRST, last=LAST, lease=4)
    kea.start(terms)
    async with host(link) as here:
        here.want(0)
        (had,) = await here.leased(0)
        kea.stop()
        said = await here.told_of(Reason.LEASE_EXPIRED)
        assert f"the lease for {had.address} on network 'default/lan' has expired" in said
        at_the_end = [state for _, state in here.told if state.problem and state.problem.reason is Reason.LEASE_EXPIRED]
        assert at_the_end[0].lease is None
        last = [state.lease for _, state in here.told if state.lease is not None][-1]
        assert last is not None
        assert last.expires_at is not None
        assert abs((datetime.now(UTC) - last.expires_at).total_seconds()) < 0.5
        await here.told_of(Reason.NO_ANSWER)
        kea.start(terms)
        (lease,) = await here.leased(0)
        assert lease.address == had.address  # it was asked for
        assert here.reasons() == [Reason.NO_ANSWER, Reason.LEASE_EXPIRED, Reason.NO_ANSWER]


async def test_a_server_that_has_given_the_address_to_another_refuses_its_renewal(
    server: Server, link: Station
) -> None:
    # Kea says nothing to a renewal of what it does not know, also where it is out of its range: the lease runs out
    # then. It does refuse what another client has.
    lease = 20 if isinstance(server, Kea) else 120
    one = Terms(first=FIRST, last=FIRST, lease=lease, renew=3, rebind=10)
    server.start(one)
    async with host(link) as here:
        here.want(0)
        (had,) = await here.leased(0)
        server.stop()
        server.forget()
        server.start(one)
        with station("rival", SUBNET[5]) as elsewhere:
            async with host(elsewhere, up=False, probe=nobody) as rival:
                rival.want(1)
                (taken,) = await rival.leased(1)
                assert taken.address == had.address
                said = await here.told_of(Reason.REFUSED)
        assert said.startswith(f"DHCP server {SUBNET[2]} on network 'default/lan' refuses {had.address}")
        losses = [state for changed, state in here.told if changed == key(0) and state.lease is None]
        assert losses[0].problem is not None
        assert losses[0].problem.reason is Reason.REFUSED


async def nobody(_address: IPv4Address) -> str:
    return ""


async def test_a_remembered_lease_of_another_range_is_refused_at_once(server: Server, link: Station) -> None:
    server.start(Terms(first=FIRST, last=LAST))
    async with host(link) as before:
        before.want(0)
        (had,) = await before.leased(0)
    server.stop()
    server.forget()
    server.start(Terms(first=SUBNET[600], last=SUBNET[700]))
    async with host(link) as after:
        after.want(0, remembered={0: had})
        await after.told_of(Reason.REFUSED, limit=3)
        (new,) = await after.leased(0)
        assert SUBNET[600] <= new.address <= SUBNET[700]


async def test_a_link_that_is_down_is_told(kea: Kea, link: Station) -> None:
    kea.start(Terms(first=FIRST, last=LAST))
    async with host(link, timing=Timing(first=0.5, jitter=0.1)) as here:
        link.set("down")
        here.want(0)
        said = await here.told_of(Reason.SEND_FAILED)
        assert "DHCP can't send on network 'default/lan': Network is down" in said
        link.set("up")
        await here.leased(0)
