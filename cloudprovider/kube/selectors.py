"""Label and field selectors as ``kubectl -l`` and ``--field-selector`` take them, for the shipped fake."""

import re
from collections.abc import Callable, Mapping

from cloudprovider.core.api.meta import KubeObject
from cloudprovider.core.errors import Invalid

Matcher = Callable[[KubeObject], bool]

_REQUIREMENT = re.compile(
    r"\s*(?:(?P<key>[\w./-]+)\s*(?P<op>==|=|!=|\bin\b|\bnotin\b)\s*(?P<value>\([\w.,\s-]*\)|[\w.-]*)"
    r"|(?P<absent>!\s*)?(?P<exists>[\w./-]+))\s*(?:,|$)"
)


def matcher(label_selector: str, field_selector: str) -> Matcher:
    """A function that tells whether an object is selected. Raises Invalid for what can't be understood."""
    labels = _requirements(label_selector)
    fields = _requirements(field_selector)
    for key, _ in fields:
        if key not in {"metadata.name", "metadata.namespace"}:
            raise Invalid(f"field label not supported: {key}", status=400, reason="BadRequest")

    def matches(obj: KubeObject) -> bool:
        values: Mapping[str, str] = {
            "metadata.name": obj.metadata.name,
            "metadata.namespace": obj.metadata.namespace,
        }
        return all(holds(obj.metadata.labels.get(key)) for key, holds in labels) and all(
            holds(values[key]) for key, holds in fields
        )

    return matches


def _requirements(selector: str) -> list[tuple[str, Callable[[str | None], bool]]]:
    found = []
    position = 0
    while position < len(selector):
        match = _REQUIREMENT.match(selector, position)
        if match is None or match.end() == position:
            raise Invalid(f"selector {selector!r} can't be parsed", status=400, reason="BadRequest")
        position = match.end()
        found.append(_requirement(match))
    return found


def _requirement(match: re.Match[str]) -> tuple[str, Callable[[str | None], bool]]:
    if match["key"] is None:
        absent = match["absent"] is not None
        return match["exists"], lambda value: (value is None) == absent
    wanted = {part.strip() for part in match["value"].strip("()").split(",")}
    if match["op"] in {"=", "==", "in"}:
        return match["key"], lambda value: value in wanted
    return match["key"], lambda value: value not in wanted
