"""What health checks tell of a backend: pure, one answer after the other.

A backend is up or down, and becomes the other by as many answers in a row as the check's thresholds say, and by nothing
else: no average, no hold time. It starts down: unlike a node (:mod:`cloudprovider.core.health`) it is checked because
somebody said how, so that an answer is to be expected.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from cloudprovider.core.health import Answer, Check, Outcome, in_a_row

NOT_CHECKED: Final = "Not checked yet"
_LONGEST: Final = 300
"""Characters of a message: an answer may quote what a server said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All that is known of one address by one check. Counts go up to their threshold and stay there."""

    healthy: bool
    since: datetime
    """When it became so."""
    message: str = ""
    """Why it is down; empty while it is up. It follows the failures only as far as they are the same for as long as it
    takes to fail, so that it does not change at every answer."""
    against: int = 0
    """Answers in a row that speak against ``healthy``."""
    failure: str = ""
    """How the last failure ended."""
    repeated: int = 0
    """Failures in a row that ended like this."""


def begin(now: datetime) -> Standing:
    """A backend that nobody has checked yet."""
    return Standing(healthy=False, since=now, message=NOT_CHECKED)


def judge(standing: Standing, answer: Answer, now: datetime, check: Check) -> Standing:
    """What is known after one more answer, which came at ``now``; the same object where nothing has changed.

    What this host could not ask (``UNASKED``) is no answer and breaks no row; it is only told.
    """
    if answer.outcome is Outcome.UNASKED:
        unasked = f"This host can't check it: {answer.said}"[:_LONGEST]
        return replace(standing, message=unasked) if standing.message == NOT_CHECKED else standing
    good = answer.outcome is Outcome.GOOD
    threshold = check.failure_threshold if standing.healthy else check.success_threshold
    against = in_a_row(standing.against, threshold, counts=good is not standing.healthy)
    failure = standing.failure if good else answer.said
    repeated = in_a_row(standing.repeated, check.failure_threshold, counts=not good and failure == standing.failure)
    after = replace(standing, against=against, failure=failure, repeated=repeated if good else max(repeated, 1))
    if against >= threshold:
        return replace(
            after,
            healthy=good,
            since=now,
            message="" if good else _sentence(failure),
            against=0,
        )
    if not (good or standing.healthy) and (after.repeated >= check.failure_threshold or not standing.failure):
        after = replace(after, message=_sentence(failure))
    return standing if after == standing else after


def _sentence(said: str) -> str:
    said = said or "the check failed"
    return f"{said[0].upper()}{said[1:]}"[:_LONGEST].rstrip(".")
