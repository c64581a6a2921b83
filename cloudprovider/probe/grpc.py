"""What is said in a probe by gRPC's health protocol: one unary call over HTTP/2, on a connection of its own.

https://github.com/grpc/grpc/blob/master/doc/health-checking.md and PROTOCOL-HTTP2.md beside it. ``h2`` does HTTP/2: it
has no I/O, so that the socket stays ours (gRPC's own library opens its sockets in the process's namespace).
"""

from collections.abc import Iterable
from typing import Final
from urllib.parse import unquote

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.questions import GrpcHealth
from cloudprovider.probe.api import Target
from cloudprovider.probe.exchange import bad

_CONFIG: Final = H2Configuration(client_side=True, header_encoding=None)
_STREAM: Final = 1
_HEADER: Final = 9
_SETTINGS: Final = b"\4\0\0\0\0\0"
"""Type, flags and stream of the frame that a server begins with (RFC 9113 section 3.4)."""
_LONGEST: Final = 64
"""Octets of an answer: a HealthCheckResponse has two, and five stand before it."""
_SERVING: Final = 1
_STATUSES: Final = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_NOT_FOUND, _UNIMPLEMENTED = 5, 12


class GrpcExchange:
    """A call of grpc.health.v1.Health/Check. Meets :class:`~cloudprovider.probe.exchange.Exchange`."""

    def __init__(self, target: Target, question: GrpcHealth) -> None:
        self._service = question.service
        host = f"[{question.host}]" if ":" in question.host else question.host
        self._headers = [
            (":method", "POST"),
            (":scheme", "http" if question.tls is None else "https"),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", host or target.authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("user-agent", "cloudprovider"),
        ]
        self._http2 = H2Connection(_CONFIG)
        self._first = b""
        self._status = b""
        self._grpc: dict[bytes, bytes] = {}
        self._message = b""

    def begin(self) -> bytes:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        asked: bytes = health_pb2.HealthCheckRequest(service=self._service).SerializeToString()
        self._http2.initiate_connection()
        self._http2.send_headers(_STREAM, self._headers)
        self._http2.send_data(_STREAM, b"\0" + len(asked).to_bytes(4, "big") + asked, end_stream=True)
        return self.take()

    def receive(self, data: bytes, *, ended: bool) -> Answer | None:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        self._first = (self._first + data)[:_HEADER]
        if len(self._first) == _HEADER and (self._first[0] or self._first[3:] != _SETTINGS):
            return bad("the answer is not HTTP/2")  # which h2 says only when the whole frame has come
        try:
            events = self._http2.receive_data(data)
        except (H2Error, ValueError, LookupError) as error:  # the last two: of what is no frame
            return bad(f"the answer is not HTTP/2 ({type(error).__name__})")
        for event in events:
            answer = self._take_in(event)
            if answer is not None:
                return answer
        return bad("the connection was closed before the answer's end") if ended else None

    def take(self) -> bytes:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        return self._http2.data_to_send()

    def _take_in(self, event: Event) -> Answer | None:
        match event:
            case ResponseReceived(headers=headers) | TrailersReceived(headers=headers):
                self._note(headers or [])
            case DataReceived(data=data):
                self._message += data or b""
                if len(self._message) > _LONGEST:
                    return bad("the answer is longer than one of the health service is")
            case StreamEnded():
                return self._judge()
            case StreamReset(error_code=code) | ConnectionTerminated(error_code=code):
                return bad(f"the server gave the call up (HTTP/2 error {int(code or 0)})")
            case _:
                pass
        return None

    def _note(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        for name, value in headers:
            if name == b":status":
                self._status = value
            elif name.startswith(b"grpc-"):
                self._grpc[name] = value

    def _judge(self) -> Answer:
        if self._status != b"200":
            return bad(f"HTTP status {_text(self._status)}: the answer is not gRPC")
        code = self._grpc.get(b"grpc-status", b"")
        if not code.isdigit():
            return bad("the answer is not gRPC: it has no grpc-status")
        if int(code) == _NOT_FOUND:
            return bad(f'the health service does not know the service "{self._service}"')
        if int(code) == _UNIMPLEMENTED:
            return bad("the server has no health service (grpc.health.v1.Health)")
        if int(code):
            said = unquote(_text(self._grpc.get(b"grpc-message", b"")))
            return bad(f"gRPC status {int(code)}{': ' + said if said.isprintable() and said else ''}")
        message, length = self._message[5:], int.from_bytes(self._message[1:5], "big")
        if not self._message.startswith(b"\0") or len(message) != length:
            return bad("the answer is not one message of gRPC")
        try:
            status: int = health_pb2.HealthCheckResponse.FromString(message).status
        except DecodeError:
            return bad("the answer is not one of the health service")
        if status == _SERVING:
            return Answer(Outcome.GOOD)
        return bad(f"the health service says {_STATUSES.get(status, status)}")


def _text(value: bytes) -> str:
    """What a server said, for people."""
    return value[:200].decode("ascii", "replace")
