"""Warnings of an API server: HTTP's header ``Warning``, code 299 (RFC 7234 section 5.5, KEP-1693)."""

import re
from collections.abc import Callable, Iterable
from typing import Final

Warned = Callable[[str], None]
"""Called with each warning."""

MOST: Final = 50
_HEADER: Final = re.compile(r'299 [^ ]+ "((?:[^"\\]|\\.)*)"')
_ESCAPED: Final = re.compile(r"\\(.)")


def warnings_in(headers: Iterable[str]) -> list[str]:
    """Return the texts of headers, each once; what is no warning of code 299 is left out."""
    found = (_ESCAPED.sub(r"\1", match[1]) for header in headers for match in _HEADER.finditer(header))
    return list(dict.fromkeys(found))[:MOST]
