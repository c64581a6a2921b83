"""What probes tell of a node: pure, one observation after the other.

An endpoint that is probed counts as a signal only after it has answered once: k3s and RKE2 bind kube-proxy's healthz to
127.0.0.1, and a firewall may stand before it. There are two such signals in one probe:

- its *service*: after the first 200, anything else counts as a failure, and a 503 at once: that is the node's own word.
- its *reachability*: after anything at all has come back, a refusal among it (the node is up, nobody listens there),
  nothing coming back any more counts. This is all there is of a node whose healthz is closed to us.

Who has answered nothing yet is unknown, and unknown is not bad: a restart of the agent takes no node out.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Final


class Outcome(Enum):
    """How one probe ended."""

    GOOD = "good"
    """Answered as expected."""
    DRAINING = "draining"
    """Answered with 503: kube-proxy says so while its node is being deleted, or while its rules are out of date."""
    BAD = "bad"
    """Refused, reset, another answer, or connected and then too slow."""
    SILENT = "silent"
    """Nothing came back: no connection in time, or the address can't be reached."""
    UNASKED = "unasked"
    """This host could not ask (no route, no socket): it tells nothing about the node."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one probe ended, and in words for people: ``said`` is a part of a sentence, empty for GOOD."""

    outcome: Outcome
    said: str = ""


class Verdict(Enum):
    """Where a node stands."""

    UNKNOWN = "unknown"
    GOOD = "good"
    DRAINING = "draining"
    FAILED = "failed"
    UNREACHABLE = "unreachable"


BAD: Final = frozenset({Verdict.DRAINING, Verdict.FAILED, Verdict.UNREACHABLE})
"""The verdicts that take a node out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """How often is asked, and how many answers in a row turn a verdict: the defaults are those of Harvester's health
    checks. A node that dies is out after at most ``failure_threshold * period + timeout``."""

    period: float = 5.0
    """Seconds."""
    timeout: float = 3.0
    """Seconds for a whole probe."""
    failure_threshold: int = 3
    success_threshold: int = 1

    def __post_init__(self) -> None:
        """Raises ValueError for what can't be kept."""
        if self.period <= 0 or self.timeout <= 0:
            raise ValueError(f"a check needs a period and a timeout above 0 s: {self.period}, {self.timeout}")
        if self.failure_threshold < 1 or self.success_threshold < 1:
            raise ValueError(
                f"thresholds count from 1: failure {self.failure_threshold}, success {self.success_threshold}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """All that is known of one endpoint. Counts go up to their threshold and stay there."""

    verdict: Verdict = Verdict.UNKNOWN
    since: datetime | None = None
    """When the verdict was reached; None: it is the one from the start."""
    served: bool = False
    """Has answered 200 once."""
    reached: bool = False
    """Something has come back once."""
    failures: int = 0
    """Probes in a row without a 200."""
    silences: int = 0
    """Probes in a row that nothing came back from."""
    successes: int = 0
    """Probes in a row with a 200."""

    @property
    def bad(self) -> bool:
        """Whether the node is to be out."""
        return self.verdict in BAD


def in_a_row(count: int, threshold: int, *, counts: bool) -> int:
    """How many in a row after one more, which ``counts`` or begins anew; no more than ``threshold``."""
    return min(count + 1, threshold) if counts else 0


def observe(health: Health, outcome: Outcome, now: datetime, check: Check) -> Health:
    """What is known after one more probe, which ended at ``now``; the same object where nothing has changed."""
    if outcome is Outcome.UNASKED:
        return health
    good, silent = outcome is Outcome.GOOD, outcome is Outcome.SILENT
    after = replace(
        health,
        served=health.served or good,
        reached=health.reached or not silent,
        failures=in_a_row(health.failures, check.failure_threshold, counts=not good),
        silences=in_a_row(health.silences, check.failure_threshold, counts=silent),
        successes=in_a_row(health.successes, check.success_threshold, counts=good),
    )
    verdict = _verdict(after, outcome, check)
    if verdict is not health.verdict:
        return replace(after, verdict=verdict, since=now)
    return health if after == health else after


def _verdict(after: Health, outcome: Outcome, check: Check) -> Verdict:
    """``after`` counts the outcome already; its verdict is the one from before."""
    before = after.verdict
    if outcome is Outcome.GOOD:
        return Verdict.GOOD if before not in BAD or after.successes >= check.success_threshold else before
    if after.reached and after.silences >= check.failure_threshold:
        return Verdict.UNREACHABLE
    if outcome is Outcome.SILENT and before is Verdict.UNREACHABLE:
        return before
    if not after.served:
        return Verdict.UNKNOWN
    if outcome is Outcome.DRAINING:
        return Verdict.DRAINING
    if before is Verdict.UNREACHABLE or after.failures >= check.failure_threshold:
        return Verdict.DRAINING if before is Verdict.DRAINING else Verdict.FAILED
    return before
