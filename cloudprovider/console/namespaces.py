"""Which namespaces to offer to a user."""

from collections.abc import Sequence
from typing import Final

from cloudprovider.console.sessions import Session
from cloudprovider.core.errors import Forbidden
from cloudprovider.kube.resources import NAMESPACES

MOST: Final = 2000


async def visible_namespaces(session: Session) -> Sequence[str]:
    """Return those that the user may list, else those that they have been in."""
    try:
        listed = await session.client.list(NAMESPACES)
    except Forbidden:
        return sorted(session.namespaces)
    return sorted(n.metadata.name for n in listed.items)[:MOST]
