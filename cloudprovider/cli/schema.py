"""From a typed object to the structural OpenAPI schema that the API server wants of a custom resource.

msgspec gives JSON Schema with references, unions with null and titles; structural schemas
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema)
know none of these. Bounds come from the types' Meta, descriptions from Meta or docstrings, CEL rules from
:mod:`cloudprovider.core.api.validation`.
"""

from collections.abc import Mapping
from textwrap import dedent
from typing import Any

import msgspec

from cloudprovider.core.api.bgp import BGPAnnouncer, BGPSession
from cloudprovider.core.api.loadbalancer import Backend
from cloudprovider.core.api.meta import FILLED_IN, Condition
from cloudprovider.core.api.validation import RULES, Rule

Schema = dict[str, Any]

_REFERENCE = "#/$defs/"
_RULES: Mapping[str, tuple[Rule, ...]] = {type_.__name__: rules for type_, rules in RULES.items()}
_MAP_KEYS: Mapping[str, list[str]] = {
    Condition.__name__: ["type"],
    Backend.__name__: ["name"],
    BGPSession.__name__: ["node"],
    BGPAnnouncer.__name__: ["node"],
}
"""Lists that several field managers share, by the type of their items: merged by these keys in server-side apply."""


def structural(type_: type[msgspec.Struct]) -> Schema:
    """Return the structural schema of ``type_``, everything inlined."""
    _, components = msgspec.json.schema_components([type_])
    return _inline({"$ref": _REFERENCE + type_.__name__}, components)


def _inline(node: Mapping[str, Any], components: Mapping[str, Any]) -> Schema:
    own = {key: value for key, value in node.items() if key not in ("$ref", "anyOf", "default", "title")}
    if "$ref" in node:
        name = str(node["$ref"]).removeprefix(_REFERENCE)
        schema = _inline(components[name], components)
        if rules := _RULES.get(name):
            schema["x-kubernetes-validations"] = [_validation(rule) for rule in rules]
    elif "anyOf" in node:
        schema = _inline(_alternative(node["anyOf"]), components)
    else:
        schema = _expand(own, components)
    schema |= {key: value for key, value in own.items() if key not in schema or key == "description"}
    if default := schema.pop(
        FILLED_IN, node.get("default")
    ):  # None, "", [] and {} say no more than a missing field does
        schema.setdefault("default", default)
    if "description" in schema:
        schema["description"] = _prose(schema["description"])
    return schema


def _expand(node: Schema, components: Mapping[str, Any]) -> Schema:
    schema = dict(node)
    if "enum" in schema:
        schema["type"] = "string"
    match schema.get("type"):
        case "integer":
            wide = "minimum" not in schema or schema.get("maximum", 2**63) >= 2**31
            schema["format"] = "int64" if wide else "int32"
        case "array":
            item = str(schema["items"].get("$ref", "")).removeprefix(_REFERENCE)
            schema["items"] = _inline(schema["items"], components)
            if item in _MAP_KEYS:
                schema |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": _MAP_KEYS[item]}
            else:
                schema["x-kubernetes-list-type"] = "atomic"
        case "object" if "additionalProperties" in schema:
            schema["additionalProperties"] = _inline(schema["additionalProperties"], components)
        case "object":
            schema["properties"] = {
                name: _inline(child, components) for name, child in schema.get("properties", {}).items()
            }
            if not schema.get("required"):
                schema.pop("required", None)
        case _:
            pass
    return schema


def _alternative(options: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The one alternative beside null: a structural schema says "may be missing" instead."""
    (option,) = (option for option in options if option.get("type") != "null")
    return option


def _validation(rule: Rule) -> Schema:
    entry: Schema = {"rule": rule.rule, "message": rule.message, "reason": rule.reason}
    if rule.expression:
        entry["messageExpression"] = rule.expression
    if rule.field:
        entry["fieldPath"] = rule.field
    return entry


def _prose(docstring: str) -> str:
    """A docstring as ``kubectl explain`` shows it: one line a paragraph, no markup."""
    paragraphs = dedent(docstring).replace("``", "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
