"""What is said in a probe over HTTP/1.1.

Of an answer only the status line is read, and of that the first 13 octets: what follows may be endless. The status
says all, a redirect is not followed, and an interim answer (1xx) is an answer: nobody has asked for one.
"""

import re
from typing import Final

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.questions import Codes, HttpGet
from cloudprovider.probe.api import Target
from cloudprovider.probe.exchange import bad

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")
_ENOUGH: Final = len(b"HTTP/1.1 200 ")


class HttpExchange:
    """A GET and its status. Meets :class:`~cloudprovider.probe.exchange.Exchange`."""

    def __init__(self, target: Target, question: HttpGet) -> None:
        self._request = request(target, question)
        self._codes = question.codes
        self._answer = b""

    def begin(self) -> bytes:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        return self._request

    def receive(self, data: bytes, *, ended: bool) -> Answer | None:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        self._answer = (self._answer + data)[:_ENOUGH]
        return judge(self._answer, self._codes, ended=ended)

    def take(self) -> bytes:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        return b""


def request(target: Target, question: HttpGet) -> bytes:
    """The request (RFC 9112 section 3)."""
    host = f"[{question.host}]" if ":" in question.host else question.host
    lines = (f"GET {question.path} HTTP/1.1", f"Host: {host or target.authority}", "User-Agent: cloudprovider")
    return "\r\n".join((*lines, "Connection: close", "", "")).encode("ascii")


def judge(answer: bytes, codes: Codes, *, ended: bool) -> Answer | None:
    """What the beginning of an answer says; None as long as more is needed. ``ended``: nothing more will come."""
    if len(answer) < _ENOUGH and not ended and b"\n" not in answer:
        return None
    found = _STATUS_LINE.match(answer)
    if found is None:
        return bad("the answer is not HTTP" if answer else "the connection was closed without an answer")
    code = int(found[1])
    if any(first <= code <= last for first, last in codes):
        return Answer(Outcome.GOOD)
    said = f"HTTP status {code}, expected {_listed(codes)}"
    return Answer(Outcome.DRAINING if code == 503 else Outcome.BAD, said)


def _listed(codes: Codes) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in codes)
