"""Clock, schedule and pace."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.dhcp.api import Lease
from cloudprovider.dhcp.schedule import Pacer, Schedule
from cloudprovider.dhcp.wallclock import WallClock
from tests.dhcp.desk import ADDRESS, LEASE, SERVER, terms

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clocks:
    """A wall clock and a monotonic one."""

    def __init__(self) -> None:
        self.date = NOON
        self.seconds = 1000.0

    def make(self) -> WallClock:
        return WallClock(lambda: self.date, lambda: self.seconds)


def remembered(acquired: datetime, *after: float) -> Lease:
    renew, rebind, expires = (acquired + timedelta(seconds=s) for s in after)
    return Lease(
        address=ADDRESS,
        prefix_length=24,
        gateway=IPv4Address("10.0.0.254"),
        server=SERVER,
        acquired_at=acquired,
        renew_at=renew,
        rebind_at=rebind,
        expires_at=expires,
    )


def test_a_lease_keeps_its_dates_while_the_wall_clock_is_only_trimmed() -> None:
    clocks = Clocks()
    clock = clocks.make()
    before = clock.lease(terms(acquired=1000))
    assert before.acquired_at == NOON
    assert before.expires_at == NOON + timedelta(seconds=LEASE)
    clocks.date += timedelta(seconds=0.9)
    assert clock.lease(terms(acquired=1000)) == before
    clocks.date += timedelta(seconds=60)  # set
    assert clock.lease(terms(acquired=1000)).acquired_at == NOON + timedelta(seconds=60.9)


@given(st.integers(0, 10**6), st.floats(0, 1e6))
def test_a_remembered_lease_comes_back_with_the_same_dates(milliseconds: int, seconds: float) -> None:
    clocks = Clocks()
    clocks.seconds = seconds
    clock = clocks.make()
    lease = remembered(NOON - timedelta(milliseconds=milliseconds), 10, 15, 20)
    assert clock.lease(clock.terms(lease)) == lease


def test_remembered_times_that_make_no_order_are_set_anew() -> None:
    clock = Clocks().make()
    found = clock.terms(remembered(NOON, 15, 10, 20))
    assert (found.acquired, found.renew, found.rebind, found.expires) == (1000, 1010, 1017.5, 1020)


def test_dates_beyond_the_last_are_the_last() -> None:
    assert Clocks().make().wall(1e15).year == 9999


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), max_size=200))
def test_each_is_due_once_at_its_last_time(settings: list[tuple[str, int]]) -> None:
    schedule: Schedule[str] = Schedule()
    for member, when in settings:
        schedule.set(member, when)
        assert len(schedule) <= 2 * 3 + 65
    expected = dict(settings)
    assert schedule.next() == min(expected.values(), default=None)
    due = list(schedule.due(10, most=100))
    assert sorted(due) == sorted(m for m, when in expected.items() if when <= 10)
    assert [expected[m] for m in due] == sorted(expected[m] for m in due)
    assert sorted(schedule.due(20, most=100)) == sorted(m for m, when in expected.items() if when > 10)
    assert schedule.next() is None


def test_never_and_gone_are_not_due() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.set("a", 1)
    schedule.set("a", float("inf"))
    schedule.set("b", 1)
    schedule.forget("b")
    assert schedule.next() is None
    assert list(schedule.due(10, most=10)) == []


def test_only_so_many_at_once() -> None:
    schedule: Schedule[int] = Schedule()
    for number in range(10):
        schedule.set(number, number)
    assert list(schedule.due(100, most=3)) == [0, 1, 2]


def test_the_pace_is_kept_and_a_pause_makes_up_for_little() -> None:
    pacer = Pacer(100)
    assert pacer.take(0)
    burst = sum(pacer.take(10) for _ in range(50))
    assert 2 <= burst <= 4
    went = sum(pacer.take(10 + tick / 1000) for tick in range(1, 1001))
    assert 99 <= went <= 101
