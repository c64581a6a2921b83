"""What a node says of its host's weight."""

import pytest

from cloudprovider.core.api.kubernetes import Node, NodeSpec
from cloudprovider.core.api.meta import ObjectMeta
from cloudprovider.core.standing import WEIGHT_ANNOTATION, weight_of


def node(weight: str | None = None, *labels: str, cordoned: bool = False) -> Node:
    annotations = {} if weight is None else {WEIGHT_ANNOTATION: weight}
    metadata = ObjectMeta(name="host-1", annotations=annotations, labels=dict.fromkeys(labels, ""))
    return Node(metadata=metadata, spec=NodeSpec(unschedulable=cordoned))


@pytest.mark.parametrize(("text", "value"), [(None, 1), ("0", 0), ("1", 1), ("7", 7), ("100", 100)])
def test_the_annotation_is_the_weight(text: str | None, value: float) -> None:
    weight = weight_of(node(text))
    assert (weight.value, weight.wrong) == (value, "")


@pytest.mark.parametrize("text", ["", "-1", "101", "1.5", "heavy", "1 ", "٣", "9" * 5000])
def test_what_is_no_weight_counts_as_one_and_is_told(text: str) -> None:
    weight = weight_of(node(text))
    assert weight.value == 1
    assert "it counts as 1" in weight.wrong
    assert len(weight.wrong) < 200


def test_a_node_that_is_to_take_nothing_says_why() -> None:
    label = "node.kubernetes.io/exclude-from-external-load-balancers"
    assert weight_of(node("5", cordoned=True)).excluded == "cordoned"
    assert weight_of(node("5", label)).excluded == f"excluded by its label {label}"
    assert weight_of(node("0")).excluded == "of weight 0"
    assert weight_of(None).value == 1
