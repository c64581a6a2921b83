"""The work queue, in virtual time."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.errors import Unavailable
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.queue import WorkQueue
from tests.kube import virtualtime

Handle = Callable[[str], Awaitable[float | None]]


def now() -> float:
    return asyncio.get_running_loop().time()


def queue_of(
    handle: Handle, *, workers: int = 2, group: Callable[[str], Hashable] | None = None, drain_seconds: float = 2.0
) -> WorkQueue[str]:
    return WorkQueue(
        handle,
        name="test",
        workers=workers,
        rng=random.Random(1),
        backoff=Backoff(base=1.0, limit=8.0),
        group=group,
        drain_seconds=drain_seconds,
    )


async def running(queue: WorkQueue[str], seconds: float) -> None:
    """Let the queue run for ``seconds``, and end it."""
    task = asyncio.create_task(queue.run())
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_key_added_often_is_handled_once() -> None:
    async def main() -> None:
        handled: list[str] = []

        async def handle(key: str) -> None:
            handled.append(key)

        queue = queue_of(handle)
        for key in "abaab":
            queue.add(key)
        assert queue.stats.ready == 2
        await running(queue, 1)
        assert handled == ["a", "b"]

    virtualtime.run(main())


def test_a_key_added_while_handled_is_handled_once_more() -> None:
    async def main() -> None:
        spans: list[tuple[float, float]] = []

        async def handle(_: str) -> None:
            began = now()
            await asyncio.sleep(1)
            spans.append((began, now()))

        queue = queue_of(handle)
        queue.add("a")
        asyncio.get_running_loop().call_later(0.5, queue.add, "a")
        asyncio.get_running_loop().call_later(0.6, queue.add, "a")
        await running(queue, 10)
        assert len(spans) == 2
        assert spans[1][0] >= spans[0][1]

    virtualtime.run(main())


def test_failures_back_off_and_success_forgets() -> None:
    async def main() -> None:
        times: list[float] = []

        async def handle(_: str) -> None:
            times.append(now())
            if len(times) <= 6:
                raise Unavailable("down")

        queue = queue_of(handle)
        queue.add("a")
        await running(queue, 60)
        gaps = [later - earlier for earlier, later in pairwise(times)]
        assert len(gaps) == 6
        for gap, full in zip(gaps, (1, 2, 4, 8, 8, 8), strict=True):
            assert full / 2 <= gap <= full + 0.001
        assert queue.stats.failing == 0
        assert queue.stats.failures == 6

    virtualtime.run(main())


def test_bugs_are_retried_too(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        seen: Counter[str] = Counter()

        async def handle(key: str) -> None:
            seen[key] += 1
            if key == "bad" and seen[key] == 1:
                raise KeyError("a bug")
            if key == "cancelled" and seen[key] == 1:
                raise asyncio.CancelledError

        queue = queue_of(handle)
        for key in ("bad", "cancelled", "good"):
            queue.add(key)
        await running(queue, 60)
        assert seen == {"bad": 2, "cancelled": 2, "good": 1}

    virtualtime.run(main())
    assert "a bug" in caplog.text


def test_retry_after_is_respected() -> None:
    async def main() -> None:
        times: list[float] = []

        async def handle(_: str) -> None:
            times.append(now())
            if len(times) == 1:
                raise Unavailable("busy", status=429, retry_after=30)

        queue = queue_of(handle)
        queue.add("a")
        await running(queue, 60)
        assert times[1] - times[0] >= 30

    virtualtime.run(main())


def test_a_change_does_not_wait_for_the_backoff() -> None:
    async def main() -> None:
        times: list[float] = []

        async def handle(_: str) -> None:
            times.append(now())
            if len(times) == 1:
                raise Unavailable("busy", retry_after=30)

        queue = queue_of(handle)
        queue.add("a")
        asyncio.get_running_loop().call_later(5, queue.add, "a")
        await running(queue, 100)
        assert [round(t - times[0]) for t in times] == [0, 5]

    virtualtime.run(main())


def test_requeue_after_and_earliest_delay_wins() -> None:
    async def main() -> None:
        times: list[float] = []

        async def handle(_: str) -> float | None:
            times.append(now())
            return 10 if len(times) == 1 else None

        queue = queue_of(handle)
        began = now()
        queue.add_after("a", 7)
        queue.add_after("a", 3)
        queue.add_after("a", 5)
        await running(queue, 60)
        assert [round(t - began) for t in times] == [3, 13]

    virtualtime.run(main())


def test_forget_drops_the_delayed_return() -> None:
    async def main() -> None:
        times: list[float] = []

        async def handle(_: str) -> None:
            times.append(now())
            raise Unavailable("down")

        queue = queue_of(handle)
        queue.add("a")
        asyncio.get_running_loop().call_later(0.1, queue.forget, "a")
        await running(queue, 60)
        assert len(times) == 1
        assert queue.stats.failing == queue.stats.delayed == 0

    virtualtime.run(main())


def test_groups_take_turns() -> None:
    async def main() -> None:
        handled: list[str] = []

        async def handle(key: str) -> None:
            handled.append(key)

        queue = queue_of(handle, workers=1, group=lambda key: key[0])
        for key in [f"a{i}" for i in range(5)] + ["b0", "b1", "c0"]:
            queue.add(key)
        await running(queue, 1)
        assert handled == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]

    virtualtime.run(main())


def test_a_key_whose_group_changes_waits_in_the_new_ones_row() -> None:
    async def main() -> None:
        handled: list[str] = []
        group = dict.fromkeys("abcdef", "begun")

        async def handle(key: str) -> None:
            handled.append(key)

        queue = queue_of(handle, workers=1, group=group.__getitem__)
        for key in "abcdef":
            queue.add(key)
        for key in "fe":
            group[key] = "nearly done"
            queue.add(key)
        queue.add("a")  # nothing new about it: it keeps its place
        assert queue.stats.ready == 6
        await running(queue, 1)
        assert handled == ["a", "f", "b", "e", "c", "d"]

    virtualtime.run(main())


def test_cancel_drains_then_cancels_and_keeps_the_rest() -> None:
    async def main() -> None:
        log: list[str] = []

        async def handle(key: str) -> None:
            try:
                await asyncio.sleep(float(key))
                log.append(f"{key} done")
            finally:
                log.append(f"{key} ended")

        queue = queue_of(handle, workers=2, drain_seconds=2)
        for key in ("2", "50", "3"):
            queue.add(key)
        began = now()
        await running(queue, 1)
        assert log == ["2 done", "2 ended", "50 ended"]
        assert now() - began == pytest.approx(3)
        assert queue.stats.ready == 2  # the one that never began, and the one that was not finished
        await running(queue, 100)
        assert log[3:] == ["3 done", "3 ended", "50 done", "50 ended"]
        await asyncio.wait_for(queue.idle(), 1)

    virtualtime.run(main())


def test_a_second_cancel_does_not_leave_handlers_behind() -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def handle(_: str) -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(0.5)
                ended.set()

        queue = queue_of(handle, drain_seconds=100)
        queue.add("a")
        task = asyncio.create_task(queue.run())
        await asyncio.sleep(1)
        task.cancel()
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    virtualtime.run(main())


def test_one_run_at_a_time_and_at_least_one_worker() -> None:
    async def main() -> None:
        async def handle(_: str) -> None:
            return None

        queue = queue_of(handle)
        task = asyncio.create_task(queue.run())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await queue.run()
        task.cancel()
        with pytest.raises(ValueError, match="at least one"):
            queue_of(handle, workers=0)

    virtualtime.run(main())


@given(
    adds=st.lists(st.tuples(st.floats(0, 20), st.sampled_from("abcde"), st.sampled_from([0.0, 1.5, 4.0])), max_size=40),
    durations=st.lists(st.floats(0.01, 2), min_size=1, max_size=10),
    fails=st.sets(st.integers(0, 60)),
    workers=st.integers(1, 3),
)
def test_every_change_is_handled_after_it_happened(
    adds: list[tuple[float, str, float]], durations: list[float], fails: set[int], workers: int
) -> None:
    """No key twice at once, never more than the workers, and after each add a successful run begins at or after it."""

    async def main() -> None:
        active: set[str] = set()
        succeeded: dict[str, float] = {}
        count = 0

        async def handle(key: str) -> None:
            nonlocal count
            assert key not in active
            active.add(key)
            assert len(active) <= workers
            number, began = count, now()
            count += 1
            await asyncio.sleep(durations[number % len(durations)])
            active.remove(key)
            if number in fails:
                raise Unavailable("down")
            succeeded[key] = began

        queue = queue_of(handle, workers=workers)
        loop = asyncio.get_running_loop()
        wanted: dict[str, float] = {}
        for at, key, delay in adds:
            loop.call_later(at, queue.add_after if delay else queue.add, *((key, delay) if delay else (key,)))
            wanted[key] = max(wanted.get(key, 0), loop.time() + at)
        await running(queue, 2000)
        assert queue.stats.ready == queue.stats.delayed == queue.stats.active == queue.stats.failing == 0
        for key, at in wanted.items():
            assert succeeded[key] >= at - 0.001

    virtualtime.run(main())
