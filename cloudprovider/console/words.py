"""Facts as people read them: ages, sizes, and what conditions mean."""

from datetime import datetime
from typing import Final

from cloudprovider.core.times import seconds_since

_STEPS: Final = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def age(text: str, now: datetime) -> str:
    """How long ago an RFC 3339 time was, in its biggest unit ("5 min"); empty if it is none."""
    seconds = seconds_since(text, now)
    return "" if seconds is None else duration(seconds)


def duration(seconds: float) -> str:
    """Seconds in their biggest unit."""
    for size, unit in _STEPS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


def size(count: float) -> str:
    """Bytes in their biggest unit, powers of 1,000."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def number(count: int) -> str:
    """A number with its thousands apart. Very large ones by their power of two."""
    return f"{count:,}" if count < 10**12 else f"2^{count.bit_length() - 1}"


def plural(count: int, one: str, many: str = "") -> str:
    """ "1 address", "2 addresses"."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"
