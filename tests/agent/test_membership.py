"""A host's own Lease, over the API server in memory."""

import asyncio
import random
import time
from datetime import UTC, datetime

import pytest

from cloudprovider.agent.membership import Membership
from cloudprovider.core.hosts import Presence
from cloudprovider.kube.fake import FakeKubeClient
from cloudprovider.kube.fakestore import FakeCluster


@pytest.mark.parametrize("turns", range(6))
async def test_it_ends_when_it_is_cancelled_in_the_turn_in_which_it_was_to_renew(turns: int) -> None:
    cluster = FakeCluster(lambda: datetime(2026, 1, 1, tzinfo=UTC))
    membership = Membership(
        FakeKubeClient(cluster), "system", "default", "h1", rng=random.Random(1), monotonic=time.monotonic
    )
    told = asyncio.Event()
    running = asyncio.create_task(membership.run(lambda _: told.set()))
    await asyncio.wait_for(told.wait(), 5)
    await asyncio.sleep(0.01)
    membership.set_standing({"": Presence(mac="02:00:00:00:00:01")})
    for _ in range(turns):
        await asyncio.sleep(0)
    running.cancel()
    ended, _ = await asyncio.wait({running}, timeout=2)
    for _ in range(3):
        running.cancel()
        await asyncio.wait({running}, timeout=0.1)
    assert ended
