"""Who is signed in: in this process's memory only, so a restart signs everybody out.

A session holds its user's token (inside its client), never the other way round: whoever has the cookie has the session,
and nobody gets from one session to another's client.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from cloudprovider.core.errors import CloudProviderError
from cloudprovider.kube.api import KubeClient

PER_USER: Final = 10
"""Sessions of one user; one more ends the oldest of them."""
REMEMBERED: Final = 20
"""Namespaces that a session remembers for its user."""
STREAMS: Final = 8
"""Live pages of one session at a time; one more is refused."""


NOTICES: Final = 20
"""Of one session that wait for a page."""


class UserClient(KubeClient, Protocol):
    """An API server with one user's token."""

    async def close(self) -> None:
        """Close its connections."""
        ...


@dataclass(eq=False)
class Session:
    """``identifier`` is the cookie's value; ``form_token`` stands in each of its forms, and proves that a change comes
    from a page of this session. Times are monotonic seconds."""

    identifier: str
    form_token: str
    user: str
    client: UserClient
    created: float
    seen: float
    streams: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _namespaces: dict[str, None] = field(default_factory=dict)
    _notices: dict[str, None] = field(default_factory=dict)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Namespaces that its user has looked at, the last one first."""
        return tuple(reversed(self._namespaces))

    def remember(self, namespace: str) -> None:
        """Note a namespace that its user has looked at."""
        self._namespaces.pop(namespace, None)
        self._namespaces[namespace] = None
        if len(self._namespaces) > REMEMBERED:
            del self._namespaces[next(iter(self._namespaces))]

    def tell(self, notice: str) -> None:
        """Have its user's next page say this, beside what else it has to."""
        if len(self._notices) < NOTICES:
            self._notices[notice] = None

    def take_notices(self) -> tuple[str, ...]:
        """What is to be said, each once; then it has been."""
        told = tuple(self._notices)
        self._notices.clear()
        return told


class Full(CloudProviderError):
    """There are as many sessions as there may be."""


class Sessions:
    """The sessions there are. ``time`` is monotonic; ``idle`` and ``absolute`` are seconds."""

    def __init__(self, *, time: Callable[[], float], idle: float, absolute: float, most: int) -> None:
        self._time = time
        self._idle = idle
        self._absolute = absolute
        self._most = most
        self._sessions: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, user: str, client: UserClient) -> tuple[Session, tuple[Session, ...]]:
        """Begin a session; returns those that end for it. Raises Full."""
        own = [s for s in self._sessions.values() if s.user == user]
        ended = own[: max(0, len(own) - PER_USER + 1)]
        if len(self._sessions) - len(ended) >= self._most:
            raise Full
        for session in ended:
            self._end(session)
        now = self._time()
        session = Session(secrets.token_urlsafe(32), secrets.token_urlsafe(32), user, client, created=now, seen=now)
        self._sessions[session.identifier] = session
        return session, tuple(ended)

    def find(self, identifier: str, *, passive: bool = False) -> Session | None:
        """Return the session of a cookie, if it goes on. ``passive``: a page asks by itself, which keeps nobody signed
        in."""
        session = self._sessions.get(identifier)
        if session is None or self._is_over(session):
            return None
        if not passive:
            session.seen = self._time()
        return session

    def remove(self, session: Session) -> None:
        """End a session; its client is the caller's to close."""
        self._end(session)

    def expire(self) -> tuple[Session, ...]:
        """End what has been idle or has lasted for too long; the clients are the caller's to close."""
        return self._all_ended(s for s in tuple(self._sessions.values()) if self._is_over(s))

    def clear(self) -> tuple[Session, ...]:
        """End all."""
        return self._all_ended(tuple(self._sessions.values()))

    def _all_ended(self, sessions: Iterable[Session]) -> tuple[Session, ...]:
        ended = tuple(sessions)
        for session in ended:
            self._end(session)
        return ended

    def _end(self, session: Session) -> None:
        self._sessions.pop(session.identifier, None)
        session.ended.set()

    def _is_over(self, session: Session) -> bool:
        now = self._time()
        return now - session.seen >= self._idle or now - session.created >= self._absolute
