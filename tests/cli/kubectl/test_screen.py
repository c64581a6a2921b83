"""Tables, ages, colours, and what is told while something is waited for."""

import asyncio
import io
from datetime import UTC, datetime, timedelta

import pytest
from typing_extensions import override

from cloudprovider.cli.kubectl.screen import Progress, Style, age, cut, indented, table

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Terminal(io.StringIO):
    @override
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (185, "3m5s"),
        (3600, "60m"),
        (4 * 3600 + 60, "4h1m"),
        (9 * 3600, "9h"),
        (47 * 3600, "47h"),
        (72 * 3600, "3d"),
    ],
)
def test_ages_are_kubectls(seconds: int, text: str) -> None:
    assert age((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == text


@pytest.mark.parametrize("nothing", ["", "yesterday"])
def test_an_age_that_is_not_known(nothing: str) -> None:
    assert age(nothing, NOW) == "-"


def test_a_table_is_aligned_and_cut_at_the_terminal_alone() -> None:
    rows = [["a", "long name", "x"], ["bb", "n", "a text that is long"]]
    assert table(["A", "NAME", "WHY"], rows, Style()) == (
        "A    NAME        WHY\na    long name   x\nbb   n           a text that is long\n"
    )
    assert table(["A", "NAME", "WHY"], rows, Style(width=24)).splitlines()[2] == "bb   n           a text…"
    assert cut("one\ntwo", None) == "one two"


def test_paragraphs_are_wrapped_at_the_terminal_alone() -> None:
    assert indented("a b c", 4, Style()) == "a b c"
    assert indented("word " * 8, 4, Style(width=30)) == "word word word word word\n    word word word"


@pytest.mark.parametrize(
    ("stream", "environment", "color", "width"),
    [
        (io.StringIO(), {}, False, False),
        (Terminal(), {}, True, True),
        (Terminal(), {"NO_COLOR": "1"}, False, True),
        (Terminal(), {"TERM": "dumb"}, False, True),
    ],
)
def test_colours_are_for_terminals(stream: io.StringIO, environment: dict[str, str], color: bool, width: bool) -> None:
    style = Style.of(stream, environment)
    assert (style.color, style.width is not None) == (color, width)
    assert ("\x1b" in style.paint("x", "red")) is color


async def wait_in(progress: Progress, stream: io.StringIO, *, until: str) -> None:
    async with asyncio.timeout(10), progress.doing("reading pools"):
        while until not in stream.getvalue():  # noqa: ASYNC110 - a text, not a signal
            await asyncio.sleep(0.005)


async def test_what_takes_long_is_told_once() -> None:
    stream = io.StringIO()
    await wait_in(Progress(stream, patience=0.01), stream, until="\n")
    assert stream.getvalue() == "reading pools ...\n"


async def test_on_a_terminal_the_line_goes_again() -> None:
    stream = Terminal()
    await wait_in(Progress(stream, patience=0.01), stream, until=" s")
    assert stream.getvalue() == "\rreading pools ... 0 s\r\x1b[K"


async def test_what_is_quick_is_not_told() -> None:
    stream = io.StringIO()
    async with Progress(stream).doing("reading pools"):
        pass
    assert stream.getvalue() == ""
