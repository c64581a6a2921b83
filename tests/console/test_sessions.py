"""Sessions: their ends, their bounds."""

import pytest

from cloudprovider.console.sessions import NOTICES, PER_USER, REMEMBERED, Full, Sessions
from cloudprovider.kube.fake import FakeCluster
from tests.console.users import FakeUser, now


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(time=clock, idle=60, absolute=600, most=25)


def client() -> FakeUser:
    return FakeUser(FakeCluster(now), "t")


def test_an_idle_session_ends_and_one_in_use_lasts_to_its_absolute_limit(sessions: Sessions, clock: Clock) -> None:
    session, _ = sessions.add("a", client())
    for _ in range(11):
        clock.time += 54
        assert sessions.find(session.identifier) is session
    clock.time += 6  # 600 s
    assert sessions.find(session.identifier) is None
    assert not session.ended.is_set()
    assert sessions.expire() == (session,)
    assert session.ended.is_set(), "its live pages end with it"
    assert len(sessions) == 0


def test_what_a_page_asks_by_itself_keeps_nobody_signed_in(sessions: Sessions, clock: Clock) -> None:
    session, _ = sessions.add("a", client())
    clock.time += 59
    assert sessions.find(session.identifier, passive=True) is session
    clock.time += 1
    assert sessions.find(session.identifier) is None


def test_identifiers_are_long_and_different_and_no_other_finds_a_session(sessions: Sessions) -> None:
    made = [sessions.add(str(i), client())[0] for i in range(20)]
    secrets = {s.identifier for s in made} | {s.form_token for s in made}
    assert len(secrets) == 40
    assert min(map(len, secrets)) >= 43, "256 bits"
    assert sessions.find("") is None
    assert sessions.find(made[0].form_token) is None


def test_one_user_has_so_many_sessions_and_the_oldest_ends(sessions: Sessions) -> None:
    made = [sessions.add("a", client())[0] for _ in range(PER_USER)]
    _, ended = sessions.add("a", client())
    assert ended == (made[0],)
    assert made[0].ended.is_set()
    assert len(sessions) == PER_USER


def test_when_all_are_taken_nobody_is_thrown_out(sessions: Sessions) -> None:
    made = [sessions.add(str(i), client())[0] for i in range(25)]
    with pytest.raises(Full):
        sessions.add("one more", client())
    assert all(sessions.find(s.identifier) for s in made)


def test_a_session_remembers_the_last_namespaces(sessions: Sessions) -> None:
    session, _ = sessions.add("a", client())
    for i in range(REMEMBERED + 5):
        session.remember(f"n{i}")
    session.remember("n10")
    assert session.namespaces[0] == "n10"
    assert len(session.namespaces) == REMEMBERED
    assert "n0" not in session.namespaces


def test_what_is_to_be_told_is_told_once_and_not_without_bound(sessions: Sessions) -> None:
    session, _ = sessions.add("a", client())
    other, _ = sessions.add("b", client())
    for text in ("one", "two", "one"):
        session.tell(text)
    assert other.take_notices() == ()
    assert session.take_notices() == ("one", "two")
    assert session.take_notices() == ()
    for i in range(1000):
        session.tell(str(i))
    assert len(session.take_notices()) == NOTICES
