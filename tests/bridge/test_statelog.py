"""What a watch stream is read from: nothing is lost, nothing grows, and a reader sees each load balancer's newest."""

import asyncio
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.bridge.statelog import Reader, StateLog
from cloudprovider.core.exchange import GivenAddress, LoadBalancerState, ServiceKey

KEYS = [ServiceKey("ns", f"s{i}", "u") for i in range(8)]


def state(key: ServiceKey, number: int) -> LoadBalancerState:
    return LoadBalancerState(service=key, addresses=(GivenAddress(ip_address(number)),))


class Receiver:
    """What a guest does with batches."""

    def __init__(self) -> None:
        self.states: dict[ServiceKey, LoadBalancerState] = {}
        self.token = ""
        self._fresh: set[ServiceKey] | None = None

    def open(self, log: StateLog) -> Reader:
        reader = Reader(log, self.token)
        if not reader.resumed:
            self.token = ""
        self._fresh = None if reader.resumed else set()
        return reader

    def take(self, reader: Reader, limit: int) -> bool:
        batch = reader.next(limit)
        if batch is None:
            return False
        for each in batch.updated:
            self.states[each.service] = each
            if self._fresh is not None:
                self._fresh.add(each.service)
        for key in batch.removed:
            self.states.pop(key, None)
            if self._fresh is not None:
                self._fresh.discard(key)
        if batch.synced:
            assert self._fresh is not None
            self.states = {k: v for k, v in self.states.items() if k in self._fresh}
            self._fresh = None
        self.token = batch.token
        return True


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(KEYS), st.integers(0, 3)),
        st.tuples(st.just("remove"), st.sampled_from(KEYS), st.just(0)),
        st.tuples(st.just("read"), st.just(KEYS[0]), st.integers(1, 4)),
        st.tuples(st.just("cut"), st.just(KEYS[0]), st.just(0)),
    ),
    max_size=60,
)


@given(steps=STEPS, removals=st.integers(1, 4))
def test_a_reader_ends_up_with_what_there_is(steps: list[tuple[str, ServiceKey, int]], removals: int) -> None:
    """However changes, reads and cuts interleave, and however little of removals is remembered."""
    log = StateLog(removals=removals)
    receiver = Receiver()
    reader = receiver.open(log)
    for what, key, number in [*steps, ("cut", KEYS[0], 0)]:
        try:
            if what == "publish":
                log.publish(state(key, number))
            elif what == "remove":
                log.remove(key)
            elif what == "read":
                receiver.take(reader, number)
            else:
                reader = receiver.open(log)
        except LookupError:
            reader = receiver.open(log)
    while receiver.take(reader, 3):
        pass
    assert receiver.states == dict(log.states)


def test_equal_states_are_not_told_again() -> None:
    log = StateLog()
    log.publish(state(KEYS[0], 1))
    log.publish(state(KEYS[0], 1))
    assert log.revision == 1


def test_a_slow_reader_gets_the_newest_only() -> None:
    log = StateLog()
    reader = Reader(log, log.token(0))
    for number in range(100):
        log.publish(state(KEYS[0], number))
    batch = reader.next(10)
    assert batch is not None
    assert batch.updated == (state(KEYS[0], 99),)
    assert reader.next(10) is None


def test_removals_are_bounded() -> None:
    log = StateLog(removals=10)
    for number in range(1000):
        log.remove(ServiceKey("ns", f"s{number}", "u"))
    assert len(log.changes_since(0)) == 10
    assert not Reader(log, log.token(5)).resumed
    assert Reader(log, log.token(995)).resumed


def test_a_reader_that_fell_behind_is_told() -> None:
    log = StateLog(removals=2)
    reader = Reader(log, log.token(0))
    for key in KEYS:
        log.remove(key)
    with pytest.raises(LookupError):
        reader.next(10)


@pytest.mark.parametrize(
    "token", ["x", "x.1", ".", "{e}.-1", "{e}.9", "{e}.1e3", "{e}.\u0661", "{e}", "{e}." + "9" * 30]
)
def test_tokens_of_others_start_anew(token: str) -> None:
    log = StateLog()
    log.publish(state(KEYS[0], 1))
    epoch = log.token(0).partition(".")[0]
    assert not Reader(log, token.replace("{e}", epoch)).resumed
    assert not Reader(StateLog(), log.token(0)).resumed


async def test_waiting_reader_wakes() -> None:
    log = StateLog()
    with Reader(log, log.token(0)) as reader:
        assert reader.next(10) is None
        waiting = asyncio.create_task(reader.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        log.publish(state(KEYS[0], 1))
        async with asyncio.timeout(5):
            await waiting
        assert reader.next(10) is not None
    log.publish(state(KEYS[0], 2))  # detached: nobody to wake
