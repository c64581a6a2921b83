"""Bytes of an API server to typed objects: pages of lists, single objects, events of a watch."""

import logging
from typing import Generic, Literal, TypeVar, cast

import msgspec

from cloudprovider.core.api.meta import KubeObject, ObjectMeta
from cloudprovider.core.errors import Gone, Invalid, Unavailable
from cloudprovider.kube.api import Resource, WatchEvent
from cloudprovider.kube.status import error_of

T = TypeVar("T", bound=KubeObject)

_log = logging.getLogger(__name__)


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    next: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, Generic[T]):
    metadata: _ListMeta
    items: list[T] | None = None


class _RawPage(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _VersionMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    namespace: str = ""
    name: str = ""


class _Version(msgspec.Struct):
    """The least of an object: what identifies it when the rest is unreadable, and all that a bookmark holds."""

    metadata: _VersionMeta = msgspec.field(default_factory=_VersionMeta)


_decode_raw_page = msgspec.json.Decoder(_RawPage).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_version = msgspec.json.Decoder(_Version).decode


class Page(msgspec.Struct, Generic[T], frozen=True):
    """A page of a list. ``undecodable``: keys of objects that are there but don't fit the type."""

    items: list[T]
    undecodable: list[tuple[str, str]]
    resource_version: str
    next: str


class Codec(Generic[T]):
    """Decoders of one resource, made once."""

    def __init__(self, resource: Resource[T]) -> None:
        self._what = resource.plural
        self._decode = msgspec.json.Decoder(resource.type).decode
        # A subscripted generic Struct is a type only at run time; mypy can't know the parameter's value.
        self._decode_page = msgspec.json.Decoder(cast("type[_Page[T]]", _Page[resource.type])).decode  # type: ignore[name-defined]

    def object(self, body: bytes) -> T:
        """One object. Raises Invalid if it does not fit the type."""
        try:
            return self._decode(body)
        except msgspec.DecodeError as error:
            raise Invalid(f"{self._what}: the API server's object is not what this version knows: {error}") from error

    def page(self, body: bytes) -> Page[T]:
        """One page. Objects that don't fit are named, not raised: one bad object must not hide the others."""
        try:
            page = self._decode_page(body)
        except msgspec.ValidationError:
            return self._careful_page(body)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{self._what}: the API server's list is cut or not JSON: {error}") from error
        return Page(page.items or [], [], page.metadata.resource_version, page.metadata.next)

    def _careful_page(self, body: bytes) -> Page[T]:
        try:
            raw = _decode_raw_page(body)
        except msgspec.DecodeError as error:
            raise Unavailable(f"{self._what}: the API server's list is not a list: {error}") from error
        items: list[T] = []
        undecodable: list[tuple[str, str]] = []
        for item in raw.items or []:
            try:
                items.append(self._decode(item))
            except msgspec.DecodeError as error:
                undecodable.append(self._undecodable(item, error))
        return Page(items, undecodable, raw.metadata.resource_version, raw.metadata.next)

    def event(self, line: bytes) -> WatchEvent[T] | None:
        """One line of a watch; None for an object that does not fit the type (logged).

        Raises Gone when the server says so, and when an unreadable object was deleted: a fresh list will show it.
        """
        try:
            event = _decode_event(line)
        except msgspec.DecodeError as error:
            raise Unavailable(f"watch {self._what}: the event is cut or not JSON: {error}") from error
        if event.type == "ERROR":
            raise error_of(f"watch {self._what}", 0, event.object)
        if event.type == "BOOKMARK":
            version = _decode_version(event.object).metadata.resource_version
            return WatchEvent("BOOKMARK", cast("T", KubeObject(metadata=ObjectMeta(resource_version=version))))
        try:
            return WatchEvent(event.type, self._decode(event.object))
        except msgspec.DecodeError as error:
            namespace, name = self._undecodable(event.object, error)
            if event.type == "DELETED":
                raise Gone(f"watch {self._what}: unreadable object {namespace}/{name} deleted; list again") from error
            return None

    def _undecodable(self, item: msgspec.Raw, error: msgspec.DecodeError) -> tuple[str, str]:
        metadata = _decode_version(item).metadata
        _log.error(
            "An object does not fit what this version knows of its kind; it is left as it was.",
            extra={
                "resource": self._what,
                "namespace": metadata.namespace,
                "name_": metadata.name,
                "error": str(error),
            },
        )
        return (metadata.namespace, metadata.name)
