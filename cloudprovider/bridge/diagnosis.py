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
from cloudprovider.bridge.certificates import KeyPair
from cloudprovider.bridge.inspection import certificates, is_signed_by
from cloudprovider.bridge.tlsfiles import CLIENT, TlsFiles, TlsMaterial, TlsPaths
from cloudprovider.core.errors import BridgeError, ConfigurationError

TIMEOUT = 5.0
"""Seconds for the name, the connection and the handshake together."""
_ALERT_TIMEOUT = 1.0
"""Seconds to wait for an alert: in TLS 1.3 the server judges the client's certificate after the client is done."""

_DATE = "%Y-%m-%dT%H:%M:%SZ"
_ANEW = "have the host's operator issue it anew (cloudprovider tenant server-certificate)"
_STRANGER = (
    "the CA in {ca} has not signed it: use the address of the right host, or have that host's operator issue this"
    " guest's Secret anew (cloudprovider tenant rotate)"
)
_OTHER_NAME = (
    "it is not for {name}: reach the bridge by one of the certificate's names, or have the host's operator issue it for"
    " this one too (cloudprovider tenant server-certificate)"
)
_OTHER_REFUSAL = "check the CA file {ca}, and that the address is one of the certificate's names"
_REFUSALS = {
    9: "by the clock here it is {now}: set the clocks right",
    10: f"by the clock here it is {{now}}: {_ANEW}, or set the clock right",
    18: _STRANGER,
    19: _STRANGER,
    20: _STRANGER,
    26: f"it is not made for servers; is it a guest's? {_ANEW[0].upper()}{_ANEW[1:]}",
    62: _OTHER_NAME,
    64: _OTHER_NAME,
}
"""What X.509 verification says, by OpenSSL's numbers (x509_vfy.h: X509_V_ERR_*)."""

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
        own = TlsFiles(paths, CLIENT).load()
    except ConfigurationError as e:
        return _certificate(str(e), Reason.CERTIFICATE_INVALID)
    paths = own.paths
    path = paths.certificate
    if now >= own.not_after:
        return _certificate(
            f"the client certificate {path} has expired at {own.not_after:{_DATE}}, and by the clock here it is"
            f" {now:{_DATE}}: renew it (cloudprovider tenant rotate), or set the clock right",
            Reason.CERTIFICATE_EXPIRED,
        )
    if now < own.not_before:
        return _certificate(
            f"the client certificate {path} is not valid before {own.not_before:{_DATE}}, and by the clock here it is"
            f" {now:{_DATE}}: set the clock right here, or where it was made",
            Reason.CERTIFICATE_EXPIRED,
        )
    host, _, port = target.rpartition(":")
    try:
        async with asyncio.timeout(TIMEOUT):
            return await _handshake(host.strip("[]"), int(port), server_name, own, now)
    except TimeoutError:
        return _unavailable(f"{target} does not answer within {TIMEOUT:.0f} s: is there a firewall between?")
    except ConnectionRefusedError:
        return _unavailable(f"nothing listens on {target}: does the host's program run, and is the address right?")
    except socket.gaierror as e:
        return _unavailable(f"the bridge's name {host!r} can't be resolved: {e.strerror}")
    except ssl.SSLCertVerificationError as e:
        meaning = _REFUSALS.get(e.verify_code, _OTHER_REFUSAL)
        said = meaning.format(name=server_name or host.strip("[]"), ca=paths.ca, now=f"{now:{_DATE}}")
        return _certificate(
            f"the certificate that {target} shows is not accepted ({e.verify_message}): {said}",
            Reason.CERTIFICATE_INVALID,
        )
    except ssl.SSLError as e:
        return _alert(target, e)
    except OSError as e:
        return _unavailable(f"no connection to {target}: {e.strerror or e}")


async def _handshake(host: str, port: int, server_name: str, own: TlsMaterial, now: datetime) -> BridgeError | None:
    paths = own.paths
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
            f" client certificate {paths.certificate}: {_why_refused(own, now)}",
            reason=Reason.CERTIFICATE_INVALID,
        )
    finally:
        writer.transport.abort()
    return None


def _why_refused(own: TlsMaterial, now: datetime) -> str:
    """Who has been checked here already is well made: what is left are the host's CA and the host's clock."""
    dates = f"from {own.not_before:{_DATE}} to {own.not_after:{_DATE}}"
    if is_signed_by(KeyPair(own.certificate, own.key), certificates(own.ca)):
        return (
            f"it is valid {dates}, and by the clock here it is {now:{_DATE}}: set the host's clock right, or have the"
            " bridge trust the CA that has signed it"
        )
    return (
        "it must be signed by a CA that the bridge trusts, and the one that has signed the bridge's did not sign it:"
        f" have the host's operator issue it anew (cloudprovider tenant rotate); and be valid, {dates}, by the host's"
        " clock"
    )


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
