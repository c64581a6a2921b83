"""What every program exports."""

from typing import Final

from cloudprovider.core.metrics.definition import CALL_BUCKETS, Group, Metric

_group = Group()

BUILD_INFO: Final = _group.gauge(
    "build_info", "Always 1: which program this is.", "program", "version", "python_version", bound="one"
)
KUBE_REQUESTS: Final = _group.counter(
    "kube_requests_total",
    "Requests to the API server; code 0 is no answer.",
    "verb",
    "resource",
    "code",
    bound="verbs and resources that the program uses, HTTP codes",
)
KUBE_REQUEST_SECONDS: Final = _group.histogram(
    "kube_request_duration_seconds",
    "Seconds from a request to the API server to its whole answer, watches left out.",
    CALL_BUCKETS,
    "verb",
    bound="verbs that the program uses",
)
EVENTS_DROPPED: Final = _group.counter("events_dropped_total", "Kubernetes events not posted, as they were too many.")
_QUEUES: Final = "the program's queues, 5 at most"
QUEUE_DEPTH: Final = _group.gauge("queue_depth", "Keys that wait to be worked on.", "queue", bound=_QUEUES)
QUEUE_OLDEST: Final = _group.gauge(
    "queue_oldest_age_seconds", "For how long the oldest key has waited, 0 when none does.", "queue", bound=_QUEUES
)
QUEUE_ACTIVE: Final = _group.gauge("queue_active", "Keys being worked on.", "queue", bound=_QUEUES)
QUEUE_DELAYED: Final = _group.gauge("queue_delayed", "Keys that come back later.", "queue", bound=_QUEUES)
QUEUE_FAILING: Final = _group.gauge("queue_failing", "Keys whose last work failed.", "queue", bound=_QUEUES)
QUEUE_RETRIES: Final = _group.counter(
    "queue_retries_total", "Failures of work on a key, each tried again.", "queue", bound=_QUEUES
)

COMMON: Final = _group.metrics

PROCESS: Final = (
    Metric("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds."),
    Metric("process_resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    Metric("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    Metric("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    Metric("process_open_fds", "gauge", "Number of open file descriptors."),
    Metric("process_max_fds", "gauge", "Maximum number of open file descriptors."),
)
"""By prometheus_client's ProcessCollector; the names are the same in all the world."""
