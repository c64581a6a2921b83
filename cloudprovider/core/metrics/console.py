"""What the console exports."""

from typing import Final

from cloudprovider.core.metrics.definition import CALL_BUCKETS, Group

_group = Group("console")

REQUESTS: Final = _group.counter(
    "requests_total",
    "Requests answered, by the page's path as the console's code has it.",
    "method",
    "route",
    "code",
    bound='pages of the console, "unmatched" for what is none',
)
REQUEST_SECONDS: Final = _group.histogram(
    "request_duration_seconds",
    "Seconds for an answer, live pages left out.",
    CALL_BUCKETS,
    "route",
    bound='pages of the console, "unmatched" for what is none',
)
SESSIONS: Final = _group.gauge("sessions", "People signed in.")
STREAMS: Final = _group.gauge("streams", "Live pages open.")

CONSOLE: Final = _group.metrics
