"""Packet sockets (packet(7)) on one link: whole Ethernet frames of one type, sent and received without waiting.

Each is opened in the thread's network namespace and belongs to it for good (see ``namespace.call_in``).
"""

import contextlib
import ctypes
import errno
import socket
import struct
from typing import Final

from cloudprovider.core.errors import DataPlaneError

_SO_ATTACH_FILTER: Final = 26
_SOL_PACKET: Final = 263
_PACKET_ADD_MEMBERSHIP: Final = 1
_PACKET_MR_ALLMULTI: Final = 2
_PROGRAM: Final = struct.Struct("@HP")
_MEMBERSHIP: Final = struct.Struct("=iHH8s")
_INSTRUCTION: Final = 8
"""Bytes of one instruction of classic BPF."""


def open_socket(link: str, ethertype: int, *, program: bytes = b"", all_multicast: bool = False) -> socket.socket:
    """A non-blocking SOCK_RAW packet socket bound to ``link``. With an ``ethertype`` of 0 it receives nothing.

    ``program`` is a classic BPF filter that stands before the first frame can come. ``all_multicast``: the link
    receives the frames of every multicast group for as long as the socket is open, which is one request however many
    groups there are. Raises DataPlaneError.
    """
    with contextlib.ExitStack() as made:
        try:
            # Protocol 0 receives nothing, so that bind is what begins.
            packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            made.callback(packets.close)
            packets.settimeout(0)
            if program:
                _attach(packets, program)
            packets.bind((link, ethertype))
            if all_multicast:
                membership = _MEMBERSHIP.pack(socket.if_nametoindex(link), _PACKET_MR_ALLMULTI, 0, b"")
                packets.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)
        except OSError as error:
            raise DataPlaneError(
                f"can't listen for frames of type {ethertype:#06x} on {link}: {error.strerror}; the agent needs "
                "CAP_NET_RAW",
                errno=error.errno or 0,
            ) from error
        made.pop_all()
        return packets


def send(packets: socket.socket, frame: bytes) -> bool:
    """Send a frame; False while the transmit queue is full. Raises DataPlaneError."""
    try:
        packets.send(frame)
    except OSError as error:
        if error.errno in {errno.EAGAIN, errno.ENOBUFS}:
            return False
        link = packets.getsockname()[0]
        raise DataPlaneError(
            f"can't send frames on {link or 'a link that is gone'}: {error.strerror}", errno=error.errno or 0
        ) from error
    return True


def receive(packets: socket.socket) -> bytes | None:
    """The next frame (its first 2,048 bytes), or None when there is none, or the link is down."""
    try:
        return packets.recv(2048)
    except BlockingIOError:
        return None
    except OSError as error:  # the link went down: the loop would call again at once, and for ever
        if error.errno == errno.ENETDOWN:
            return None
        raise


def _attach(packets: socket.socket, program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    packets.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM.pack(len(program) // _INSTRUCTION, ctypes.addressof(buffer))
    )
