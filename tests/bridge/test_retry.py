"""How long a client waits before it tries the host again."""

import random

import pytest

from cloudprovider.bridge.client import retry_delay

BOUNDS = (0.5, 3.0)
SCHEDULE = [0.5, 1.0, 2.0, 3.0, 3.0]


def delays(seed: int, count: int) -> list[float]:
    rng = random.Random(seed)
    return [retry_delay(failures, BOUNDS, rng) for failures in range(count)]


@pytest.mark.parametrize("seed", range(50))
def test_each_delay_lies_in_the_upper_half_of_the_schedule(seed: int) -> None:
    for delay, full in zip(delays(seed, len(SCHEDULE)), SCHEDULE, strict=True):
        assert full / 2 <= delay <= full


def test_guests_that_lost_the_host_together_do_not_come_back_together() -> None:
    for failures in range(len(SCHEDULE)):
        came = sorted(delays(seed, len(SCHEDULE))[failures] for seed in range(100))
        half = SCHEDULE[failures] / 2
        assert came[-1] - came[0] > 0.8 * half
        assert max(sum(start <= other < start + half / 10 for other in came) for start in came) < 25


def test_a_long_outage_neither_overflows_nor_waits_longer() -> None:
    assert 1.5 <= retry_delay(100_000, BOUNDS, random.Random(1)) <= 3.0
