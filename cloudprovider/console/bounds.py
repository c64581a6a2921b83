"""What a field of our objects may hold, read from the types that the definitions are made of. Pure."""

from functools import cache
from typing import Final

import msgspec

from cloudprovider.core.api.meta import ApiStruct

DNS_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
DNS_SUBDOMAIN: Final = rf"{DNS_LABEL}(\.{DNS_LABEL})*"
LABEL_NAME: Final = r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"


@cache
def numbers(kind: type[ApiStruct], field: str) -> tuple[int, int]:
    """The smallest and the greatest number that a field may hold."""
    for found in _types(kind, field):
        if isinstance(found, msgspec.inspect.IntType):
            return found.ge or 0, found.le if found.le is not None else 2**31 - 1
    raise TypeError(f"{kind.__name__}.{field} is no number")


@cache
def length(kind: type[ApiStruct], field: str) -> int:
    """How many characters a field may hold."""
    for found in _types(kind, field):
        if isinstance(found, msgspec.inspect.StrType) and found.max_length is not None:
            return found.max_length
    raise TypeError(f"{kind.__name__}.{field} is no text with a bound")


@cache
def pattern(kind: type[ApiStruct], field: str) -> str:
    """The regular expression that a field's text matches."""
    for found in _types(kind, field):
        if isinstance(found, msgspec.inspect.StrType) and found.pattern is not None:
            return found.pattern
    raise TypeError(f"{kind.__name__}.{field} is no text with a pattern")


def _types(kind: type[ApiStruct], field: str) -> tuple[msgspec.inspect.Type, ...]:
    described = msgspec.inspect.type_info(kind)
    if not isinstance(described, msgspec.inspect.StructType):
        raise TypeError(kind.__name__)
    found = _bare(next(f.type for f in described.fields if f.name == field))
    return tuple(map(_bare, found.types)) if isinstance(found, msgspec.inspect.UnionType) else (found,)


def _bare(found: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """A type without its description."""
    return _bare(found.type) if isinstance(found, msgspec.inspect.Metadata) else found
