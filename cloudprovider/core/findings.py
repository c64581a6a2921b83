"""Reading a guest's Service: its annotations and fields, and everything that is wrong with them at once."""

import difflib
import re
from collections.abc import Iterable
from typing import Final

from cloudprovider.core.annotations import KNOWN, PREFIX
from cloudprovider.core.api.kubernetes import Service
from cloudprovider.core.errors import Violation
from cloudprovider.core.rulings import AskedReason

_OWN: Final = {name.removeprefix(PREFIX): name for name in KNOWN}


class Findings:
    """Reads one Service and gathers what is wrong with it in ``violations``."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.violations: list[Violation] = []

    def annotation(self, name: str) -> str:
        """Return an annotation's value; empty where it is not there."""
        return self.service.metadata.annotations.get(name, "").strip()

    def refuse(self, field: str, reason: AskedReason, message: str) -> None:
        """Note a violation of a field."""
        self.violations.append(Violation(field=field, reason=reason, message=message))

    def refuse_annotation(self, name: str, reason: AskedReason, message: str) -> None:
        """Note a violation of an annotation."""
        self.refuse(annotation_field(name), reason, message)

    def unknown_annotations(self) -> None:
        """Refuse annotations of our prefix that there are not: a typing error must not silently mean "default"."""
        for name in sorted(self.service.metadata.annotations):
            if name.startswith(PREFIX) and name not in KNOWN:
                near = difflib.get_close_matches(name.removeprefix(PREFIX).lower(), _OWN, n=1, cutoff=0.0)
                self.refuse_annotation(
                    name, "UnknownAnnotation", f"there is no such annotation; did you mean {_OWN[near[0]]}?"
                )

    def one_of(self, field: str, value: str, allowed: tuple[str, ...]) -> str:
        """Return ``value``, which must be one of ``allowed``."""
        if value not in allowed:
            self.refuse(field, "UnsupportedValue", f'"{value}" is not one of {listed(allowed)}')
        return value

    def matching(self, name: str, pattern: re.Pattern[str], what: str) -> str:
        """Return an annotation's value if it is like ``pattern``, else an empty one; ``what`` it is to be is for the
        message."""
        value = self.annotation(name)
        if value and not pattern.fullmatch(value):
            self.refuse_annotation(name, "MalformedValue", f'"{value}" is not {what}')
            return ""
        return value


def annotation_field(name: str) -> str:
    """Return an annotation's path in its object."""
    return f"metadata.annotations[{name}]"


def listed(values: Iterable[str]) -> str:
    """Return values for a message, in quotes."""
    return ", ".join(f'"{v}"' for v in values)
