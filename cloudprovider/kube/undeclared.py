"""Fields that the installed definitions do not know yet.

Server-side apply refuses an object with such a field whole ("field not declared in schema"), where every other way of
writing leaves it out. While definitions are older than the program, which may be so in a rolling upgrade, the rest must
go on: the field is left out here, too.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

_PATH: Final = re.compile(r"(?<![\w\]])((?:\.\w+)+): field not declared in schema")


def undeclared(message: str) -> frozenset[tuple[str, ...]]:
    """The fields that the API server's refusal names, each as the names that lead to it; none where it is about
    something else, or about a field within a list."""
    return frozenset(tuple(path.split(".")[1:]) for path in _PATH.findall(message))


def without(body: Mapping[str, Any], paths: Iterable[tuple[str, ...]]) -> dict[str, Any]:
    """A copy of an object without these fields."""
    found = dict(body)
    for first, *rest in paths:
        if first not in found:
            continue
        if not rest:
            del found[first]
        elif isinstance(found[first], Mapping):
            found[first] = without(found[first], [tuple(rest)])
    return found
