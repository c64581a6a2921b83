"""Who may come in, and what every answer carries: sessions, protection against other sites, headers.

- Every answer: a content security policy that lets nothing run but our own files, and no storing in caches.
- Every change (POST): from a page of this origin (Origin, Sec-Fetch-Site), with the session's form token.
- Every page but the sign-in: a session, by a cookie that no other site and no script can send or read.

https://cheatsheetseries.owasp.org/cheatsheets/Cross-Site_Request_Forgery_Prevention_Cheat_Sheet.html
"""

import secrets
from typing import Final
from urllib.parse import quote, urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cloudprovider.console.config import ConsoleConfig
from cloudprovider.console.sessions import Session, Sessions

SESSION: Final = web.RequestKey("session", Session)
SIGN_IN: Final = "/sign-in"
STATIC: Final = "/static/"
BODY_LIMIT: Final = 256 * 1024
"""Bytes of a form; 250 listeners take some 20 kB."""
FORM: Final = "application/x-www-form-urlencoded"
PASSIVE: Final = "/live/"
"""Paths that pages ask for by themselves: they keep nobody signed in."""

_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Gate:
    """Decides about requests before a page sees them."""

    def __init__(self, config: ConsoleConfig, sessions: Sessions) -> None:
        self._sessions = sessions
        self._public = _origin_of(config.public_url) if config.public_url else ""
        self._tls = config.tls_cert is not None
        self.secure = self._tls or self._public.startswith("https://")
        # The prefix binds a cookie to this very host and to TLS: no neighbour can set one for us.
        self.cookie = "__Host-console" if self.secure else "console"

    async def add_headers(self, _: web.Request, response: web.StreamResponse) -> None:
        """To every answer, errors and streams included."""
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")

    def admit(self, response: web.StreamResponse, session: Session) -> None:
        """Give the browser its session."""
        response.set_cookie(
            self.cookie, session.identifier, path="/", httponly=True, samesite="Strict", secure=self.secure
        )

    def dismiss(self, response: web.StreamResponse) -> None:
        """Take it away again."""
        response.del_cookie(self.cookie, path="/", httponly=True, samesite="Strict", secure=self.secure)

    def middleware(self) -> Middleware:
        """What every request passes."""

        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method not in {"GET", "HEAD", "POST"}:
                raise web.HTTPMethodNotAllowed(request.method, {"GET", "HEAD", "POST"})
            if request.method == "POST":
                self._require_own_page(request)
            if request.path.startswith(STATIC):
                return await handler(request)
            session = self._sessions.find(
                request.cookies.get(self.cookie, ""), passive=request.path.startswith(PASSIVE)
            )
            if session is not None:
                request[SESSION] = session
                if request.method == "POST":
                    await _require_form_token(request, session)
            elif request.path != SIGN_IN:
                return _sign_in(request)
            return await handler(request)

        return check

    def _require_own_page(self, request: web.Request) -> None:
        scheme = "https" if self._tls else "http"
        own = self._public or f"{scheme}://{request.headers.get('Host', '')}".lower()
        origin, site = request.headers.get("Origin", "").lower(), request.headers.get("Sec-Fetch-Site")
        # Under our own referrer policy a form's Origin is "null": then the browser's word in Sec-Fetch-Site counts.
        is_own = origin == own if site is None else site == "same-origin" and origin in {own, "null", ""}
        if not is_own:
            raise web.HTTPForbidden(text="This change comes from another site's page (Origin), and is not made.")
        if request.content_type != FORM:
            raise web.HTTPUnsupportedMediaType(text=f"A form ({FORM}) is expected.")


def session_of(request: web.Request) -> Session:
    """The session of a request that has passed the gate."""
    return request[SESSION]


def is_partial(request: web.Request) -> bool:
    """Whether htmx asks, for a part of the page."""
    return request.headers.get("HX-Request") == "true"


def local_path(text: str) -> str:
    """Where to go after the sign-in: only a path of ours."""
    parts = urlsplit(text)
    is_ours = not parts.scheme and not parts.netloc and text.startswith("/") and not text.startswith(("//", "/\\"))
    return text if is_ours and text.isprintable() and "\\" not in text else "/"


async def _require_form_token(request: web.Request, session: Session) -> None:
    form = await request.post()
    given = form.get("form_token", "")
    if not isinstance(given, str) or not secrets.compare_digest(given.encode(), session.form_token.encode()):
        raise web.HTTPForbidden(text="This form is from an earlier session. Load the page again and repeat the change.")


def _sign_in(request: web.Request) -> web.Response:
    if is_partial(request):
        # The whole page goes to the sign-in, not the part that was asked for.
        return web.Response(status=401, headers={"HX-Redirect": SIGN_IN})
    after = f"?next={quote(request.path_qs, safe='')}" if request.method == "GET" and request.path != "/" else ""
    return web.Response(status=303, headers={"Location": f"{SIGN_IN}{after}"})


def _origin_of(url: str) -> str:
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc}"
