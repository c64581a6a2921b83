"""A plain client of an API server for the lab's own use: JSON in, JSON out, blocking.

It is not the project's client (``cloudprovider.kube``) on purpose: what checks the programs shares no code with them.
"""

import contextlib
import http.client
import json
import select
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object or list as JSON gives it."""

REQUEST_LIMIT_SECONDS = 15.0
WATCH_LIMIT_SECONDS = 300

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The server refused; ``status`` is HTTP's, ``reason`` the Status object's."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """One API server as one user sees it. Threads may share it: each has a connection of its own."""

    def __init__(self, url: str, ca: Path, *, certificate: Path | None = None, key: Path | None = None) -> None:
        parsed = urllib.parse.urlsplit(url)
        if parsed.hostname is None or parsed.port is None:
            raise ValueError(f"{url!r} is not of the form https://HOST:PORT")
        self._host, self._port = parsed.hostname, parsed.port
        self._context = ssl.create_default_context(cafile=str(ca))
        if certificate is not None:
            self._context.load_cert_chain(certificate, key)
        self._local = threading.local()
        self._ca = ca
        self._pair = (certificate, key)
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPSConnection] = set()
        self._closed = False

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One request. Raises ApiError when refused, OSError when there is no answer. Nothing is repeated, except
        reads on a kept connection that the server has closed meanwhile."""
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        payload = None if body is None else json.dumps(body)
        headers = {"Accept": "application/json"} | ({"Content-Type": content_type} if payload is not None else {})
        kept: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        self._local.connection = None  # only a connection that has answered well is kept
        if kept is not None and _ended(kept):
            self._disconnect(kept)
            kept = None
        connection = kept or self._connect(REQUEST_LIMIT_SECONDS)
        try:
            try:
                connection.request(method, target, payload, headers)
                response = connection.getresponse()
            except (http.client.RemoteDisconnected, ConnectionError):
                self._disconnect(connection)
                if kept is None or method != "GET":
                    raise
                connection = self._connect(REQUEST_LIMIT_SECONDS)
                connection.request(method, target, payload, headers)
                response = connection.getresponse()
            data = response.read()
        except BaseException as error:
            self._disconnect(connection)
            if isinstance(error, http.client.HTTPException):
                raise ConnectionError(f"{method} {path}: {error!r}") from error
            raise
        self._local.connection = connection
        return _decoded(method, path, response.status, data)

    def _connect(self, timeout: float) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(self._host, self._port, context=self._context, timeout=timeout)
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("this client is closed")
            self._open.add(connection)
        return connection

    def _disconnect(self, connection: http.client.HTTPSConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def release(self) -> None:
        """Close the calling thread's connection: for a thread that ends before the client does."""
        connection: http.client.HTTPSConnection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            self._disconnect(connection)

    def close(self) -> None:
        """Close every thread's connections; calls and watches under way, and later ones, raise OSError."""
        with self._lock:
            self._closed = True
            connections = list(self._open)
        for connection in connections:
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)  # wakes whoever reads from it
        self.release()

    def sibling(self) -> "Api":
        """Another client with the same rights, to be closed on its own."""
        return Api(
            f"https://{_bracketed(self._host)}:{self._port}", self._ca, certificate=self._pair[0], key=self._pair[1]
        )

    def get(self, path: str) -> Object:
        return self.request("GET", path)

    def find(self, path: str) -> Object | None:
        """Like :meth:`get`, None where there is nothing."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == http.client.NOT_FOUND:
                return None
            raise

    def items(self, path: str, **query: str) -> list[Object]:
        """The objects of a list."""
        found: list[Object] = self.request("GET", path, query=query)["items"]
        return found

    def create(self, path: str, body: Object) -> Object:
        return self.request("POST", path, body)

    def replace(self, path: str, body: Object) -> Object:
        return self.request("PUT", path, body)

    def patch(self, path: str, body: Object, *, content_type: str = MERGE_PATCH) -> Object:
        return self.request("PATCH", path, body, content_type=content_type)

    def apply(self, path: str, body: Object, *, manager: str = "lab") -> Object:
        """Server-side apply with force."""
        query = {"fieldManager": manager, "force": "true"}
        return self.request("PATCH", path, body, query=query, content_type="application/apply-patch+yaml")

    def delete(self, path: str, *, grace_seconds: int | None = None) -> bool:
        """Delete; False when there was nothing."""
        body = None if grace_seconds is None else {"gracePeriodSeconds": grace_seconds}
        try:
            self.request("DELETE", path, body)
        except ApiError as error:
            if error.status == http.client.NOT_FOUND:
                return False
            raise
        return True

    def watch(self, path: str, resource_version: str) -> Iterator[Object]:
        """Yield events until the server ends the watch (after five minutes at most). Raises ApiError 410 as soon as
        the version is too old, OSError when the connection breaks."""
        query = {"watch": "true", "resourceVersion": resource_version, "allowWatchBookmarks": "true"}
        query["timeoutSeconds"] = str(WATCH_LIMIT_SECONDS)
        connection = self._connect(WATCH_LIMIT_SECONDS + REQUEST_LIMIT_SECONDS)
        try:
            connection.request("GET", f"{path}?{urllib.parse.urlencode(query)}")
            response = connection.getresponse()
            if response.status != http.client.OK:
                _decoded("WATCH", path, response.status, response.read())
            while line := response.readline():
                if not line.endswith(b"\n"):
                    raise ConnectionResetError(f"WATCH {path}: broken off within an event")
                try:
                    event: Object = json.loads(line)
                except ValueError as error:  # the other end died under the read, and what came is no event
                    raise ConnectionResetError(f"WATCH {path}: broken off within an event") from error
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(f"WATCH {path}: {status.get('message')}", status.get("code", 0), status["reason"])
                yield event
        except http.client.HTTPException as error:
            raise ConnectionError(f"WATCH {path}: {error!r}") from error
        finally:
            self._disconnect(connection)


def _ended(connection: http.client.HTTPSConnection) -> bool:
    """Whether the server has closed a connection that waits for a request: nothing else can be there to read."""
    return connection.sock is None or bool(select.select([connection.sock], [], [], 0)[0])


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _decoded(method: str, path: str, status: int, data: bytes) -> Object:
    if status < http.client.BAD_REQUEST:
        result: Object = json.loads(data) if data.startswith(b"{") else {"text": data.decode()}
        return result
    try:
        told = json.loads(data)
        message, reason = told.get("message", ""), told.get("reason", "")
    except ValueError:
        message, reason = data.decode(errors="replace"), ""
    raise ApiError(f"{method} {path}: {status} {message}", status, reason)
