"""Times as API objects have them: RFC 3339, to the second, in UTC (``metav1.Time``)."""

from datetime import UTC, datetime


def rfc3339(time: datetime) -> str:
    """Return ``time`` as ``metav1.Time`` is written."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str) -> datetime | None:
    """Read a time, in UTC where it names no zone; None if it is none: empty, or somebody else's writing."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def seconds_since(text: str, now: datetime) -> float | None:
    """Return how long ago a time was, never below 0: clocks differ; None if it is none."""
    time = parse_time(text)
    return None if time is None else max((now - time).total_seconds(), 0.0)
