"""Who has an address that several claim: whoever had it first. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claimant:
    """A machine, or a guest cluster's node, that says it has an address. ``holds``: traffic goes to it there already,
    by what stands in a status; ``since``: when it was made, RFC 3339 in UTC."""

    namespace: str
    name: str
    holds: bool
    since: str
    cluster: str = ""
    """The guest cluster, where ``name`` is that of a node."""


def first(claimants: Iterable[Claimant]) -> Claimant:
    """Return the one that keeps the address: who holds it, then who is older, then by name."""
    return min(claimants, key=lambda c: (not c.holds, c.since, c.namespace, c.name, c.cluster))
