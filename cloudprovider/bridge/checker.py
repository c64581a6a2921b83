"""What every message of the bridge is read with: bounds, well-formedness, and all that is wrong with it at once."""

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from cloudprovider.bridge.v1 import bridge_pb2 as pb
from cloudprovider.core.errors import InvalidRequest, Violation
from cloudprovider.core.exchange import ServiceKey
from cloudprovider.core.plan import IPAddress
from cloudprovider.core.rulings import AskedReason

T = TypeVar("T")

MAX_SHOWN = 16
"""Addresses that a Service may show and be told of. Another controller may have written several of one family: what a
Service shows is a hint, and must not keep it, or a whole inventory, from being taken."""


class Checker:
    """Collects violations, so that a request tells all that is wrong with it at once."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def bad(self, field: str, reason: AskedReason, message: str) -> None:
        """Note that a field is wrong."""
        self.violations.append(Violation(field=field, reason=reason, message=message))

    def done(self) -> None:
        """Raise InvalidRequest if anything was."""
        if self.violations:
            raise InvalidRequest(*self.violations)

    def text(self, field: str, value: str, limit: int, *, required: bool = False) -> str:
        """Read a text of at most ``limit`` characters."""
        if required and not value:
            self.bad(field, "Required", "must not be empty")
        if len(value) > limit:
            self.bad(field, "TooLong", f"has {len(value)} characters, {limit} are allowed")
        return value

    def name(self, field: str, value: str, pattern: re.Pattern[str], limit: int, what: str) -> str:
        """Read a name that may be missing; what is none reads as missing."""
        if len(value) > limit:
            self.text(field, value, limit)
        elif value and not pattern.fullmatch(value):
            self.bad(field, "Malformed", f"{value[:64]!r} is no {what}")
        else:
            return value
        return ""

    def enum(self, field: str, table: dict[int, T], value: int, default: T) -> T:
        """Read a value of an enum."""
        found = table.get(value, default)
        if value not in table:
            self.bad(field, "Unsupported", f"value {value} is not known to this host, whose program may be older")
        return found

    def port(self, field: str, value: int, *, optional: bool) -> int | None:
        """Read a port; an ``optional`` one is missing where it is 0."""
        if optional and value == 0:
            return None
        if not 1 <= value <= 65535:
            self.bad(field, "OutOfRange", f"{value} is no port: use 1 to 65535")
        return value

    def parsed(self, field: str, values: Iterable[str], parse: Callable[[str], T], what: str) -> tuple[T, ...]:
        """Read each value by ``parse``; ``what`` it should be is for the message."""
        result: list[T] = []
        for i, value in enumerate(values):
            try:
                result.append(parse(value))
            except ValueError as e:
                self.bad(f"{field}[{i}]", "Malformed", f"{value[:64]!r} is no {what}: {e}")
        return tuple(result)

    def addresses(self, field: str, values: Sequence[str], limit: int = 2) -> tuple[IPAddress, ...]:
        """Read addresses, at most one a family."""
        if len(values) > limit:
            self.bad(field, "TooMany", f"has {len(values)} addresses, {limit} are allowed")
            return ()
        found = self.parsed(field, values, ipaddress.ip_address, "IP address")
        if len({a.version for a in found}) < len(found):
            self.bad(field, "TooMany", "has more than one address of a family")
        return found

    def shown(self, field: str, values: Sequence[str]) -> tuple[IPAddress, ...]:
        """Read the addresses that a Service shows."""
        if len(values) > MAX_SHOWN:
            self.bad(field, "TooMany", f"has {len(values)} addresses, {MAX_SHOWN} are allowed")
            return ()
        return self.parsed(field, values, ipaddress.ip_address, "IP address")

    def service(self, field: str, message: pb.ServiceKey) -> ServiceKey:
        """Read a Service's key."""
        return ServiceKey(
            self.text(f"{field}.namespace", message.namespace, 63, required=True),
            self.text(f"{field}.name", message.name, 63, required=True),
            self.text(f"{field}.uid", message.uid, 64, required=True),
        )
