"""How our commands' parsers are made: with whole help texts, without abbreviations, errors in our own words."""

import argparse
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def parser(make: Callable[..., argparse.ArgumentParser], *arguments: str, **keywords: str) -> argparse.ArgumentParser:
    """Return what ``make`` (ArgumentParser, or a sub-parsers' ``add_parser``) makes."""
    return make(
        *arguments,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
        allow_abbrev=False,
        **keywords,
    )


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """``parse`` for argparse, which shows the message of no error but its own."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as e:
            raise argparse.ArgumentTypeError(str(e)) from e

    return convert
