"""Wall-clock time, as an argument, and as API objects write it."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the time, with a time zone."""


def utc_now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


def rfc3339(time: datetime) -> str:
    """Return ``time`` to the second in UTC, as ``metav1.Time`` is written."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
