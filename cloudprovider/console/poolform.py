"""The form of a pool: what is posted, what is sent, what is wrong with it. Pure; text, as it was typed."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import msgspec

from cloudprovider.console import bounds
from cloudprovider.console.forms import BLANK, changes, merged_json, rows
from cloudprovider.core.api.pool import IPPool, IPPoolSpec, Selector
from cloudprovider.core.errors import Violation
from cloudprovider.core.rulings import RuledReason

RANGE_FIELDS: Final = ("subnet", "rangeStart", "rangeEnd", "gateway", "exclude")
SCOPE_FIELDS: Final = ("project", "namespace", "guestCluster")
RESERVATION_FIELDS: Final = ("address", "namespace", "loadBalancer", "guestCluster", "service")
ALIASES: Final[Mapping[str, str]] = {
    "metadata.name": "name",
}
TITLES: Final[Mapping[str, str]] = {"per_tenant": "addresses of one tenant", "nearly_full": "nearly full from"}
_MOST: Final[Mapping[str, int]] = {"ranges": 64, "scope": 256, "reservations": 256}
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "ranges": RANGE_FIELDS,
    "scope": SCOPE_FIELDS,
    "reservations": RESERVATION_FIELDS,
}

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class PoolForm:
    """What is typed."""

    name: str = ""
    description: str = ""
    network: str = ""
    priority: str = "0"
    per_tenant: str = "0"
    nearly_full: str = "90"
    ranges: tuple[Row, ...] = ()
    scope: tuple[Row, ...] = ()
    reservations: tuple[Row, ...] = ()

    @classmethod
    def blank(cls) -> Self:
        """A new one, for everybody."""
        return cls(ranges=(dict.fromkeys(RANGE_FIELDS, ""),), scope=(dict.fromkeys(SCOPE_FIELDS, "*"),))

    @classmethod
    def posted(cls, posted: Mapping[str, str]) -> Self:
        """Read what was posted."""

        def text(name: str, default: str = "") -> str:
            return posted.get(name, default).strip()

        lists = {
            name: tuple({k: v.strip() for k, v in row.items()} for row in rows(posted, name, columns))
            for name, columns in _FIELDS.items()
        }
        return cls(
            name=text("name"),
            description=text("description").replace("\r\n", "\n"),
            network=text("network"),
            priority=text("priority", "0"),
            per_tenant=text("addressesPerTenant", "0"),
            nearly_full=text("nearlyFullPercent", "90"),
            **lists,
        )

    @classmethod
    def of(cls, pool: IPPool) -> Self:
        """Fill it in from what there is."""
        spec = pool.spec
        return cls(
            name=pool.metadata.name,
            description=spec.description,
            network=spec.selector.network,
            priority=str(spec.selector.priority),
            per_tenant=str(spec.addresses_per_tenant),
            nearly_full=str(spec.nearly_full_percent),
            ranges=tuple(
                {
                    "subnet": r.subnet,
                    "rangeStart": r.range_start,
                    "rangeEnd": r.range_end,
                    "gateway": r.gateway,
                    "exclude": ", ".join(r.exclude),
                }
                for r in spec.ranges
            ),
            scope=tuple(
                {"project": s.project, "namespace": s.namespace, "guestCluster": s.guest_cluster}
                for s in spec.selector.scope
            ),
            reservations=tuple(
                {
                    "address": r.address,
                    "namespace": r.namespace,
                    "loadBalancer": r.load_balancer,
                    "guestCluster": r.guest_cluster,
                    "service": r.service,
                }
                for r in spec.reservations
            ),
        )

    def acted(self, action: str) -> Self:
        """The same with a row more or less: ``add-ranges``, ``remove-ranges:N``, and so with the other lists."""
        what, _, number = action.partition(":")
        verb, _, name = what.partition("-")
        if name not in _FIELDS:
            return self
        found: tuple[Row, ...] = getattr(self, name)
        changed: dict[str, Any] = {}
        if verb == "add" and len(found) < _MOST[name]:
            blank = "*" if name == "scope" else ""
            changed[name] = (*found, dict.fromkeys(_FIELDS[name], blank))
        if verb == "remove" and number.isdecimal() and len(number) < 5:
            changed[name] = tuple(r for i, r in enumerate(found) if i != int(number))
        return replace(self, **changed)

    @property
    def slots(self) -> tuple[str, ...]:
        """Where something can be told."""
        single = ("name", "description", "network", "priority", "addressesPerTenant", "nearlyFullPercent")
        cells = (
            f"{name}.{i}.{column}"
            for name, columns in _FIELDS.items()
            for i in range(len(getattr(self, name)))
            for column in columns
        )
        return (*single, *_FIELDS, *cells)

    def spec(self) -> dict[str, Any]:
        """The spec as JSON: the fields that the form has, and of these what is set."""
        selector: dict[str, Any] = {}
        if self.network:
            selector["network"] = self.network
        if self.priority not in ("", "0"):
            selector["priority"] = _number(self.priority)
        if self.scope:
            selector["scope"] = [_filled(row) for row in self.scope]
        spec: dict[str, Any] = {"description": self.description} if self.description else {}
        spec["ranges"] = [_filled(row) | _excluded(row) for row in self.ranges]
        if selector:
            spec["selector"] = selector
        if self.reservations:
            spec["reservations"] = [_filled(row) for row in self.reservations]
        if self.per_tenant not in ("", "0"):
            spec["addressesPerTenant"] = _number(self.per_tenant)
        if self.nearly_full not in ("", "90"):
            spec["nearlyFullPercent"] = _number(self.nearly_full)
        return spec

    def manifest(self) -> dict[str, Any]:
        """The whole object as it is created."""
        kind = {"apiVersion": "loadbalancer.harvesterhci.io/v1beta1", "kind": "IPPool"}
        return {**kind, "metadata": {"name": self.name}, "spec": self.spec()}

    def patch(self, old: IPPool) -> dict[str, Any]:
        """The merge patch that makes ``old`` what the form says; empty: it is that already."""
        spec = changes(type(self).of(old).spec(), self.spec())
        return {"spec": spec} if spec else {}

    def onto(self, old: IPPool | None) -> IPPool:
        """The pool as it would be. Raises ValueError for what can't be sent."""
        if old is None:
            return msgspec.convert(self.manifest(), IPPool)
        kept: dict[str, Any] = msgspec.to_builtins(old.spec)
        spec = msgspec.convert(merged_json(kept, self.patch(old).get("spec", {})), IPPoolSpec)
        return msgspec.structs.replace(old, spec=spec)

    def sendable(self) -> tuple[Self, tuple[str, ...]]:
        """The same without what can't be sent yet, and the paths of the fields that are not whole for it."""
        return replace(self, priority="0", per_tenant="0", nearly_full="90"), ("spec.selector.priority",)

    def mistakes(self) -> list[Violation]:
        """What is wrong with what was typed, before any rule is asked."""
        return [*self._texts(), *self._rows()]

    def _texts(self) -> Iterable[Violation]:
        if not re.fullmatch(bounds.DNS_SUBDOMAIN, self.name) or len(self.name) > 253:
            told = (
                f'"{self.name}" is no name: lower-case letters, digits, "-" and ".", a letter or a digit at both ends'
            )
            reason: RuledReason = "Malformed" if self.name else BLANK
            yield Violation(field="metadata.name", reason=reason, message=told if self.name else "give it a name")
        if self.network and (self.network.count("/") != 1 or not all(self.network.split("/"))):
            message = f'"{self.network}" is no network: write it as namespace/name, or leave it out'
            yield Violation(field="spec.selector.network", reason="Malformed", message=message)
        for slot, text, kind, attribute in (
            ("priority", self.priority, Selector, "priority"),
            ("addressesPerTenant", self.per_tenant, IPPoolSpec, "addresses_per_tenant"),
            ("nearlyFullPercent", self.nearly_full, IPPoolSpec, "nearly_full_percent"),
        ):
            low, high = bounds.numbers(kind, attribute)
            value = _number(text or "0") if slot != "nearlyFullPercent" else _number(text or "90")
            if isinstance(value, str) or not low <= value <= high:
                message = f'"{text}" is no number from {low} to {high}'
                yield Violation(field=slot, reason="Malformed", message=message)

    def _rows(self) -> Iterable[Violation]:
        if not self.ranges:
            yield Violation(field="spec.ranges", reason=BLANK, message="a pool needs at least one range")
        for i, row in enumerate(self.ranges):
            if not row["subnet"]:
                message = "give a subnet, such as 192.168.1.0/24"
                yield Violation(field=f"spec.ranges[{i}].subnet", reason=BLANK, message=message)
        for i, row in enumerate(self.reservations):
            at = f"spec.reservations[{i}]"
            for name in ("address", "namespace"):
                if not row[name]:
                    yield Violation(field=f"{at}.{name}", reason=BLANK, message="is needed")
            if bool(row["loadBalancer"]) == bool(row["guestCluster"] and row["service"]):
                message = "name a load balancer, or a guest cluster and its Service"
                yield Violation(field=f"{at}.loadBalancer", reason=BLANK, message=message)


def _filled(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value and name != "exclude"}


def _excluded(row: Row) -> dict[str, Any]:
    found = [part for part in re.split(r"[\s,]+", row["exclude"].replace(" - ", "-")) if part]
    return {"exclude": found} if found else {}


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 11 else text
