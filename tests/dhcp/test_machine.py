"""One lease's states, each way in and out, in order of a lease's life."""

import math
import random
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from cloudprovider.dhcp.effects import Change, Probe, Reason, Send
from cloudprovider.dhcp.machine import State
from cloudprovider.dhcp.message import NOBODY, Message, MessageType, Option
from cloudprovider.dhcp.packet import BROADCAST, BROADCAST_MAC
from cloudprovider.dhcp.terms import INFINITE
from tests.dhcp.desk import (
    ADDRESS,
    ELSE,
    LEASE,
    ME,
    OTHER,
    SERVER,
    SERVER_MAC,
    Desk,
    bound,
    changes,
    desk,
    message,
    of,
    probing,
    rebinding,
    rebooting,
    renewing,
    requesting,
    selecting,
    terms,
)

DISCOVER, REQUEST, DECLINE, RELEASE = (
    MessageType.DISCOVER,
    MessageType.REQUEST,
    MessageType.DECLINE,
    MessageType.RELEASE,
)
OFFER, ACK, NAK = MessageType.OFFER, MessageType.ACK, MessageType.NAK


def fields(sent: Message) -> tuple[MessageType, IPv4Address, IPv4Address | None, IPv4Address | None]:
    """What RFC 2131 table 5 lays down: type, ciaddr, requested address, server identifier."""
    return (
        sent.kind,
        sent.ciaddr,
        sent.address(Option.REQUESTED_ADDRESS),
        sent.address(Option.SERVER_IDENTIFIER),
    )


def reason(of_desk: Desk) -> Reason | None:
    trouble = of_desk.machine.trouble
    return trouble.reason if trouble is not None else None


def test_a_lease_is_discovered_requested_probed_and_then_held() -> None:
    made = desk(hostname="web")
    (discover,) = of(made.wake(), Send)
    assert fields(discover.message) == (DISCOVER, NOBODY, None, None)
    assert (discover.source, discover.destination, discover.destination_mac) == (NOBODY, BROADCAST, BROADCAST_MAC)
    assert discover.message.broadcast
    assert discover.message.chaddr == ME.chaddr
    assert discover.message.options[Option.CLIENT_IDENTIFIER] == ME.client_id
    assert discover.message.text(Option.HOST_NAME) == "web"

    made.now = 2.5
    request = message(made.answer(OFFER))
    assert fields(request) == (REQUEST, NOBODY, ADDRESS, SERVER)
    assert (request.xid, request.secs, request.broadcast) == (discover.message.xid, 2, True)
    assert made.lease() is None

    made.now = 3.0
    assert of(made.answer(ACK), Probe) == [Probe(ADDRESS)]
    assert made.lease() is None

    assert changes(made.probed()) == [Change.BOUND]
    assert made.machine.state is State.BOUND
    assert made.lease() == terms(acquired=2.5)  # it counts from the request
    assert made.machine.deadline == 2.5 + LEASE / 2
    assert made.machine.trouble is None


def test_a_discover_is_repeated_later_and_later_and_the_silence_is_told() -> None:
    made = desk()
    times, xids = [], set()
    for _ in range(8):
        xids.add(message(made.wake()).xid)
        times.append(made.now)
    assert times == [0, 4, 12, 28, 60, 124, 188, 252]
    assert len(xids) == 1  # a late answer is still an answer
    assert made.machine.trouble is not None
    assert (made.machine.trouble.reason, made.machine.trouble.since) == (Reason.NO_ANSWER, 0)
    assert message(made.answer(OFFER)).kind is REQUEST


def test_waits_are_jittered_by_a_second_to_either_side() -> None:
    waits = []
    for seed in range(200):
        made = desk(rng=random.Random(seed))
        made.wake()
        waits.append(made.machine.deadline)
    assert 3 <= min(waits) < 3.2
    assert 4.8 < max(waits) <= 5


def test_a_request_without_answer_is_tried_for_a_minute_and_then_anew() -> None:
    made = requesting()
    began = made.now
    times = []
    while message(made.wake()).kind is REQUEST:
        times.append(made.now - began)
        assert reason(made) is Reason.NO_ANSWER
        assert made.machine.trouble is not None
        assert (made.machine.trouble.address, made.machine.trouble.server) == (ADDRESS, SERVER)
    assert times == [4, 12, 28]
    assert made.now - began == 60
    assert made.machine.state is State.SELECTING


def test_a_lease_counts_from_the_request_that_may_have_been_answered_last() -> None:
    made = requesting()
    made.wake()
    made.answer(ACK)
    made.probed()
    assert made.machine.held is not None
    assert made.machine.held.acquired == made.now == 4


def test_an_address_that_somebody_has_is_declined_and_ten_seconds_pass() -> None:
    made = probing()
    effects = made.probed("02:00:00:00:00:99")
    (decline,) = of(effects, Send)
    assert fields(decline.message) == (DECLINE, NOBODY, ADDRESS, SERVER)
    assert (decline.source, decline.destination) == (NOBODY, BROADCAST)
    assert set(decline.message.options) == {
        Option.CLIENT_IDENTIFIER,
        Option.REQUESTED_ADDRESS,
        Option.SERVER_IDENTIFIER,
    }
    assert changes(effects) == []
    assert made.machine.held is None
    assert reason(made) is Reason.ADDRESS_CONFLICT
    assert made.machine.trouble is not None
    assert made.machine.trouble.detail == "02:00:00:00:00:99"
    began = made.now
    assert fields(message(made.wake())) == (DISCOVER, NOBODY, None, None)
    assert made.now - began >= 10
    message(made.answer(OFFER, address=ELSE))
    made.answer(ACK, address=ELSE)
    assert changes(made.machine.probed(made.now, ELSE, "")) == [Change.BOUND]
    assert made.machine.trouble is None


def test_a_probe_that_fails_is_tried_again_and_told() -> None:
    made = probing()
    assert made.machine.probe_failed(made.now, "link is down") == []
    assert reason(made) is Reason.PROBE_FAILED
    assert of(made.wake(), Probe) == [Probe(ADDRESS)]
    assert made.now == 4
    assert changes(made.probed()) == [Change.BOUND]
    assert made.machine.trouble is None


def test_a_probe_without_end_outlives_no_lease() -> None:
    made = requesting()
    made.answer(ACK, lease=30)
    assert of(made.wake(), Probe) == [Probe(ADDRESS)]
    assert message(made.wake()).kind is DISCOVER
    assert made.now == 30


def test_the_result_of_another_probe_says_nothing() -> None:
    made = probing()
    assert made.machine.probed(made.now, ELSE, "02:00:00:00:00:99") == []
    assert made.machine.state is State.PROBING
    held = bound()
    assert held.probed("02:00:00:00:00:99") == []
    assert held.machine.state is State.BOUND


def test_at_t1_the_server_is_asked_by_unicast() -> None:
    made = bound()
    (request,) = of(made.wake(), Send)
    assert made.now == LEASE / 2
    assert made.machine.state is State.RENEWING
    assert fields(request.message) == (REQUEST, ADDRESS, None, None)
    assert not request.message.broadcast
    assert (request.source, request.destination, request.destination_mac) == (ADDRESS, SERVER, SERVER_MAC)
    made.now += 1
    assert changes(made.answer(ACK)) == [Change.RENEWED]
    assert made.machine.held == terms(acquired=LEASE / 2)
    assert (made.machine.state, made.machine.deadline) == (State.BOUND, LEASE)


def test_renewals_halve_the_time_to_t2_but_come_not_more_often_than_each_minute() -> None:
    made = renewing()
    times = [made.now]
    links = []
    while made.machine.state is State.RENEWING:
        (request,) = of(made.wake(), Send)
        links.append(request.from_link)
        times.append(made.now)
    # 1350 s to T2: halves, then minutes; T2 itself is the last.
    assert times[:5] == [1800, 2475, 2812.5, 2981.25, 3065.625]
    assert times[-1] == LEASE * 0.875
    assert links[:3] == [True, False, True]
    assert reason(made) is Reason.NO_ANSWER
    assert made.machine.trouble is not None
    assert (made.machine.trouble.since, made.machine.trouble.expires) == (1800, LEASE)
    assert made.machine.held is not None


def test_at_t2_any_server_is_asked_by_broadcast() -> None:
    made = bound()
    (request,) = of(made.until(State.REBINDING), Send)
    assert made.now == LEASE * 0.875
    assert fields(request.message) == (REQUEST, ADDRESS, None, None)
    assert (request.source, request.destination, request.destination_mac) == (ADDRESS, BROADCAST, BROADCAST_MAC)
    assert changes(made.answer(ACK, server=OTHER)) == [Change.RENEWED]
    assert made.machine.held is not None
    assert made.machine.held.server == OTHER  # it is in charge from now on
    assert made.machine.trouble is None


@pytest.mark.parametrize("lease", [4, 8, 20, 120])
def test_a_short_lease_is_tried_several_times_before_it_ends(lease: int) -> None:
    made = requesting()
    made.answer(ACK, lease=lease)
    made.probed()
    states = []
    while made.machine.held is not None:
        made.wake()
        states.append(made.machine.state)
    assert states.count(State.RENEWING) >= 3
    assert states.count(State.REBINDING) >= 3
    assert made.now == lease


def test_a_lease_ends_at_its_time_and_its_address_is_asked_for_again() -> None:
    made = rebinding()
    effects = made.until(State.INIT)
    assert made.now == LEASE
    assert changes(effects) == [Change.LOST]
    assert made.machine.held is None
    assert made.machine.trouble is not None
    assert (made.machine.trouble.reason, made.machine.trouble.since) == (Reason.LEASE_EXPIRED, 1800)
    assert fields(message(made.wake())) == (DISCOVER, NOBODY, ADDRESS, None)
    assert made.now == LEASE


def test_an_expiry_is_not_missed_by_a_machine_that_is_woken_late() -> None:
    made = bound()
    made.now = LEASE + 1000
    assert changes(made.wake()) == [Change.LOST]


def test_a_lease_without_end_is_never_renewed() -> None:
    made = requesting()
    made.answer(ACK, lease=INFINITE)
    made.probed()
    assert made.machine.deadline == math.inf
    assert made.machine.wake(1e12) == []


@pytest.mark.parametrize("make", [requesting, renewing, rebinding, rebooting])
def test_a_server_that_says_no_is_heard_wherever_an_answer_is_due(make: Callable[[], Desk]) -> None:
    made = make()
    had = made.machine.held is not None
    effects = made.answer(NAK, words="wrong network")
    assert changes(effects) == ([Change.LOST] if had else [])
    assert made.machine.held is None
    trouble = made.machine.trouble
    assert trouble is not None
    assert (trouble.reason, trouble.address, trouble.server, trouble.detail) == (
        Reason.REFUSED,
        ADDRESS,
        SERVER,
        "wrong network",
    )
    before = made.now
    assert fields(message(made.wake())) == (DISCOVER, NOBODY, None, None)  # that address is not asked for again
    assert made.now == before


def test_a_server_that_goes_on_saying_no_is_asked_less_and_less() -> None:
    made = selecting()
    times = []
    for _ in range(5):
        made.answer(OFFER)
        made.answer(NAK)
        made.wake()
        times.append(made.now)
    assert times == [0, 4, 12, 28, 60]


def test_somebody_found_to_have_the_held_address_ends_the_lease() -> None:
    made = bound()
    effects = made.machine.conflict(made.now, "02:00:00:00:00:99")
    assert fields(message(effects)) == (DECLINE, NOBODY, ADDRESS, SERVER)
    assert changes(effects) == [Change.LOST]
    assert reason(made) is Reason.ADDRESS_CONFLICT
    assert made.machine.conflict(made.now, "02:00:00:00:00:99") == []


@pytest.mark.parametrize("make", [requesting, probing, bound, renewing, rebinding, rebooting])
def test_what_was_granted_is_given_back_by_unicast(make: Callable[[], Desk]) -> None:
    made = make()
    (release,) = of(made.machine.release(made.now), Send)
    assert fields(release.message) == (RELEASE, ADDRESS, None, SERVER)
    assert (release.source, release.destination) == (ADDRESS, SERVER)
    assert set(release.message.options) == {Option.CLIENT_IDENTIFIER, Option.SERVER_IDENTIFIER}
    assert made.machine.deadline == math.inf


def test_where_nothing_was_granted_nothing_is_given_back() -> None:
    assert desk().machine.release(0) == []
    assert selecting().machine.release(0) == []


def test_another_host_name_is_told_from_then_on() -> None:
    made = bound()
    made.machine.hostname = "other"
    assert message(made.wake()).text(Option.HOST_NAME) == "other"
