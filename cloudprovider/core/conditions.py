"""Conditions as Kubernetes means them (API conventions, "Typical status properties")."""

from collections.abc import Iterable, Sequence
from typing import Final, Literal

import msgspec

from cloudprovider.core.api.meta import Condition
from cloudprovider.core.conditiontypes import Type
from cloudprovider.core.reasons import Word

MAX_MESSAGE: Final = 32768
"""Characters of a condition's message (metav1.Condition): with more the API server refuses the whole status."""


def condition(
    type_: Type, status: Literal["True", "False", "Unknown"], reason: Word, message: str, *, generation: int = 0
) -> Condition:
    """Say a condition, as yet without its times; ``generation``: the one that it was found out about. Nothing of ours
    makes one otherwise, so that docs/reference has them all."""
    return Condition(type=type_, status=status, reason=reason, message=message, observed_generation=generation)


def carry_times(before: Iterable[Condition], after: Sequence[Condition], now: str) -> list[Condition]:
    """Give ``after`` its times: a condition that keeps its status keeps ``lastTransitionTime``; one that says just
    what it said keeps ``lastUpdateTime`` too, so that it compares equal. What is too long is cut. ``now``: RFC 3339."""
    known = {c.type: c for c in before}
    result = []
    for one in after:
        said = msgspec.structs.replace(one, message=cut(one.message))
        old = known.get(said.type)
        transition = old.last_transition_time if old and old.status == said.status else ""
        update = old.last_update_time if old and _says(old) == _says(said) else ""
        result.append(
            msgspec.structs.replace(said, last_transition_time=transition or now, last_update_time=update or now)
        )
    return result


def cut(message: str, most: int = MAX_MESSAGE) -> str:
    """Return a message as far as there is room for it."""
    return message if len(message) <= most else f"{message[: most - 1]}…"


def same(a: Iterable[Condition], b: Iterable[Condition]) -> bool:
    """Whether two lists say the same, times and order aside."""
    return {c.type: _says(c) for c in a} == {c.type: _says(c) for c in b}


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of one type."""
    return next((c for c in conditions if c.type == kind), None)


def _says(condition: Condition) -> tuple[str, str, str, int]:
    return (condition.status, condition.reason, condition.message, condition.observed_generation)
