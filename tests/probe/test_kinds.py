"""Each kind of check against real servers on loopback, well behaved and not."""

import asyncio
import contextlib
import datetime as dt
import socket
import ssl
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cloudprovider.core.health import Answer, Outcome
from cloudprovider.core.questions import GrpcHealth, HttpGet, Question, TcpConnect, Tls
from cloudprovider.probe.api import Target
from cloudprovider.probe.prober import SocketProber
from tests.dhcp.waiting import until
from tests.lab.pki import Authority, KeyPair
from tests.probe import servers
from tests.probe.servers import OK, Behaviour, Served, saying, serving

HERE = IPv4Address("127.0.0.1")
LIMIT = 0.5
GOOD = Answer(Outcome.GOOD)


async def ask(prober: SocketProber, port: int, question: Question, timeout: float = 5.0) -> Answer:
    found: list[Answer] = []
    await prober.begin(Target(HERE, port, question), timeout, found.append)
    await until("an answer", lambda: found)
    assert not prober._running
    return found[0]


def listening() -> socket.socket:
    return socket.create_server((str(HERE), 0))


@contextlib.asynccontextmanager
async def served(
    answer: Behaviour, tls: ssl.SSLContext | None = None, until: bytes = b"\r\n\r\n"
) -> AsyncIterator[tuple[int, Served]]:
    made = listening()
    port = made.getsockname()[1]
    async with serving(made, answer, tls=tls, until=until) as seen:
        yield port, seen


# TCP


async def test_a_connection_is_all_that_tcp_asks_for_and_it_leaves_nothing_behind(prober: SocketProber) -> None:
    async with served(servers.silent) as (port, seen):
        assert await ask(prober, port, TcpConnect()) == GOOD
        await until("its end", lambda: seen.ends)
        assert seen.requests == []
        assert seen.ends == ["RST"]


async def test_tcp_refused(prober: SocketProber) -> None:
    with listening() as made:
        port = made.getsockname()[1]
    assert await ask(prober, port, TcpConnect()) == Answer(Outcome.BAD, "connection refused")


async def test_tcp_into_a_full_queue_is_silence(prober: SocketProber) -> None:
    with socket.create_server((str(HERE), 0), backlog=0) as full, socket.create_connection(full.getsockname()):
        answer = await ask(prober, full.getsockname()[1], TcpConnect(), 0.2)
    assert answer == Answer(Outcome.SILENT, "no connection within 0.2 s")


# HTTP


@pytest.mark.parametrize("code", [200, 204, 301, 399])
async def test_by_default_a_success_is_any_code_from_200_to_399(prober: SocketProber, code: int) -> None:
    async with served(saying(b"HTTP/1.1 %d X\r\n\r\n" % code)) as (port, _):
        assert await ask(prober, port, HttpGet()) == GOOD


@pytest.mark.parametrize(("code", "outcome"), [(100, Outcome.BAD), (400, Outcome.BAD), (503, Outcome.DRAINING)])
async def test_other_codes_are_named(prober: SocketProber, code: int, outcome: Outcome) -> None:
    async with served(saying(b"HTTP/1.1 %d X\r\n\r\n" % code)) as (port, _):
        assert await ask(prober, port, HttpGet()) == Answer(outcome, f"HTTP status {code}, expected 200-399")


async def test_the_expected_codes_decide_alone(prober: SocketProber) -> None:
    question = HttpGet(codes=((404, 404), (500, 503)))
    async with served(saying(b"HTTP/1.1 503 X\r\n\r\n")) as (port, _):
        assert await ask(prober, port, question) == GOOD
    async with served(saying(OK)) as (port, _):
        assert (await ask(prober, port, question)).said == "HTTP status 200, expected 404, 500-503"


async def test_path_and_host_are_asked_for(prober: SocketProber) -> None:
    async with served(saying(OK)) as (port, seen):
        assert await ask(prober, port, HttpGet("/ready?deep=1", "shop.example.org")) == GOOD
        assert await ask(prober, port, HttpGet(host="fd00::1")) == GOOD
        assert b"\r\n".join(seen.requests[0].split(b"\r\n")[:2]) == (
            b"GET /ready?deep=1 HTTP/1.1\r\nHost: shop.example.org"
        )
        assert seen.requests[1].split(b"\r\n")[1] == b"Host: [fd00::1]"


async def test_a_redirect_in_circles_is_not_followed(prober: SocketProber) -> None:
    async with served(saying(b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n")) as (port, seen):
        assert await ask(prober, port, HttpGet(codes=((200, 200),))) == Answer(
            Outcome.BAD, "HTTP status 302, expected 200"
        )
        await until("its end", lambda: seen.ends)
        assert len(seen.requests) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (servers.silent, "no answer within 0.5 s"),
        (servers.resetting, "the connection was closed without an answer"),
        (servers.half_closing(b""), "the connection was closed without an answer"),
        (servers.saying_for_ever(b"", b"x" * 65536), "the answer is not HTTP"),
        (saying(b"SSH-2.0-OpenSSH_9.2\r\n"), "the answer is not HTTP"),
    ],
)
async def test_what_is_no_answer_is_said(prober: SocketProber, answer: Behaviour, said: str) -> None:
    async with served(answer) as (port, _):
        assert await ask(prober, port, HttpGet(), LIMIT) == Answer(Outcome.BAD, said)


async def test_huge_and_endless_answers_are_good_by_their_first_line(prober: SocketProber) -> None:
    async with served(servers.saying_for_ever(OK, b"x" * 65536)) as (port, _):
        assert await ask(prober, port, HttpGet()) == GOOD


# HTTPS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "checks")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("strangers"), "stranger")


def context(pair: KeyPair, *protocols: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pair.certificate, pair.key)
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


def issue(authority: Authority, *hosts: str, lifetime: dt.timedelta = dt.timedelta(days=1)) -> KeyPair:
    return authority.issue("server", common_name="server", hosts=hosts, lifetime=lifetime)


def verified(authority: Authority, host: str = "") -> HttpGet:
    pem = authority.files.certificate.read_text(encoding="ascii")
    return HttpGet("/", host, tls=Tls(verify=True, authority=pem))


async def test_https_by_name_and_by_address(prober: SocketProber, authority: Authority) -> None:
    async with served(saying(OK), context(issue(authority, "shop.example.org", str(HERE)))) as (port, seen):
        assert await ask(prober, port, verified(authority, "shop.example.org")) == GOOD
        assert await ask(prober, port, verified(authority)) == GOOD
        assert await ask(prober, port, HttpGet(tls=Tls())) == GOOD
        assert b"Host: shop.example.org\r\n" in seen.requests[0]


async def test_https_answers_are_judged_as_http_ones(prober: SocketProber, authority: Authority) -> None:
    tls = context(issue(authority, str(HERE)))
    async with served(saying(b"HTTP/1.1 500 X\r\n\r\n"), tls) as (port, _):
        assert (await ask(prober, port, HttpGet(tls=Tls()))).said == "HTTP status 500, expected 200-399"
    async with served(servers.silent, tls) as (port, _):
        assert (await ask(prober, port, HttpGet(tls=Tls()), LIMIT)).said == "no answer within 0.5 s"
    async with served(servers.saying_for_ever(b"", b"x" * 65536), tls) as (port, _):
        assert (await ask(prober, port, HttpGet(tls=Tls()), LIMIT)).said == "the answer is not HTTP"


async def test_a_wrong_name_is_refused_where_it_is_to_be_checked_and_only_there(
    prober: SocketProber, authority: Authority
) -> None:
    async with served(saying(OK), context(issue(authority, "other.example.org"))) as (port, _):
        answer = await ask(prober, port, verified(authority, "shop.example.org"))
        assert answer.outcome is Outcome.BAD
        assert "not valid: Hostname mismatch" in answer.said
        assert "IP address mismatch" in (await ask(prober, port, verified(authority))).said
        assert await ask(prober, port, HttpGet(tls=Tls())) == GOOD


async def test_an_expired_certificate(prober: SocketProber, authority: Authority) -> None:
    pair = issue(authority, str(HERE), lifetime=dt.timedelta(minutes=-1))
    async with served(saying(OK), context(pair)) as (port, _):
        answer = await ask(prober, port, verified(authority))
        assert answer == Answer(Outcome.BAD, "the certificate is not valid: certificate has expired")
        assert await ask(prober, port, HttpGet(tls=Tls())) == GOOD


async def test_a_certificate_of_another_authority_and_one_that_the_system_does_not_know(
    prober: SocketProber, authority: Authority, stranger: Authority
) -> None:
    async with served(saying(OK), context(issue(stranger, str(HERE)))) as (port, _):
        assert "the certificate is not valid" in (await ask(prober, port, verified(authority))).said
        assert "the certificate is not valid" in (await ask(prober, port, HttpGet(tls=Tls(verify=True)))).said


async def test_tls_of_a_server_without(prober: SocketProber) -> None:
    async with served(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), until=b"") as (port, _):
        assert (await ask(prober, port, HttpGet(tls=Tls()))).said.startswith("TLS failed: ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (servers.silent, "no answer within 0.5 s"),
        (servers.half_closing(b""), "the connection was closed during the TLS handshake"),
        # A record's header, and nothing in it for ever: the bound of what is read, or the time, ends it.
        (servers.saying_for_ever(b"", b"\x16\x03\x03\x00\x01\x0b"), None),
    ],
)
async def test_a_handshake_that_does_not_come_about(prober: SocketProber, answer: Behaviour, said: str | None) -> None:
    async with served(answer, until=b"") as (port, _):
        found = await ask(prober, port, HttpGet(tls=Tls()), LIMIT)
        assert found.outcome is Outcome.BAD
        assert said is None or found.said == said


# gRPC


@contextlib.asynccontextmanager
async def grpc_server(
    *services: tuple[str, health_pb2.HealthCheckResponse.ServingStatus.ValueType],
    credentials: grpc.ServerCredentials | None = None,
    register: bool = True,
) -> AsyncIterator[int]:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # there is one; it has no types
    if register:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    for name, status in services:
        await servicer.set(name, status)
    where = f"{HERE}:0"
    port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def test_grpc_of_a_server_and_of_its_services(prober: SocketProber) -> None:
    async with grpc_server(("", SERVING), ("shop.Cart", SERVING), ("shop.Pay", NOT_SERVING)) as port:
        assert await ask(prober, port, GrpcHealth()) == GOOD
        assert await ask(prober, port, GrpcHealth("shop.Cart", "shop.example.org")) == GOOD
        assert await ask(prober, port, GrpcHealth("shop.Pay")) == Answer(
            Outcome.BAD, "the health service says NOT_SERVING"
        )
        assert await ask(prober, port, GrpcHealth("shop.Gone")) == Answer(
            Outcome.BAD, 'the health service does not know the service "shop.Gone"'
        )


async def test_grpc_without_a_health_service(prober: SocketProber) -> None:
    async with grpc_server(register=False) as port:
        assert await ask(prober, port, GrpcHealth()) == Answer(
            Outcome.BAD, "the server has no health service (grpc.health.v1.Health)"
        )


async def test_grpc_over_tls(prober: SocketProber, authority: Authority, stranger: Authority) -> None:
    pair = issue(authority, "shop.example.org")
    credentials = grpc.ssl_server_credentials([(pair.key.read_bytes(), pair.certificate.read_bytes())])
    pem = authority.files.certificate.read_text(encoding="ascii")
    strangers = stranger.files.certificate.read_text(encoding="ascii")
    async with grpc_server(("", SERVING), credentials=credentials) as port:
        assert await ask(prober, port, GrpcHealth("", "shop.example.org", Tls(verify=True, authority=pem))) == GOOD
        assert await ask(prober, port, GrpcHealth(tls=Tls())) == GOOD
        answer = await ask(prober, port, GrpcHealth("", "shop.example.org", Tls(verify=True, authority=strangers)))
        assert "the certificate is not valid" in answer.said
        assert (await ask(prober, port, GrpcHealth(), LIMIT)).outcome is Outcome.BAD


async def test_a_server_of_http_1_is_told_from_a_silent_one(prober: SocketProber) -> None:
    async with served(saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"), until=b"") as (port, _):
        assert await ask(prober, port, GrpcHealth()) == Answer(Outcome.BAD, "the answer is not HTTP/2")


@pytest.mark.parametrize(
    "answer",
    [
        servers.saying_for_ever(b"", b"garbage!" * 1000),
        servers.saying_for_ever(b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\0\0\0\0\0"),  # SETTINGS without end
        servers.saying_for_ever(b"\0\0\0\4\0\0\0\0\0", b"\0\0\x08\6\0\0\0\0\0pingpong"),
        servers.half_closing(b"\0\0\0\4\0\0\0\0\0"),
        servers.half_closing(b""),
        servers.resetting,
        servers.silent,
    ],
)
async def test_what_is_no_http2_or_no_answer_is_a_failure_in_time(prober: SocketProber, answer: Behaviour) -> None:
    loop = asyncio.get_running_loop()
    async with served(answer, until=b"") as (port, _):
        began = loop.time()
        found = await ask(prober, port, GrpcHealth(), LIMIT)
        assert found.outcome is Outcome.BAD
        assert found.said
        assert loop.time() - began < 5
