from cloudprovider.core.returns import GRACE_SECONDS, PENALTY_MOST, PENALTY_SECONDS, Returns

A = ("t", "a")
LATER = GRACE_SECONDS + 1


def begun() -> Returns:
    tested = Returns()
    tested.begin(A, 0)
    return tested


def test_a_load_balancer_that_has_just_come_is_not_known_to_the_nodes_yet() -> None:
    tested = begun()
    tested.returned(A, "n1", GRACE_SECONDS - 1)
    assert not tested.refusing(A, GRACE_SECONDS)
    tested.returned(A, "n1", LATER)
    assert tested.refusing(A, LATER) == {"n1"}


def test_one_whose_addresses_are_not_up_has_nothing_sent_back() -> None:
    tested = Returns()
    tested.returned(A, "n1", 1000)
    assert not tested.refusing(A, 1000)


def test_each_time_it_is_left_out_for_twice_as_long_up_to_a_bound() -> None:
    tested = begun()
    now, seconds = LATER, PENALTY_SECONDS
    for _ in range(10):
        tested.returned(A, "n1", now)
        assert tested.refusing(A, now + seconds - 1) == {"n1"}
        assert not tested.refusing(A, now + seconds)
        now += seconds
        seconds = min(2 * seconds, PENALTY_MOST)
    assert seconds == PENALTY_MOST


def test_where_all_send_back_none_is_left_out() -> None:
    tested = begun()
    tested.returned(A, "n1", LATER)
    assert tested.left_out(A, {"n1", "n2"}, LATER) == {"n1"}
    tested.returned(A, "n2", LATER)
    assert tested.left_out(A, {"n1", "n2"}, LATER) == frozenset()
    assert tested.refusing(A, LATER) == {"n1", "n2"}


def test_what_is_gone_is_forgotten() -> None:
    tested = begun()
    tested.returned(A, "n1", LATER)
    assert tested.concerned() == {A}
    tested.forget(A)
    assert not tested.concerned()
    tested.begin(A, LATER)
    tested.returned(A, "n1", LATER + 1)
    assert not tested.refusing(A, LATER + 1)
