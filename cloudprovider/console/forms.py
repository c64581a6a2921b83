"""What all forms have in common: rows, where a problem is shown, what would be sent. Pure.

An input's name is its *slot*: the field's path in the object without "spec." and with dots, such as
``listeners.0.port``. What is wrong with a field is told by that path, whoever tells it (our own rules, the API server's
schema, a webhook), and so finds its place; what has none of its own goes to the nearest group, or to the top.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, Final, TypeVar, cast

import yaml

from cloudprovider.core.errors import KubeError, Violation
from cloudprovider.core.reasons import Heard

F = TypeVar("F")

MOST_ROWS: Final = 300
TOP: Final = ""
BLANK: Final = "Required"
"""The reason of what is wrong only because nothing has been typed yet."""

_INDEX: Final = re.compile(r"\[(\d+)\]")
_KEY: Final = re.compile(r"\[([^\]]*)\]")
_ABOUT: Final = re.compile(r"((?:spec|metadata)(?:[.\[][^\s:]*)?): ")
"""What a warning begins with that is about a field."""
_ROW: Final = re.compile(r"(?P<list>[A-Za-z]+)\.(?P<number>\d{1,4})\.(?P<field>[A-Za-z]+)")


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What is known of a form before it is saved. ``problems``: by slot, sentences; the form can't be saved.
    ``cautions``: by slot, what its author should know. ``yaml``: what would be sent. ``blanks``: how many fields are
    yet to be filled in, and not told of one by one."""

    problems: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cautions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    yaml: str = ""
    blanks: int = 0

    @property
    def count(self) -> int:
        """How many things are wrong."""
        return sum(len(found) for found in self.problems.values())


def rows(posted: Mapping[str, str], name: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """Return the rows of a list as posted, without gaps; each with all its fields."""
    found: dict[int, dict[str, str]] = {}
    for key, value in posted.items():
        match = _ROW.fullmatch(key)
        if match is not None and match["list"] == name and match["field"] in fields:
            found.setdefault(int(match["number"]), {})[match["field"]] = value
    return [{f: found[i].get(f, "") for f in fields} for i in sorted(found)[:MOST_ROWS]]


def slot_of(path: str, known: Iterable[str], aliases: Mapping[str, str]) -> str:
    """Return the slot of a field's path: itself, else the nearest one around it, else the top.

    ``known`` are the form's slots, ``aliases`` are paths that have a slot of another name.
    """
    if path in aliases:
        return aliases[path]
    dotted = _KEY.sub(r".\1", _INDEX.sub(r".\1", path)).removeprefix("spec.").removeprefix("selector.")
    slots = frozenset(known)
    while dotted:
        if dotted in aliases:
            return aliases[dotted]
        if dotted in slots:
            return dotted
        dotted = dotted.rpartition(".")[0]
    return TOP


def sorted_in(
    violations: Iterable[Violation], known: Iterable[str], aliases: Mapping[str, str]
) -> dict[str, list[str]]:
    """Put each violation's message into its slot, each once."""
    slots = tuple(known)
    found: dict[str, list[str]] = {}
    for violation in violations:
        told = found.setdefault(slot_of(violation.field, slots, aliases), [])
        if violation.message not in told:
            told.append(violation.message)
    return found


def cautions_in(
    warnings: Iterable[str], known: Iterable[str], aliases: Mapping[str, str], elsewhere: str
) -> dict[str, list[str]]:
    """Put each warning into its field's slot, each once: ours begin with the field's path, and the webhook's are ours.
    ``elsewhere``: the slot of those that name none."""
    slots = tuple(known)
    found: dict[str, list[str]] = {}
    for warning in warnings:
        match = _ABOUT.match(warning)
        slot, text = (slot_of(match[1], slots, aliases), warning[match.end() :]) if match else (elsewhere, warning)
        told = found.setdefault(slot, [])
        if text not in told:
            told.append(text)
    return found


def refusal(error: KubeError) -> tuple[Violation, ...]:
    """What an API server says against an object, field by field where it can."""
    return error.causes or (Violation(field="", reason=Heard(error.reason), message=str(error)),)


def text_of(body: object) -> str:
    """What is sent, as YAML."""
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=100)


def changes(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    """The merge patch (RFC 7386) from one JSON object to another; lists are replaced whole."""
    patch: dict[str, object] = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            if inner := changes(before, value):
                patch[name] = inner
        elif name not in old or before != value:
            patch[name] = value
    return patch


def merged_json(old: Mapping[str, object], patch: Mapping[str, object]) -> dict[str, object]:
    """Apply a merge patch (RFC 7386)."""
    found = dict(old)
    for name, value in patch.items():
        before = found.get(name)
        if value is None:
            found.pop(name, None)
        elif isinstance(value, Mapping):
            found[name] = merged_json(before if isinstance(before, Mapping) else {}, value)
        else:
            found[name] = value
    return found


def differences(base: F, now: F, titles: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """What somebody else has changed: (what, from, to), for people. Forms are dataclasses."""
    found = []
    for each in _fields(base):
        before, after = getattr(base, each.name), getattr(now, each.name)
        if before != after:
            found.append((titles.get(each.name, each.name), _shown(before), _shown(after)))
    return found


def merged(base: F, theirs: F, mine: F) -> F:
    """Theirs, with what I have changed: field by field, lists as one."""
    names = [each.name for each in _fields(base)]
    changed = {name: getattr(mine, name) for name in names if getattr(mine, name) != getattr(base, name)}
    result: F = replace(cast("Any", theirs), **changed)
    return result


def _fields(form: object) -> tuple["Field[Any]", ...]:
    return fields(cast("Any", form))


def _shown(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case tuple():
            return "; ".join(" ".join(part for part in row.values() if part) for row in value) or "none"
        case Mapping():
            return ", ".join(f"{k} {v}" for k, v in value.items() if v) or "none"
        case _:
            return str(value) or "none"
