"""Who owns which field of an object: the core of server-side apply (KEP-555), as far as the shipped fake needs it.

Maps merge key by key. ``status.conditions`` is a list keyed by ``type``, ``metadata.ownerReferences`` one keyed by
``uid``, ``status.backends`` and ``webhooks`` are keyed by ``name``, ``metadata.finalizers`` is a set; every other list,
and the maps named in :data:`ATOMIC`, are owned as one.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Object = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A step of a path into a keyed list (``key`` is the field) or a set (``key`` is empty)."""

    key: str
    value: str


Path = tuple[str | Item, ...]

ATOMIC: Final[frozenset[tuple[str, ...]]] = frozenset(
    {
        ("status", "backends", "health"),
        ("status", "holder"),
        ("status", "allocatedAddress"),
        ("status", "allocated"),
        ("status", "allocatedHistory"),
        ("spec", "allocations"),
        ("spec", "history"),
    }
)
"""Maps that our CustomResourceDefinitions mark ``x-kubernetes-map-type: atomic``; in every item of a keyed list."""
KEYED: Final[dict[Path, str]] = {
    ("status", "conditions"): "type",
    ("status", "backends"): "name",
    ("metadata", "ownerReferences"): "uid",
    ("metadata", "finalizers"): "",
    ("webhooks",): "name",
}
"""Lists that merge item by item, and the field that tells the items apart ("" for a set of strings)."""
UNOWNED: Final = frozenset({"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp"})
"""Metadata that nobody owns: identity, and what the server keeps."""


def leaves(obj: Object) -> dict[Path, Any]:
    """Every field that can be owned, with its value."""
    found: dict[Path, Any] = {}
    for name, value in obj.items():
        if name == "metadata":
            for key, part in value.items():
                if key not in UNOWNED and key != "deletionTimestamp":
                    found |= dict(_leaves((name, key), part))
        elif name not in {"apiVersion", "kind"}:
            found |= dict(_leaves((name,), value))
    return found


def _leaves(path: Path, value: Any) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, dict) and value and not _is_atomic(path):
        for key, part in value.items():
            yield from _leaves((*path, key), part)
    elif isinstance(value, list) and path in KEYED:
        key = KEYED[path]
        for item in value:
            if not key:
                yield (*path, Item("", item)), item
                continue
            step = (*path, Item(key, item[key]))
            rest = {name: part for name, part in item.items() if name != key}
            yield from _leaves(step, rest)
    else:
        yield path, value


def _is_atomic(path: Path) -> bool:
    return tuple(step for step in path if isinstance(step, str)) in ATOMIC


def merge(live: Object, path: Path, value: Any) -> None:
    """Set one leaf in ``live``, making what is missing on the way."""
    here: Any = live
    for index, step in enumerate(path[:-1]):
        here = _step(here, step, [] if isinstance(path[index + 1], Item) else {})
    last = path[-1]
    if isinstance(last, Item):
        if last.key:
            _step(here, last, {})
        elif last.value not in here:
            here.append(last.value)
    elif value != {} or _is_atomic(path) or not isinstance(here.get(last), dict):
        here[last] = copy.deepcopy(value)


def _step(here: Any, step: str | Item, missing: Any) -> Any:
    if isinstance(step, str):
        if not isinstance(here.get(step), dict | list) or (not here[step] and type(here[step]) is not type(missing)):
            here[step] = missing
        return here[step]
    for item in here:
        if item[step.key] == step.value:
            return item
    item = {step.key: step.value}
    here.append(item)
    return item


def remove(here: Any, path: Path) -> None:
    """Remove one leaf from ``here``, and what gets empty by it."""
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        if not isinstance(here, dict) or step not in here:
            return
        if rest:
            remove(here[step], rest)
        if not rest or here[step] in ({}, []):
            del here[step]
        return
    for index, item in enumerate(here):
        if (item[step.key] if step.key else item) == step.value:
            if rest:
                remove(item, rest)
            if not rest or set(item) == {step.key}:
                del here[index]
            return


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def without_nulls(value: Any) -> Any:
    """A copy of ``value`` as an API server stores it: a null field is an absent one."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value
