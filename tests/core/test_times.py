"""Times of API objects, read and written."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from cloudprovider.core.times import parse_time, rfc3339, seconds_since

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["2026-01-01T12:00:00Z", "2026-01-01T13:00:00+01:00", "2026-01-01T12:00:00", "2026-01-01T12:00:00.000000Z"]
)
def test_a_time_is_read_with_any_zone_and_in_utc_without(text: str) -> None:
    assert parse_time(text) == NOON


@pytest.mark.parametrize("text", ["", "soon", "2026-06-31T00:00:00Z", "<script>"])
def test_what_is_none_is_none(text: str) -> None:
    assert parse_time(text) is None
    assert seconds_since(text, NOON) is None


def test_a_time_is_written_to_the_second_in_utc() -> None:
    assert rfc3339(datetime(2026, 1, 1, 13, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))) == "2026-01-01T12:00:00Z"


def test_what_lies_ahead_is_now() -> None:
    assert seconds_since("2026-01-01T11:59:30Z", NOON) == 30
    assert seconds_since("2026-01-01T12:00:30Z", NOON) == 0
