"""Servers that answer probes well and badly, on sockets that the test makes wherever it likes."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"


async def here(make: Callable[[str], socket.socket]) -> socket.socket:
    """A socket where these servers are: on loopback."""
    return make("lo")


@dataclass
class Served:
    """What a server saw."""

    requests: list[bytes] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    """How the client ended each connection."""


def saying(answer: bytes) -> Behaviour:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return serve


def in_bits(answer: bytes) -> Behaviour:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for octet in answer:
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(0.001)

    return serve


def saying_for_ever(begin: bytes, more: bytes) -> Behaviour:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begin)
        while True:
            writer.write(more)
            await writer.drain()
            await asyncio.sleep(0.001)

    return serve


def half_closing(answer: bytes) -> Behaviour:
    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        writer.write_eof()

    return serve


async def resetting(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Take the request and say nothing."""


@contextlib.asynccontextmanager
async def serving(
    listening: socket.socket,
    answer: Behaviour,
    *,
    backlog: int = 1000,
    tls: ssl.SSLContext | None = None,
    until: bytes = b"\r\n\r\n",
) -> AsyncIterator[Served]:
    """Serve until the block ends; each connection until the client ends it. ``until``: what ends a request; empty:
    the answer does not wait for one."""
    served = Served()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            if until:
                served.requests.append(await reader.readuntil(until))
            await answer(reader, writer)
            await reader.read()
            served.ends.append("FIN")
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            served.ends.append("RST")
        finally:
            writer.transport.abort()

    listening.listen(backlog)
    server = await asyncio.start_server(serve, sock=listening, ssl=tls)
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
