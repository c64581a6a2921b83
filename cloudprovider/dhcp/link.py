"""The socket of a DHCP client: all of a link's IPv4 frames to UDP port 68, before the host's own stack sees them."""

import ctypes
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.dhcp.packet import CLIENT_PORT, ETHERTYPE

_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33
_SOL_PACKET: Final = 263
_PACKET_AUXDATA: Final = 8
_AUXDATA: Final = struct.Struct("IIIHHHH")
"""struct tpacket_auxdata (linux/if_packet.h): status first."""
_CHECKSUM_NOT_READY: Final = 1 << 3
"""TP_STATUS_CSUMNOTREADY."""
_LONGEST_FRAME: Final = 2048
_RECEIVE_BUFFER: Final = 4 << 20
"""Octets: answers for some thousand leases, should the loop be late."""

_INSTRUCTION: Final = struct.Struct("=HBBI")
_UDP_TO_CLIENT: Final = (
    # Classic BPF, as `tcpdump -dd 'udp dst port 68'` writes it for IPv4. Jumps count from the next instruction.
    (0x28, 0, 0, 12),  # ldh [12]: ethertype
    (0x15, 0, 8, ETHERTYPE),
    (0x30, 0, 0, 23),  # ldb [23]: protocol
    (0x15, 0, 6, socket.IPPROTO_UDP),
    (0x28, 0, 0, 20),  # ldh [20]: fragment offset
    (0x45, 4, 0, 0x1FFF),
    (0xB1, 0, 0, 14),  # ldxb 4*([14]&0xf): length of the header
    (0x48, 0, 0, 16),  # ldh [x+16]: destination port
    (0x15, 0, 1, CLIENT_PORT),
    (0x06, 0, 0, 0x40000),  # take it whole
    (0x06, 0, 0, 0),  # leave it
)


class Frame(NamedTuple):
    """A frame, and whether its UDP checksum is complete."""

    data: bytes
    checksum_ready: bool


def open_socket(device: str) -> socket.socket:
    """A non-blocking packet socket on ``device``, in the network namespace of the thread that calls.

    What comes before the filter stands is not taken: the socket is bound last. Raises DataPlaneError.
    """
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        packets.settimeout(0)
        _attach(packets, _UDP_TO_CLIENT)
        packets.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        packets.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        packets.bind((device, ETHERTYPE))
    except OSError as error:
        packets.close()
        raise DataPlaneError(
            f"can't open {device} for DHCP: {error.strerror}; the agent needs CAP_NET_RAW and CAP_NET_ADMIN",
            errno=error.errno or 0,
        ) from error
    return packets


def receive(packets: socket.socket) -> Frame:
    """The next frame. Raises BlockingIOError when there is none, OSError as recvmsg(2)."""
    data, ancillary, _, _ = packets.recvmsg(_LONGEST_FRAME, socket.CMSG_SPACE(_AUXDATA.size))
    for level, kind, value in ancillary:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA) and len(value) >= _AUXDATA.size:
            return Frame(data, not _AUXDATA.unpack_from(value)[0] & _CHECKSUM_NOT_READY)
    return Frame(data, checksum_ready=True)


def _attach(packets: socket.socket, program: Sequence[tuple[int, int, int, int]]) -> None:
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*each) for each in program))
    # struct sock_fprog: the number of instructions and a pointer to them, which the kernel reads during the call.
    packets.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code)))
