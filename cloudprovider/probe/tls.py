"""TLS around what is said in a probe, without any I/O."""

import ssl
from functools import lru_cache
from typing import Final

from cloudprovider.core.health import Answer
from cloudprovider.core.questions import Tls
from cloudprovider.probe.exchange import Exchange, bad

_AT_ONCE: Final = 16384


class TlsExchange:
    """Says what ``inner`` says. Meets :class:`~cloudprovider.probe.exchange.Exchange`."""

    def __init__(self, inner: Exchange, context: ssl.SSLContext, name: str) -> None:
        """``name``: the server's, or its address."""
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._agreed = False

    def begin(self) -> bytes:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        self._shake_hands()
        return self.take()

    def receive(self, data: bytes, *, ended: bool) -> Answer | None:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        self._incoming.write(data)
        if ended:
            self._incoming.write_eof()
        try:
            if not self._agreed:
                self._shake_hands()
            return self._read(ended=ended) if self._agreed else None
        except ssl.SSLCertVerificationError as error:
            return bad(f"the certificate is not valid: {error.verify_message.rstrip('.')}")
        except ssl.SSLEOFError:
            return bad("the connection was closed during the TLS handshake")
        except ssl.SSLError as error:
            return bad(f"TLS failed: {(error.reason or 'protocol error').replace('_', ' ').lower()}")

    def take(self) -> bytes:
        """See :class:`~cloudprovider.probe.exchange.Exchange`."""
        return self._outgoing.read()

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        self._agreed = True
        self._tls.write(self._inner.begin())

    def _read(self, *, ended: bool) -> Answer | None:
        while True:
            try:
                data = self._tls.read(_AT_ONCE)
            except ssl.SSLWantReadError:
                return None
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                data = b""
            answer = self._inner.receive(data, ended=not data)
            if answer is not None or not data:
                return answer
            if out := self._inner.take():
                self._tls.write(out)


@lru_cache(maxsize=64)
def context_of(tls: Tls, *protocols: str) -> ssl.SSLContext:
    """A context, made once: reading the system's certificates takes tens of milliseconds. ``protocols``: by ALPN.

    Raises ValueError where the authority's certificate is none.
    """
    if not tls.verify:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        try:
            context = ssl.create_default_context(cadata=tls.authority or None)
        except (ssl.SSLError, ValueError) as error:
            raise ValueError("certificateAuthority is no certificate in PEM") from error
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context
