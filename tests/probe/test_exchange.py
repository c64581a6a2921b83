"""What is said on a probe's connection, without one: whatever comes is an answer in the end, never an error."""

from ipaddress import IPv4Address

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from hypothesis import assume, given
from hypothesis import strategies as st

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.questions import GrpcHealth, HttpGet, Question, Tls
from cloudprovider.probe.api import Target
from cloudprovider.probe.exchange import Exchange
from cloudprovider.probe.grpc import GrpcExchange
from cloudprovider.probe.prober import exchange_of

QUESTIONS: list[Question] = [HttpGet(), GrpcHealth(), HttpGet(tls=Tls()), GrpcHealth(tls=Tls())]
SERVING, NOT_SERVING = b"\0\0\0\0\2\x08\1", b"\0\0\0\0\2\x08\2"


def exchange(question: Question) -> Exchange:
    made = exchange_of(Target(IPv4Address("192.0.2.1"), 443, question))
    assert made is not None
    made.begin()
    return made


def grpc_answer(message: bytes, *trailers: tuple[str, str], status: str = "200") -> bytes:
    """What a server sends, first octet to last."""
    server = H2Connection(H2Configuration(client_side=False))
    server.initiate_connection()
    client = GrpcExchange(Target(IPv4Address("192.0.2.1"), 80), GrpcHealth())
    server.receive_data(client.begin())
    server.send_headers(1, [(":status", status), ("content-type", "application/grpc")])
    if message:
        server.send_data(1, message)
    if trailers:
        server.send_headers(1, list(trailers), end_stream=True)
    else:
        server.end_stream(1)
    return server.data_to_send()


FINE = grpc_answer(SERVING, ("grpc-status", "0"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (FINE, ""),
        (grpc_answer(NOT_SERVING, ("grpc-status", "0")), "the health service says NOT_SERVING"),
        (grpc_answer(b"\0\0\0\0\2\x08\x2a", ("grpc-status", "0")), "the health service says 42"),
        (grpc_answer(b"\0\0\0\0\0", ("grpc-status", "0")), "the health service says UNKNOWN"),
        (grpc_answer(b"\0\0\0\0\1\x08", ("grpc-status", "0")), "the answer is not one of the health service"),
        (grpc_answer(b"\1" + SERVING[1:], ("grpc-status", "0")), "the answer is not one message of gRPC"),
        (grpc_answer(SERVING * 2, ("grpc-status", "0")), "the answer is not one message of gRPC"),
        (grpc_answer(b"", ("grpc-status", "0")), "the answer is not one message of gRPC"),
        (grpc_answer(SERVING, ("grpc-status", "13"), ("grpc-message", "no%20way")), "gRPC status 13: no way"),
        (grpc_answer(SERVING, ("grpc-status", "13"), ("grpc-message", "%0a")), "gRPC status 13"),
        (grpc_answer(SERVING, ("grpc-status", "x")), "the answer is not gRPC: it has no grpc-status"),
        (grpc_answer(SERVING), "the answer is not gRPC: it has no grpc-status"),
        (grpc_answer(b"", status="503"), "HTTP status 503: the answer is not gRPC"),
        (grpc_answer(b"x" * 1000), "the answer is longer than one of the health service is"),
    ],
)
def test_answers_of_grpc(answer: bytes, said: str) -> None:
    outcome = Outcome.BAD if said else Outcome.GOOD
    assert exchange(GrpcHealth()).receive(answer, ended=False) == Answer(outcome, said)


def test_an_answer_of_grpc_may_come_octet_by_octet_and_is_complete_with_the_last_one() -> None:
    tested = exchange(GrpcHealth())
    found = [tested.receive(FINE[n : n + 1], ended=False) for n in range(len(FINE))]
    assert found == [None] * (len(FINE) - 1) + [Answer(Outcome.GOOD)]


def feed(question: Question, parts: list[bytes]) -> Answer | None:
    tested = exchange(question)
    for part in parts:
        if (answer := tested.receive(part, ended=False)) is not None:
            return answer
        tested.take()
    return tested.receive(b"", ended=True)


@given(st.sampled_from(QUESTIONS), st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_octets_at_random_are_no_success(question: Question, parts: list[bytes]) -> None:
    assume(not b"".join(parts).startswith(b"HTTP/"))  # what begins so may be one
    answer = feed(question, parts)
    assert answer is not None
    assert answer.outcome is Outcome.BAD
    assert answer.said


@given(st.lists(st.tuples(st.integers(0, len(FINE) - 1), st.integers(0, 255)), max_size=4), st.integers(1, len(FINE)))
def test_an_answer_of_grpc_with_faults_is_still_an_answer(faults: list[tuple[int, int]], cut: int) -> None:
    octets = bytearray(FINE)
    for place, octet in faults:
        octets[place] = octet
    answer = feed(GrpcHealth(), [bytes(octets[:cut]), bytes(octets[cut:]) or b"\0"])
    assert answer is not None


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=40))))
def test_frames_at_random_are_still_an_answer(frames: list[tuple[int, int, int, bytes]]) -> None:
    sent = [len(b).to_bytes(3, "big") + bytes([k, flags]) + s.to_bytes(4, "big") + b for k, flags, s, b in frames]
    assert feed(GrpcHealth(), [b"\0\0\0\4\0\0\0\0\0", *sent]) is not None


def test_a_verified_server_name_is_what_the_handshake_asks_for() -> None:
    """In the clear in the ClientHello (RFC 6066 section 3)."""
    made = exchange_of(Target(IPv4Address("192.0.2.1"), 443, HttpGet("/", "shop.example.org", tls=Tls())))
    assert made is not None
    assert b"shop.example.org" in made.begin()
