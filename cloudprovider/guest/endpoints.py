"""The EndpointSlices of Services with policy Local, watched from the first such Service on."""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from cloudprovider.core.api.kubernetes import SERVICE_NAME_LABEL, Endpoint, EndpointSlice
from cloudprovider.guest.hostview import Name
from cloudprovider.kube.api import KubeClient
from cloudprovider.kube.informer import Informer
from cloudprovider.kube.resources import ENDPOINTSLICES

_INDEX: Final = "service"


def slim(piece: EndpointSlice) -> EndpointSlice | None:
    """Return ``piece`` with just whose endpoints are where, and in which state; None if it is of no Service."""
    service = piece.metadata.labels.get(SERVICE_NAME_LABEL)
    if not service:
        return None
    # Many endpoints on one node in one state are as good as one.
    places = {(e.node_name, e.conditions) for e in piece.endpoints or () if e.node_name}
    order = sorted(places, key=lambda place: (place[0], str(place[1])))
    return msgspec.structs.replace(
        piece,
        metadata=msgspec.structs.replace(
            piece.metadata, labels={SERVICE_NAME_LABEL: service}, annotations={}, owner_references=[]
        ),
        endpoints=[Endpoint(node_name=node, conditions=conditions) for node, conditions in order],
    )


def _services(piece: EndpointSlice) -> Iterable[Name]:
    name = piece.metadata.labels.get(SERVICE_NAME_LABEL)
    return ((piece.metadata.namespace, name),) if name else ()


class LocalEndpoints:
    """Slices by Service; ``changed`` is called with the names whose slices changed in what matters here.

    A cluster without policy Local pays nothing: the watch begins when slices are first asked for.
    """

    def __init__(self, client: KubeClient, *, rng: random.Random, changed: Callable[[Name], None]) -> None:
        self._changed = changed
        self._wanted = asyncio.Event()
        self._waiting: set[Name] = set()
        self._informer = Informer(client, ENDPOINTSLICES, rng=rng, indexes={_INDEX: _services}, transform=slim)
        self._informer.on_change(self._on_change)

    def slices(self, name: Name) -> Sequence[EndpointSlice] | None:
        """Return the slices of one Service; None while they are not known yet (``changed`` tells)."""
        if not self._informer.synced.is_set():
            self._wanted.set()
            self._waiting.add(name)
            return None
        return self._informer.by_index(_INDEX, name)

    async def run(self) -> None:
        """Watch, once that is needed, until cancelled."""
        await self._wanted.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._informer.run())
            await self._informer.synced.wait()
            for name in self._waiting:
                self._changed(name)
            self._waiting.clear()

    def _on_change(self, old: EndpointSlice | None, new: EndpointSlice | None) -> None:
        if old is not None and new is not None and old.endpoints == new.endpoints:
            return
        for piece in (old, new):
            for name in _services(piece) if piece is not None else ():
                self._changed(name)
