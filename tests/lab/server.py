"""The server that runs as a pod: says over HTTP (TCP) and datagrams (UDP) who it is and who asked.

``python server.py --name POD --address ADDRESS --tcp 8080 --udp 5353``; all but the name repeat. Every answer is a
JSON object with "pod", "client" (the address that it came from, after all translation), "client_port" and "port" (its
own). Any HTTP path answers, "/N" with at least N bytes; a datagram's answer is as long as the question. Connections are
kept open for as long as the client likes. Prints "ready" once it listens
on every port. Ends on SIGTERM. Standard library only: it is started many times.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import signal
import socket
from typing import Any

MAX_HEADER_LINES = 100
MAX_DATAGRAM_BYTES = 65535


def answer(name: str, peer: "tuple[Any, ...]", port: int) -> bytes:
    client = str(peer[0]).removeprefix("::ffff:")  # IPv4 on a socket for both
    return json.dumps({"pod": name, "client": client, "client_port": peer[1], "port": port}).encode() + b"\n"


class Http:
    """HTTP/1.1, as much of it as a probe needs."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that resets its connection, or is cut off, is nothing to report.
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, ValueError, IndexError):
            while await self._request(reader, writer):
                pass
        writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; False when there was none, or the client wants no other."""
        start = await reader.readline()
        if not start:
            return False
        wanted = start.split()[1].lstrip(b"/")
        keep, length = True, 0
        for _ in range(MAX_HEADER_LINES):
            line = (await reader.readline()).strip().lower()
            if not line:
                break
            keep = keep and line != b"connection: close"
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        await reader.readexactly(length)
        body = answer(self.name, writer.get_extra_info("peername"), self.port)
        body = body.ljust(int(wanted)) if wanted.isdigit() else body
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        return keep


def listen(kind: socket.SocketKind, address: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setblocking(False)
    listener.bind((address, port))
    return listener


async def answer_datagrams(name: str, port: int, link: socket.socket) -> None:
    """One answer for each datagram, for ever."""
    loop = asyncio.get_running_loop()
    while True:
        question, peer = await loop.sock_recvfrom(link, MAX_DATAGRAM_BYTES)
        with contextlib.suppress(OSError):  # an ICMP error of an earlier answer; its client is gone
            await loop.sock_sendto(link, answer(name, peer, port).ljust(len(question)), peer)


async def serve(name: str, addresses: "list[str]", tcp: "list[int]", udp: "list[int]") -> None:
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    async with contextlib.AsyncExitStack() as stack:
        for address, port in itertools.product(addresses, tcp):
            listener = listen(socket.SOCK_STREAM, address, port)
            await stack.enter_async_context(await asyncio.start_server(Http(name, port).serve, sock=listener))
        tasks = [
            asyncio.create_task(answer_datagrams(name, port, listen(socket.SOCK_DGRAM, address, port)))
            for address, port in itertools.product(addresses, udp)
        ]
        print("ready", flush=True)
        await ending.wait()
        for task in tasks:
            task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="what to call itself in answers")
    parser.add_argument("--address", action="append", required=True, help="an address to listen on")
    parser.add_argument("--tcp", type=int, action="append", default=[], metavar="PORT")
    parser.add_argument("--udp", type=int, action="append", default=[], metavar="PORT")
    options = parser.parse_args()
    asyncio.run(serve(options.name, options.address, options.tcp, options.udp))


if __name__ == "__main__":
    main()
