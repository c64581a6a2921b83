"""What comes of checking a change."""

from collections.abc import Sequence
from dataclasses import dataclass

from cloudprovider.core.errors import Violation


@dataclass(frozen=True)
class Verdict:
    """``violations``: why the change is refused, all of it. ``warnings``: what its author should know anyway."""

    violations: tuple[Violation, ...] = ()
    warnings: tuple[str, ...] = ()

    def __add__(self, other: "Verdict") -> "Verdict":
        """Both together."""
        return Verdict(self.violations + other.violations, self.warnings + other.warnings)


def worsened(after: Sequence[Violation], before: Sequence[Violation]) -> Verdict:
    """Refuse what ``before`` did not have; warn of the rest."""
    known = frozenset(before)
    return Verdict(
        tuple(v for v in after if v not in known),
        tuple(f"{v.field}: {v.message}" for v in after if v in known),
    )
