"""Wall-clock time, as an argument."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the time, with a time zone."""


def utc_now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)
