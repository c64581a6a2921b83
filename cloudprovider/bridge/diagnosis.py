"""What is wrong when gRPC says no more than "UNAVAILABLE: Socket closed".

gRPC tells a wrong, an expired and a missing client certificate, a server that is not there and one that is no bridge
by the same words. So the usual causes are looked at one by one: the own certificate's dates, the name, and one bare TLS
handshake. A gRPC server that does not like the client's certificate sends no alert (seen with 1.85): it just closes
after the handshake, where it would else send its SETTINGS. A proxy before it may send one (RFC 8446, section 6).
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from cloudprovider.bridge.api import Reason
from cloudprovider.bridge.tlsfiles import TlsFiles, TlsPaths
from cloudprovider.core.errors import BridgeError, ConfigurationError

TIMEOUT = 5.0
"""Seconds for the name, the connection and the handshake together."""
_ALERT_TIMEOUT = 1.0
"""Seconds to wait for an alert: in TLS 1.3 the server judges the client's certificate after the client is done."""

_ALERTS = {
    "UNKNOWN_CA": "the client certificate is not signed by the CA that the bridge trusts: issue one from that CA",
    "CERTIFICATE_EXPIRED": "the bridge says the client certificate has expired: renew it, or set the clocks right",
    "CERTIFICATE_REQUIRED": "the bridge wants a client certificate, and got none",
    "BAD_CERTIFICATE": "the bridge can't read the client certificate",
    "DECRYPT_ERROR": "the client certificate's signature does not fit the CA that the bridge trusts: issue one from it",
    "UNSUPPORTED_CERTIFICATE": "the client certificate is not made for clients (extended key usage): issue one that is",
    "CERTIFICATE_UNKNOWN": "the bridge does not accept the client certificate",
    "PROTOCOL_VERSION": "the bridge does not speak TLS 1.3",
    "NO_APPLICATION_PROTOCOL": "what listens there speaks no HTTP/2: is it the bridge?",
}


async def diagnose(target: str, paths: TlsPaths, now: datetime, server_name: str = "") -> BridgeError | None:
    """Return what keeps a connection to ``target`` ("HOST:PORT") from working, None if a handshake goes through.

    What a person has to mend comes as not retryable only where the own side alone is at fault.
    """
    try:
        own = TlsFiles(paths).load()
    except ConfigurationError as e:
        return _certificate(str(e), Reason.CERTIFICATE_INVALID)
    path = paths.certificate
    if now >= own.not_after:
        return _certificate(
            f"the client certificate {path} has expired at {own.not_after:%Y-%m-%dT%H:%M:%SZ}: renew it",
            Reason.CERTIFICATE_EXPIRED,
        )
    if now < own.not_before:
        return _certificate(
            f"the client certificate {path} is not valid before {own.not_before:%Y-%m-%dT%H:%M:%SZ}, and here it is"
            f" {now:%Y-%m-%dT%H:%M:%SZ}: set the clock right",
            Reason.CERTIFICATE_EXPIRED,
        )
    host, _, port = target.rpartition(":")
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _handshake(host.strip("[]"), int(port), paths, server_name)
    except TimeoutError:
        return _unavailable(f"{target} does not answer within {TIMEOUT:.0f} s: is there a firewall between?")
    except ConnectionRefusedError:
        return _unavailable(f"nothing listens on {target}: does the host's program run, and is the address right?")
    except socket.gaierror as e:
        return _unavailable(f"the bridge's name {host!r} can't be resolved: {e.strerror}")
    except ssl.SSLCertVerificationError as e:
        return _certificate(
            f"the certificate that {target} shows is not accepted ({e.verify_message}): check the CA file"
            f" {paths.ca}, and that the address is one of the certificate's names",
            Reason.CERTIFICATE_INVALID,
        )
    except ssl.SSLError as e:
        return _alert(target, e)
    except OSError as e:
        return _unavailable(f"no connection to {target}: {e.strerror or e}")


async def _handshake(host: str, port: int, paths: TlsPaths, server_name: str) -> BridgeError | None:
    context = ssl.create_default_context(cafile=str(paths.ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(paths.certificate, paths.key)
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=server_name or host)
    reader, writer = await asyncio.open_connection(host, port)

    async def drive(step: Callable[[], object]) -> None:
        # By hand: asyncio's own TLS gives an alert that comes together with the connection's end as an end alone.
        while True:
            try:
                step()
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                data = await reader.read(65536)
                incoming.write(data)
                if not data:
                    incoming.write_eof()
            else:
                writer.write(outgoing.read())
                return

    shaken = False
    try:
        await drive(tls.do_handshake)
        shaken = True
        # The server's SETTINGS frame, or its alert. Silence is fine too.
        with suppress(TimeoutError):
            async with asyncio.timeout(_ALERT_TIMEOUT):
                await drive(lambda: tls.read(1))
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
        if not shaken:
            return _unavailable(f"{host}:{port} closes the connection during the TLS handshake: is it the bridge?")
        # Retryable: a server that is just ending looks the same.
        return BridgeError(
            f"{host}:{port} closes the connection after the TLS handshake, as the bridge does when it refuses the"
            f" client certificate {paths.certificate}: it must be signed by the CA that the bridge trusts,"
            " be made for clients (extended key usage), and be valid by the host's clock",
            reason=Reason.CERTIFICATE_INVALID,
        )
    finally:
        writer.transport.abort()
    return None


def _alert(target: str, error: ssl.SSLError) -> BridgeError:
    reason = error.reason or ""
    for name, meaning in _ALERTS.items():
        if reason.endswith(f"ALERT_{name}") or reason == name:
            expired = name == "CERTIFICATE_EXPIRED"
            return _certificate(
                f"{target}: {meaning}", Reason.CERTIFICATE_EXPIRED if expired else Reason.CERTIFICATE_INVALID
            )
    return _unavailable(f"the TLS handshake with {target} fails: {reason or error}")


def _certificate(message: str, reason: Reason) -> BridgeError:
    return BridgeError(message, reason=reason, retryable=False)


def _unavailable(message: str) -> BridgeError:
    return BridgeError(message, reason=Reason.UNAVAILABLE)
