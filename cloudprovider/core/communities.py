"""BGP communities as people write them: RFC 1997, the large ones of RFC 8092, and those that have a name. Pure."""

import re
from collections.abc import Iterable
from typing import Final

WELL_KNOWN: Final = frozenset({"no-export", "no-advertise", "blackhole", "graceful-shutdown", "accept-own", "no-peer"})
"""As FRR names them; RFC 1997, 7999, 8326, 7611 and 3765."""
LARGE: Final = "large:"

_COMMUNITY: Final = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")
_LARGE: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")


def split(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the communities, the large ones (without their prefix), and what is none of both; each once, sorted."""
    small: set[str] = set()
    large: set[str] = set()
    wrong: set[str] = set()
    for text in texts:
        if text.startswith(LARGE) and (found := _numbers(_LARGE, text.removeprefix(LARGE), 2**32)):
            large.add(found)
        elif text in WELL_KNOWN:
            small.add(text)
        elif found := _numbers(_COMMUNITY, text, 2**16):
            small.add(found)
        else:
            wrong.add(text)
    return tuple(sorted(small)), tuple(sorted(large)), tuple(sorted(wrong))


def _numbers(pattern: re.Pattern[str], text: str, limit: int) -> str:
    """The text with its numbers as FRR writes them; "" for what does not fit."""
    match = pattern.fullmatch(text)
    if match is None:
        return ""
    numbers = [int(number) for number in match.groups()]
    return ":".join(map(str, numbers)) if all(number < limit for number in numbers) else ""
