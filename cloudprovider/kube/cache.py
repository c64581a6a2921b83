"""A typed, indexed cache of one kind, and the rules of what is newer.

Three sources feed it: lists, watch events, and the results of the program's own writes. resourceVersions of one kind
are compared as numbers (KEP-5504; etcd's revisions). The *horizon* is the version up to which lists and watch events
have told everything; an own write's result beyond it is ahead of the watch, one at or below it is old news.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

from cloudprovider.core.api.meta import KubeObject

T = TypeVar("T", bound=KubeObject)

Key = tuple[str, str]
"""(namespace, name)."""

Change = tuple[T | None, T | None]
"""(old, new): None on the left for a new object, on the right for a deleted one."""

Index = Callable[[T], Iterable[Hashable]]
"""The values that an object is found by."""


class Cache(Generic[T]):
    """Objects of one kind by key. The methods that change it return what changed, in order.

    An object replaced by another of the same name (another UID) is two changes: a deletion and a creation.
    ``transform`` makes an object smaller, or leaves it out (None); name, UID and version must stay.
    """

    def __init__(
        self, *, indexes: Mapping[str, Index[T]] | None = None, transform: Callable[[T], T | None] | None = None
    ) -> None:
        self._objects: dict[Key, T] = {}
        self.objects: Mapping[Key, T] = MappingProxyType(self._objects)
        self._transform = transform
        self._index_functions = dict(indexes or {})
        self._indexed: dict[str, dict[Hashable, dict[Key, None]]] = {name: {} for name in self._index_functions}
        self._horizon = 0
        # Keys whose object our own write has removed, with its last version: older events must not bring it back.
        self._removed: dict[Key, int] = {}

    @property
    def version(self) -> str:
        """The resourceVersion to watch from."""
        return str(self._horizon)

    def by_index(self, index: str, value: Hashable) -> Sequence[T]:
        """The objects that ``index`` files under ``value``."""
        return [self._objects[key] for key in self._indexed[index].get(value, ())]

    def count(self, index: str, value: Hashable) -> int:
        """How many objects ``index`` files under ``value``."""
        return len(self._indexed[index].get(value, ()))

    def replace(
        self, items: Iterable[T], resource_version: str, undecodable: Iterable[Key] = ()
    ) -> Iterator[Change[T]]:
        """Take a list as the truth as of ``resource_version``; what is cached and not in it is gone.

        Own writes that are newer than the list stay, unless the list is older than what was already seen: then the
        server's data was restored from a backup, and only the list counts.
        """
        version = int(resource_version)
        restored = version < self._horizon
        self._horizon = version
        if restored:
            self._removed.clear()
        present = set(undecodable)
        for obj in items:
            present.add(obj.key)
            if restored or self._is_news(obj):
                yield from self._put(obj)
        for key in [k for k in self._objects if k not in present]:
            if restored or _version(self._objects[key]) <= version:
                yield from self._drop(key)
        self._forget_removed()

    def event(self, kind: str, obj: T) -> Iterator[Change[T]]:
        """Take one watch event (ADDED, MODIFIED, DELETED or BOOKMARK)."""
        self._horizon = max(self._horizon, _version(obj))
        if kind == "DELETED":
            cached = self._objects.get(obj.key)
            # A newer object of the same name, created by ourselves, stays.
            if cached is not None and _version(cached) <= _version(obj):
                yield from self._drop(obj.key)
        elif kind != "BOOKMARK" and self._is_news(obj):
            yield from self._put(obj)
        if self._removed:
            self._forget_removed()

    def observe(self, obj: T) -> Iterator[Change[T]]:
        """Take the result of an own write, if the watch has not come as far yet.

        A result at or below the horizon says nothing new: the watch has passed it, and what it left (perhaps no
        object at all) is the truth.
        """
        version = _version(obj)
        if obj.metadata.deletion_timestamp and not obj.metadata.finalizers:
            # Our write took the last finalizer away: the object is gone (its answer carries its last version).
            cached = self._objects.get(obj.key)
            if cached is not None and cached.metadata.uid == obj.metadata.uid and _version(cached) <= version:
                self._removed[obj.key] = version
                yield from self._drop(obj.key)
        elif version > self._horizon and self._is_news(obj):
            self._removed.pop(obj.key, None)
            yield from self._put(obj)

    def _is_news(self, obj: T) -> bool:
        cached = self._objects.get(obj.key)
        version = _version(obj)
        return (cached is None or _version(cached) < version) and self._removed.get(obj.key, -1) < version

    def _put(self, obj: T) -> Iterator[Change[T]]:
        key = obj.key
        new = self._transform(obj) if self._transform is not None else obj
        if new is None:
            yield from self._drop(key)
            return
        old = self._objects.get(key)
        if old is not None and old.metadata.uid != new.metadata.uid:
            yield from self._drop(key)
            old = None
        self._objects[key] = new
        self._file(key, old, new)
        yield (old, new)

    def _drop(self, key: Key) -> Iterator[Change[T]]:
        old = self._objects.pop(key, None)
        if old is not None:
            self._file(key, old, None)
            yield (old, None)

    def _file(self, key: Key, old: T | None, new: T | None) -> None:
        for name, values_of in self._index_functions.items():
            index = self._indexed[name]
            before = set(values_of(old)) if old is not None else set()
            after = set(values_of(new)) if new is not None else set()
            for value in before - after:
                keys = index[value]
                del keys[key]
                if not keys:
                    del index[value]
            for value in after - before:
                index.setdefault(value, {})[key] = None

    def _forget_removed(self) -> None:
        for key in [k for k, version in self._removed.items() if version <= self._horizon]:
            del self._removed[key]


def _version(obj: KubeObject) -> int:
    return int(obj.metadata.resource_version or 0)
