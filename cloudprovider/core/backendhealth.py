"""What the status says of a backend's health: made of what its checks tell, and read back where an agent takes over.

A backend is checked at each of its addresses that traffic goes to, and healthy where all of them are: it has one
health, as it is one machine. What was told is the memory: an agent that starts goes on from it.
"""

from collections.abc import Sequence
from datetime import datetime

from cloudprovider.core.api.loadbalancer import MAX_HEALTH_HISTORY, BackendHealth, HealthChange
from cloudprovider.core.checks import NOT_CHECKED, Standing, begin
from cloudprovider.core.times import parse_time, rfc3339


def told(before: BackendHealth | None, standings: Sequence[Standing], now: datetime) -> BackendHealth:
    """What is to be said of a backend; ``before`` itself where nothing has changed. ``standings``: of its addresses;
    none: there is nothing that could be checked. A new backend's first word is no change."""
    healthy = bool(standings) and all(standing.healthy for standing in standings)
    message = "" if healthy else next((s.message for s in standings if not s.healthy), NOT_CHECKED)
    if before is not None and before.healthy is healthy:
        if before.message == message:
            return before
        return BackendHealth(healthy=healthy, since=before.since, message=message, history=before.history)
    since = rfc3339(now)
    history: list[HealthChange] = []
    if before is not None or healthy:
        former = before.history if before is not None else []
        history = [*former, HealthChange(time=since, healthy=healthy)][-MAX_HEALTH_HISTORY:]
    return BackendHealth(healthy=healthy, since=since, message=message, history=history)


def standing_of(health: BackendHealth | None, now: datetime) -> Standing:
    """Where an address of a backend stands of which this was told: what was healthy is so until it is proven
    otherwise, and a new one is down until it has passed."""
    if health is None:
        return begin(now)
    since = parse_time(health.since) or now
    message = "" if health.healthy else health.message or NOT_CHECKED
    return Standing(healthy=health.healthy, since=since, message=message)
