"""Label selectors, as objects have them (metav1.LabelSelector). Pure."""

from collections.abc import Collection, Mapping

from cloudprovider.core.api.bgp import LabelExpression, LabelSelector


def any_matches(selectors: Collection[LabelSelector], labels: Mapping[str, str]) -> bool:
    """Whether one of them selects what has these labels; none at all select everything."""
    return not selectors or any(matches(selector, labels) for selector in selectors)


def matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether a selector selects what has these labels; an empty one selects everything."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(expression, labels) for expression in selector.match_expressions
    )


def _holds(expression: LabelExpression, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.key)
    match expression.operator:
        case "In":
            return value is not None and value in expression.values
        case "NotIn":  # as in Kubernetes: also where there is no such label
            return value not in expression.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
