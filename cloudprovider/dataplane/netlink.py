"""Netlink sockets and attributes (netlink(7), RFC 3549): as much as rtnetlink, nftables and conntrack need.

The kernel works a request off while it is being sent, so its answers are in the socket's buffer when ``send`` returns.
Nothing here ever waits, which is why these calls may stand on an event loop. A socket belongs to the network
namespace of the thread that opened it (see :func:`cloudprovider.dataplane.namespace.call_in`).
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from cloudprovider.core.errors import DataPlaneError

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_NLMSGERR_ATTR_MSG: Final = 1
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33

_BUFFER: Final = 1 << 26
"""Bytes: the upper bound of one transaction. Not allocated before it is used."""
_READ: Final = 1 << 16
"""Bytes read at once: the kernel fills at most 32 KiB of a dump into one read."""

_HEADER: Final = struct.Struct("=IHHII")
_ATTR: Final = struct.Struct("=HH")
_INT: Final = struct.Struct("=i")


class Message(NamedTuple):
    """One answer: its type, its flags, and what follows the netlink header."""

    type: int
    flags: int
    body: memoryview


@dataclass(frozen=True)
class Refusal:
    """The kernel refused the message with this sequence number; ``message`` is its own explanation, if any."""

    sequence: int
    errno: int
    message: str

    def describe(self) -> str:
        """What went wrong, in the words of errno(3) and of the kernel."""
        name = errno.errorcode.get(self.errno, str(self.errno))
        return f"{os.strerror(self.errno)} ({name}{': ' + self.message if self.message else ''})"


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One netlink message, ready to be sent; ``flags`` go beside NLM_F_REQUEST."""
    length = 16 + len(body)
    return _HEADER.pack(length, kind, flags | NLM_F_REQUEST, sequence, 0) + body + bytes(-length % 4)


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded. ``payload`` is at most 65,531 bytes: its length has 16 bits."""
    length = 4 + len(payload)
    return _ATTR.pack(length, kind) + payload + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that is made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """An attribute that is a string, ended by a zero byte."""
    return attribute(kind, value.encode() + b"\0")


def each_attribute(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield (type, payload) of a row of attributes; flags of the type are left out, a cut-off rest is ignored."""
    position, end = 0, len(data)
    while position + 4 <= end:
        length, kind = _ATTR.unpack_from(data, position)
        if length < 4 or position + length > end:
            return
        yield kind & NLA_TYPE_MASK, data[position + 4 : position + length]
        position += (length + 3) & ~3


def attributes(data: memoryview) -> dict[int, memoryview]:
    """A row of attributes by type (the last one, where a type comes twice)."""
    return dict(each_attribute(data))


def string(data: memoryview) -> str:
    """The text of a string attribute."""
    return bytes(data).rstrip(b"\0").decode(errors="replace")


class NetlinkSocket:
    """A socket of one netlink family (``socket.NETLINK_ROUTE``, 12 for netfilter) in the thread's namespace."""

    def __init__(self, protocol: int) -> None:
        self._sequence = 0
        with contextlib.ExitStack() as made:
            try:
                self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
                made.callback(self._socket.close)
                self._socket.settimeout(0)
                self._socket.bind((0, 0))
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
                if protocol == socket.NETLINK_ROUTE:
                    self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            except OSError as error:
                raise DataPlaneError(
                    f"can't open a netlink socket (family {protocol}): {error.strerror}; the agent needs CAP_NET_ADMIN",
                    errno=error.errno or 0,
                ) from error
            made.pop_all()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def sequence(self) -> int:
        """The next free sequence number."""
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        return self._sequence

    def request(self, payload: bytes, last: int) -> list[Refusal]:
        """Send messages, the one numbered ``last`` with NLM_F_ACK, and return what the kernel refused of them.

        Raises DataPlaneError when the answer is incomplete, so that the outcome is not known.
        """
        self._send(payload)
        refusals: list[Refusal] = []
        acknowledged = False
        while (answer := self._receive()) is not None:
            for kind, _flags, sequence, body in _messages(answer):
                if kind != _NLMSG_ERROR:
                    continue
                refusal = _refusal(sequence, _flags, body)
                acknowledged = acknowledged or sequence == last
                if refusal.errno:
                    refusals.append(refusal)
        if not acknowledged and not refusals:
            raise DataPlaneError("the kernel did not acknowledge a netlink request; read its state before going on")
        return refusals

    def dump(self, kind: int, body: bytes, *, flags: int = NLM_F_DUMP) -> Iterator[list[Message]]:
        """Ask for many objects (or, without NLM_F_DUMP in ``flags``, for one) and yield the answers slice by slice,
        as the kernel gives them out (up to 32 KiB). One dump at a time on a socket; start it only to finish it.

        Raises DataPlaneError when the kernel refuses.
        """
        sequence = self.sequence()
        self._drain()
        self._send(message(kind, flags if flags & NLM_F_DUMP else flags | NLM_F_ACK, sequence, body))
        while True:
            answer = self._receive()
            if answer is None:
                raise DataPlaneError("the kernel broke off a netlink dump; read its state again")
            messages: list[Message] = []
            done = False
            for answered, answer_flags, number, content in _messages(answer):
                if number != sequence:
                    continue
                if answered == _NLMSG_DONE:
                    code = _INT.unpack_from(content)[0] if len(content) >= 4 else 0
                    if code < 0:
                        raise DataPlaneError(
                            f"the kernel broke off a netlink dump: {os.strerror(-code)}; read its state again",
                            errno=-code,
                        )
                    done = True
                elif answered == _NLMSG_ERROR:
                    refusal = _refusal(number, answer_flags, content)
                    if refusal.errno:
                        said = refusal.describe()
                        raise DataPlaneError(f"the kernel refused a netlink query: {said}", errno=refusal.errno)
                    done = True
                else:
                    messages.append(Message(answered, answer_flags, content))
            yield messages
            if done:
                return

    def _send(self, payload: bytes) -> None:
        try:
            self._socket.send(payload)
        except OSError as error:
            raise DataPlaneError(
                f"can't send {len(payload)} bytes to the kernel by netlink: {error.strerror}", errno=error.errno or 0
            ) from error

    def _receive(self) -> memoryview | None:
        try:
            return memoryview(self._socket.recv(_READ))
        except BlockingIOError:
            return None
        except OSError as error:
            raise DataPlaneError(
                f"can't read the kernel's netlink answer: {error.strerror}; read its state before going on",
                errno=error.errno or 0,
            ) from error

    def _drain(self) -> None:
        """Throw away what is left of a dump that was not read to its end."""
        while self._receive() is not None:
            pass


def _messages(data: memoryview) -> Iterator[tuple[int, int, int, memoryview]]:
    position, end = 0, len(data)
    while position + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
        if length < 16 or position + length > end:
            return
        yield kind, flags, sequence, data[position + 16 : position + length]
        position += (length + 3) & ~3


def _refusal(sequence: int, flags: int, body: memoryview) -> Refusal:
    """Read an NLMSG_ERROR: errno (0: acknowledged), the header it is about, and the kernel's text after it."""
    code = -_INT.unpack_from(body)[0]
    said = ""
    if flags & 0x200 and flags & 0x100:  # NLM_F_ACK_TLVS beside NLM_F_CAPPED: attributes follow the header at once
        explanation = attributes(body[20:]).get(_NLMSGERR_ATTR_MSG)
        said = string(explanation) if explanation is not None else ""
    return Refusal(sequence, code, said)
