"""The store behind :class:`~cloudprovider.kube.fake.FakeKubeClient`: objects, versions, owners of fields, history.

What it does was read off a real API server (v1.37), and is held against one by tests/kube/test_client_contract.py.
"""

import asyncio
import copy
import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, TypeVar, get_type_hints
from uuid import UUID

import msgspec

from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import AlreadyExists, Gone, Invalid, KubeError, NotFound, Unavailable
from cloudprovider.kube import fields
from cloudprovider.kube.api import Resource
from cloudprovider.kube.fields import Object, Path
from cloudprovider.kube.selectors import Matcher

T = TypeVar("T", bound=KubeObject)

Key = tuple[str, str]
Kind = tuple[str, str]  # group, plural
Signal = Literal["BOOKMARK", "END"]

_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SERVICE_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_KEPT: Final = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "generation", "resourceVersion")
_NO_GENERATION: Final = frozenset({"", "coordination.k8s.io"})
"""Groups whose kinds (those used here) carry no metadata.generation."""


@dataclass(frozen=True)
class Call:
    """A request, as the hooks see it. ``verb`` as in :class:`~cloudprovider.kube.metrics.Request`."""

    verb: str
    resource: str
    namespace: str
    name: str
    program: str


Hook = Callable[[Call], Awaitable[None]]


@dataclass
class Stored:
    """An object as JSON. Never changed in place: watchers and the history hold on to it."""

    body: Object
    owners: dict[tuple[str, str, str], set[Path]] = field(default_factory=dict)
    """Fields by (manager, "Apply" or "Update", subresource)."""


@dataclass(frozen=True)
class Change:
    """One write: the object before (None: created) and after it (None: deleted)."""

    version: int
    kind: Kind
    before: Object | None
    after: Object | None


class Watcher:
    """One open watch: what it has still to deliver."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._pending: deque[Change | Signal | KubeError] = deque()
        self._wake = asyncio.Event()

    def put(self, item: Change | Signal | KubeError) -> None:
        """Have something delivered."""
        self._pending.append(item)
        self._wake.set()

    async def get(self) -> Change | Signal | KubeError:
        """The next thing to deliver."""
        while not self._pending:
            self._wake.clear()
            await self._wake.wait()
        return self._pending.popleft()


@dataclass(frozen=True)
class Snapshot:
    """A cluster's state at one moment, as a backup of etcd holds it."""

    version: int
    objects: dict[Kind, dict[Key, Stored]]


class FakeCluster:
    """The store. ``now`` gives creation and deletion times.

    ``before`` and ``after`` are awaited around every request: raise a KubeError in ``before`` to refuse it, in
    ``after`` to lose the answer of a request that was carried out, or wait in them to be slow. ``documents``: what the
    server answers beside its objects, by path.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.documents: dict[str, bytes] = {}
        self.now = now
        self.version = 100
        self._objects: dict[Kind, dict[Key, Stored]] = {}
        self._history: list[Change] = []
        self._compacted = 0
        self._watchers: set[Watcher] = set()
        self._uids = 0

    def cut_watches(self, error: KubeError | None = None) -> None:
        """End all watches: as a server does when their time is over, or with ``error`` when the line breaks."""
        for watcher in self._watchers:
            watcher.put(error if error is not None else "END")

    def bookmark(self) -> None:
        """Send every watch a bookmark."""
        for watcher in self._watchers:
            watcher.put("BOOKMARK")

    def compact(self) -> None:
        """Forget the history: a new watch from an older version is Gone."""
        self._history.clear()
        self._compacted = self.version

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot, version included, as when etcd is restored from a backup. Watches break."""
        self.version = snapshot.version
        self._objects = copy.deepcopy(snapshot.objects)
        self._history.clear()
        self._compacted = 0
        self.cut_watches(Unavailable("the API server was restored from a backup"))

    def snapshot(self) -> Snapshot:
        """The cluster's state, for :meth:`restore`."""
        return Snapshot(self.version, copy.deepcopy(self._objects))

    def rehearsal(self) -> "FakeCluster":
        """A copy that nobody watches: what is written to it is forgotten (a dry run)."""
        copied = FakeCluster(self.now)
        copied.version, copied._uids = self.version, self._uids
        copied._objects = copy.deepcopy(self._objects)
        return copied

    def seed(self, resource: Resource[T], obj: T) -> T:
        """Put ``obj`` there whole, status included, replacing what is there: how a test sets its scene."""
        body = body_of(resource, obj)
        old = self._table(resource).get(obj.key)
        metadata = body["metadata"]
        metadata.setdefault("uid", old.body["metadata"]["uid"] if old else self._new_uid())
        metadata.setdefault("creationTimestamp", self._time())
        if _has_generation(resource):
            metadata.setdefault("generation", 1)
        return self._commit(resource, old, Stored(body))

    # -- what the client calls -------------------------------------------------------------------------------

    def _table(self, resource: Resource[T]) -> dict[Key, Stored]:
        return self._objects.setdefault((resource.group, resource.plural), {})

    def find(self, resource: Resource[T], namespace: str, name: str) -> Stored:
        """The stored object. Raises NotFound."""
        stored = self._table(resource).get((namespace, name))
        if stored is None:
            raise NotFound(f'{resource.plural} "{name}" not found', status=404, reason="NotFound")
        return stored

    def select(self, resource: Resource[T], namespace: str, matches: Matcher) -> list[T]:
        """All objects that match."""
        found = [
            typed_of(resource, stored.body)
            for (at, _), stored in sorted(self._table(resource).items())
            if not namespace or at == namespace
        ]
        return [obj for obj in found if matches(obj)]

    def open_watch(self, resource: Resource[T], version: str) -> Watcher:
        """Begin a watch after ``version``. Raises Gone."""
        after = int(version)
        if after < self._compacted:
            raise Gone(f"too old resource version: {after} ({self._compacted})", status=410, reason="Expired")
        if after > self.version:
            raise Unavailable(
                f"Too large resource version: {after}, current: {self.version}", status=504, reason="Timeout"
            )
        watcher = Watcher((resource.group, resource.plural))
        for change in self._history:
            if change.version > after and change.kind == watcher.kind:
                watcher.put(change)
        self._watchers.add(watcher)
        return watcher

    def close_watch(self, watcher: Watcher) -> None:
        """End a watch."""
        self._watchers.discard(watcher)

    def create(self, resource: Resource[T], body: Object, manager: str, operation: str = "Update") -> T:
        """Store a new object. Raises AlreadyExists, Invalid."""
        metadata = body["metadata"]
        name = metadata.get("name", "")
        key = (metadata.get("namespace", ""), name)
        pattern = _SERVICE_NAME if resource.kind == "Service" else _NAME
        if len(name) > (63 if resource.kind == "Service" else 253) or not pattern.fullmatch(name):
            raise invalid(resource, name, f"metadata.name: Invalid value: {name!r}")
        if key in self._table(resource):
            raise AlreadyExists(f'{resource.plural} "{name}" already exists', status=409, reason="AlreadyExists")
        if has_status(resource) and resource.kind != "Node":
            body.pop("status", None)
        for kept in ("generation", "deletionTimestamp"):
            metadata.pop(kept, None)
        metadata["uid"] = self._new_uid()
        metadata["creationTimestamp"] = self._time()
        if _has_generation(resource):
            metadata["generation"] = 1
        stored = Stored(body)
        stored.owners[manager, operation, ""] = set(fields.leaves(body))
        return self._commit(resource, None, stored)

    def update(self, resource: Resource[T], old: Stored, wanted: Object, manager: str, subresource: str) -> T:
        """Store ``wanted`` in the place of ``old``, as an Update by ``manager``."""
        body = _allowed(resource, old.body, wanted, subresource)
        before, after = fields.leaves(old.body), fields.leaves(body)
        changed = {path for path, value in after.items() if path not in before or before[path] != value}
        gone = before.keys() - after.keys()
        owners = {who: paths - changed - gone for who, paths in old.owners.items()}
        if changed:
            owners.setdefault((manager, "Update", subresource), set()).update(changed)
        return self._write(resource, old, Stored(body, owners))

    def apply(self, resource: Resource[T], old: Stored, patch: Object, manager: str, subresource: str) -> T:
        """Server-side apply with force."""
        wanted = fields.leaves(_allowed(resource, {"metadata": {}}, patch, subresource))
        me = (manager, "Apply", subresource)
        owners = {who: set(paths) for who, paths in old.owners.items() if who != me}
        body = copy.deepcopy(old.body)
        before = fields.leaves(body)
        kept = [set(wanted), *owners.values()]
        for path in old.owners.get(me, set()) - wanted.keys():
            # An object applied empty is a field, too: it stays as long as there is anything of anybody's in it.
            if not any(one[: len(path)] == path for paths in kept for one in paths):
                fields.remove(body, path)
        for path, value in wanted.items():
            fields.merge(body, path, value)
            if before.get(path) != value:
                for paths in owners.values():
                    paths.discard(path)
        if wanted:
            owners[me] = set(wanted)
        return self._write(resource, old, Stored(body, owners))

    def delete(self, resource: Resource[T], old: Stored) -> None:
        """Remove, or mark where finalizers stand."""
        if not old.body["metadata"].get("finalizers"):
            self._remove(resource, old)
        elif "deletionTimestamp" not in old.body["metadata"]:
            body = copy.deepcopy(old.body)
            body["metadata"]["deletionTimestamp"] = self._time()
            if _has_generation(resource):
                body["metadata"]["generation"] += 1
            self._commit(resource, old, Stored(body, old.owners))

    def _write(self, resource: Resource[T], old: Stored, new: Stored) -> T:
        before, after = old.body["metadata"], new.body["metadata"]
        for kept in _KEPT:
            if kept in before:
                after[kept] = before[kept]
            else:
                after.pop(kept, None)
        if "deletionTimestamp" in before:
            if added := set(after.get("finalizers", [])) - set(before.get("finalizers", [])):
                message = f"metadata.finalizers: no new finalizers can be added if the object is being deleted: {added}"
                raise invalid(resource, before["name"], message)
            if not after.get("finalizers"):
                typed = typed_of(resource, new.body)
                self._remove(resource, old)
                return typed  # like the real answer, with the last version before the deletion
        if old.body == new.body:
            old.owners = new.owners
            return typed_of(resource, old.body)
        if _has_generation(resource) and _generated(resource, old.body) != _generated(resource, new.body):
            after["generation"] += 1
        return self._commit(resource, old, new)

    def _commit(self, resource: Resource[T], old: Stored | None, new: Stored) -> T:
        metadata = {**new.body["metadata"], "resourceVersion": str(self.version + 1)}
        new.body = {**new.body, "metadata": metadata}
        typed = typed_of(resource, new.body)
        self.version += 1
        self._table(resource)[typed.key] = new
        self._emit(Change(self.version, (resource.group, resource.plural), old.body if old else None, new.body))
        return typed

    def _remove(self, resource: Resource[T], old: Stored) -> None:
        metadata = old.body["metadata"]
        del self._table(resource)[metadata.get("namespace", ""), metadata["name"]]
        self.version += 1
        last = {**old.body, "metadata": {**metadata, "resourceVersion": str(self.version)}}
        self._emit(Change(self.version, (resource.group, resource.plural), last, None))

    def _emit(self, change: Change) -> None:
        self._history.append(change)
        for watcher in self._watchers:
            if watcher.kind == change.kind:
                watcher.put(change)

    def _new_uid(self) -> str:
        self._uids += 1
        return str(UUID(int=self._uids, version=4))

    def _time(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")


def body_of(resource: Resource[T], obj: T) -> Object:
    """``obj`` as the JSON that a client sends."""
    body: Object = msgspec.json.decode(msgspec.json.encode(obj))
    return {**body, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": body.get("metadata", {})}


def typed_of(resource: Resource[T], body: Object) -> T:
    """``body`` as its type. Raises Invalid where it does not fit."""
    try:
        return msgspec.convert(body, resource.type)
    except msgspec.ValidationError as error:
        raise invalid(resource, body["metadata"].get("name", ""), str(error)) from error


def invalid(resource: Resource[T], name: str, why: str) -> Invalid:
    """The refusal of an object."""
    return Invalid(f'{resource.kind} "{name}" is invalid: {why}', status=422, reason="Invalid")


def is_custom(resource: Resource[T]) -> bool:
    """Whether a CustomResourceDefinition serves it."""
    return "." in resource.group and not resource.group.endswith(".k8s.io")


def has_status(resource: Resource[T]) -> bool:
    """Whether its status is a subresource: so for every kind here that has a status at all, but for KubeVirt's."""
    return "status" in get_type_hints(resource.type) and resource.group != "kubevirt.io"


def _has_generation(resource: Resource[T]) -> bool:
    return resource.group not in _NO_GENERATION


def _generated(resource: Resource[T], body: Object) -> Object:
    """What counts for metadata.generation."""
    return {k: v for k, v in body.items() if k != "metadata" and not (k == "status" and has_status(resource))}


def _allowed(resource: Resource[T], live: Object, wanted: Object, subresource: str) -> Object:
    """What of ``wanted`` a write to ``subresource`` may change; the rest stays as in ``live``."""
    wanted = fields.without_nulls(wanted)
    if not has_status(resource):
        return wanted
    dropped: Iterable[str]
    if not subresource:
        dropped = ("status",)
    elif is_custom(resource):
        dropped = (live.keys() | wanted.keys()) - {"status"}
    else:
        dropped = ("spec",)  # the status strategies of built-in kinds let metadata through
    for part in dropped:
        wanted.pop(part, None)
        if part in live:
            wanted[part] = copy.deepcopy(live[part])
    return wanted
