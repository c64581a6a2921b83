"""An API server in memory, as strict as the real one in what :class:`~cloudprovider.kube.api.KubeClient` promises.

:class:`FakeCluster` is the store, which several :class:`FakeKubeClient` share. The client passes the contract tests of
the real one. Admission (CEL rules, defaults, node ports) is left out: objects are checked against their types only.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Literal, TypeVar, cast

import msgspec

from cloudprovider.core.api.meta import KubeObject, ObjectMeta
from cloudprovider.core.errors import Conflict, Invalid, KubeError, NotFound
from cloudprovider.kube import fields
from cloudprovider.kube.api import Document, Json, ListResult, Resource, WatchEvent
from cloudprovider.kube.fakestore import Call, Change, FakeCluster, Snapshot, body_of, has_status, is_custom, typed_of
from cloudprovider.kube.fields import Object
from cloudprovider.kube.metrics import RequestCounter
from cloudprovider.kube.selectors import Matcher, matcher
from cloudprovider.kube.warnings import Warned

__all__ = ["Call", "FakeCluster", "FakeKubeClient", "Snapshot"]

T = TypeVar("T", bound=KubeObject)


class FakeKubeClient:
    """A client of a FakeCluster, as ``program``. ``requests`` counts like the real client's."""

    def __init__(self, cluster: FakeCluster, *, program: str = "cloudprovider") -> None:
        self.requests = RequestCounter()
        self._cluster = cluster
        self._program = program

    async def get(self, resource: Resource[T], namespace: str, name: str) -> T:
        """Return one object."""
        async with self._request("get", resource, namespace, name):
            return typed_of(resource, self._cluster.find(resource, namespace, name).body)

    async def list(
        self, resource: Resource[T], namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ListResult[T]:
        """Return all objects."""
        async with self._request("list", resource, namespace):
            matches = matcher(label_selector, field_selector)
            return ListResult(self._cluster.select(resource, namespace, matches), str(self._cluster.version))

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
        async with self._request("watch", resource, namespace):
            matches = matcher(label_selector, field_selector)
            watcher = self._cluster.open_watch(resource, resource_version)
        try:
            while (item := await watcher.get()) != "END":
                if isinstance(item, KubeError):
                    raise item
                if isinstance(item, Change):
                    event = _event(resource, namespace, matches, item)
                    if event is not None:
                        yield event
                else:
                    metadata = ObjectMeta(resource_version=str(self._cluster.version))
                    yield WatchEvent("BOOKMARK", cast("T", KubeObject(metadata=metadata)))
        finally:
            self._cluster.close_watch(watcher)

    async def create(self, resource: Resource[T], obj: T, *, dry_run: bool = False, warned: Warned | None = None) -> T:
        """Create ``obj``."""
        async with self._request("create", resource, obj.metadata.namespace, obj.metadata.name):
            if obj.metadata.resource_version:
                raise Invalid("resourceVersion should not be set on objects to be created", status=400)
            _check_namespace(resource, obj.metadata.namespace)
            cluster = self._cluster.rehearsal() if dry_run else self._cluster
            made = cluster.create(resource, body_of(resource, obj), self._program)
            _warn(resource, (), made.metadata.finalizers, warned)
            return made

    async def replace(self, resource: Resource[T], obj: T) -> T:
        """Write ``obj`` whole, by compare-and-swap on its resourceVersion."""
        metadata = obj.metadata
        async with self._request("update", resource, metadata.namespace, metadata.name):
            if not metadata.resource_version:
                raise Invalid("metadata.resourceVersion: must be specified for an update", status=422)
            old = self._cluster.find(resource, metadata.namespace, metadata.name)
            body = body_of(resource, obj)
            _check(old.body, body["metadata"])
            return self._cluster.update(resource, old, body, self._program, "")

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
        async with self._request("patch", resource, namespace, name, subresource):
            cluster = self._cluster.rehearsal() if dry_run else self._cluster
            old = cluster.find(resource, namespace, name)
            _check_subresource(resource, name, subresource)
            wanted = _json(patch)
            unchecked_uid = _check(old.body, wanted.get("metadata", {}), late=_late(resource, subresource))
            body = fields.merge_patch(old.body, wanted)
            if body["metadata"].get("name") != name:
                raise Invalid(f"the name of the object does not match the name on the URL ({name})", status=400)
            made = cluster.update(resource, old, body, self._program, subresource)
            _warn(resource, old.body["metadata"].get("finalizers", ()), made.metadata.finalizers, warned)
            return _same_uid(made, unchecked_uid)

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
        """Server-side apply with force."""
        async with self._request("apply", resource, namespace, name, subresource):
            _check_namespace(resource, namespace)
            _check_subresource(resource, name, subresource)
            wanted = fields.without_nulls(_json(patch))
            metadata = wanted.setdefault("metadata", {})
            try:
                old = self._cluster.find(resource, namespace, name)
            except NotFound:
                if subresource:
                    raise
                if uid := metadata.get("uid"):
                    raise Conflict(
                        f"uid mismatch: the provided object specified uid {uid}, and no existing object was found",
                        status=409,
                        reason="Conflict",
                    ) from None
                identity = {"name": name, "namespace": namespace} if namespace else {"name": name}
                body = {"apiVersion": resource.api_version, "kind": resource.kind, **wanted}
                body["metadata"] = {**{k: v for k, v in metadata.items() if k != "resourceVersion"}, **identity}
                return self._cluster.create(resource, body, field_manager, "Apply")
            unchecked_uid = _check(old.body, metadata, late=_late(resource, subresource))
            return _same_uid(self._cluster.apply(resource, old, wanted, field_manager, subresource), unchecked_uid)

    async def delete(self, resource: Resource[T], namespace: str, name: str, *, uid: str = "") -> None:
        """Ask for deletion."""
        async with self._request("delete", resource, namespace, name):
            old = self._cluster.find(resource, namespace, name)
            _check(old.body, {"uid": uid})
            self._cluster.delete(resource, old)

    async def read(self, path: str) -> Document:
        """GET a path that is no object's: one of ``FakeCluster.documents``."""
        if (body := self._cluster.documents.get(path)) is None:
            raise NotFound(f"get {path}: the server could not find the requested resource", status=404)
        return Document(body, self._cluster.now().replace(microsecond=0))

    @asynccontextmanager
    async def _request(
        self, verb: str, resource: Resource[T], namespace: str, name: str = "", subresource: str = ""
    ) -> AsyncGenerator[None, None]:
        plural = f"{resource.plural}/{subresource}" if subresource else resource.plural
        call = Call(verb, plural, namespace, name, self._program)
        try:
            if self._cluster.before is not None:
                await self._cluster.before(call)
            yield
            if self._cluster.after is not None:
                await self._cluster.after(call)
        except KubeError as error:
            self.requests.count(verb, plural, error.status)
            raise
        self.requests.count(verb, plural, 201 if verb == "create" else 200)


def _json(patch: Json) -> Object:
    found: Object = msgspec.json.decode(msgspec.json.encode(patch))
    return found


def _late(resource: Resource[T], subresource: str) -> bool:
    """A custom resource's status ignores the UID sent with it; the real client compares the answer's."""
    return bool(subresource) and is_custom(resource)


def _check(live: Object, metadata: Object, *, late: bool = False) -> str:
    """Preconditions. Returns the UID that is still to be compared afterwards."""
    at = live["metadata"]
    uid, version = metadata.get("uid"), metadata.get("resourceVersion")
    if version and version != at["resourceVersion"]:
        raise Conflict(
            f'Operation cannot be fulfilled on "{at["name"]}": the object has been modified; '
            "please apply your changes to the latest version and try again",
            status=409,
            reason="Conflict",
        )
    if uid and uid != at["uid"]:
        if late:
            return str(uid)
        raise Conflict(
            f'Precondition failed on "{at["name"]}": UID in precondition: {uid}, UID in object meta: {at["uid"]}',
            status=409,
            reason="Conflict",
        )
    return ""


def _same_uid(obj: T, uid: str) -> T:
    if uid:
        raise Conflict(f"{obj.metadata.name}: it is another object now, with UID {obj.metadata.uid}", status=409)
    return obj


def _check_namespace(resource: Resource[T], namespace: str) -> None:
    if resource.namespaced and not namespace:
        raise Invalid(f"{resource.kind}: metadata.namespace is needed")


def _check_subresource(resource: Resource[T], name: str, subresource: str) -> None:
    if subresource and not (subresource == "status" and has_status(resource)):
        raise NotFound(f'{resource.plural}/{subresource} "{name}" not found', status=404, reason="NotFound")


def _event(resource: Resource[T], namespace: str, matches: Matcher, change: Change) -> WatchEvent[T] | None:
    """The change as this watch sees it: an object that begins or ceases to be selected comes or goes."""

    def seen(body: Object | None) -> T | None:
        if body is None or (namespace and body["metadata"].get("namespace") != namespace):
            return None
        obj = typed_of(resource, body)
        return obj if matches(obj) else None

    before, after = seen(change.before), seen(change.after)
    kind: Literal["ADDED", "MODIFIED", "DELETED"]
    if after is not None:
        kind = "MODIFIED" if before is not None else "ADDED"
        return WatchEvent(kind, after)
    if before is None:
        return None
    metadata = msgspec.structs.replace(before.metadata, resource_version=str(change.version))
    return WatchEvent("DELETED", msgspec.structs.replace(before, metadata=metadata))


def _warn(resource: Resource[T], before: Sequence[str], after: Sequence[str], warned: Warned | None) -> None:
    """What API servers say of a custom resource's finalizers (``generateWarningsFromObj`` in its strategy)."""
    if warned is None or "." not in resource.group:
        return
    for name in after:
        if "/" not in name and name not in before:
            warned(
                f'metadata.finalizers: "{name}": prefer a domain-qualified finalizer name including a path (/) to avoid'
                " accidental conflicts with other finalizer writers"
            )
