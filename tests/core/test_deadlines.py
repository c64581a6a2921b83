"""Deadlines against a plain dictionary of the same."""

from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.core.deadlines import Deadlines

steps = st.tuples(st.sampled_from(["set", "drop", "take"]), st.integers(0, 4), st.integers(0, 20))


@given(st.lists(steps))
def test_what_is_over_is_told_once_and_at_its_time(history: list[tuple[str, int, int]]) -> None:
    tested: Deadlines[int] = Deadlines()
    ends: dict[int, float] = {}
    for step, what, time in history:
        if step == "set":
            tested.set(what, time)
            ends[what] = time
        elif step == "drop":
            tested.drop(what)
            ends.pop(what, None)
        else:
            over = {what for what, end in ends.items() if end <= time}
            assert tested.over(time) == bool(over)
            assert set(tested.take(time)) == over
            ends = {what: end for what, end in ends.items() if what not in over}
        assert len(tested) == len(ends)
        assert all((what in tested) == (what in ends) for what in range(5))
