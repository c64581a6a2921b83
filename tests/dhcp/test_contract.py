"""What every DHCP client does: the real one, and the fake that stands for it elsewhere."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Address

import pytest

from cloudprovider.core.errors import InvalidRequest
from cloudprovider.dhcp.api import DhcpClient, Lease, LeaseRequest, LeaseState
from cloudprovider.dhcp.effects import Reason
from tests.dhcp.networks import FakeNetwork, Network, WireNetwork, key, model, request
from tests.dhcp.wire import owner

MAC = "02:00:00:00:00:aa"


@pytest.fixture(params=[WireNetwork, FakeNetwork])
async def network(request: pytest.FixtureRequest) -> AsyncIterator[Network]:
    made: Network = request.param(model())
    yield made
    await made.close()


async def leased(network: Network, client: DhcpClient, number: int = 0) -> Lease:
    """Wait for a lease that is in order."""

    def in_order() -> bool:
        state = client.state(key(number))
        return state.lease is not None and state.problem is None

    await network.until("a lease", in_order)
    lease = client.state(key(number)).lease
    assert lease is not None
    return lease


async def troubled(network: Network, client: DhcpClient, reason: Reason, number: int = 0) -> str:
    """Wait for a problem; its message."""
    found: list[str] = []

    def there() -> bool:
        problem = client.state(key(number)).problem
        if problem is not None and problem.reason is reason:
            found.append(problem.message)
        return bool(found)

    await network.until(f"the problem {reason}", there)
    return found[0]


async def test_a_lease_is_what_the_server_gives(network: Network) -> None:
    client = network.host()
    changes: list[object] = []
    client.on_change(changes.append)
    before = network.now()
    client.want(request())
    assert client.state(key()) == LeaseState()
    assert changes == []
    lease = await leased(network, client)
    assert network.server.owners == {lease.address: owner(0)}
    assert lease.address in network.server.addresses
    assert (lease.prefix_length, lease.gateway, lease.server) == (
        24,
        network.server.gateway,
        network.server.server,
    )
    assert lease.renew_at is not None
    assert lease.rebind_at is not None
    assert lease.expires_at is not None
    assert before - timedelta(seconds=1) <= lease.acquired_at <= network.now() + timedelta(seconds=1)
    assert lease.expires_at - lease.acquired_at == timedelta(hours=1)
    assert lease.acquired_at < lease.renew_at < lease.rebind_at < lease.expires_at
    assert changes == [key()]


async def test_owners_get_addresses_of_their_own(network: Network) -> None:
    client = network.host()
    for number in range(10):
        client.want(request(number))
    assert len({(await leased(network, client, number)).address for number in range(10)}) == 10


async def test_asking_again_changes_nothing(network: Network) -> None:
    client = network.host()
    client.want(request())
    lease = await leased(network, client)
    client.want(request())
    client.want(replace(request(), remembered=replace(lease, address=IPv4Address("10.0.0.19"))))
    assert client.state(key()).lease == lease
    assert len(network.server.owners) == 1


async def test_an_identity_has_one_lease(network: Network) -> None:
    client = network.host()
    client.want(request())
    with pytest.raises(InvalidRequest, match="tenant/lb-0"):
        client.want(LeaseRequest(key=key(1), identity=owner(0)))
    assert client.state(key(1)) == LeaseState()


async def test_another_owner_under_the_same_name_is_another_client(network: Network) -> None:
    client = network.host()
    client.want(request())
    first = await leased(network, client)
    client.want(LeaseRequest(key=key(), identity=owner(1)))
    assert client.state(key()) == LeaseState()
    await leased(network, client)
    await network.until("the former lease is released", lambda: owner(0) not in network.server.owners.values())
    assert first.address not in network.server.owners or network.server.owners[first.address] == owner(1)


async def test_an_address_is_given_back(network: Network) -> None:
    client = network.host()
    client.want(request())
    await leased(network, client)
    client.drop(key(), release=True)
    assert client.state(key()) == LeaseState()
    await network.until("the server has it back", lambda: not network.server.owners)
    client.drop(key(), release=True)  # unknown now


async def test_an_address_may_be_left_for_another_host(network: Network) -> None:
    one, other = network.host(), network.host()
    one.want(request())
    lease = await leased(network, one)
    one.drop(key(), release=False)
    assert one.state(key()) == LeaseState()
    other.want(request())
    assert (await leased(network, other)).address == lease.address
    assert network.server.owners == {lease.address: owner(0)}


async def test_a_remembered_lease_is_held_at_once_and_confirmed(network: Network) -> None:
    one, other = network.host(), network.host()
    one.want(request(1))
    one.want(request())
    lease = await leased(network, one)
    network.leave(one)
    other.want(replace(request(), remembered=lease))
    assert other.state(key()) == LeaseState(lease=lease)
    await network.until("a renewal", lambda: other.counts().received.get("ack"))
    assert (await leased(network, other)).address == lease.address


async def test_a_remembered_lease_survives_a_server_that_is_silent(network: Network) -> None:
    one, other = network.host(), network.host()
    one.want(request())
    lease = await leased(network, one)
    network.leave(one)
    network.server.answering = False
    other.want(replace(request(), remembered=lease))
    said = await troubled(network, other, Reason.NO_ANSWER)
    assert "10.0.0.1" in said
    assert str(lease.address) in said
    assert "default/lan" in said
    assert "stays in use until the lease ends" in said
    assert other.state(key()).lease == lease
    network.server.answering = True
    other.drop(key(), release=True)
    await network.until("the server has it back", lambda: not network.server.owners)


async def test_a_remembered_lease_that_has_expired_is_only_a_wish(network: Network) -> None:
    client = network.host()
    past = network.now() - timedelta(hours=2)
    lease = Lease(
        address=IPv4Address("10.0.0.17"),
        prefix_length=24,
        gateway=None,
        server=network.server.server,
        acquired_at=past,
        renew_at=past + timedelta(minutes=1),
        rebind_at=past + timedelta(minutes=2),
        expires_at=past + timedelta(minutes=3),
    )
    client.want(replace(request(), remembered=lease))
    assert client.state(key()) == LeaseState()
    assert (await leased(network, client)).address == lease.address


async def test_a_remembered_lease_that_the_server_refuses_is_lost(network: Network) -> None:
    one, other = network.host(), network.host()
    one.want(request())
    lease = await leased(network, one)
    network.leave(one)
    network.server.owners = {}
    network.server.addresses = [IPv4Address("10.0.0.200")]
    states: list[LeaseState] = []
    other.on_change(lambda changed: states.append(other.state(changed)))
    other.want(replace(request(), remembered=lease))
    assert other.state(key()).lease == lease
    await network.until("the loss", lambda: states)
    assert (await leased(network, other)).address == IPv4Address("10.0.0.200")
    assert states[0].lease is None
    assert states[0].problem is not None
    assert states[0].problem.reason is Reason.REFUSED
    assert str(lease.address) in states[0].problem.message


async def test_a_silent_server_is_told_and_waited_for(network: Network) -> None:
    network.server.answering = False
    client = network.host()
    client.want(request())
    said = await troubled(network, client, Reason.NO_ANSWER)
    assert said.startswith("no DHCP server has answered on network 'default/lan' since 20")
    network.server.answering = True
    await leased(network, client)


async def test_an_exhausted_range_is_told_and_waited_for(network: Network) -> None:
    network.server.addresses = network.server.addresses[:1]
    client = network.host()
    client.want(request(0))
    lease = await leased(network, client, 0)
    client.want(request(1))
    # Only who hears a server answering others can know; a renewal is such an answer.
    network.server.duration = timedelta(seconds=2)
    client.drop(key(0), release=False)
    client.want(replace(request(0), remembered=lease))
    said = await troubled(network, client, Reason.NO_OFFER, 1)
    assert "DHCP server 10.0.0.1 answers others on network 'default/lan'" in said
    client.drop(key(0), release=True)
    assert (await leased(network, client, 1)).address == network.server.addresses[0]


async def test_an_address_that_a_stranger_has_is_declined(network: Network) -> None:
    first = network.server.addresses[0]
    network.strangers[first] = MAC
    client = network.host()
    client.want(request())
    said = await troubled(network, client, Reason.ADDRESS_CONFLICT)
    assert MAC in said
    assert str(first) in said
    assert client.state(key()).lease is None
    assert network.server.declined == {first}
    assert (await leased(network, client)).address != first


async def test_a_stranger_found_later_ends_the_lease(network: Network) -> None:
    client = network.host()
    client.conflict(key(), MAC)
    client.want(request())
    client.conflict(key(), MAC)  # there is no lease that could be in conflict
    lease = await leased(network, client)
    client.conflict(key(), MAC)
    state = client.state(key())
    assert state.lease is None
    assert state.problem is not None
    assert state.problem.reason is Reason.ADDRESS_CONFLICT
    assert (await leased(network, client)).address != lease.address
    assert network.server.declined == {lease.address}


async def test_a_probe_that_fails_is_told(network: Network) -> None:
    async def broken(address: IPv4Address) -> str:
        raise OSError(f"no link for {address}")

    network.probe = broken
    client = network.host()
    client.want(request())
    said = await troubled(network, client, Reason.PROBE_FAILED)
    assert "no link for 10.0.0.10" in said
    assert client.state(key()).lease is None


async def test_a_lease_is_renewed_and_without_a_server_it_ends(network: Network) -> None:
    network.server.duration = timedelta(seconds=1)
    client = network.host()
    client.want(request())
    first = await leased(network, client)

    def renewed() -> bool:
        lease = client.state(key()).lease
        return lease is not None and lease.acquired_at > first.acquired_at

    await network.until("a renewal", renewed)
    problems: list[Reason] = []
    held: list[bool] = []

    def note(_key: object) -> None:
        state = client.state(key())
        if state.problem is not None:
            problems.append(state.problem.reason)
            held.append(state.lease is not None)

    client.on_change(note)
    network.server.answering = False
    await network.until("the end of the lease", lambda: Reason.LEASE_EXPIRED in problems)
    end = problems.index(Reason.LEASE_EXPIRED)
    assert set(problems[:end]) <= {Reason.NO_ANSWER}
    assert all(held[:end])
    assert not any(held[end:])
    network.server.owners = {}
    network.server.addresses = list(reversed(network.server.addresses))
    network.server.answering = True
    assert (await leased(network, client)).address == first.address


async def test_a_lease_without_end_has_no_times(network: Network) -> None:
    network.server.duration = None
    client = network.host()
    client.want(request())
    lease = await leased(network, client)
    assert (lease.renew_at, lease.rebind_at, lease.expires_at) == (None, None, None)
    other = network.host()
    other.want(replace(request(), remembered=lease))
    assert other.state(key()).lease == lease


async def test_the_callback_may_call_the_client(network: Network) -> None:
    client = network.host()
    client.on_change(lambda changed: client.drop(changed, release=True))
    client.want(request())
    await network.until("the release", lambda: client.counts().sent.get("release"))
    assert client.state(key()) == LeaseState()
    await network.until("the server has it back", lambda: not network.server.owners)
