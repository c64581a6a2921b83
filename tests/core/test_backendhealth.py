"""What the status says of a backend, from what its checks tell, and read back."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.api.loadbalancer import MAX_HEALTH_HISTORY, BackendHealth, HealthChange
from cloudprovider.core.backendhealth import standing_of, told
from cloudprovider.core.checks import NOT_CHECKED, Standing, begin, judge
from cloudprovider.core.health import Answer, Check, Outcome

START = datetime(2026, 1, 1, tzinfo=UTC)
UP = Standing(healthy=True, since=START)
DOWN = Standing(healthy=False, since=START, message="Connection refused")


def at(seconds: int) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_new_backend_is_down_since_now_without_a_change() -> None:
    assert told(None, [begin(START)], START) == BackendHealth(
        healthy=False, since="2026-01-01T00:00:00Z", message=NOT_CHECKED
    )


def test_a_change_is_remembered_and_what_is_the_same_is_the_same_object() -> None:
    first = told(None, [begin(START)], START)
    up = told(first, [UP], at(5))
    assert up == BackendHealth(
        healthy=True, since="2026-01-01T00:00:05Z", history=[HealthChange(time="2026-01-01T00:00:05Z", healthy=True)]
    )
    assert told(up, [UP], at(60)) is up
    down = told(up, [DOWN], at(60))
    assert (down.healthy, down.since, down.message) == (False, "2026-01-01T00:01:00Z", "Connection refused")
    assert [change.healthy for change in down.history] == [True, False]


def test_another_message_is_no_change() -> None:
    down = told(told(None, [UP], START), [DOWN], at(5))
    other = told(down, [Standing(healthy=False, since=START, message="HTTP status 500")], at(50))
    assert (other.since, other.history, other.message) == (down.since, down.history, "HTTP status 500")


def test_a_backend_is_healthy_where_all_its_addresses_are() -> None:
    assert told(None, [UP, UP], START).healthy
    half = told(None, [UP, DOWN], START)
    assert (half.healthy, half.message) == (False, "Connection refused")
    assert not told(None, [], START).healthy


@given(st.lists(st.booleans(), max_size=40))
def test_the_last_ten_changes_stay(ups: list[bool]) -> None:
    health, expected = told(None, [begin(START)], START), list[tuple[str, bool]]()
    for second, up in enumerate(ups, 1):
        if up is not health.healthy:
            expected.append((at(second).strftime("%Y-%m-%dT%H:%M:%SZ"), up))
        health = told(health, [UP if up else DOWN], at(second))
    assert [(change.time, change.healthy) for change in health.history] == expected[-MAX_HEALTH_HISTORY:]


def test_what_was_healthy_stays_so_until_it_is_proven_otherwise() -> None:
    check, refused = Check(failure_threshold=2), Answer(Outcome.BAD, "connection refused")
    standing = standing_of(told(None, [UP], START), at(100))
    assert (standing.healthy, standing.since) == (True, START)
    standing = judge(standing, refused, at(101), check)
    assert standing.healthy
    assert not judge(standing, refused, at(102), check).healthy


def test_what_was_down_stays_so_with_its_reason_and_who_is_new_is_down() -> None:
    assert standing_of(told(None, [DOWN], START), at(100)) == DOWN
    assert standing_of(None, START) == begin(START)


@pytest.mark.parametrize("since", ["", "yesterday", "2026-13-01T00:00:00Z"])
def test_a_time_that_is_none_is_now(since: str) -> None:
    assert standing_of(BackendHealth(healthy=True, since=since), START) == UP
