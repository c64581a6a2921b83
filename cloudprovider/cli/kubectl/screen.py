"""How things are printed: tables, colours where a terminal takes them, and what is being waited for."""

import asyncio
import os
import shutil
import textwrap
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TextIO

import msgspec

from cloudprovider.cli.crds import dump
from cloudprovider.core.times import seconds_since

API_VERSION: Final = "cli.cloudprovider.harvesterhci.io/v1"
GAP: Final = "   "
PATIENCE: Final = 1.0
"""Seconds after which it is told what is being waited for."""

_COLORS: Final[Mapping[str, str]] = {"green": "32", "red": "31", "yellow": "33"}


@dataclass(frozen=True)
class Style:
    """``width``: of the terminal; None: no terminal, nothing is cut or wrapped. ``color``: whether it takes colours."""

    width: int | None = None
    color: bool = False

    @classmethod
    def of(cls, stream: TextIO, environment: Mapping[str, str] = os.environ) -> "Style":
        """For what a stream goes to; https://no-color.org is heeded."""
        if not stream.isatty():
            return cls()
        plain = bool(environment.get("NO_COLOR")) or environment.get("TERM") == "dumb"
        return cls(shutil.get_terminal_size().columns, not plain)

    def paint(self, text: str, color: str) -> str:
        """Return ``text`` in a colour, where there are any."""
        return f"\x1b[{_COLORS[color]}m{text}\x1b[0m" if self.color else text


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], style: Style) -> str:
    """Columns as kubectl's; lines are cut at the terminal's width."""
    lines = [headers, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    texts = (GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "".join(f"{cut(text, style.width)}\n" for text in texts)


def cut(text: str, width: int | None) -> str:
    """One line, as far as there is room."""
    text = " ".join(text.splitlines())
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"


def indented(text: str, indent: int, style: Style) -> str:
    """A paragraph behind what stands in its first line already, wrapped at the terminal's width."""
    text = " ".join(text.split())
    if style.width is None or style.width - indent < 20:
        return text
    lines = textwrap.wrap(text, style.width - indent, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines)


def age(since: str, now: datetime) -> str:
    """How long ago, as kubectl says it; "-" where it is not known."""
    elapsed = seconds_since(since, now)
    if elapsed is None:
        return "-"
    seconds = int(elapsed)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    return f"{days}d"


def document(kind: str, items: Sequence[msgspec.Struct], output: str) -> str:
    """For programs: ``apiVersion``, ``kind``, ``items``; as JSON or YAML."""
    found = {"apiVersion": API_VERSION, "kind": kind, "items": msgspec.to_builtins(list(items))}
    if output == "yaml":
        return dump(found)
    return msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n"


class Progress:
    """Tells on ``stream`` what is waited for, once that takes longer than a second."""

    def __init__(self, stream: TextIO, *, patience: float = PATIENCE) -> None:
        self._stream = stream
        self._patience = patience

    @asynccontextmanager
    async def doing(self, what: str) -> AsyncIterator[None]:
        """While the block runs, that is what is being done."""
        task = asyncio.create_task(self._tell(what))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _tell(self, what: str) -> None:
        await asyncio.sleep(self._patience)
        if not self._stream.isatty():
            print(f"{what} ...", file=self._stream, flush=True)
            return
        began = time.monotonic() - self._patience
        try:
            while True:
                print(f"\r{what} ... {time.monotonic() - began:.0f} s", end="", file=self._stream, flush=True)
                await asyncio.sleep(1.0)
        finally:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
