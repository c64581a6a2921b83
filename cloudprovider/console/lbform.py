"""The form of a load balancer for virtual machines: what is posted, what is sent, what is wrong with it. Pure.

Everything in it is text, as it was typed. What can't be a number stays text, in the YAML too, and is told.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self

import msgspec

from cloudprovider.console import bounds
from cloudprovider.console.forms import BLANK, changes, merged_json, rows
from cloudprovider.core.api.loadbalancer import (
    MAX_LISTENERS,
    NETWORK_ANNOTATION,
    HealthCheck,
    Listener,
    LoadBalancer,
    LoadBalancerSpec,
)
from cloudprovider.core.checkrules import KINDS_OF
from cloudprovider.core.checkrules import PROTOCOLS as CHECKS
from cloudprovider.core.errors import Violation
from cloudprovider.core.questions import CODES
from cloudprovider.core.rulings import RuledReason

LISTENER_FIELDS: Final = ("name", "port", "protocol", "backendPort")
LABEL_FIELDS: Final = ("key", "values")
PROTOCOLS: Final = ("TCP", "UDP")
NUMBERS: Final[Mapping[str, str]] = {
    "successThreshold": "success_threshold",
    "failureThreshold": "failure_threshold",
    "periodSeconds": "period_seconds",
    "timeoutSeconds": "timeout_seconds",
}
CHECK_DEFAULTS: Final[Mapping[str, str]] = {
    "port": "",
    "successThreshold": "1",
    "failureThreshold": "3",
    "periodSeconds": "5",
    "timeoutSeconds": "3",
    "protocol": "TCP",
    "path": "",
    "host": "",
    "expectedCodes": "",
    "verifyCertificate": "",
    "certificateAuthority": "",
    "grpcService": "",
    "failedConnections": "Keep",
}
ALIASES: Final[Mapping[str, str]] = {
    "metadata.name": "name",
    "metadata.namespace": "namespace",
    f"metadata.annotations[{NETWORK_ANNOTATION}]": "network",
}
TITLES: Final[Mapping[str, str]] = {
    "ip_pool": "pool",
    "ipam": "IPAM",
    "labels": "backend selector",
    "health_check": "health check",
    "checked": "whether it is checked",
}
USES: Final[Mapping[str, Sequence[str]]] = {
    "path": KINDS_OF["path"],
    "host": KINDS_OF["host"],
    "expectedCodes": KINDS_OF["expected_codes"],
    "verifyCertificate": KINDS_OF["verify_certificate"],
    "certificateAuthority": KINDS_OF["verify_certificate"],
    "grpcService": KINDS_OF["grpc_service"],
}
"""The kinds of check that read a field; with others it is not sent."""
_MALFORMED: Final[Mapping[str, str]] = {
    "path": "is no path: begin with /, and write other characters than those of ASCII as %XX",
    "host": "is no host: a name or an address, with a port where it needs one",
}

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LbForm:
    """What is typed. ``health_check`` by the API's names of its fields; ``checked``: there is to be one."""

    namespace: str = ""
    name: str = ""
    description: str = ""
    ipam: str = "pool"
    ip_pool: str = ""
    network: str = ""
    listeners: tuple[Row, ...] = ()
    labels: tuple[Row, ...] = ()
    checked: bool = False
    health_check: Row = field(default_factory=lambda: CHECK_DEFAULTS)

    @classmethod
    def blank(cls, namespace: str = "") -> Self:
        """A new one."""
        listener = {"name": "", "port": "", "protocol": "TCP", "backendPort": ""}
        return cls(namespace=namespace, listeners=(listener,), labels=({"key": "", "values": ""},))

    @classmethod
    def posted(cls, posted: Mapping[str, str]) -> Self:
        """Read what was posted."""

        def text(name: str) -> str:
            return posted.get(name, "").strip()

        return cls(
            namespace=text("namespace"),
            name=text("name"),
            description=posted.get("description", "").strip().replace("\r\n", "\n"),
            ipam="dhcp" if text("ipam") == "dhcp" else "pool",
            ip_pool=text("ipPool"),
            network=text("network"),
            listeners=tuple(_stripped(rows(posted, "listeners", LISTENER_FIELDS))),
            labels=tuple(_stripped(rows(posted, "backendServerSelector", LABEL_FIELDS))),
            checked=text("healthCheck") == "on",
            health_check={
                name: posted.get(f"healthCheck.{name}", default).strip().replace("\r\n", "\n")
                if name != "verifyCertificate"
                else text("healthCheck.verifyCertificate")
                for name, default in CHECK_DEFAULTS.items()
            },
        )

    @classmethod
    def of(cls, lb: LoadBalancer) -> Self:
        """Fill it in from what there is."""
        spec = lb.spec
        check: dict[str, str] = dict(CHECK_DEFAULTS)
        if spec.health_check is not None:
            found = msgspec.to_builtins(spec.health_check)
            check |= {name: _as_text(found[name]) for name in CHECK_DEFAULTS if name in found}
        return cls(
            namespace=lb.metadata.namespace,
            name=lb.metadata.name,
            description=spec.description,
            ipam="dhcp" if spec.ipam == "dhcp" else "pool",
            ip_pool=spec.ip_pool,
            network=lb.metadata.annotations.get(NETWORK_ANNOTATION, ""),
            listeners=tuple(
                {
                    "name": x.name,
                    "port": str(x.port),
                    "protocol": x.protocol,
                    "backendPort": str(x.backend_port) if x.backend_port is not None else "",
                }
                for x in spec.listeners
            ),
            labels=tuple(
                {"key": key, "values": ", ".join(values)} for key, values in spec.backend_server_selector.items()
            ),
            checked=spec.health_check is not None and spec.health_check.port is not None,
            health_check=check,
        )

    def acted(self, action: str) -> Self:
        """The same with a row more or less: ``add-listener``, ``remove-listener:N``, and so with ``label``."""
        what, _, number = action.partition(":")
        at = int(number) if number.isdecimal() and len(number) < 5 else -1
        match what:
            case "add-listener" if len(self.listeners) < MAX_LISTENERS:
                blank = {"name": "", "port": "", "protocol": "TCP", "backendPort": ""}
                return replace(self, listeners=(*self.listeners, blank))
            case "add-label" if len(self.labels) < 64:
                return replace(self, labels=(*self.labels, {"key": "", "values": ""}))
            case "remove-listener":
                return replace(self, listeners=tuple(x for i, x in enumerate(self.listeners) if i != at))
            case "remove-label":
                return replace(self, labels=tuple(x for i, x in enumerate(self.labels) if i != at))
        return self

    @property
    def slots(self) -> tuple[str, ...]:
        """Where something can be told."""
        single = ("namespace", "name", "description", "ipam", "ipPool", "network")
        lists = ("listeners", "backendServerSelector", "healthCheck")
        listeners = (f"listeners.{i}.{f}" for i in range(len(self.listeners)) for f in LISTENER_FIELDS)
        labels = (f"backendServerSelector.{i}.{f}" for i in range(len(self.labels)) for f in LABEL_FIELDS)
        return (*single, *lists, *listeners, *labels, *(f"healthCheck.{name}" for name in CHECK_DEFAULTS))

    @property
    def annotations(self) -> dict[str, str]:
        """The annotations that the form has a field for."""
        return {NETWORK_ANNOTATION: self.network} if self.network else {}

    @property
    def selector(self) -> dict[str, list[str]]:
        """The labels asked for; a key in two rows has the values of both."""
        found: dict[str, list[str]] = {}
        for row in self.labels:
            if row["key"] or row["values"]:
                found.setdefault(row["key"], []).extend(_values(row["values"]))
        return found

    @property
    def label_selector(self) -> str:
        """The same as the API server's lists take it; empty: nothing is asked for."""
        return ",".join(f"{key} in ({','.join(values)})" for key, values in self.selector.items() if key and values)

    def spec(self) -> dict[str, Any]:
        """The spec as JSON: the fields that the form has, and of these what is set."""
        spec: dict[str, Any] = {"workloadType": "vm", "ipam": self.ipam}
        if self.description:
            spec["description"] = self.description
        if self.ip_pool:
            spec["ipPool"] = self.ip_pool
        spec["listeners"] = [_listener(row) for row in self.listeners]
        spec["backendServerSelector"] = self.selector
        if self.checked:
            spec["healthCheck"] = self._check()
        return spec

    def manifest(self) -> dict[str, Any]:
        """The whole object as it is created."""
        metadata: dict[str, Any] = {"name": self.name, "namespace": self.namespace}
        if self.annotations:
            metadata["annotations"] = self.annotations
        kind = {"apiVersion": "loadbalancer.harvesterhci.io/v1beta1", "kind": "LoadBalancer"}
        return {**kind, "metadata": metadata, "spec": self.spec()}

    def mistakes(self) -> list[Violation]:
        """What is wrong with what was typed, before any rule is asked."""
        return [*self._texts(), *self._numbers(), *self._labels(), *self._check_texts()]

    def sendable(self) -> tuple[Self, tuple[str, ...]]:
        """The same without what can't be sent yet, and the paths of the fields that are not whole for it."""
        whole = tuple(row for row in self.listeners if not any(isinstance(v, str) for v in _numbers_of(row)))
        rest = replace(self, listeners=whole, checked=False)
        return rest, ("spec.listeners", "spec.healthCheck")

    def onto(self, old: LoadBalancer | None) -> LoadBalancer:
        """The load balancer as it would be; of an old one all that the form has no field for stays. Raises ValueError
        for what can't be sent."""
        if old is None:
            return msgspec.convert(self.manifest(), LoadBalancer)
        kept: dict[str, Any] = msgspec.to_builtins(old.spec)
        spec = msgspec.convert(merged_json(kept, self.patch(old).get("spec", {})), LoadBalancerSpec)
        annotations = {k: v for k, v in old.metadata.annotations.items() if k != NETWORK_ANNOTATION} | self.annotations
        return msgspec.structs.replace(
            old, metadata=msgspec.structs.replace(old.metadata, annotations=annotations), spec=spec
        )

    def patch(self, old: LoadBalancer) -> dict[str, Any]:
        """The merge patch that makes ``old`` what the form says; empty: it is that already."""
        before = type(self).of(old)
        patch: dict[str, Any] = {}
        if annotations := changes(before.annotations, self.annotations):
            patch["metadata"] = {"annotations": annotations}
        if spec := changes(before.spec(), self.spec()):
            patch["spec"] = spec
        return patch

    def _check(self) -> dict[str, Any]:
        given, kind = self.health_check, self.health_check["protocol"]
        check: dict[str, Any] = {"port": _number(given["port"]), "protocol": kind}
        check |= {name: _number(given[name]) for name in NUMBERS}
        for name in ("path", "host", "certificateAuthority", "grpcService"):
            if given[name] and kind in USES[name]:
                check[name] = given[name]
        if kind in USES["expectedCodes"] and (codes := _values(given["expectedCodes"])):
            check["expectedCodes"] = codes
        if kind in USES["verifyCertificate"] and given["verifyCertificate"] == "on":
            check["verifyCertificate"] = True
        if given["failedConnections"] != "Keep":
            check["failedConnections"] = given["failedConnections"]
        return check

    def _texts(self) -> Iterable[Violation]:
        if not re.fullmatch(bounds.DNS_LABEL, self.namespace) or len(self.namespace) > 63:
            message = f'"{self.namespace}" is no namespace\'s name' if self.namespace else "choose a namespace"
            yield Violation(field="metadata.namespace", reason=_reason(self.namespace), message=message)
        if not re.fullmatch(bounds.DNS_SUBDOMAIN, self.name) or len(self.name) > 253:
            message = (
                f'"{self.name}" is no name: lower-case letters, digits, "-" and ".", at most 253, a letter or a digit'
                " first and last"
                if self.name
                else "give it a name"
            )
            yield Violation(field="metadata.name", reason=_reason(self.name), message=message)
        for name, kind, attribute, value in (
            ("description", LoadBalancerSpec, "description", self.description),
            ("ipPool", LoadBalancerSpec, "ip_pool", self.ip_pool),
        ):
            yield from _too_long(name, value, bounds.length(kind, attribute))
        if self.network and (self.network.count("/") != 1 or not all(self.network.split("/"))):
            message = f'"{self.network}" is no network: write it as namespace/name, or leave it out'
            yield Violation(field="network", reason="Malformed", message=message)

    def _numbers(self) -> Iterable[Violation]:
        for i, row in enumerate(self.listeners):
            at = f"spec.listeners[{i}]"
            yield from _out_of(f"{at}.port", row["port"], *bounds.numbers(Listener, "port"))
            if row["backendPort"]:
                yield from _out_of(f"{at}.backendPort", row["backendPort"], *bounds.numbers(Listener, "backend_port"))
            yield from _too_long(f"{at}.name", row["name"], bounds.length(Listener, "name"))
            if row["protocol"] not in PROTOCOLS:
                yield Violation(field=f"{at}.protocol", reason="Malformed", message="choose TCP or UDP")
        if self.checked:
            yield from _out_of("spec.healthCheck.port", self.health_check["port"], *bounds.numbers(HealthCheck, "port"))
            for name, attribute in NUMBERS.items():
                low, high = bounds.numbers(HealthCheck, attribute)
                yield from _out_of(f"spec.healthCheck.{name}", self.health_check[name], low, high)

    def _labels(self) -> Iterable[Violation]:
        for i, row in enumerate(self.labels):
            at = f"spec.backendServerSelector[{i}]"
            if not row["key"] and not row["values"]:
                continue
            prefix, slash, name = row["key"].rpartition("/")
            is_key = re.fullmatch(bounds.LABEL_NAME, name) and len(name) <= 63
            if slash:
                is_key = is_key and re.fullmatch(bounds.DNS_SUBDOMAIN, prefix) and len(prefix) <= 253
            if not is_key:
                message = (
                    f'"{row["key"]}" can be no label\'s key: it would match nothing' if row["key"] else "say which"
                )
                yield Violation(field=f"{at}.key", reason="Malformed", message=message)
            for value in _values(row["values"]):
                if len(value) > 63 or not re.fullmatch(bounds.LABEL_NAME, value):
                    rule = '63 letters, digits, "-", "_", "."'
                    message = f'"{value}" can be no label\'s value ({rule}): it would match nothing'
                    yield Violation(field=f"{at}.values", reason="Malformed", message=message)
            if row["key"] and not _values(row["values"]):
                yield Violation(field=f"{at}.values", reason="Required", message="give at least one value")

    def _check_texts(self) -> Iterable[Violation]:
        if not self.checked:
            return
        given, kind, at = self.health_check, self.health_check["protocol"], "spec.healthCheck"
        if kind not in CHECKS:
            yield Violation(field=f"{at}.protocol", reason="Malformed", message=f"choose one of {', '.join(CHECKS)}")
            return
        for name, attribute in (
            ("path", "path"),
            ("host", "host"),
            ("certificateAuthority", "certificate_authority"),
            ("grpcService", "grpc_service"),
        ):
            if kind in USES[name]:
                yield from _too_long(f"{at}.{name}", given[name], bounds.length(HealthCheck, attribute))
        for name, message in _MALFORMED.items():
            if kind in USES[name] and not re.search(bounds.pattern(HealthCheck, name), given[name]):
                yield Violation(field=f"{at}.{name}", reason="Malformed", message=f'"{given[name]}" {message}')
        if kind in USES["expectedCodes"]:
            for code in _values(given["expectedCodes"]):
                if not CODES.fullmatch(code):
                    message = f'"{code}" is no HTTP code: write 200, or 200-299'
                    yield Violation(field=f"{at}.expectedCodes", reason="Malformed", message=message)


def _stripped(found: Iterable[Mapping[str, str]]) -> Iterable[Row]:
    for row in found:
        yield {name: value.strip() for name, value in row.items()}


def _as_text(value: object) -> str:
    match value:
        case bool():
            return "on" if value else ""
        case list():
            return ", ".join(map(str, value))
        case None:
            return ""
        case _:
            return str(value)


def _values(text: str) -> list[str]:
    return [part for part in re.split(r"[\s,]+", text) if part]


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _numbers_of(row: Row) -> list[int | str]:
    return [_number(row["port"]), _number(row["backendPort"] or "1")]


def _listener(row: Row) -> dict[str, Any]:
    listener: dict[str, Any] = {"name": row["name"]} if row["name"] else {}
    listener |= {"port": _number(row["port"]), "protocol": row["protocol"]}
    if row["backendPort"]:
        listener["backendPort"] = _number(row["backendPort"])
    return listener


def _out_of(path: str, text: str, low: int, high: int) -> Iterable[Violation]:
    value = _number(text)
    if isinstance(value, str) or not low <= value <= high:
        message = f'"{text}" is no number from {low} to {high}' if text else f"give a number from {low} to {high}"
        yield Violation(field=path, reason=_reason(text), message=message)


def _reason(text: str) -> RuledReason:
    return "Malformed" if text else BLANK


def _too_long(path: str, text: str, most: int) -> Sequence[Violation]:
    if len(text) <= most:
        return ()
    message = f"{len(text)} characters are too many: at most {most}"
    return (Violation(field=path, reason="TooLong", message=message),)
