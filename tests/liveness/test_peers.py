"""The parts without I/O: by which address hosts meet, and the messages of bfdd's control socket."""

import json
from ipaddress import ip_address

import msgspec
import pytest

from cloudprovider.liveness import control
from cloudprovider.liveness.control import Decoder, Response, Status
from cloudprovider.liveness.peers import meeting_point

V4, V6, OTHER4, OTHER6 = (ip_address(a) for a in ("10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"))
UP = b'{"op":"status","ipv6":false,"peer-address":"10.0.0.2","local-address":"10.0.0.1","state":"up","diagnostics":0}'


def test_hosts_meet_by_the_same_family() -> None:
    assert meeting_point([V4, V6], [OTHER6, OTHER4]) == OTHER4
    assert meeting_point([V6], [OTHER4, OTHER6]) == OTHER6
    assert meeting_point([V4], [OTHER6]) is None
    assert meeting_point([], [OTHER4]) is None


def frame(kind: int, body: bytes, number: int = 0, version: int = 1) -> bytes:
    return len(body).to_bytes(4, "big") + number.to_bytes(2, "big") + bytes([kind, version]) + body


def test_messages_come_in_any_pieces() -> None:
    decoder = Decoder()
    stream = frame(1, b'{"status":"error","error":"no"}', number=7) + frame(4, UP)
    found = [message for byte in stream for message in decoder.feed(bytes([byte]))]
    status = Status(op="status", peer_address="10.0.0.2", local_address="10.0.0.1", state="up")
    assert found == [Response("error", "no", 7), status]
    assert decoder.feed(stream * 2) == found * 2


@pytest.mark.parametrize("broken", [frame(4, UP, version=2), b"\xff" * 8, frame(4, b"{"), frame(4, b"{}")])
def test_what_is_no_message_is_refused(broken: bytes) -> None:
    with pytest.raises((ValueError, msgspec.MsgspecError)):
        Decoder().feed(broken)


def test_a_request_says_all_that_a_session_needs() -> None:
    sent = control.add(513, OTHER6, V6, interval=100, multiplier=3, shutdown=True)
    assert sent[:8] == frame(2, sent[8:], number=513)[:8]
    assert json.loads(sent[8:]) == {
        "ipv6": [
            {
                "peer-address": "fd00::2",
                "local-address": "fd00::1",
                "detect-multiplier": 3,
                "receive-interval": 100,
                "transmit-interval": 100,
                "shutdown": True,
            }
        ]
    }
