"""The seam to an API server: one small contract, met by :mod:`cloudprovider.kube.client` and by the shipped fake.

Every call has a deadline of its own and raises a :class:`~cloudprovider.core.errors.KubeError` subclass, never
anything else (but ``asyncio.CancelledError``). No call retries by itself: callers own a queue with backoff.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, Protocol, TypeVar

from cloudprovider.core.api.meta import KubeObject
from cloudprovider.kube.warnings import Warned

T = TypeVar("T", bound=KubeObject)

Json = Mapping[str, Any]
"""A JSON object on its way out: the body of a patch."""


@dataclass(frozen=True)
class Resource(Generic[T]):
    """A kind as the API server knows it, and the type that it decodes to."""

    group: str
    version: str
    plural: str
    kind: str
    type: type[T]
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """ "group/version", or "version" for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version


@dataclass(frozen=True)
class ListResult(Generic[T]):
    """A consistent list: every object as of ``resource_version``, from which a watch can go on.

    ``undecodable`` has the keys (namespace, name) of objects that exist but don't fit the type: not listed, not gone.
    """

    items: Sequence[T]
    resource_version: str
    undecodable: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class WatchEvent(Generic[T]):
    """One change. A BOOKMARK's object holds nothing but ``metadata.resource_version``."""

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: T


@dataclass(frozen=True)
class Document:
    """What a path of the server itself answers. ``date``: the server's clock, in whole seconds; None: not said."""

    body: bytes
    date: datetime | None


class Reader(Protocol):
    """What is asked of an API server beside its objects: what it serves, and whatever it stands in front of."""

    async def read(self, path: str) -> Document:
        """GET a path that is no object's ("/version", "/apis/apps/v1", a proxy's). Raises KubeError."""
        ...


class KubeClient(Protocol):
    """What this project asks of an API server.

    ``namespace`` is "" for cluster-scoped kinds, and for all namespaces in ``list`` and ``watch``.
    """

    async def get(self, resource: Resource[T], namespace: str, name: str) -> T:
        """Return one object. Raises NotFound."""
        ...

    async def list(
        self, resource: Resource[T], namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ListResult[T]:
        """Return all objects, in pages where there are many. Empty list and a version when there is none."""
        ...

    def watch(
        self,
        resource: Resource[T],
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncGenerator[WatchEvent[T], None]:
        """Yield the changes after ``resource_version``; ends when the server ends the watch, or has been silent for
        long: watch again from the last version seen. Raises Gone. Close it (``aclosing``) when leaving early."""
        ...

    async def create(self, resource: Resource[T], obj: T, *, dry_run: bool = False, warned: Warned | None = None) -> T:
        """Create ``obj`` in its metadata's namespace. ``dry_run``: all is checked, nothing is stored. ``warned`` is
        called with what the API server, or a webhook, warns of, if that is asked for. Raises AlreadyExists, Invalid
        (with ``causes``), Forbidden."""
        ...

    async def replace(self, resource: Resource[T], obj: T) -> T:
        """Write ``obj`` whole (not its status, where that is a subresource) if nobody else wrote since
        ``obj.metadata.resource_version``. Raises Conflict, NotFound, Invalid."""
        ...

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
        """RFC 7386. ``metadata.resourceVersion`` or ``metadata.uid`` in the patch are preconditions. ``dry_run``,
        ``warned``: as with :meth:`create`. Raises Conflict, NotFound, Invalid.

        On the status of a custom resource, API servers ignore the UID: there a Conflict is raised after the write.
        """
        ...

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
        """Server-side apply with force: ``patch`` is all that ``field_manager`` wants to own. ``metadata.uid`` or
        ``metadata.resourceVersion`` in it are preconditions, of an object that exists; one that does not is created,
        unless a UID is given. Raises Conflict, Invalid, NotFound (of a subresource).

        On the status of a custom resource, API servers ignore the UID: there a Conflict is raised after the write.
        """
        ...

    async def delete(self, resource: Resource[T], namespace: str, name: str, *, uid: str = "") -> None:
        """Ask for deletion; with finalizers the object stays, marked. Raises NotFound, and Conflict when ``uid``
        is another object's."""
        ...
