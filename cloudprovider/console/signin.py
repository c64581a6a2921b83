"""Signing in with a token, and out."""

import asyncio
import logging
from typing import Final

from aiohttp import web

from cloudprovider.console import users
from cloudprovider.console.gate import SIGN_IN, Gate, local_path, session_of
from cloudprovider.console.pages import Pages, told
from cloudprovider.console.sessions import Full, Sessions
from cloudprovider.core.errors import Forbidden, Invalid, KubeError

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""Tokens being tried; others wait, so that guessing can't load the API server."""


class SignIn:
    """The pages that need no session."""

    def __init__(self, pages: Pages, gate: Gate, sessions: Sessions, connect: users.Connect) -> None:
        self._pages = pages
        self._gate = gate
        self._sessions = sessions
        self._connect = connect
        self._slots = asyncio.Semaphore(AT_ONCE)

    def routes(self) -> list[web.RouteDef]:
        """What is served."""
        return [
            web.get(SIGN_IN, self.show),
            web.post(SIGN_IN, self.sign_in),
            web.post("/sign-out", self.sign_out),
        ]

    async def show(self, request: web.Request) -> web.Response:
        """The form."""
        return self._form(request, local_path(request.query.get("next", "/")))

    async def sign_in(self, request: web.Request) -> web.Response:
        """Try the token; begin a session."""
        form = await request.post()
        text, after = str(form.get("token", "")), local_path(str(form.get("next", "/")))
        try:
            client = self._connect(users.checked_token(text))
        except Invalid as error:
            return self._form(request, after, str(error), 422)
        try:
            async with self._slots:
                user = await users.name_of(client)
            session, ended = self._sessions.add(user, client)
        except (KubeError, Full) as error:
            await client.close()
            return self._form(request, after, *_refusal(error))
        for other in ended:
            await other.client.close()
        log.info("Signed in", extra={"user": user, "sessions": len(self._sessions)})
        response = web.Response(status=303, headers={"Location": after})
        self._gate.admit(response, session)
        return response

    async def sign_out(self, request: web.Request) -> web.Response:
        """End the session."""
        session = session_of(request)
        self._sessions.remove(session)
        await session.client.close()
        log.info("Signed out", extra={"user": session.user, "sessions": len(self._sessions)})
        response = web.Response(status=303, headers={"Location": SIGN_IN})
        self._gate.dismiss(response)
        return response

    def _form(self, request: web.Request, after: str, problem: str = "", status: int = 200) -> web.Response:
        return self._pages.page(request, "sign-in.html", {"after": after, "problem": problem}, status=status)


def _refusal(error: KubeError | Full) -> tuple[str, int]:
    if isinstance(error, Full):
        return "too many people are signed in: try again later", 503
    if isinstance(error, Forbidden):
        return "the API server does not know this token: it may have expired, or be another cluster's", 401
    return told(error)[1], 503
