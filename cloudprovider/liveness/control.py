"""The messages of bfdd's control socket: a header of eight bytes (length of the rest, number, type, version), then
JSON. Source: bfdd/bfdctl.h and bfdd/config.c of FRR 8.4.

Debian 12 has FRR 8.4. FRR took the socket away in July 2024: its later versions tell of a session only through zebra.
"""

import struct
from collections.abc import Collection
from typing import Final

import msgspec

from cloudprovider.core.plan import IPAddress

_HEADER: Final = struct.Struct("!IHBB")
_VERSION: Final = 1
_LONGEST: Final = 65536
"""Bytes that a message of bfdd can't have: they are about 500."""

_RESPONSE: Final = 1
_ADD: Final = 2
_DELETE: Final = 3
_NOTIFY: Final = 4

DETECTION_EXPIRED: Final = 1
"""Diagnostic (RFC 5880 section 4.1): nothing was heard for as long as was agreed."""


class Status(msgspec.Struct, frozen=True, rename="kebab"):
    """What bfdd tells of a session. ``op``: "status", or "add", "update" and "delete", which tell of settings.
    ``downtime``: seconds, in whole ones."""

    op: str
    peer_address: str
    local_address: str = ""
    state: str = ""
    diagnostics: int = 0
    downtime: int = 0


class Response(msgspec.Struct, frozen=True):
    """What bfdd answers to a request."""

    status: str
    error: str = ""
    number: int = 0


def subscribe(number: int) -> bytes:
    """Tell of all sessions as they are now, and from now on of every change."""
    return _message(number, _NOTIFY, b"\xff" * 8)


def add(number: int, peer: IPAddress, own: IPAddress, *, interval: int, multiplier: int, shutdown: bool) -> bytes:
    """Have a session, or change the one that is there. ``interval``: milliseconds. ``shutdown``: have it, be silent,
    and tell the other so (administratively down)."""
    settings = {
        "peer-address": str(peer),
        "local-address": str(own),
        "detect-multiplier": multiplier,
        "receive-interval": interval,
        "transmit-interval": interval,
        "shutdown": shutdown,
    }
    return _message(number, _ADD, msgspec.json.encode({f"ipv{peer.version}": [settings]}))


def delete(number: int, peer: IPAddress, own: IPAddress) -> bytes:
    """Have a session no more. The other is not told: shut it down before."""
    named = {"peer-address": str(peer), "local-address": str(own)}
    return _message(number, _DELETE, msgspec.json.encode({f"ipv{peer.version}": [named]}))


class Decoder:
    """What comes from bfdd, as it comes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Collection[Status | Response]:
        """Return the messages that are complete now. Raises ValueError for what is none."""
        self._buffer += received
        found: list[Status | Response] = []
        while len(self._buffer) >= _HEADER.size:
            length, number, kind, version = _HEADER.unpack_from(self._buffer)
            if version != _VERSION or length > _LONGEST:
                raise ValueError(f"bfdd sent a message of version {version} and {length} bytes")
            if len(self._buffer) < _HEADER.size + length:
                break
            body = bytes(self._buffer[_HEADER.size : _HEADER.size + length])
            del self._buffer[: _HEADER.size + length]
            if kind == _RESPONSE:
                response = msgspec.json.decode(body, type=Response)
                found.append(msgspec.structs.replace(response, number=number))
            elif kind == _NOTIFY:
                found.append(msgspec.json.decode(body, type=Status))
        return found


def _message(number: int, kind: int, body: bytes) -> bytes:
    return _HEADER.pack(len(body), number, kind, _VERSION) + body
