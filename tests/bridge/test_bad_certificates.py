"""What can be wrong with certificates and clocks, on either side: one sentence says what is wrong and what to do."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from cloudprovider.bridge.api import Reason
from cloudprovider.bridge.certificates import CLOCK_SKEW, issue_server
from cloudprovider.bridge.client import ClientConfig, GrpcBridge
from cloudprovider.bridge.server import BridgeServer, ServerConfig
from cloudprovider.bridge.tlsfiles import CLIENT, TlsFiles, TlsPaths
from cloudprovider.core.errors import ConfigurationError
from tests.bridge.conftest import HELLO, Bridge
from tests.bridge.test_server import refused
from tests.bridge.tls import DAY, DOMAIN, Authority, now

TEN_MINUTES = timedelta(minutes=10)


def one_sentence(error: Exception, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert ". " not in text, "one sentence"
    for word in words:
        assert word in text, text


# --- files, before anybody is called -------------------------------------------------------------------------------


def _missing(paths: TlsPaths, _: Authority) -> None:
    paths.key.unlink()


def _other_key(paths: TlsPaths, authority: Authority) -> None:
    paths.key.write_bytes(authority.client().key)


def _servers(paths: TlsPaths, authority: Authority) -> None:
    authority.write("client", authority.server())


def _garbage(paths: TlsPaths, _: Authority) -> None:
    paths.certificate.write_text("nothing")


BAD_FILES: dict[str, tuple[Callable[[TlsPaths, Authority], None], tuple[str, ...]]] = {
    "missing key": (_missing, ("client.key", "No such file", "tls.key")),
    "another key": (_other_key, ("client.key", "does not belong to the certificate", "issued anew")),
    "the bridge's certificate": (_servers, ("client.crt", "not made for clients", "cloudprovider tenant create")),
    "garbage": (_garbage, ("client.crt", "no PEM certificate")),
}


@pytest.mark.parametrize(("spoil", "words"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_guests_files(tmp_path: Path, spoil: Callable[[TlsPaths, Authority], None], words: tuple[str, ...]) -> None:
    authority = Authority.make(tmp_path)
    paths = authority.write("client", authority.client())
    TlsFiles(paths, CLIENT).load()
    spoil(paths, authority)
    with pytest.raises(ConfigurationError) as e:
        TlsFiles(paths, CLIENT).load()
    one_sentence(e.value, *words)


async def test_a_guests_certificate_for_the_bridge(bridge: Bridge) -> None:
    paths = bridge.authority.write("wrong", bridge.authority.client())
    with pytest.raises(ConfigurationError) as e:
        BridgeServer(ServerConfig(listen="127.0.0.1:0", tls=paths, trust_domain=DOMAIN), bridge.backend)._files.load()
    one_sentence(e.value, "wrong.crt", "not made for servers", "cloudprovider tenant server-certificate")


def test_of_two_the_one_that_was_issued_last_is_used(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    shipped = authority.write("shipped", authority.client(made=now() - DAY / 2))
    renewed = authority.write("renewed", authority.client())
    files = TlsFiles(replace(shipped, renewed=renewed), CLIENT)
    assert files.load().paths == renewed
    assert files.changed() is None
    authority.write("shipped", authority.client(made=now() + DAY / 24))
    again = files.changed()
    assert again is not None
    assert again.paths.certificate == shipped.certificate, "an operator's new one counts"
    renewed.key.unlink()
    assert files.load().paths.certificate == shipped.certificate
    nothing = TlsPaths(*(tmp_path / "empty" / name for name in ("tls.crt", "tls.key", "ca.crt")))
    assert TlsFiles(replace(shipped, renewed=nothing), CLIENT).load().certificate


# --- clocks --------------------------------------------------------------------------------------------------------


def client_at(bridge: Bridge, paths: TlsPaths, late: timedelta) -> GrpcBridge:
    config = ClientConfig(target=f"127.0.0.1:{bridge.port}", tls=paths, hello=HELLO)
    client = GrpcBridge(config, now=lambda: now() - late)
    bridge.stack.push_async_callback(client.close)
    return client


async def test_a_host_whose_clock_is_ten_minutes_late(bridge: Bridge) -> None:
    """It takes a new certificate for one of the future: certificates begin only five minutes before they are made. (TLS
    goes by the machine's clock; a certificate from ten minutes ahead is the same to it.)"""
    assert CLOCK_SKEW < TEN_MINUTES
    paths = bridge.authority.write("client", bridge.authority.client(made=now() + TEN_MINUTES))
    error = await refused(client_at(bridge, paths, late=-TEN_MINUTES))
    assert error.reason == Reason.CERTIFICATE_INVALID
    one_sentence(error, str(paths.certificate), "by the clock here", "set the host's clock right")


async def test_a_guest_whose_clock_is_ten_minutes_late(bridge: Bridge) -> None:
    # A certificate of now is one of the future there; that TLS refuses it is up to the machine's clock, as above.
    paths = bridge.authority.write("client", bridge.authority.client(made=now() + timedelta(minutes=6)))
    error = await refused(client_at(bridge, paths, late=TEN_MINUTES))
    assert (error.reason, error.retryable) == (Reason.CERTIFICATE_EXPIRED, False)
    one_sentence(error, str(paths.certificate), "is not valid before", "by the clock here", "set the clock right")


async def test_a_few_minutes_are_no_trouble(bridge: Bridge) -> None:
    paths = bridge.authority.write("client", bridge.authority.client(made=now() + CLOCK_SKEW / 2))
    assert (await bridge.client(paths).connect()).max_ports


async def test_an_expired_one(bridge: Bridge) -> None:
    paths = bridge.authority.write("client", bridge.authority.client(made=now() - 3 * DAY))
    error = await refused(bridge.client(paths))
    assert error.reason == Reason.CERTIFICATE_EXPIRED
    one_sentence(error, str(paths.certificate), "has expired at", "cloudprovider tenant rotate", "clock")


# --- the bridge's certificate, as a guest sees it ------------------------------------------------------------------


async def restarted(bridge: Bridge) -> GrpcBridge:
    await bridge.stop()
    await bridge.start(bridge.port)
    return bridge.client()


async def test_a_bridge_whose_certificate_is_for_other_names(bridge: Bridge) -> None:
    bridge.authority.write("server", bridge.authority.server("198.51.100.7", "bridge.example"))
    error = await refused(await restarted(bridge))
    one_sentence(error, "it is not for 127.0.0.1", "cloudprovider tenant server-certificate")


async def test_a_bridge_of_another_ca(bridge: Bridge) -> None:
    foreign = Authority.make(bridge.authority.folder / "foreign")
    paths = bridge.authority.write("client", bridge.authority.client(), ca=foreign.ca)
    error = await refused(bridge.client(paths))
    one_sentence(error, str(paths.ca), "has not signed it", "right host", "cloudprovider tenant rotate")


@pytest.mark.parametrize(
    ("made", "says"),
    [(now() - 3 * DAY, ("expired", "issue it anew")), (now() + DAY, ("not yet valid", "set the clocks right"))],
)
async def test_a_bridge_whose_certificate_is_of_another_time(
    bridge: Bridge, made: datetime, says: tuple[str, ...]
) -> None:
    bridge.authority.write("server", issue_server(bridge.authority.ca, ["127.0.0.1"], now=made, validity=DAY))
    error = await refused(await restarted(bridge))
    one_sentence(error, "by the clock here it is", *says)


async def test_a_guest_of_another_ca(bridge: Bridge) -> None:
    foreign = Authority.make(bridge.authority.folder / "foreign")
    paths = foreign.write("client", foreign.client(), ca=bridge.authority.ca)
    error = await refused(bridge.client(paths))
    one_sentence(error, str(paths.certificate), "did not sign it", "cloudprovider tenant rotate")


# --- nobody there, or another version -------------------------------------------------------------------------------


async def test_a_guest_before_its_host(bridge: Bridge) -> None:
    client = bridge.client()
    await bridge.stop()
    error = await refused(client)
    assert error.retryable
    one_sentence(error, f"nothing listens on 127.0.0.1:{bridge.port}", "does the host's program run")
