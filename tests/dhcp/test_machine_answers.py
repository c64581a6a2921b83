"""A machine among servers: which answers count, and a lease that was had before."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudprovider.dhcp.effects import Change, Probe, Reason, Send
from cloudprovider.dhcp.machine import State
from cloudprovider.dhcp.message import NOBODY, MalformedPacket, Message, MessageType, Operation, Option
from cloudprovider.dhcp.packet import BROADCAST, BROADCAST_MAC
from tests.dhcp.desk import (
    ADDRESS,
    ELSE,
    LEASE,
    ME,
    OTHER,
    SERVER,
    Desk,
    bound,
    changes,
    desk,
    ignored,
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
from tests.dhcp.test_machine import ACK, DISCOVER, NAK, OFFER, REQUEST, fields, reason

EVERY = [selecting, requesting, probing, bound, renewing, rebinding, rebooting]


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("kind", [OFFER, ACK, NAK])
def test_what_nobody_asked_for_changes_nothing(make: Callable[[], Desk], kind: MessageType) -> None:
    made = make()
    assert made.sent is not None
    state, held, deadline = made.machine.state, made.machine.held, made.machine.deadline
    assert ignored(made.answer(kind, xid=made.sent.xid + 1)) == "unknown-xid"
    assert ignored(made.answer(kind, server=None)) == "no-server"
    assert ignored(made.answer(kind, operation=Operation.REQUEST)) == "not-a-reply"
    echoed = {Option.CLIENT_IDENTIFIER: b"\x01someone", Option.SERVER_IDENTIFIER: SERVER.packed}
    assert ignored(made.answer(kind, options=echoed)) == "other-client"
    with pytest.raises(MalformedPacket):
        made.answer(kind, options={Option.SERVER_IDENTIFIER: b"\x0a"})
    assert (made.machine.state, made.machine.held, made.machine.deadline) == (state, held, deadline)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (selecting, ACK),
        (selecting, NAK),
        (requesting, OFFER),
        (probing, OFFER),
        (probing, ACK),
        (probing, NAK),
        (bound, OFFER),
        (bound, ACK),
        (bound, NAK),
        (renewing, OFFER),
        (rebinding, OFFER),
        (rebooting, OFFER),
    ],
)
def test_an_answer_of_the_wrong_kind_is_not_asked_for(make: Callable[[], Desk], kind: MessageType) -> None:
    made = make()
    state = made.machine.state
    assert ignored(made.answer(kind)) == "unasked"
    assert made.machine.state is state


@pytest.mark.parametrize("make", [requesting, renewing])
@pytest.mark.parametrize("kind", [ACK, NAK])
def test_the_chosen_server_is_the_only_one_that_is_heard(make: Callable[[], Desk], kind: MessageType) -> None:
    made = make()
    assert ignored(made.answer(kind, server=OTHER)) == "other-server"
    assert made.machine.state in {State.REQUESTING, State.RENEWING}


@pytest.mark.parametrize("make", [requesting, renewing, rebinding, rebooting])
def test_an_ack_for_another_address_is_none(make: Callable[[], Desk]) -> None:
    made = make()
    held = made.machine.held
    assert ignored(made.answer(ACK, address=ELSE)) == "other-address"
    assert made.machine.held == held


@pytest.mark.parametrize("make", [requesting, renewing, rebinding, rebooting])
def test_an_ack_that_can_t_be_followed_is_told_and_waited_out(make: Callable[[], Desk]) -> None:
    made = make()
    held = made.machine.held
    assert ignored(made.answer(ACK, lease=0)) == "invalid-ack"
    assert reason(made) is Reason.INVALID_OFFER
    assert made.machine.held == held


def test_the_first_offer_is_taken_and_the_second_is_late() -> None:
    made = selecting()
    assert message(made.answer(OFFER)).address(Option.SERVER_IDENTIFIER) == SERVER
    assert ignored(made.answer(OFFER, server=OTHER, address=ELSE)) == "unasked"


def test_an_offer_that_can_t_be_taken_is_told_until_a_better_one_comes() -> None:
    made = selecting()
    assert ignored(made.answer(OFFER, lease=0)) == "invalid-offer"
    assert reason(made) is Reason.INVALID_OFFER
    made.wake()
    assert reason(made) is Reason.INVALID_OFFER
    made.wake()
    assert reason(made) is Reason.NO_ANSWER  # none came to the last call
    made.answer(OFFER)
    made.answer(ACK)
    made.probed()
    assert made.machine.trouble is None


def test_an_expired_lease_is_not_used_but_its_address_is_preferred() -> None:
    made = desk(remembered=terms(), now=LEASE + 1.0)
    assert made.machine.held is None
    assert fields(message(made.wake())) == (DISCOVER, NOBODY, ADDRESS, None)
    assert made.answer(OFFER, address=ELSE, server=OTHER) == []  # a moment for the one that gave it
    assert message(made.answer(OFFER)).address(Option.REQUESTED_ADDRESS) == ADDRESS


def test_where_the_preferred_address_does_not_come_another_will_do() -> None:
    made = desk(remembered=terms(), now=LEASE + 1.0)
    made.wake()
    made.answer(OFFER, address=ELSE, server=OTHER)
    assert ignored(made.answer(OFFER, address=ELSE)) == "second-offer"
    before = made.now
    assert fields(message(made.wake())) == (REQUEST, NOBODY, ELSE, OTHER)
    assert made.now - before == 1


def test_a_remembered_lease_is_held_at_once_and_confirmed() -> None:
    made = desk(remembered=terms(mac=b""), now=100.0)
    assert made.machine.held == terms(mac=b"")
    (request,) = of(made.wake(), Send)
    assert fields(request.message) == (REQUEST, NOBODY, ADDRESS, None)  # INIT-REBOOT
    assert (request.source, request.destination, request.destination_mac) == (NOBODY, BROADCAST, BROADCAST_MAC)
    assert request.message.broadcast
    effects = made.answer(ACK)
    assert changes(effects) == [Change.RENEWED]
    assert of(effects, Probe) == []  # it is in use already
    assert made.machine.held == terms(acquired=100.0)


def test_a_remembered_lease_goes_on_where_nobody_answers() -> None:
    made = desk(remembered=terms(mac=b""), now=100.0)
    made.wake()
    times = []
    while made.machine.state is State.REBOOTING:
        times.append(made.now)
        made.wake()
    assert times == [100, 104, 112, 128]
    assert made.machine.state is State.BOUND
    assert made.machine.held == terms(mac=b"")
    assert reason(made) is Reason.NO_ANSWER
    (request,) = of(made.wake(), Send)
    assert made.now == LEASE / 2
    assert request.destination == SERVER
    assert request.destination_mac == b""  # whoever sends it knows what to do
    made.until(State.INIT)
    assert made.now == LEASE
    assert made.machine.held is None


def test_a_remembered_lease_past_t1_is_renewed_and_past_t2_rebound() -> None:
    for passed, state in ((LEASE * 0.6, State.RENEWING), (LEASE * 0.9, State.REBINDING)):
        made = desk(remembered=terms(), now=passed)
        made.until(state)
        assert passed + 60 <= made.now < LEASE or state is State.REBINDING
        assert made.machine.held is not None


@pytest.mark.parametrize("make", [rebinding, rebooting])
def test_the_word_of_the_server_that_gave_the_lease_weighs_more(make: Callable[[], Desk]) -> None:
    made = make()
    assert made.answer(NAK, server=OTHER) == []
    assert made.machine.held is not None
    assert changes(made.answer(ACK)) == [Change.RENEWED]

    alone = make()
    alone.answer(NAK, server=OTHER, words="no such lease")
    before = alone.now
    assert changes(alone.wake()) == [Change.LOST]
    assert alone.now - before == 1
    assert alone.machine.trouble is not None
    assert (alone.machine.trouble.reason, alone.machine.trouble.server) == (Reason.REFUSED, OTHER)


@given(st.data())
def test_no_sequence_breaks_what_always_holds(data: st.DataObject) -> None:
    made = desk(remembered=data.draw(st.sampled_from([None, terms(), terms(ELSE)])), now=50.0)
    for _ in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.sampled_from(["wake", "early", "late", "probe", "conflict", "answer", "answer", "answer"]))
        match step:
            case "wake" if made.machine.deadline < 1e9:
                made.wake()
            case "early":
                before = made.machine.deadline
                if made.now < before:
                    assert made.machine.wake(made.now) == []
            case "late":
                made.now += data.draw(st.floats(0, LEASE))
            case "probe":
                made.probed(data.draw(st.sampled_from(["", "02:00:00:00:00:99"])))
            case "conflict":
                made.machine.conflict(made.now, "02:00:00:00:00:99")
            case "answer" if made.sent is not None:
                made.answer(
                    data.draw(st.sampled_from([OFFER, ACK, NAK])),
                    address=data.draw(st.sampled_from([ADDRESS, ELSE])),
                    server=data.draw(st.sampled_from([SERVER, OTHER])),
                    lease=data.draw(st.sampled_from([0, 4, LEASE, 0xFFFFFFFF])),
                )
        _check(made)


def _check(made: Desk) -> None:
    machine = made.machine
    holding = machine.state in {State.BOUND, State.RENEWING, State.REBINDING, State.REBOOTING}
    assert holding == (machine.held is not None)
    if machine.held is None:
        assert machine.deadline < made.now + 100  # it goes on trying
    else:
        assert machine.deadline <= machine.held.expires
    if machine.state is not State.BOUND and machine.held is None and machine.state is State.INIT:
        assert made.sent is None or machine.trouble is not None
    assert made.sent is None or _lawful(made.sent)


def _lawful(sent: Message) -> bool:
    """RFC 2131 table 5: who names its address in ciaddr names it nowhere else."""
    configured = sent.ciaddr != NOBODY
    return sent.chaddr == ME.chaddr and (not configured or sent.address(Option.REQUESTED_ADDRESS) is None)
