"""What one tenant may use, and that another does not feel it."""

import asyncio

import pytest

from cloudprovider.bridge.api import QuotaExceeded, Reason
from cloudprovider.bridge.limits import MAX_SMOOTHING_SECONDS, FairGate, StreamSlots, TokenBucket
from cloudprovider.core.errors import BridgeError
from cloudprovider.core.exchange import Tenant
from tests.bridge.tls import OTHER, TENANT


def test_bucket_gives_a_burst_then_smooths_then_refuses() -> None:
    clock = [0.0]
    bucket = TokenBucket(10, lambda: clock[0])
    assert [bucket.take() for _ in range(10)] == [0.0] * 10
    waits = [bucket.take() for _ in range(10)]
    assert waits == pytest.approx([0.1 * i for i in range(1, 11)])
    with pytest.raises(BridgeError) as e:
        bucket.take()
    assert e.value.reason == Reason.RATE_LIMITED
    assert e.value.retry_after is not None
    assert e.value.retry_after > MAX_SMOOTHING_SECONDS
    clock[0] = 100.0
    assert [bucket.take() for _ in range(10)] == [0.0] * 10
    assert bucket.take() > 0  # a long rest saves up one burst, not more


async def test_gate_serves_tenants_in_turn() -> None:
    gate = FairGate(1)
    order: list[Tenant] = []
    first = asyncio.Event()

    async def call(tenant: Tenant) -> None:
        async with gate.turn(tenant):
            order.append(tenant)
            if len(order) == 1:
                await first.wait()

    tasks = [asyncio.create_task(call(TENANT)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(call(OTHER)) for _ in range(2)]
    await asyncio.sleep(0)
    first.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert OTHER in order[:3]
    assert [t for t in order[:5] if t == OTHER] == [OTHER, OTHER]


async def test_gate_loses_no_place_to_cancellations() -> None:
    gate = FairGate(2)
    release = asyncio.Event()

    async def call(tenant: Tenant) -> None:
        async with gate.turn(tenant):
            await release.wait()

    tasks = [asyncio.create_task(call(TENANT if i % 2 else OTHER)) for i in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    release.set()
    for task in tasks[1::3]:
        task.cancel()  # some hold a place already, given to them in this very step
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(call(TENANT), call(OTHER), call(TENANT))
    assert gate._free == 2
    assert not gate._waiting


async def test_gate_bounds_its_queue() -> None:
    gate = FairGate(1, waiting_per_tenant=2)
    async with gate.turn(TENANT):
        waiting = [asyncio.create_task(gate.turn(TENANT).__aenter__()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(BridgeError) as e:
            await gate.turn(TENANT).__aenter__()
        assert e.value.reason == Reason.RATE_LIMITED
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def test_slots() -> None:
    slots = StreamSlots()
    with slots.slot(TENANT, 1):
        with pytest.raises(QuotaExceeded), slots.slot(TENANT, 1):
            pass
        with slots.slot(OTHER, 1):
            pass
    with slots.slot(TENANT, 1):
        pass
