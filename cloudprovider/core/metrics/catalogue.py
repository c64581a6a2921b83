"""All metrics, by program."""

from collections.abc import Mapping
from typing import Final

from cloudprovider.core.metrics.agent import AGENT
from cloudprovider.core.metrics.common import (
    COMMON,
    EVENTS_DROPPED,
    PROCESS,
    QUEUE_ACTIVE,
    QUEUE_DELAYED,
    QUEUE_DEPTH,
    QUEUE_FAILING,
    QUEUE_OLDEST,
    QUEUE_RETRIES,
)
from cloudprovider.core.metrics.console import CONSOLE
from cloudprovider.core.metrics.definition import Metric
from cloudprovider.core.metrics.guest import GUEST
from cloudprovider.core.metrics.host import HOST

_NOT_CONSOLES: Final = frozenset(
    (EVENTS_DROPPED, QUEUE_ACTIVE, QUEUE_DELAYED, QUEUE_DEPTH, QUEUE_FAILING, QUEUE_OLDEST, QUEUE_RETRIES)
)

PROGRAMS: Final[Mapping[str, tuple[Metric, ...]]] = {
    "guest": (*GUEST, *COMMON, *PROCESS),
    "host": (*HOST, *COMMON, *PROCESS),
    "agent": (*AGENT, *COMMON, *PROCESS),
    "console": (*CONSOLE, *(m for m in COMMON if m not in _NOT_CONSOLES), *PROCESS),
}
"""What each program exports."""
