"""The API server over HTTP: :class:`~cloudprovider.kube.api.KubeClient` on aiohttp and msgspec.

Made for many small requests: typed decoding of just the fields that are read, connections kept and bounded, no
compression (the CPU costs more than the bytes between machines of one rack).
"""

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import AsyncGenerator
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from aiohttp.abc import AbstractCookieJar
from multidict import CIMultiDictProxy
from yarl import URL

from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import Conflict, Invalid, KubeError, Unavailable
from cloudprovider.kube.api import Document, Json, ListResult, Resource, WatchEvent
from cloudprovider.kube.codec import Codec
from cloudprovider.kube.credentials import Credentials
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.status import error_of
from cloudprovider.kube.undeclared import undeclared, without
from cloudprovider.kube.warnings import Warned, warnings_in

T = TypeVar("T", bound=KubeObject)

DEADLINE: Final = 10.0
"""Seconds for one request, answer included."""
CONNECTIONS: Final = 32
"""Connections for requests; every watch has one more of its own."""
PAGE_SIZE: Final = 500
"""Objects in one page of a list, as client-go's pager asks for."""
WATCH_SECONDS: Final = (240, 300)
"""How long the server is asked to keep a watch; drawn anew each time, so that programs don't return together."""
SILENCE_LIMIT: Final = 120.0
"""Seconds without a byte after which a watch ends. Bookmarks come about once a minute; a server that has seen no
change of a kind since it started may send none, and then an ended watch costs one request."""
IDLE_SECONDS: Final = 60.0
"""How long an idle connection is kept: below the API server's own 90 s, so that it is not cut under a request."""

_encode = msgspec.json.Encoder().encode
_JSON: Final = "application/json"
_MERGE: Final = "application/merge-patch+json"
_APPLY: Final = "application/apply-patch+yaml"  # JSON is YAML; every server that knows apply knows this one


_log = logging.getLogger(__name__)


class HttpKubeClient:
    """One API server. Make it inside a running event loop; close it, or use it as an async context manager.

    ``program`` goes into the User-Agent, ``deadline`` is seconds per request (each page of a list is one),
    ``silence_limit`` seconds without a byte after which a watch is given up as dead. ``requests`` counts.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        program: str,
        version: str,
        rng: random.Random,
        deadline: float = DEADLINE,
        silence_limit: float = SILENCE_LIMIT,
        connections: int = CONNECTIONS,
        requests: RequestCounter | None = None,
    ) -> None:
        self.requests = requests if requests is not None else RequestCounter()
        self._credentials = credentials
        self._rng = rng
        self._deadline = deadline
        self._silence_limit = silence_limit
        self._codecs: dict[Resource[Any], Codec[Any]] = {}
        self._undeclared: frozenset[tuple[str, ...]] = frozenset()
        """Fields that definitions did not know, and that was told."""
        headers = {
            "User-Agent": f"cloudprovider/{version} ({program})",
            "Accept": _JSON,
            "Accept-Encoding": "identity",
        }
        self._session = self._new_session(headers, connections)
        # Watches hold their connection for minutes: beside the bound of the others, one for each informer.
        self._watches = self._new_session(headers, 0)

    def _new_session(self, headers: dict[str, str], connections: int) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=connections,
            ssl=self._credentials.ssl or True,
            keepalive_timeout=IDLE_SECONDS,
            socket_factory=_keepalive_socket,
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            cookie_jar=cast("AbstractCookieJar", aiohttp.DummyCookieJar()),
            timeout=aiohttp.ClientTimeout(total=self._deadline),
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()
        await self._watches.close()
        await asyncio.sleep(0)  # transports say that they are closed in the loop's next round

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # -- the contract: see KubeClient for what each call promises ------------------------------------------------

    async def get(self, resource: Resource[T], namespace: str, name: str) -> T:
        """Return one object."""
        return self._codec(resource).object(await self._call("get", resource, namespace, name))

    async def list(
        self, resource: Resource[T], namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ListResult[T]:
        """Return all objects, page by page."""
        query = _selectors(label_selector, field_selector) | {"limit": str(PAGE_SIZE)}
        decode = self._codec(resource).page
        page = decode(await self._call("list", resource, namespace, query=query))
        items, undecodable = page.items, page.undecodable
        while page.next:
            page = decode(await self._call("list", resource, namespace, query=query | {"continue": page.next}))
            items += page.items
            undecodable += page.undecodable
        return ListResult(items, page.resource_version, undecodable)

    async def watch(
        self,
        resource: Resource[T],
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """Yield the changes after ``resource_version``."""
        query = _selectors(label_selector, field_selector) | {
            "watch": "1",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(self._rng.randint(*WATCH_SECONDS)),
        }
        what = f"watch {resource.plural}"
        decode = self._codec(resource).event
        response = await self._open_watch(resource, _path(resource, namespace) + "?" + urlencode(query), what)
        rest = b""
        try:
            while True:
                try:
                    chunk = await response.content.readany()
                except TimeoutError:
                    return  # silent for too long
                except (aiohttp.ClientError, OSError) as error:
                    raise _no_answer(what, error) from error
                if not chunk:
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line and (event := decode(line)) is not None:
                        yield event
        finally:
            _hang_up(response)

    async def create(self, resource: Resource[T], obj: T, *, dry_run: bool = False, warned: Warned | None = None) -> T:
        """Create ``obj``."""
        if obj.metadata.resource_version:
            # The API server answers this with a bare 500, which would look as if trying again could help.
            raise Invalid(f"create {resource.plural} {obj.metadata.name}: resourceVersion is set; it exists already")
        body = _encode(_typed(resource, obj))
        namespace, query = obj.metadata.namespace, _dry(dry_run)
        return self._codec(resource).object(
            await self._call("create", resource, namespace, method="POST", query=query, body=body, warned=warned)
        )

    async def replace(self, resource: Resource[T], obj: T) -> T:
        """Write ``obj`` whole, by compare-and-swap on its resourceVersion."""
        metadata = obj.metadata
        if not metadata.resource_version:
            raise Invalid(
                f"update {resource.plural} {metadata.namespace}/{metadata.name}: it has no resourceVersion; "
                "replace what was read, or create it"
            )
        body = _encode(_typed(resource, obj))
        return self._codec(resource).object(
            await self._call("update", resource, metadata.namespace, metadata.name, method="PUT", body=body)
        )

    async def merge_patch(
        self,
        resource: Resource[T],
        namespace: str,
        name: str,
        patch: Json,
        *,
        subresource: str = "",
        dry_run: bool = False,
        warned: Warned | None = None,
    ) -> T:
        """RFC 7386."""
        answer = await self._call(
            "patch",
            resource,
            namespace,
            name,
            subresource,
            method="PATCH",
            query=_dry(dry_run),
            body=_encode(patch),
            content_type=_MERGE,
            warned=warned,
        )
        return _same_uid(resource, self._codec(resource).object(answer), patch)

    async def apply(
        self,
        resource: Resource[T],
        namespace: str,
        name: str,
        patch: Json,
        *,
        field_manager: str,
        subresource: str = "",
    ) -> T:
        """Server-side apply with force (KEP-555)."""
        metadata = {**patch.get("metadata", {}), "name": name}
        if namespace:
            metadata["namespace"] = namespace
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **patch, "metadata": metadata}
        if subresource == "status" and not body.get("status"):
            # A manager that gives up the last field there is would leave "status: null", which a schema refuses.
            body["status"] = {"conditions": []}

        async def call(body: Json) -> bytes:
            return await self._call(
                "apply",
                resource,
                namespace,
                name,
                subresource,
                method="PATCH",
                query={"fieldManager": field_manager, "force": "true"},
                body=_encode(body),
                content_type=_APPLY,
            )

        try:
            answer = await call(body)
        except KubeError as error:
            paths = undeclared(str(error))
            if not paths:
                raise
            if paths - self._undeclared:
                self._undeclared |= paths
                _log.warning(
                    "The definitions on the cluster are older than this program: a field is left out. Apply"
                    " manifests/crds.",
                    extra={"resource": resource.plural, "fields": sorted(".".join(path) for path in paths)},
                )
            answer = await call(without(body, paths))
        return _same_uid(resource, self._codec(resource).object(answer), patch)

    async def delete(self, resource: Resource[T], namespace: str, name: str, *, uid: str = "") -> None:
        """Ask for deletion; what it owns is collected in the background."""
        options: dict[str, object] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        await self._call("delete", resource, namespace, name, method="DELETE", body=_encode(options))

    async def read(self, path: str) -> Document:
        """GET a path that is no object's."""
        answer, headers = await self._exchange("get", "", f"get {path}", path)
        try:
            date = parsedate_to_datetime(headers.get("Date", ""))
        except ValueError:
            return Document(answer, None)
        return Document(answer, date)

    # -- underneath ----------------------------------------------------------------------------------------------

    def _codec(self, resource: Resource[T]) -> Codec[T]:
        codec = self._codecs.get(resource)
        if codec is None:
            codec = self._codecs[resource] = Codec(resource)
        return cast("Codec[T]", codec)

    async def _call(
        self,
        verb: str,
        resource: Resource[T],
        namespace: str,
        name: str | None = None,
        subresource: str = "",
        *,
        method: str = "GET",
        query: dict[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = _JSON,
        warned: Warned | None = None,
    ) -> bytes:
        path = _path(resource, namespace, name, subresource)
        if query:
            path += "?" + urlencode(query)
        counted = f"{resource.plural}/{subresource}" if subresource else resource.plural
        what = _what(verb, counted, namespace, name)
        answer, headers = await self._exchange(
            verb, counted, what, path, method=method, body=body, content_type=content_type
        )
        if warned is not None:
            for text in warnings_in(headers.getall("Warning", ())):
                warned(text)
        return answer

    async def _exchange(
        self,
        verb: str,
        counted: str,
        what: str,
        path: str,
        *,
        method: str = "GET",
        body: bytes | None = None,
        content_type: str = "",
    ) -> tuple[bytes, CIMultiDictProxy[str]]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with self._session.request(
                method,
                URL(self._credentials.server + path, encoded=True),
                data=body,
                headers=self._headers(content_type if body is not None else ""),
                allow_redirects=False,
                server_hostname=self._credentials.tls_server_name or None,
            ) as response:
                answer = await response.read()
                code = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.requests.count(verb, counted, 0, loop.time() - began)
            raise _no_answer(what, error, self._deadline) from error
        self.requests.count(verb, counted, code, loop.time() - began)
        if 200 <= code < 300:
            return answer, response.headers
        raise error_of(what, code, answer, response.headers.get("Retry-After"))

    async def _open_watch(self, resource: Resource[T], path: str, what: str) -> aiohttp.ClientResponse:
        try:
            async with asyncio.timeout(self._deadline):
                response = await self._watches.get(
                    URL(self._credentials.server + path, encoded=True),
                    headers=self._headers(""),
                    allow_redirects=False,
                    server_hostname=self._credentials.tls_server_name or None,
                    timeout=aiohttp.ClientTimeout(total=None, sock_read=self._silence_limit),
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self.requests.count("watch", resource.plural, 0)
            raise _no_answer(what, error, self._deadline) from error
        self.requests.count("watch", resource.plural, response.status)
        if response.status == 200:
            return response
        async with response:
            try:
                async with asyncio.timeout(self._deadline):
                    answer = await response.read()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise _no_answer(what, error, self._deadline) from error
        raise error_of(what, response.status, answer, response.headers.get("Retry-After"))

    def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Content-Type": content_type} if content_type else {}
        if authorization := self._credentials.authorization():
            headers["Authorization"] = authorization
        return headers


def _hang_up(response: aiohttp.ClientResponse) -> None:
    """Drop a watch's connection at once: there is nothing to say goodbye for, and a frozen server would not answer."""
    connection = response.connection
    transport = connection.transport if connection is not None else None
    response.close()
    if transport is not None:
        transport.abort()


def _keepalive_socket(address: tuple[Any, ...]) -> socket.socket:
    """A socket on which the kernel notices a dead peer within a minute, also where nothing is sent (a watch)."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return made


def _path(resource: Resource[T], namespace: str, name: str | None = None, subresource: str = "") -> str:
    path = f"/apis/{resource.group}/{resource.version}" if resource.group else f"/api/{resource.version}"
    if namespace and resource.namespaced:
        path += f"/namespaces/{_segment(namespace)}"
    path += f"/{resource.plural}"
    if name is not None:
        if resource.namespaced and not namespace:
            raise Invalid(f"{resource.kind} {name}: a namespace is needed")
        path += f"/{_segment(name)}"
    return f"{path}/{subresource}" if subresource else path


def _segment(name: str) -> str:
    """One path segment. Names come from users too: none may turn a request into another one."""
    if name in {"", ".", ".."} or "/" in name or "%" in name:
        raise Invalid(f"{name!r} is not a name that an object can have")
    return quote(name, safe="")


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    query = {}
    if label_selector:
        query["labelSelector"] = label_selector
    if field_selector:
        query["fieldSelector"] = field_selector
    return query


def _dry(dry_run: bool) -> dict[str, str]:  # noqa: FBT001 - its only argument
    return {"dryRun": "All"} if dry_run else {}


def _typed(resource: Resource[T], obj: T) -> T:
    """``obj`` with kind and version, which items of a list of built-in kinds come without."""
    if resource.namespaced and not obj.metadata.namespace:
        raise Invalid(f"{resource.kind} {obj.metadata.name}: metadata.namespace is needed")
    if obj.kind == resource.kind and obj.api_version == resource.api_version:
        return obj
    return msgspec.structs.replace(obj, api_version=resource.api_version, kind=resource.kind)


def _same_uid(resource: Resource[T], obj: T, patch: Json) -> T:
    """The status of a custom resource ignores the UID sent with it: so look whom the answer is about.

    The write has happened then, on an object of the same name that replaced the one meant; its own managers put it
    right. Only metadata.resourceVersion would have prevented it, at the price of conflicts with other managers.
    """
    wanted = patch.get("metadata", {}).get("uid")
    if wanted and wanted != obj.metadata.uid:
        raise Conflict(
            f"{resource.plural} {obj.metadata.namespace}/{obj.metadata.name}: it is another object now, with UID "
            f"{obj.metadata.uid} instead of {wanted}",
            status=409,
            reason="Conflict",
        )
    return obj


def _what(verb: str, resource: str, namespace: str, name: str | None) -> str:
    return (
        f"{verb} {resource} {namespace}/{name or ''}".rstrip("/ ") if namespace else f"{verb} {resource} {name or ''}"
    )


def _no_answer(what: str, error: Exception, deadline: float = 0.0) -> KubeError:
    if isinstance(error, TimeoutError):
        return Unavailable(f"{what}: no answer from the API server within {deadline:g} s", reason="Timeout")
    if isinstance(error, ssl.SSLError | aiohttp.ClientConnectorCertificateError):
        return Unavailable(
            f"{what}: the API server's certificate is not trusted, or it refuses ours ({error}); "
            "check certificate-authority and client-certificate in the kubeconfig",
            reason="Certificate",
        )
    return Unavailable(f"{what}: no connection to the API server: {str(error) or type(error).__name__}")
