"""What servers may do to a probe, on loopback; and the request itself."""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from cloudprovider.core.errors import DataPlaneError
from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.questions import HttpGet
from cloudprovider.probe.api import Target
from cloudprovider.probe.http import judge, request
from cloudprovider.probe.nodes import HEALTHZ
from cloudprovider.probe.prober import SocketProber
from tests.dhcp.waiting import until
from tests.probe import servers
from tests.probe.servers import OK, Behaviour, Served, saying, serving

HERE = IPv4Address("127.0.0.1")
LIMIT = 0.3


async def ask(prober: SocketProber, target: Target, timeout: float = LIMIT) -> Outcome:
    found: list[Answer] = []
    await prober.begin(target, timeout, found.append)
    await until("an answer", lambda: found)
    return found[0].outcome


@contextlib.asynccontextmanager
async def served(answer: Behaviour, question: HttpGet = HEALTHZ) -> AsyncIterator[tuple[Target, Served]]:
    listening = socket.create_server((str(HERE), 0))
    target = Target(HERE, listening.getsockname()[1], question)
    async with serving(listening, answer) as seen:
        yield target, seen


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (saying(b"HTTP/1.0 200 OK\r\n\r\n"), Outcome.GOOD),
        (saying(b"HTTP/1.1 200\r\n\r\n"), Outcome.GOOD),
        (saying(b"HTTP/1.1 200 \r\n\r\n"), Outcome.GOOD),
        (servers.in_bits(OK), Outcome.GOOD),
        (servers.half_closing(OK), Outcome.GOOD),
        (servers.half_closing(servers.UNAVAILABLE), Outcome.DRAINING),
        (servers.saying_for_ever(OK, b"x" * 65536), Outcome.GOOD),
        (servers.half_closing(b""), Outcome.BAD),
        (servers.half_closing(b"HTTP/1.1 20"), Outcome.BAD),
        (servers.half_closing(b"HTTP/1.1 200"), Outcome.BAD),
        (servers.resetting, Outcome.BAD),
        (servers.silent, Outcome.BAD),
        (servers.saying_for_ever(b"", b"x"), Outcome.BAD),
        (servers.saying_for_ever(b"HTTP/1.1 200", b"0"), Outcome.BAD),
        (saying(b"HTTP/1.1 204 No Content\r\n\r\n"), Outcome.BAD),
        (saying(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n"), Outcome.BAD),
        (saying(b"HTTP/1.1 500 Internal Server Error\r\n\r\n"), Outcome.BAD),
        (saying(b"HTTP/2.0 200 OK\r\n\r\n"), Outcome.BAD),
        (saying(b"HTTP/1.1 2000 OK\r\n\r\n"), Outcome.BAD),
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), Outcome.BAD),
        (saying(b"\n"), Outcome.BAD),
        (saying(b"\x15\x03\x01\x00\x02\x02\x50\x00\x00\x00\x00\x00\x00\x00"), Outcome.BAD),
    ],
)
async def test_an_answer_and_what_it_counts_as(prober: SocketProber, answer: Behaviour, outcome: Outcome) -> None:
    async with served(answer) as (target, _):
        assert await ask(prober, target) is outcome


async def test_nobody_listens(prober: SocketProber) -> None:
    with socket.create_server((str(HERE), 0)) as listening:
        port = listening.getsockname()[1]
    assert await ask(prober, Target(HERE, port, HEALTHZ)) is Outcome.BAD


async def test_a_slow_answer_counts_by_the_timeout(prober: SocketProber) -> None:
    async def slow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(OK)

    async with served(slow) as (target, _):
        assert await ask(prober, target, timeout=2.0) is Outcome.GOOD
        assert await ask(prober, target, timeout=0.05) is Outcome.BAD


async def test_the_timeout_is_for_the_whole_probe_not_for_each_octet(prober: SocketProber) -> None:
    loop = asyncio.get_running_loop()

    async def trickling(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for octet in OK[:10]:
            writer.write(bytes([octet]))
            await asyncio.sleep(0.1)

    async with served(trickling) as (target, _):
        began = loop.time()
        assert await ask(prober, target, timeout=0.3) is Outcome.BAD
        assert loop.time() - began < 0.95


async def test_a_late_loop_is_no_failure_of_the_node(prober: SocketProber) -> None:
    found: list[Answer] = []
    async with served(saying(OK)) as (target, _):
        await prober.begin(target, LIMIT, found.append)
        time.sleep(2 * LIMIT)  # noqa: ASYNC251 - neither the probe nor the server gets on
        await until("an outcome", lambda: found)
    assert found == [Answer(Outcome.GOOD)]


async def test_a_late_loop_puts_the_end_off_once(prober: SocketProber) -> None:
    found: list[Answer] = []
    loop = asyncio.get_running_loop()
    async with served(servers.silent) as (target, _):
        await prober.begin(target, LIMIT, found.append)
        time.sleep(2 * LIMIT)  # noqa: ASYNC251
        began = loop.time()
        await until("an outcome", lambda: found)
        assert LIMIT - 0.05 < loop.time() - began < 5
    assert found == [Answer(Outcome.BAD, "no answer within 0.3 s")]


def tcp_states(port: int) -> list[str]:
    """The states of all sockets at that port, at either end, as /proc/net/tcp has them."""
    entries = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return [entry[3] for entry in entries if f":{port:04X} " in f"{entry[1]} {entry[2]} "]


@pytest.mark.parametrize(
    "answer",
    [
        saying(OK),
        servers.half_closing(OK),
        servers.half_closing(b"all read"),
        servers.saying_for_ever(OK, b"x" * 65536),
        servers.silent,
    ],
)
async def test_a_connection_ends_by_rst_and_leaves_no_time_wait(prober: SocketProber, answer: Behaviour) -> None:
    async with served(answer) as (target, seen):
        for _ in range(3):
            await ask(prober, target, timeout=0.1)
        await until("all ends", lambda: len(seen.ends) == 3)
        assert seen.ends == ["RST"] * 3
        assert all(each.startswith(b"GET /healthz HTTP/1.1\r\n") for each in seen.requests)
        assert tcp_states(target.port) == ["0A"]  # LISTEN alone


@pytest.mark.parametrize(
    ("answer", "ended", "outcome"),
    [
        (b"", False, None),
        (b"HTTP/1.1 200", False, None),
        (b"HTTP/1.1 200\r", False, Outcome.GOOD),
        (b"HTTP/1.1 200\n", True, Outcome.GOOD),
        (b"HTTP/1.1 200", True, Outcome.BAD),
        (b"", True, Outcome.BAD),
        (b"\n", False, Outcome.BAD),
        (b"SSH-2.0\r\n", False, Outcome.BAD),
    ],
)
def test_an_answer_is_judged_as_early_as_can_be(answer: bytes, ended: bool, outcome: Outcome | None) -> None:
    found = judge(answer, ((200, 200),), ended=ended)
    assert (found and found.outcome) is outcome


def test_the_request() -> None:
    assert request(Target(IPv6Address("fd99::1"), 10256), HttpGet("/healthz")) == (
        b"GET /healthz HTTP/1.1\r\nHost: [fd99::1]:10256\r\nUser-Agent: cloudprovider\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize("port", [0, 65536])
def test_what_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        Target(HERE, port)


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nX: y", "/é"])
def test_a_path_that_no_request_can_be_made_of_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        HttpGet(path)


async def test_sockets_are_made_some_at_a_time_and_none_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    calls = 0

    async def counted(make: Callable[[str], socket.socket]) -> socket.socket:
        nonlocal calls
        calls += 1
        return make("lo")

    prober = SocketProber(counted)
    async with served(saying(OK)) as (target, _):
        for _ in range(40):
            assert await ask(prober, target) is Outcome.GOOD
    assert calls == 3
    prober.close()
    await until("all closed", lambda: len(os.listdir("/proc/self/fd")) == before)  # noqa: PTH208


async def test_a_namespace_that_can_not_be_entered_is_no_failure_of_the_node_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def gone(_make: Callable[[str], socket.socket]) -> socket.socket:
        raise DataPlaneError("can't open network namespace")

    prober = SocketProber(gone, network="default/blue")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert await ask(prober, Target(HERE, 80)) is Outcome.UNASKED
    prober.close()
    assert [record.message for record in caplog.records] == ["This host can't probe; what is probed counts as it did."]
    assert caplog.records[0].__dict__["network"] == "default/blue"


async def test_a_prober_that_is_closed_while_it_waits_for_a_socket_leaves_none() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    go = asyncio.Event()

    async def slow(make: Callable[[str], socket.socket]) -> socket.socket:
        await go.wait()
        return make("lo")

    prober = SocketProber(slow)
    waiting = asyncio.create_task(prober.begin(Target(HERE, 80), 1.0, lambda _: None))
    await asyncio.sleep(0)
    prober.close()
    go.set()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
