"""For how long a node counts as answering for addresses itself."""

from cloudprovider.core.answerers import FIRST_SECONDS, MOST_SECONDS, Answerers

HERE, ELSEWHERE = ("", ("t", "c")), ("", ("t", "other"))


def test_it_counts_for_a_while_after_it_was_heard() -> None:
    tested = Answerers()
    tested.claimed(HERE, "n1", 0)
    tested.claimed(HERE, "n2", 100)
    assert tested.nodes(HERE, FIRST_SECONDS - 1) == {"n1", "n2"}
    assert tested.nodes(HERE, FIRST_SECONDS) == {"n2"}
    assert tested.nodes(ELSEWHERE, 0) == frozenset()
    assert set(tested.places()) == {HERE}


def test_who_is_heard_meanwhile_counts_on_and_no_longer_than_that() -> None:
    tested = Answerers()
    for time in range(0, 1000, 10):
        tested.claimed(HERE, "n1", time)
    assert tested.nodes(HERE, 990 + FIRST_SECONDS - 1) == {"n1"}
    assert not tested.nodes(HERE, 990 + FIRST_SECONDS)


def test_who_is_heard_again_afterwards_counts_for_twice_as_long_up_to_a_day() -> None:
    tested = Answerers()
    now, seconds = 0.0, FIRST_SECONDS
    for _ in range(20):
        tested.claimed(HERE, "n1", now)
        assert tested.nodes(HERE, now + seconds - 1) == {"n1"}
        assert not tested.nodes(HERE, now + seconds)
        now += seconds
        seconds = min(2 * seconds, MOST_SECONDS)


def test_who_was_not_heard_for_a_day_begins_anew() -> None:
    tested = Answerers()
    for now in (0.0, FIRST_SECONDS, 5 * MOST_SECONDS):
        tested.claimed(HERE, "n1", now)
    assert not tested.nodes(HERE, 5 * MOST_SECONDS + FIRST_SECONDS)
