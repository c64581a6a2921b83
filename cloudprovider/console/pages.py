"""Making pages: templates, files, and errors in words."""

import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from importlib.resources import files
from typing import Final
from urllib.parse import quote, urlencode

import jinja2
from aiohttp import web

from cloudprovider.console import words
from cloudprovider.console.gate import SESSION, STATIC, is_partial
from cloudprovider.core.errors import Conflict, Forbidden, KubeError, NotFound, Unavailable

Clock = Callable[[], datetime]
"""Returns the time, with a time zone."""

_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class Pages:
    """Renders templates; what is put into them is escaped, and nothing may be missing."""

    def __init__(self, now: Clock) -> None:
        self.now = now
        self._files: dict[str, bytes] = {}
        for file in files("cloudprovider.console").joinpath("static").iterdir():
            if _suffix(file.name) in _TYPES:
                self._files[file.name] = file.read_bytes()
        marks = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in self._files.items()}
        self._environment = jinja2.Environment(
            loader=jinja2.PackageLoader("cloudprovider.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters |= {
            "age": partial(_age, now),
            "plural": words.plural,
            "number": words.number,
            "size": words.size,
            "segment": lambda text: quote(text, safe=""),
            "query": lambda parameters: f"?{urlencode(parameters)}" if parameters else "",
        }
        self._environment.globals |= {"static": lambda name: f"{STATIC}{name}?{marks[name]}", "now": now}

    def render(self, template: str, values: Mapping[str, object]) -> str:
        """The text of a template."""
        return self._environment.get_template(template).render(values)

    def page(
        self, request: web.Request, template: str, values: Mapping[str, object], *, status: int = 200
    ) -> web.Response:
        """Answer with a page, or a part of one."""
        session = request.get(SESSION)
        form_token = session.form_token if session is not None else ""
        text = self.render(template, {"session": session, "form_token": form_token, "path": request.path, **values})
        return web.Response(text=text, content_type="text/html", status=status)

    def error(self, request: web.Request, title: str, message: str, status: int) -> web.Response:
        """Answer that something did not work, and why."""
        template = "problem-part.html" if is_partial(request) else "problem.html"
        return self.page(request, template, {"title": title, "message": message}, status=status)

    async def file(self, request: web.Request) -> web.Response:
        """Answer with a static file; its URL has its hash, so it may be kept."""
        name = request.match_info["name"]
        content = self._files.get(name)
        if content is None:
            raise web.HTTPNotFound
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        kind = _TYPES[_suffix(name)]
        return web.Response(body=content, content_type=kind, charset="utf-8", headers=headers)


def told(error: KubeError) -> tuple[str, str, int]:
    """Title, message and HTTP status for what an API server refused or did not answer."""
    match error:
        case Forbidden() if error.status == 401:
            return "Signed out", "The API server does not accept your token any more: sign in with a fresh one.", 401
        case Forbidden():
            return "Not allowed", f"You may not do this. The API server says: {error}", 403
        case NotFound():
            return "Not there", f"It is not there, or not any more. The API server says: {error}", 404
        case Conflict():
            return "Changed meanwhile", f"Somebody else has changed it. The API server says: {error}", 409
        case Unavailable():
            return "No answer", f"The API server can't be asked now: {error}. Try again in a moment.", 503
        case _:
            return "Refused", f"The API server refuses this: {error}", 422


def _suffix(name: str) -> str:
    return f".{name.rpartition('.')[2]}"


def _age(now: Clock, text: str) -> str:
    return words.age(text, now())
