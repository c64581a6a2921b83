"""Addresses that come up while others are taken away, over the data plane in memory."""

import asyncio
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Interface

import pytest

from cloudprovider.agent.claims import Claims
from cloudprovider.agent.traces import AgentTraces
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.tracing import NO_TRACER
from cloudprovider.core.wanted import LoadBalancerKey
from cloudprovider.dataplane.api import Claim, NetworkConfig
from cloudprovider.dataplane.fake import FakeAnnouncer, FakeDataPlane

FIRST, SECOND = IPv4Address("10.0.0.100"), IPv4Address("10.0.0.101")


async def test_what_comes_up_unwanted_while_another_is_taken_away_goes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner has become another host while it was on its way."""
    segment = await FakeDataPlane().open(NetworkConfig("", "mgmt-br", IPv4Interface("10.0.0.2/24")))
    users: dict[IPAddress, frozenset[LoadBalancerKey]] = dict.fromkeys((FIRST, SECOND), frozenset({("t", "a")}))
    tested = Claims(
        "",
        lambda vip: users.get(vip, frozenset()),
        changed=lambda _: None,
        wake=lambda: None,
        granted=lambda _: False,
        is_fellow=lambda _, __: False,
        is_usurped=lambda _: False,
        usurped=lambda _, __: None,
        is_orphaned=lambda _: False,
        traces=AgentTraces(NO_TRACER),
        conflicted=lambda: None,
        jitter=lambda: 0.5,
    )
    up, away = asyncio.Event(), asyncio.Event()
    claim, withdraw = FakeAnnouncer.claim, FakeAnnouncer.withdraw

    async def slow_claim(self: FakeAnnouncer, addresses: Sequence[IPAddress], *, hurried: bool = False) -> list[Claim]:
        if SECOND in addresses:
            await up.wait()
        return await claim(self, addresses, hurried=hurried)

    async def slow_withdraw(self: FakeAnnouncer, addresses: Iterable[IPAddress]) -> None:
        await withdraw(self, addresses)
        await away.wait()

    monkeypatch.setattr(FakeAnnouncer, "claim", slow_claim)
    monkeypatch.setattr(FakeAnnouncer, "withdraw", slow_withdraw)
    for vip in (FIRST, SECOND):
        tested.touch([vip])
        tested.claim(segment.announcer)
        for _ in range(10):
            await asyncio.sleep(0)
    assert (set(tested.held), set(tested.claiming)) == ({FIRST}, {SECOND})
    users.clear()
    tested.touch([FIRST, SECOND])
    withdrawing = asyncio.create_task(tested.withdraw(segment.announcer))
    await asyncio.sleep(0)
    up.set()
    for _ in range(10):
        await asyncio.sleep(0)
    assert SECOND in tested.held
    away.set()
    await withdrawing
    await tested.withdraw(segment.announcer)
    assert await segment.announcer.held() == frozenset()
