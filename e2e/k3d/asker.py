"""Runs inside of a container and asks servers from there, as it is told: ``python3 -u -c SOURCE``.

Standard library only. One JSON object a line: requests on standard input, answers on standard output, in any order.
A request has "id", "op" and what the op needs; its answer has the same "id" and either "result", or "error" (an errno,
0 for a time-out) with "message". Sockets stay open between requests and are called by number.
"""

import contextlib
import errno
import fcntl
import http.client
import itertools
import json
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import Any

SIOCDARP = 0x8953
ARP_COMPLETE = 2
_links: "dict[int, Any]" = {}
_numbers = itertools.count(1)
_output = threading.Lock()


def op_open(kind: str, address: str, port: int, timeout: float) -> int:
    """Connect; "tcp" is spoken to in HTTP."""
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    link.settimeout(timeout)
    try:
        link.connect((address, port))
    except BaseException:
        link.close()
        raise
    number = next(_numbers)
    if kind == "tcp":
        connection = http.client.HTTPConnection(address)
        connection.sock = link
        _links[number] = connection
    else:
        _links[number] = link
    return number


def op_get(number: int, path: str, size: int) -> Any:
    """One HTTP request, with a body of ``size`` bytes (negative: none)."""
    try:
        _links[number].request("GET", path, bytes(size) if size >= 0 else None)
        return json.loads(_links[number].getresponse().read())
    except http.client.HTTPException as error:
        raise ConnectionResetError(errno.ECONNRESET, f"no proper answer: {error!r}") from error


def op_ask(number: int, size: int) -> Any:
    """One datagram and its answer."""
    _links[number].send(b"?".ljust(size))
    return json.loads(_links[number].recv(65535))


def op_close(number: int) -> None:
    """Close what was opened."""
    _links.pop(number).close()


def op_own(address: str) -> str:
    """Our own address towards another."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect((address, 9))
        return str(link.getsockname()[0])


def op_ping(address: str) -> bool:
    """Whether an ICMP echo request is answered within a second (RFC 792)."""
    packet = struct.pack("!BBHHH", 8, 0, 0, 0x4C42, 1)
    total = sum(struct.unpack("!4H", packet))
    packet = struct.pack("!BBHHH", 8, 0, ~(total + (total >> 16)) & 0xFFFF, 0x4C42, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as link:
        link.settimeout(1)
        try:
            link.sendto(packet, (address, 0))
            while True:
                data, (source, _) = link.recvfrom(1500)
                if source == address and data[(data[0] & 15) * 4] == 0:
                    return True
        except OSError:
            return False


def op_forget() -> None:
    """Drop what ARP has told."""
    with Path("/proc/net/arp").open() as table, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        for line in list(table)[1:]:
            fields = line.split()
            address = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(fields[0]))
            request = struct.pack("16s16si16s16s", address, bytes(16), ARP_COMPLETE, bytes(16), fields[5].encode())
            with contextlib.suppress(OSError):  # gone meanwhile
                fcntl.ioctl(link, SIOCDARP, request)


def serve(request: "dict[str, Any]") -> None:
    """Do one request, and say what came of it."""
    number, op = request.pop("id"), request.pop("op")
    try:
        answer = {"id": number, "result": globals()[f"op_{op}"](**request)}
    except TimeoutError:
        answer = {"id": number, "error": 0, "message": "timed out"}
    except OSError as error:
        answer = {"id": number, "error": error.errno or errno.EIO, "message": str(error)}
    with _output:
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Serve until standard input ends; whoever waits for an answer does so in a thread of its own."""
    for line in sys.stdin:
        threading.Thread(target=serve, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
