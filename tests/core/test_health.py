"""The state machine of a probed node, with every second of the clock given."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.health import BAD, Check, Health, Outcome, Verdict, observe

GOOD, DRAINING, SILENT, UNASKED = Outcome.GOOD, Outcome.DRAINING, Outcome.SILENT, Outcome.UNASKED
START = datetime(2026, 1, 1, tzinfo=UTC)
CHECK = Check()
OUTCOMES = st.lists(st.sampled_from(Outcome), max_size=30)
CHECKS = st.builds(Check, failure_threshold=st.integers(1, 4), success_threshold=st.integers(1, 4))


def after(outcomes: Iterable[Outcome], check: Check = CHECK) -> Health:
    """Probed every five seconds, the first time at START."""
    health = Health()
    for turn, outcome in enumerate(outcomes):
        health = observe(health, outcome, START + turn * timedelta(seconds=check.period), check)
    return health


def test_a_node_is_unknown_then_good_at_its_first_200() -> None:
    assert Health().verdict is Verdict.UNKNOWN
    assert not Health().bad
    health = after([SILENT, GOOD])
    assert (health.verdict, health.since) == (Verdict.GOOD, START + timedelta(seconds=5))


def test_a_node_fails_at_the_third_failure_in_a_row_and_is_back_at_the_first_200() -> None:
    assert after([GOOD, Outcome.BAD, Outcome.BAD]).verdict is Verdict.GOOD
    assert after([GOOD, Outcome.BAD, Outcome.BAD, GOOD, Outcome.BAD]).verdict is Verdict.GOOD
    failed = after([GOOD, Outcome.BAD, Outcome.BAD, Outcome.BAD, Outcome.BAD])
    assert (failed.verdict, failed.since) == (Verdict.FAILED, START + timedelta(seconds=15))
    assert after([GOOD, Outcome.BAD, Outcome.BAD, Outcome.BAD, GOOD]).verdict is Verdict.GOOD


def test_failures_of_both_kinds_count_together() -> None:
    assert after([GOOD, SILENT, Outcome.BAD, SILENT]).verdict is Verdict.FAILED


def test_a_node_that_says_503_is_out_at_once_and_back_when_it_says_200() -> None:
    assert after([GOOD, DRAINING]).verdict is Verdict.DRAINING
    assert after([GOOD, DRAINING, GOOD]).verdict is Verdict.GOOD


def test_a_draining_node_that_goes_down_stays_out() -> None:
    down = [GOOD, DRAINING, Outcome.BAD, Outcome.BAD]
    assert after(down).verdict is Verdict.DRAINING
    assert after([*down, SILENT, SILENT, SILENT]).verdict is Verdict.UNREACHABLE


def test_several_successes_are_awaited_where_so_many_are_asked_for() -> None:
    check = Check(failure_threshold=1, success_threshold=3)
    out = [GOOD, Outcome.BAD]
    assert after([*out, GOOD, GOOD], check).verdict is Verdict.FAILED
    assert after([*out, GOOD, GOOD, Outcome.BAD, GOOD, GOOD], check).verdict is Verdict.FAILED
    assert after([*out, GOOD, GOOD, GOOD], check).verdict is Verdict.GOOD


def test_the_reason_follows_what_the_node_does_while_it_is_on_its_way_back() -> None:
    check = Check(success_threshold=2)
    coming = [GOOD, SILENT, SILENT, SILENT, GOOD]
    assert after(coming, check).verdict is Verdict.UNREACHABLE
    assert after([*coming, SILENT], check).verdict is Verdict.UNREACHABLE
    assert after([*coming, Outcome.BAD], check).verdict is Verdict.FAILED
    assert after([*coming, DRAINING], check).verdict is Verdict.DRAINING
    assert after([*coming, GOOD], check).verdict is Verdict.GOOD


def test_healthz_that_never_said_200_is_no_signal_whatever_it_says() -> None:
    assert after([Outcome.BAD] * 10).verdict is Verdict.UNKNOWN
    assert after([DRAINING] * 10).verdict is Verdict.UNKNOWN


def test_a_node_that_refuses_is_reachable_and_out_when_it_falls_silent() -> None:
    gone = [Outcome.BAD, SILENT, SILENT, SILENT]
    assert after(gone[:-1]).verdict is Verdict.UNKNOWN
    assert after(gone).verdict is Verdict.UNREACHABLE
    assert after([*gone, Outcome.BAD]).verdict is Verdict.UNKNOWN


def test_a_node_that_served_and_comes_back_without_its_proxy_stays_out() -> None:
    assert after([GOOD, SILENT, SILENT, SILENT, Outcome.BAD]).verdict is Verdict.FAILED


def test_nothing_that_this_host_could_not_ask_counts() -> None:
    health = after([GOOD, SILENT, SILENT])
    assert observe(health, UNASKED, START, CHECK) is health


def test_the_steady_state_makes_no_new_object() -> None:
    health = after([GOOD])
    assert observe(health, GOOD, START, CHECK) is health


@pytest.mark.parametrize(
    ("period", "timeout", "failures", "successes"), [(0, 3, 3, 1), (5, 0, 3, 1), (5, 3, 0, 1), (5, 3, 3, 0)]
)
def test_a_check_that_can_not_be_kept_is_refused(period: float, timeout: float, failures: int, successes: int) -> None:
    with pytest.raises(ValueError, match=r"check needs|thresholds count"):
        Check(period=period, timeout=timeout, failure_threshold=failures, success_threshold=successes)


@given(OUTCOMES, CHECKS)
def test_who_never_answered_is_never_out(outcomes: list[Outcome], check: Check) -> None:
    silent = [outcome for outcome in outcomes if outcome in {SILENT, UNASKED}]
    assert after(silent, check).verdict is Verdict.UNKNOWN


@given(OUTCOMES, CHECKS)
def test_who_never_served_is_out_only_after_as_many_silent_probes_in_a_row(
    outcomes: list[Outcome], check: Check
) -> None:
    unserved = [outcome for outcome in outcomes if outcome is not GOOD]
    told = [outcome for outcome in unserved if outcome is not UNASKED]
    fell_silent = told[-check.failure_threshold :] == [SILENT] * check.failure_threshold and set(told) != {SILENT}
    assert after(unserved, check).verdict is (Verdict.UNREACHABLE if fell_silent else Verdict.UNKNOWN)


@given(OUTCOMES, CHECKS)
def test_one_failure_less_than_the_threshold_takes_nobody_out(outcomes: list[Outcome], check: Check) -> None:
    served = after([*outcomes, *[GOOD] * check.success_threshold], check)
    assert served.verdict is Verdict.GOOD
    for kind in (SILENT, Outcome.BAD):
        health = served
        for _ in range(check.failure_threshold - 1):
            health = observe(health, kind, START, check)
        assert health.verdict is Verdict.GOOD
        assert observe(health, kind, START, check).bad


@given(OUTCOMES, CHECKS)
def test_who_served_once_is_out_at_a_503_whatever_came_before(outcomes: list[Outcome], check: Check) -> None:
    assert after([GOOD, *outcomes, DRAINING], check).verdict is Verdict.DRAINING


@given(OUTCOMES, CHECKS)
def test_as_many_200s_as_asked_for_bring_everybody_back(outcomes: list[Outcome], check: Check) -> None:
    assert after([*outcomes, *[GOOD] * check.success_threshold], check).verdict is Verdict.GOOD


@given(OUTCOMES, CHECKS)
def test_who_is_out_comes_back_only_by_an_answer(outcomes: list[Outcome], check: Check) -> None:
    health = after(outcomes, check)
    if health.verdict in BAD:
        assert observe(health, SILENT, START, check).bad
        assert observe(health, UNASKED, START, check).bad
        assert observe(health, Outcome.BAD, START, check).bad == health.served


@given(OUTCOMES, CHECKS)
def test_since_is_when_the_verdict_last_became_another(outcomes: list[Outcome], check: Check) -> None:
    verdicts = [after(outcomes[:count], check).verdict for count in range(len(outcomes) + 1)]
    turns = [count for count in range(1, len(verdicts)) if verdicts[count] is not verdicts[count - 1]]
    since = after(outcomes, check).since
    assert since == (START + (turns[-1] - 1) * timedelta(seconds=check.period) if turns else None)
