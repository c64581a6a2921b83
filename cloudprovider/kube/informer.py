"""Informer: what an API server has of one kind, kept up to date in memory.

List, then watch; after any break list again and compare, so that nothing that happened meanwhile (a deletion above
all) is missed. Reading costs no request, and the result of an own write is put in at once (:meth:`Informer.observe`),
so that no decision follows from an object that the program itself has changed since.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Generic, TypeVar

from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import Gone, KubeError, NotFound
from cloudprovider.kube.api import KubeClient, Resource
from cloudprovider.kube.backoff import Backoff
from cloudprovider.kube.cache import Cache, Change, Index, Key

T = TypeVar("T", bound=KubeObject)

_log = logging.getLogger(__name__)

BACKOFF = Backoff(base=0.2, limit=15.0)
QUIET_SECONDS = 5.0
"""A watch that ends sooner without a single event counts as a failure: else a broken proxy would make us spin."""


class Informer(Generic[T]):
    """A live, read-only view of ``resource``. Start :meth:`run` as a task; wait for ``synced`` before deciding.

    ``namespace`` "" is all. ``transform`` makes objects smaller or leaves them out (None); name, UID and version must
    stay. ``indexes``: functions from an object to the values it is found by with :meth:`by_index`. ``optional``: the
    kind may be one that the API server does not serve (yet); then there are none of it.
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource[T],
        *,
        rng: random.Random,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        indexes: Mapping[str, Index[T]] | None = None,
        transform: Callable[[T], T | None] | None = None,
        backoff: Backoff = BACKOFF,
        optional: bool = False,
    ) -> None:
        self.synced = asyncio.Event()
        """Set when the first list is in the cache, or there is nothing to list."""
        self.is_missing = False
        """Whether the API server does not serve the (optional) kind. What was known before stays: a server that starts
        may serve a definition's kind a moment later than the rest."""
        self.last_contact: float | None = None
        """When the API server was last heard of, in the loop's time. A quiet kind is silent for up to two minutes."""
        self._client = client
        self._resource = resource
        self._rng = rng
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._cache: Cache[T] = Cache(indexes=indexes, transform=transform)
        self._callbacks: list[Callable[[T | None, T | None], None]] = []
        self._backoff = backoff
        self._optional = optional
        self._trouble: KubeError | None = None
        self._served: list[Callable[[], None]] = []

    @property
    def not_synced(self) -> str:
        """Why the first list is not in the cache, and what to do; "" once it is."""
        if self.synced.is_set():
            return ""
        plural = self._resource.plural
        if isinstance(self._trouble, NotFound):
            return f"the API server does not know {plural} ({self._resource.api_version}): apply manifests/crds"
        return f"{plural} can't be listed: {self._trouble}" if self._trouble else f"{plural} are not listed yet"

    @property
    def objects(self) -> Mapping[Key, T]:
        """All objects by (namespace, name); a live view, not to be kept across an ``await`` while iterating."""
        return self._cache.objects

    def get(self, namespace: str, name: str) -> T | None:
        """One object, None if there is none."""
        return self._cache.objects.get((namespace, name))

    def by_index(self, index: str, value: Hashable) -> Sequence[T]:
        """The objects that ``index`` files under ``value``. Raises KeyError for an index that was not declared."""
        return self._cache.by_index(index, value)

    def count(self, index: str, value: Hashable) -> int:
        """How many objects ``index`` files under ``value``. Raises KeyError for an index that was not declared."""
        return self._cache.count(index, value)

    def on_change(self, callback: Callable[[T | None, T | None], None]) -> None:
        """Call ``callback(old, new)`` at every change, in order and before anything else happens.

        ``old`` is None for a new object, ``new`` for a deleted one; another object of the same name is both, one
        after the other. The callback must be quick (add a key to a queue) and not raise: an exception ends
        :meth:`run`, since a change that nobody acted on would be lost.
        """
        self._callbacks.append(callback)

    def on_served(self, callback: Callable[[], None]) -> None:
        """Call ``callback()`` when ``synced`` is set, and whenever ``is_missing`` has changed."""
        self._served.append(callback)

    def replay(self) -> None:
        """Tell the callbacks of all that is there, as if it had just come: they were set when it was there already."""
        for obj in list(self.objects.values()):
            for callback in self._callbacks:
                callback(None, obj)
        if self.synced.is_set():
            for served in self._served:
                served()

    def observe(self, obj: T) -> None:
        """Put the result of an own write into the cache, if it is newer than what is there. Callbacks are called."""
        self._tell(self._cache.observe(obj))

    async def run(self) -> None:
        """Keep the cache up to date until cancelled. API errors are logged and retried with backoff."""
        failures = 0
        listed = False
        while True:
            try:
                if not listed:
                    await self._list()
                    listed = True
                    failures = 0
                if await self._watch():
                    failures = 0
                    continue
                failures += 1
            except Gone:
                # The server has forgotten our version: nothing is wrong, but the list may be long, so don't hurry.
                listed = False
                failures += 1
            except KubeError as error:
                # After a break also the version itself is doubtful (another server, a restored backup): list anew.
                listed = False
                failures += 1
                if self._optional and isinstance(error, NotFound):
                    self._note_served(missing=True)
                else:
                    self._trouble = error
                    told = self.not_synced or str(error)
                    _log.warning(
                        "The API server can't be watched; trying again.",
                        extra={"resource": self._resource.plural, "error": told, "failures": failures},
                    )
                if error.retry_after is not None:
                    await asyncio.sleep(min(error.retry_after, self._backoff.limit))
            await asyncio.sleep(self._backoff.delay(failures, self._rng))

    async def _list(self) -> None:
        result = await self._client.list(
            self._resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        self._contact()
        self._tell(self._cache.replace(result.items, result.resource_version, result.undecodable))
        self._note_served(missing=False)

    async def _watch(self) -> bool:
        """Follow one watch to its end. True if it was a sound one: it brought something, or lasted."""
        began = asyncio.get_running_loop().time()
        told = False
        events = self._client.watch(
            self._resource,
            self._namespace,
            resource_version=self._cache.version,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
        )
        async with aclosing(events):
            async for event in events:
                told = True
                self._contact()
                self._tell(self._cache.event(event.type, event.object))
        return told or asyncio.get_running_loop().time() - began >= QUIET_SECONDS

    def _note_served(self, *, missing: bool) -> None:
        if self.synced.is_set() and self.is_missing == missing:
            return
        if missing:
            _log.info(
                "The API server does not serve this kind; looking again.", extra={"resource": self._resource.plural}
            )
        self.is_missing = missing
        self.synced.set()
        for callback in self._served:
            callback()

    def _contact(self) -> None:
        self.last_contact = asyncio.get_running_loop().time()

    def _tell(self, changes: Iterable[Change[T]]) -> None:
        # All of one source first: a callback that observes another write must not meet a half-taken list.
        for old, new in list(changes):
            for callback in self._callbacks:
                callback(old, new)
