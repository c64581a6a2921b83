"""The state machine of a checked backend, with every second of the clock given."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.checks import NOT_CHECKED, Standing, begin, judge
from cloudprovider.core.health import Answer, Check, Outcome

START = datetime(2026, 1, 1, tzinfo=UTC)
CHECK = Check()
GOOD = Answer(Outcome.GOOD)
REFUSED = Answer(Outcome.BAD, "connection refused")
SILENT = Answer(Outcome.SILENT, "no connection within 3 s")
UNASKED = Answer(Outcome.UNASKED, "ENETUNREACH")
ANSWERS = st.sampled_from(
    [GOOD, REFUSED, SILENT, UNASKED, Answer(Outcome.DRAINING, "HTTP status 503"), Answer(Outcome.BAD, "x" * 5000)]
)
CHECKS = st.builds(Check, failure_threshold=st.integers(1, 4), success_threshold=st.integers(1, 4))


def at(turn: int) -> datetime:
    return START + turn * timedelta(seconds=5)


def walk(answers: Iterable[Answer], check: Check = CHECK) -> list[Standing]:
    """Where it stood before the first answer and after each: answer n came at ``at(n)``, from 1."""
    found = [begin(START)]
    for turn, answer in enumerate(answers, 1):
        found.append(judge(found[-1], answer, at(turn), check))
    return found


def after(answers: Iterable[Answer], check: Check = CHECK) -> Standing:
    return walk(answers, check)[-1]


def test_a_new_backend_is_down_and_up_at_its_first_success() -> None:
    assert begin(START) == Standing(healthy=False, since=START, message=NOT_CHECKED)
    up = after([GOOD])
    assert (up.healthy, up.since, up.message) == (True, at(1), "")


def test_it_is_down_at_the_third_failure_in_a_row_and_says_what_the_last_one_was() -> None:
    assert after([GOOD, REFUSED, REFUSED]).healthy
    assert after([GOOD, REFUSED, REFUSED, GOOD, REFUSED, REFUSED]).healthy
    down = after([GOOD, REFUSED, REFUSED, SILENT])
    assert (down.healthy, down.since, down.message) == (False, at(4), "No connection within 3 s")


def test_so_many_successes_are_awaited_as_are_asked_for() -> None:
    check = Check(success_threshold=2, failure_threshold=1)
    assert not after([GOOD], check).healthy
    assert not after([GOOD, REFUSED, GOOD], check).healthy
    assert after([GOOD, REFUSED, GOOD, GOOD], check).healthy


def test_a_new_backend_that_fails_says_so_at_once_and_later_follows_what_lasts() -> None:
    assert after([REFUSED]).message == "Connection refused"
    assert after([REFUSED, SILENT, SILENT]).message == "Connection refused"
    assert after([REFUSED, SILENT, SILENT, SILENT]).message == "No connection within 3 s"
    assert after([REFUSED, *[SILENT, REFUSED] * 20]).message == "Connection refused"


def test_what_this_host_could_not_ask_is_told_of_a_new_backend_and_counts_for_nobody() -> None:
    assert after([UNASKED]).message == "This host can't check it: ENETUNREACH"
    assert after([GOOD, UNASKED, UNASKED, UNASKED]).healthy
    assert not after([GOOD, REFUSED, UNASKED, REFUSED, UNASKED, REFUSED]).healthy


def test_an_answer_that_changes_nothing_gives_the_same_object() -> None:
    up, down = after([GOOD]), after([REFUSED] * 3)
    assert judge(up, GOOD, at(9), CHECK) is up
    assert judge(up, UNASKED, at(9), CHECK) is up
    assert judge(down, REFUSED, at(9), CHECK) is down


def reference(answers: Sequence[Answer], check: Check) -> list[bool]:
    """Up or down after each answer, by looking back over all that came since the last change."""
    healthy, since, found = False, 0, []
    asked: list[bool] = []
    for answer in answers:
        if answer.outcome is not Outcome.UNASKED:
            asked.append(answer.outcome is Outcome.GOOD)
            threshold = check.failure_threshold if healthy else check.success_threshold
            last = asked[since:][-threshold:]
            if len(last) == threshold and all(good is not healthy for good in last):
                healthy, since = not healthy, len(asked)
        found.append(healthy)
    return found


@given(st.lists(ANSWERS, max_size=60), CHECKS)
def test_the_thresholds_decide_and_nothing_else(answers: list[Answer], check: Check) -> None:
    assert [standing.healthy for standing in walk(answers, check)[1:]] == reference(answers, check)


@given(st.lists(ANSWERS, max_size=80), CHECKS)
def test_each_change_has_its_time(answers: list[Answer], check: Check) -> None:
    ups = [False, *reference(answers, check)]
    changes = [at(turn) for turn in range(1, len(ups)) if ups[turn] is not ups[turn - 1]]
    assert after(answers, check).since == (changes[-1] if changes else START)


@given(st.lists(ANSWERS, max_size=60), CHECKS)
def test_who_is_down_says_why_and_who_is_up_says_nothing(answers: list[Answer], check: Check) -> None:
    for standing in walk(answers, check):
        assert bool(standing.message) is not standing.healthy
        assert len(standing.message) <= 300


@given(st.lists(ANSWERS, max_size=60), CHECKS)
def test_a_message_changes_no_oftener_than_a_backend_can_fail(answers: list[Answer], check: Check) -> None:
    """But for the first failure of all, and what a change of the verdict says."""
    walked = walk(answers, check)
    told = [
        turn
        for turn in range(1, len(walked))
        if walked[turn].message != walked[turn - 1].message and walked[turn].healthy is walked[turn - 1].healthy
    ]
    later = [turn for turn in told if walked[turn - 1].failure]
    assert all(second - first >= check.failure_threshold for first, second in pairwise(later))
