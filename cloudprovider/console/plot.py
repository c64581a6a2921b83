"""The history of a backend's health as a bar over time. Pure: numbers for a drawing, and the same in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cloudprovider.console import words
from cloudprovider.core.api.loadbalancer import BackendHealth
from cloudprovider.core.times import parse_time

WIDTH: Final = 240
"""Units of the drawing, from the first change that is known until now."""
SHORTEST: Final = timedelta(minutes=10)
NARROWEST: Final = 1.5
"""A failure of seconds among days is still to be seen."""


@dataclass(frozen=True)
class Span:
    """From ``x`` on, ``width`` units, it was so."""

    x: float
    width: float
    healthy: bool
    text: str


@dataclass(frozen=True)
class Plot:
    """``spans`` from left to right; ``span``: how long it is altogether; ``text``: for who can't see it."""

    spans: Sequence[Span]
    span: str
    text: str


def plot(health: BackendHealth, now: datetime) -> Plot:
    """Draw what is known of a backend's health."""
    changes = [(time, c.healthy) for c in health.history if (time := parse_time(c.time)) is not None]
    since = parse_time(health.since)
    if since is not None and (not changes or changes[-1][1] != health.healthy):
        changes.append((since, health.healthy))
    changes = sorted((time, healthy) for time, healthy in changes if time <= now)
    if not changes:
        return Plot((), "", "no history yet")
    start = min(changes[0][0], now - SHORTEST)
    total = (now - start).total_seconds()
    spans = []
    for i, (time, healthy) in enumerate(changes):
        end = changes[i + 1][0] if i + 1 < len(changes) else now
        x = (time - start).total_seconds() / total * WIDTH
        width = max((end - time).total_seconds() / total * WIDTH, NARROWEST)
        state = "healthy" if healthy else "failed"
        text = f"{state} for {words.duration((end - time).total_seconds())}, from {time:%Y-%m-%d %H:%M:%S} UTC"
        spans.append(Span(round(min(x, WIDTH - width), 2), round(width, 2), healthy, text))
    failures = sum(1 for s in spans if not s.healthy)
    text = f"In {words.duration(total)} {words.plural(failures, 'time')} failed. " + "; ".join(s.text for s in spans)
    return Plot(spans, words.duration(total), text)
