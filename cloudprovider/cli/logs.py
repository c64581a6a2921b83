"""Logs: one event a line, as JSON for machines or as text for people; never a secret.

The message is a short constant sentence, values are fields (``extra={...}``). Standard logging underneath, so that
libraries' logs come out the same way.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, TextIO

import msgspec

Format = Literal["auto", "json", "text"]
Level = Literal["debug", "info", "warning", "error"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes that every record has: all others came in by ``extra``."""

_SECRET_NAMES: Final = frozenset(
    {
        "authorization",
        "proxy_authorization",
        "cookie",
        "set_cookie",
        "password",
        "passwd",
        "secret",
        "client_secret",
        "token",
        "access_token",
        "bearer_token",
        "id_token",
        "refresh_token",
        "api_key",
        "private_key",
        "client_key_data",
    }
)
"""Fields and header names (in lower case, with "_" for "-") whose whole value is a secret.

Exact names: ``key`` is what a queue calls its items, ``fencing_token`` and ``resume_token`` are no one's secrets, and
``client_key`` is a file's path. A secret under a name that is not here is known by its form.
"""

_SECRET_TEXT: Final = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"  # PEM, RFC 7468
    r"|\bLS0tLS1CRUdJTi(?!BDRVJUSUZJ)[A-Za-z0-9+/]+=*"  # any but a certificate of it in base64, as in a kubeconfig
    r"|\beyJ[\w-]+\.eyJ[\w-]+\.[\w-]*"  # a JSON Web Token, RFC 7519: accounts of Kubernetes have such
    r"|(?<=\bBearer )\S+|(?<=\bBasic )[A-Za-z0-9+/]{8,}=*",  # RFC 6750, RFC 7617
    re.S,
)
_REDACTED: Final = "[redacted]"
_FRAMES: Final = 12
_NOISY: Final = ("kubernetes", "urllib3", "aiohttp.access", "asyncio")


def setup(level: Level = "info", format_: Format = "auto", stream: TextIO | None = None) -> None:
    """Send all logs to ``stream`` (standard error); ``auto`` is text on a terminal, else JSON."""
    stream = stream or sys.stderr
    text = format_ == "text" or (format_ == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter() if text else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(logging.INFO, root.level))
    logging.captureWarnings(True)  # noqa: FBT003 - logging's own signature


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and error with trace for an exception."""

    def format(self, record: logging.LogRecord) -> str:  # type: ignore[explicit-override]  # typing.override is 3.12's
        """Return the line, without its end."""
        event: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
        }
        event.update(_fields(record))
        if error := _exception(record):
            event["error"], event["trace"] = error
        return msgspec.json.encode(event, enc_hook=str).decode()


class TextFormatter(logging.Formatter):
    """Time, level and message, then the fields as name=value; an exception's trace on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:  # type: ignore[explicit-override]  # typing.override is 3.12's
        """Return the event."""
        fields = "".join(f" {name}={_value(value)}" for name, value in _fields(record).items())
        line = f"{_time(record)[11:23]} {record.levelname:<7} {_clean(record.getMessage())}{fields}"
        if error := _exception(record):
            summary, frames = error
            line += f"\n    {summary}" + "".join(f"\n      at {frame}" for frame in frames)
        return line


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: _safe(name, value) for name, value in vars(record).items() if name not in _STANDARD}


def _safe(name: str, value: object) -> object:
    """``value`` without secrets, and of types that JSON has."""
    if name.lower().replace("-", "_") in _SECRET_NAMES:
        return _REDACTED
    match value:
        case None | bool() | int() | float():
            return value
        case str():
            return _clean(value)
        case bytes():
            return f"[{len(value)} bytes]"
        case BaseException():
            return _clean(f"{type(value).__name__}: {value}")
        case Mapping():
            return {str(key): _safe(str(key), item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_safe("", item) for item in value]
        case _:
            return _clean(str(value))


def _clean(text: str) -> str:
    return _SECRET_TEXT.sub(_REDACTED, text)


def _value(value: object) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if text and not re.search(r'[\s"=]', text) else msgspec.json.encode(text).decode()


def _exception(record: logging.LogRecord) -> tuple[str, list[str]] | None:
    """What happened, causes after it, and where: the innermost frames of the first."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return None
    summary = " <- ".join(_clean(f"{type(e).__name__}: {e}") for e in _chain(error))
    return summary, _frames(error.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _frames(trace: TracebackType | None) -> list[str]:
    frames = traceback.extract_tb(trace)[-_FRAMES:]
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames)]
